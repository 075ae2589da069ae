# Completes an interrupted dpkg, moves aside wrong sources of the script before
# this program, and writes our files.
# stdin: the repository's URI, then for each file "PATH MODE LINES" and that many
# lines; a file without lines is removed.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
d=/etc/apt/sources.list.d
IFS= read -r uri || exit 1
uri=${uri%/}
uri=${uri#*://}

if [ -n "$(ls /var/lib/dpkg/updates 2>/dev/null)" ] || [ -n "$(dpkg --audit 2>/dev/null)" ]; then
    echo "interrupted yes"
    dpkg --force-confdef --force-confold --configure -a </dev/null >&2 || { echo "interrupted stays"; exit 1; }
fi

# The repositories in a source file, as apt reads it; fails if apt cannot read
# the file. Prints the file first, for an apt-get that does not end in time, and
# limits its output.
names() {
    echo "apt-get reads $1" >&2
    said=$(apt-get -o "Dir::Etc::sourcelist=$1" -o Dir::Etc::sourceparts=- indextargets \
        --no-release-info --format '$(CREATED_BY) $(ARCHITECTURE) $(REPO_URI)' </dev/null 2>&1 |
        head -c 1048576 | grep -a -e '^Packages ' -e 'sources could not be read')
    case $said in *"sources could not be read"*) return 1 ;; esac
}

# Because of one line that it cannot read, apt rejects all sources.
f=$d/nvidia.list
if [ -f "$f" ] && ! names "$f"; then
    aside "$f"
fi
# apt ignores it because of its name, with a notice at every call.
f=$d/nvidia.conf
if [ -f "$f" ] && grep -qE '^[[:space:]]*deb[[:space:]]' "$f" &&
    grep -qF -e developer.download.nvidia.com/compute/cuda/repos -e "$uri" "$f"; then
    aside "$f"
fi

# The same repository twice with different keys is an error of apt as a whole.
elsewhere=
native=$(dpkg --print-architecture)
for f in /etc/apt/sources.list "$d"/*.list "$d"/*.sources; do
    [ "$f" = "$source" ] || [ ! -f "$f" ] && continue
    names "$f" || continue
    while read -r kind arch it; do
        # A flat repository has none: apt leaves the word as it is.
        case $arch in "$native" | *ARCHITECTURE*) ;; *) continue ;; esac
        # By another scheme or with a login it is still the same repository.
        it=${it#*://}
        case ${it%%/*} in *@*) it=${it#*@} ;; esac
        [ "$kind" = Packages ] && [ "${it%/}" = "$uri" ] && elsewhere=$f
    done <<END
$said
END
    [ "$elsewhere" = "$f" ] && echo "elsewhere $f"
done

[ -n "$elsewhere" ] && remove_source for

signed=
while IFS=' ' read -r path mode lines; do
    if [ "$lines" = 0 ]; then
        rm -f "$path" || exit 1
        continue
    fi
    # Unique; only root can write to it, and read it before its mode is set.
    new=$path.phoenix-nvidia.$$
    mkdir -p "${path%/*}" && rm -f "$new" && (umask 077 && : >"$new") || exit 1
    n=0
    while [ "$n" -lt "$lines" ] && IFS= read -r line; do
        [ "$line" = "Signed-By: $shared" ] && line="Signed-By: $signed"
        printf '%s\n' "$line"
        n=$((n + 1))
    done >"$new" || exit 1
    [ "$n" = "$lines" ] || { rm -f "$new"; exit 1; }
    case $path in
    *.gpg)
        base64 -d <"$new" >"$new.bin" && mv -f "$new.bin" "$new" || { rm -f "$new" "$new.bin"; exit 1; }
        signed=$path
        ;;
    esac
    # A keyring of somebody else with other keys stays.
    if [ "$path" = "$shared" ] && [ -e "$path" ] && ! shared_is_ours && ! cmp -s "$new" "$path"; then
        mv -f "$new" "$key.new" || exit 1
        new=$key.new
        path=$key
        signed=$key
    elif [ "$path" = "$shared" ] && [ ! -e "$path" ] && [ -z "$elsewhere" ]; then
        mkdir -p "$own" && : >"$own/keyring" || exit 1
    fi
    skip=
    case $path in
    "$source" | /usr/share/keyrings/*) skip=$elsewhere ;;
    esac
    if [ -n "$skip" ]; then
        rm -f "$new"
    elif cmp -s "$new" "$path"; then
        chmod "$mode" "$path" && rm -f "$new"
        echo "same $path"
    else
        chmod "$mode" "$new" && mv -f "$new" "$path" || exit 1
        echo "wrote $path"
    fi
done
[ "$signed" = "$key" ] || rm -f "$key"
rm -f "${key%.gpg}.asc"

# Ours is not the one that makes apt unreadable, whatever else there is.
if [ -z "$elsewhere" ]; then
    said=$(apt-get indextargets --no-release-info --format '$(CREATED_BY)' </dev/null 2>&1 |
        head -c 1048576 | grep -a '^E:')
    case $said in
    *"sources could not be read"*)
        remove_source
        printf '%s\n' "$said" | sed -n '1s/^/unreadable /p'
        ;;
    esac
fi
# Lists of other repositories: without them, apt knows no package of the
# distribution that ours need.
for f in /var/lib/apt/lists/*_Packages* /var/lib/apt/lists/*_InRelease; do
    [ -e "$f" ] && echo "lists yes" && break
done
echo "end 1"
