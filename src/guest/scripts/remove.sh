# Removes all files of ours. $1: "keep" to keep the preferences, which belong to the
# driver: they keep apt from replacing it. $2...: lists in $own to keep, of what is
# still there.
preferences=/etc/apt/preferences.d/phoenix-nvidia
[ "$1" = keep ] && preferences=
shift
marks=$own
kept=
for name in "$@"; do
    [ -e "$own/$name" ] && kept="$kept $name " && marks=
done
found=
for f in $preferences "$source" /etc/apt/auth.conf.d/phoenix-nvidia.conf "$key" "${key%.gpg}.asc" "$shared" $marks; do
    [ -e "$f" ] && found="$found $f"
done
remove_source >/dev/null
rm -rf $preferences $marks
if [ -z "$marks" ]; then
    for f in "$own"/*; do
        case $kept in *" ${f##*/} "*) ;; *) rm -rf "$f" ;; esac
    done
fi
left=0
for f in $found; do
    if [ ! -e "$f" ]; then
        echo "removed $f"
    elif [ "$f" != "$shared" ]; then
        left=1
    fi
done
exit $left
