# What doctor looks for inside: prints "key value" lines, from files only.
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
[ -f /var/lib/nvidia/log ] && echo "runfile installed"
echo "end 1"
exit 0
