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
    grep -qxF "$1" "$list" 2>/dev/null && return 0
    mkdir -p "$own" && printf '%s\n' "$1" >>"$list"
}

# The name for $1 put aside that has the number $2.
aside() {
    if [ "$2" = 1 ]; then echo "$1.phoenix-nvidia"; else echo "$1.phoenix-nvidia.$2"; fi
}

there() {
    [ -e "$1" ] || [ -L "$1" ]
}

# Puts $1 aside; what was put aside before stays as it is.
put_aside() {
    n=1
    while there "$(aside "$1" $n)" && ! cmp -s "$1" "$(aside "$1" $n)"; do n=$((n + 1)); done
    note "aside $1" && mv -f "$1" "$(aside "$1" $n)" && echo "aside $(aside "$1" $n)"
}

# Puts back the $1 that was put aside last.
restore() {
    there "$1" && return 0
    last=
    n=1
    while there "$(aside "$1" $n)"; do
        last=$(aside "$1" $n)
        n=$((n + 1))
    done
    [ -z "$last" ] || { mv -f "$last" "$1" && echo "restored $1"; }
}

if [ "$1" = remove ]; then
    put "$first" ""
    put "$second" ""
    [ -f "$list" ] || { echo "end 1"; exit 0; }
    failed=
    while read -r what path; do
        case $what in
        aside) restore "$path" || failed=$path ;;
        made) rmdir "$path" 2>/dev/null ;;
        daemon)
            [ -f "$path" ] && [ "$(cat "$path")" = '{"features":{"cdi":true}}' ] || continue
            if rm -f "$path"; then echo "removed $path"; else failed=$path; fi
            ;;
        esac
    done <"$list"
    # The list says what is still to be done.
    [ -z "$failed" ] || fail "$failed"
    rm -f "$list" || fail "$list"
    rmdir "$own" 2>/dev/null
    echo "end 1"
    exit 0
fi

IFS= read -r one
IFS= read -r two
if [ "$2" = replace ]; then
    others | while IFS= read -r f; do put_aside "$f"; done
fi
# Of two descriptions the engines use neither: then theirs stays alone.
theirs=$(others)
[ -z "$theirs" ] || { one= two=; }
if [ -n "$one$two" ] && [ ! -d /etc/cdi ]; then
    mkdir -p /etc/cdi || fail /etc/cdi
    note "made /etc/cdi"
fi
put "$first" "$one"
put "$second" "$two"
[ "$2" = replace ] && [ -n "$theirs" ] && fail "$(printf '%s\n' "$theirs" | head -n 1)"

# Where nothing is described nothing else is changed.
[ -n "$one$two$theirs" ] || { echo "end 1"; exit 0; }

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
    rm -f "$toolkit.new"
fi
if [ "$3" = daemon ] && no_settings; then
    mkdir -p "${daemon%/*}" && note "daemon $daemon" && printf '{"features":{"cdi":true}}\n' >"$daemon.new" &&
        mv -f "$daemon.new" "$daemon" && echo "daemon $daemon"
    rm -f "$daemon.new"
fi
echo "end 1"
exit 0
