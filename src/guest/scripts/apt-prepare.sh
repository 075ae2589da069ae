# Completes an interrupted dpkg, takes away what the older script of this
# purpose wrote wrongly, and puts our files in place. $1: the repository's URI.
# stdin: for each file "PATH LINES" and so many lines.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
uri=${1%/}
d=/etc/apt/sources.list.d
ours=$d/phoenix-nvidia.sources

if [ -n "$(ls /var/lib/dpkg/updates 2>/dev/null)" ] || [ -n "$(dpkg --audit 2>/dev/null)" ]; then
    echo "interrupted yes"
    dpkg --force-confdef --force-confold --configure -a </dev/null >&2 || { echo "interrupted stays"; exit 1; }
fi

# nvidia.conf is ignored by apt for its name; a line whose suite is not "/"
# makes apt give up all of its sources.
nvidia='developer\.download\.nvidia\.com/compute/cuda/repos'
for f in "$d/nvidia.conf" "$d/nvidia.list"; do
    [ -f "$f" ] || continue
    if grep -E "^[[:space:]]*deb[[:space:]]" "$f" | grep -e "$nvidia" | grep -qvE '/[[:space:]]+/[[:space:]]*$' ||
        grep -E "^[[:space:]]*deb[[:space:]]" "$f" | grep -F "$uri" | grep -qvE '[[:space:]]/[[:space:]]*$' ||
        { [ "$f" = "$d/nvidia.conf" ] && grep -qe "$nvidia" -e "$uri" "$f"; }; then
        rm -f "$f" && echo "removed $f"
    fi
done

# The same repository twice with different keys is an error for all of apt.
elsewhere=
for f in /etc/apt/sources.list "$d"/*.list "$d"/*.sources; do
    [ "$f" = "$ours" ] || [ ! -f "$f" ] && continue
    grep -vE '^[[:space:]]*#' "$f" | grep -qF "$uri" && elsewhere=$f && echo "elsewhere $f"
done

while IFS=' ' read -r path lines; do
    # Unique, and not one that anybody but root can write to.
    new=$path.phoenix-nvidia.$$
    mkdir -p "${path%/*}" && rm -f "$new" && : >"$new" || exit 1
    n=0
    while [ "$n" -lt "$lines" ] && IFS= read -r line; do
        printf '%s\n' "$line"
        n=$((n + 1))
    done >"$new" || exit 1
    if [ "$n" != "$lines" ] || { [ "$path" = "$ours" ] && [ -n "$elsewhere" ]; }; then
        rm -f "$new"
    elif cmp -s "$new" "$path"; then
        rm -f "$new"
        echo "same $path"
    else
        chmod 644 "$new" && mv -f "$new" "$path" || exit 1
        echo "wrote $path"
    fi
done
# Lists of other repositories: without any, packages that ours need from the
# distribution are not known.
for f in /var/lib/apt/lists/*_Packages* /var/lib/apt/lists/*_InRelease; do
    [ -e "$f" ] && echo "lists yes" && break
done
echo "end 1"
