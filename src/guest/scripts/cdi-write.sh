# Writes or removes the descriptions for the engines, each file whole or not at all.
# What was done, as "key value" lines; for any POSIX sh.
# $1: "write" or "remove"; $2: "replace" to put others aside; $3: "daemon" to switch
# Docker's CDI on where it has no settings. Its input: one line for each file.
first=/etc/cdi/phoenix-nvidia.json
second=/etc/cdi/phoenix-nvidia-index.json
echo "begin 1"

fail() {
    echo "failed $1"
    exit 1
}

# $1: the file, $2: its text; without a text it goes.
put() {
    if [ -z "$2" ]; then
        [ ! -e "$1" ] && return 0
        rm -f "$1" && echo "removed $1" && return 0
        fail "$1"
    fi
    [ -f "$1" ] && [ "$(cat "$1")" = "$2" ] && echo "same $1" && return 0
    # The engines read what ends in .json.
    printf '%s\n' "$2" >"$1.new" && chmod 0644 "$1.new" && mv -f "$1.new" "$1" && echo "wrote $1" && return 0
    rm -f "$1.new"
    fail "$1"
}

note() {
    mkdir -p "$own" && printf '%s\n' "$1" >>"$list"
}

if [ "$1" = remove ]; then
    put "$first" ""
    put "$second" ""
    [ -f "$list" ] || { echo "end 1"; exit 0; }
    while read -r what path; do
        case $what in
        aside) [ -e "$path" ] || { mv "$path.phoenix-nvidia" "$path" && echo "restored $path"; } ;;
        made) rmdir "$path" 2>/dev/null ;;
        daemon) [ "$(cat "$path")" = '{"features":{"cdi":true}}' ] && rm -f "$path" && echo "removed $path" ;;
        esac
    done <"$list"
    rm -f "$list"
    rmdir "$own" 2>/dev/null
    echo "end 1"
    exit 0
fi

IFS= read -r one
IFS= read -r two
if [ "$2" = replace ]; then
    others | while IFS= read -r f; do
        note "aside $f" && mv -f "$f" "$f.phoenix-nvidia" && echo "aside $f"
    done
fi
# Of two descriptions the engines use neither: then theirs stays alone.
if [ -n "$(others)" ]; then
    one=
    two=
elif [ ! -d /etc/cdi ]; then
    mkdir -p /etc/cdi || fail /etc/cdi
    note "made /etc/cdi"
fi
put "$first" "$one"
put "$second" "$two"

# What Docker's older NVIDIA runtime may not do in a container.
if [ -f "$toolkit" ] && [ ! -L "$toolkit" ] && ! no_cgroups; then
    if grep -Eq '^[#[:space:]]*no-cgroups[[:space:]]*=' "$toolkit"; then
        edit='s/^[#[:space:]]*no-cgroups[[:space:]]*=.*/no-cgroups = true/'
    else
        edit='s/^\[nvidia-container-cli\].*/&\
no-cgroups = true/'
    fi
    # A copy keeps mode and owner.
    cp -p "$toolkit" "$toolkit.new" && sed "$edit" "$toolkit" >"$toolkit.new" && mv -f "$toolkit.new" "$toolkit" &&
        no_cgroups && echo "no-cgroups $toolkit"
fi
if [ "$3" = daemon ] && [ ! -e "$daemon" ]; then
    mkdir -p "${daemon%/*}" && printf '{"features":{"cdi":true}}\n' >"$daemon.new" && mv -f "$daemon.new" "$daemon" &&
        note "daemon $daemon" && echo "daemon $daemon"
fi
echo "end 1"
exit 0
