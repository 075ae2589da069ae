# Takes a file from stdin. $1: its path, which is predictable and in a
# directory that everybody may write to: nothing that is there already may be
# written through.
rm -rf "$1" || exit 1
set -C
umask 077
cat >"$1" || exit 1
chmod 700 "$1" || exit 1
echo "size $(wc -c <"$1")"
echo "sha256 $(sha256sum <"$1")"
