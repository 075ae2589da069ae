# Removes all files of ours. $1: "keep" to keep the preferences, which belong to the
# driver: they keep apt from replacing it.
preferences=/etc/apt/preferences.d/phoenix-nvidia
[ "$1" = keep ] && preferences=
found=
for f in $preferences "$source" /etc/apt/auth.conf.d/phoenix-nvidia.conf "$key" "${key%.gpg}.asc" "$shared" "$own"; do
    [ -e "$f" ] && found="$found $f"
done
remove_source >/dev/null
rm -rf $preferences "$own"
left=0
for f in $found; do
    if [ ! -e "$f" ]; then
        echo "removed $f"
    elif [ "$f" != "$shared" ]; then
        left=1
    fi
done
exit $left
