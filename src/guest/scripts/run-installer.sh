# Runs the runfile. $1: its path, $2: a directory to unpack in, $3: the version,
# $4...: the installer's options. The mark shows an interrupted install to the
# next probe, until the result is confirmed.
file=$1
dir=$2
own=/var/lib/phoenix-nvidia
mkdir -p "$own" && printf '%s\n' "$3" >"$own/driver.installing" || exit 1
shift 3
rm -rf "$dir"
(umask 077 && mkdir "$dir") || exit 1
TMPDIR=$dir sh "$file" "$@"
rc=$?
rm -rf "$dir" "$file"
exit $rc
