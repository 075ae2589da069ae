# What apt would do for the packages in $@, and whether there is space.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
tag() {
    sed "s/^/$1 /"
}
said=$(apt-get -s --no-install-recommends install "$@" </dev/null 2>&1)
rc=$?
printf '%s\n' "$said" | tag sim
echo "sim-rc $rc"
if [ $rc != 0 ]; then
    # Only to name what our own preferences keep out.
    apt-get -s --no-install-recommends -o Dir::Etc::preferencesparts=/nonexistent \
        -o Dir::Etc::preferences=/nonexistent install "$@" </dev/null 2>&1 | tag open
else
    apt-get --assume-no --no-install-recommends install "$@" </dev/null 2>&1 | tag size
fi
free_kb() {
    df -Pk "$1" 2>/dev/null | { read -r _ && read -r _ _ _ kb _ && echo "$kb"; }
}
echo "free $(free_kb /var/cache/apt/archives) $(free_kb /usr)"
