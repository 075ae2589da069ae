# Takes a file from stdin. $1: its path, which is predictable and in a
# directory that everybody may write to: nothing that is there already may be
# written through.
rm -rf "$1" || exit 1
set -C
umask 077
: >"$1" || exit 1
# Noclobber only minds regular files: who was quick enough to put a fifo there
# would choose what is run.
[ -f "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] || { echo "$1 is not the file that was made there"; exit 1; }
# From here on it is ours, and in a sticky directory nobody else can swap it.
set +C
if command -v sha256sum >/dev/null; then
    sum=$(tee "$1" | sha256sum)
    echo "sha256 $sum"
else
    cat >"$1"
fi
chmod 700 "$1" || exit 1
echo "size $(wc -c <"$1")"
