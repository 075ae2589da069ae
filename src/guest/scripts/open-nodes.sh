# Opens each device node and prints the result. Only devices are opened: a mount
# entry whose source is missing leaves an empty file.
LC_ALL=C
export LC_ALL
for node in "$@"; do
    if [ -d "$node" ]; then
        echo "node $node directory"
    elif [ ! -e "$node" ]; then
        echo "node $node absent"
    elif [ ! -c "$node" ]; then
        echo "node $node file"
    else
        why=$( (exec 3<"$node") 2>&1) && why=opens
        printf 'node %s %s\n' "$node" "${why##*: }"
    fi
done
