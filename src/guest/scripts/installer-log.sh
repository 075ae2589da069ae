# The errors in the installer's log, else its last lines. $1: the log.
[ -f "$1" ] || exit 0
grep '^ERROR' "$1" | tail -n 4 || true
[ -n "$(grep -m 1 '^ERROR' "$1")" ] || tail -n 4 "$1"
