# Writes stdin to a file. $1: its path, predictable and in a directory where
# everybody can write: never write through what exists there.
rm -rf "$1" || exit 1
set -C
umask 077
: >"$1" || exit 1
# Noclobber protects only regular files: who put a fifo there in time would choose
# what is run.
[ -f "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] || { echo "$1 is not the file that was made there"; exit 1; }
# Now it is ours, and in a sticky directory nobody else can replace it.
set +C
if command -v sha256sum >/dev/null; then
    sum=$(tee "$1" | sha256sum)
    echo "sha256 $sum"
else
    cat >"$1"
fi
chmod 700 "$1" || exit 1
echo "size $(wc -c <"$1")"
