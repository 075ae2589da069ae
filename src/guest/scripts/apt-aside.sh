# Moves a source of apt aside, under a name that apt passes over in silence and
# that nothing has yet. Nothing of the container's owner is ever deleted.
aside() {
    new=$1.disabled
    n=0
    while [ -e "$new" ] || [ -L "$new" ]; do
        n=$((n + 1))
        [ $n -lt 100 ] || return 1
        new=$1.$n.disabled
    done
    mv "$1" "$new" && echo "aside $1, now $new"
}
