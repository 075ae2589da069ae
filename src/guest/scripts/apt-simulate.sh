# Simulates the install of the packages in $@, and reports the free space.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
tag() {
    sed "s/^/$1 /"
}
said=$(apt-get -s --no-install-recommends install "$@" </dev/null 2>&1)
rc=$?
printf '%s\n' "$said" | tag sim
echo "sim-rc $rc"
if [ $rc != 0 ]; then
    # Only to show which packages our preferences refuse.
    apt-get -s --no-install-recommends -o Dir::Etc::preferencesparts=/nonexistent \
        -o Dir::Etc::preferences=/nonexistent install "$@" </dev/null 2>&1 | tag open
else
    # Not --assume-no: apt would install what it need not ask about.
    new=$(printf '%s\n' "$said" | sed -n 's/^Inst \([^ ]*\) .*(\([^ ]*\) .*/\1=\2/p')
    # Names and versions have no blanks.
    [ -z "$new" ] || apt-cache show --no-all-versions $new 2>/dev/null |
        sed -n -e 's/^Size: /size archive /p' -e 's/^Installed-Size: /size unpacked /p'
fi
free_kb() {
    df -Pk "$1" 2>/dev/null | { read -r _ && read -r _ _ _ kb _ && echo "$kb"; }
}
archives=$(free_kb /var/cache/apt/archives)
usr=$(free_kb /usr)
echo "free ${archives:--} ${usr:--}"
