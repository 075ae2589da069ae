# What doctor looks for inside: prints "key value" lines, from files only. $@: the
# files of ours.
LC_ALL=C
export LC_ALL
echo "begin 1"
for f in /etc/systemd/system/*.wants/nvidia-persistenced.service; do
    [ -L "$f" ] && echo "persistenced enabled"
done
for f in /proc/[0-9]*/comm; do
    IFS= read -r name <"$f" 2>/dev/null || continue
    case $name in
    nvidia-persiste*) echo "persistenced running" ;;
    dockerd) echo "docker running" ;;
    esac
done
for f in /usr/bin/dockerd /usr/local/bin/dockerd /usr/sbin/dockerd; do
    [ -x "$f" ] && echo "docker installed"
done
config=/etc/nvidia-container-runtime/config.toml
if [ -f "$config" ]; then
    echo "toolkit config"
    n=0
    while [ $n -lt 500 ] && IFS= read -r line; do
        n=$((n + 1))
        case $line in
        no-cgroups*=*true*) echo "no-cgroups true" ;;
        esac
    done <"$config"
elif [ -x /usr/bin/nvidia-container-cli ] || [ -x /usr/bin/nvidia-container-runtime ]; then
    echo "toolkit installed"
fi
# Files that name a library of a driver version: is it there?
stale() {
    of=$1
    shift
    for f; do
        [ -f "$f" ] || continue
        kind=$of
        case $f in /etc/cdi/phoenix-nvidia*) kind=own ;; esac
        n=0
        while [ $n -lt 2000 ] && IFS= read -r line; do
            n=$((n + 1))
            case $line in *lib*.so.[0-9]*.[0-9]*) words ;; esac
        done <"$f"
    done
}
# The words of $line, without quotes; nothing is expanded in them. Where a file of a
# CDI description goes is in the nested container: the path after containerPath is
# not looked at.
words() {
    set -f
    IFS=" '\","
    inner=
    for word in $line; do
        case $word in
        *containerPath | *containerPath:) inner=1 && continue ;;
        /*) [ -z "$inner" ] || { inner= && continue; } ;;
        esac
        case $word in
        *:* | */libnvidia-egl-*) ;;
        /*/lib*.so.[0-9]*.[0-9]*) [ -e "$word" ] || echo "stale $kind" ;;
        */*) ;;
        lib*.so.[0-9]*.[0-9]*) here "$word" || echo "stale $kind" ;;
        esac
    done
    unset IFS
    set +f
}
here() {
    for directory in /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 /usr/lib; do
        [ -e "$directory/$1" ] && return 0
    done
    return 1
}
stale cdi /etc/cdi/*nvidia*.yaml /etc/cdi/*nvidia*.json /var/run/cdi/*nvidia*.yaml /var/run/cdi/*nvidia*.json
stale opencl /etc/OpenCL/vendors/nvidia.icd
for f in "$@"; do
    [ -e "$f" ] && echo "left $f"
done
[ -f /var/lib/nvidia/log ] && echo "runfile installed"
echo "end 1"
exit 0
