# Moves an apt source aside, to a new name that apt ignores silently. Never
# deletes a file of the container's owner.
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
