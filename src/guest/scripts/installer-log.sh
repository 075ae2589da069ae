# The installer's own reasons, or at least its last words. $1: its log.
[ -f "$1" ] || exit 0
grep '^ERROR' "$1" | tail -n 4 || true
[ -n "$(grep -m 1 '^ERROR' "$1")" ] || tail -n 4 "$1"
