# What is installed, as "key value" lines. Usually shell built-ins only, since it
# runs at every start; for any POSIX sh.
# $1: "smi" to run nvidia-smi too; $2...: packages to look for.
ask=$1
shift
own=/var/lib/phoenix-nvidia
info=/var/lib/dpkg/info

echo "begin 1"

n=0
release=/etc/os-release
[ -e "$release" ] || release=/usr/lib/os-release
if [ -f "$release" ]; then
    while [ $n -lt 80 ] && IFS= read -r line; do
        n=$((n + 1))
        case $line in
        ID=* | ID_LIKE=* | VERSION_ID=* | VERSION_CODENAME=* | UBUNTU_CODENAME=* | PRETTY_NAME=*)
            printf 'os %s\n' "$line" ;;
        esac
    done <"$release"
fi
libc
[ -e /etc/NIXOS ] && echo "nixos /etc/NIXOS"
for f in /sbin/init /usr/sbin/init /lib/systemd/systemd; do
    [ -x "$f" ] && echo "init $f" && break
done
[ -x /usr/bin/apt-get ] && echo "apt-get /usr/bin/apt-get"
command -v modprobe >/dev/null && echo "modprobe yes"
[ -d /run/systemd/system ] && echo "systemd yes"

# The driver's files. Programs load the link; the names have the version.
libs=
for d in /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 /usr/lib; do
    [ -L "$d" ] && continue
    for f in "$d/glibc-hwcaps/x86-64-v2" "$d/phoenix-nvidia"; do
        # The host's, mounted: its second line has the version.
        [ -f "$f/.phoenix-nvidia" ] || continue
        {
            IFS= read -r line
            IFS=' ' read -r key line
            printf 'host-driver %s\n' "$line"
        } <"$f/.phoenix-nvidia"
    done
    # Where it would be mounted: what is there and none of ours.
    for f in "$d/glibc-hwcaps/x86-64-v2" "$d/x86_64" "$d/phoenix-nvidia"; do
        [ -f "$f/.phoenix-nvidia" ] && continue
        # As link.sh looks below a mount.
        for g in "$f"/* "$f"/.[!.]* "$f"/..?*; do
            [ -e "$g" ] || [ -L "$g" ] || continue
            echo "occupied $f"
            break
        done
    done
    for name in libnvidia-ml libcuda; do
        for f in "$d/$name".so.[0-9]*.[0-9]*; do
            [ -e "$f" ] || continue
            libs=$f
            echo "lib $f"
            [ "$d/$name.so.1" -ef "$f" ] && echo "link $name ${f##*.so.}"
        done
        # Debian's packages have theirs in a directory of their own.
        for f in "$d"/nvidia/*/"$name".so.[0-9]*.[0-9]*; do
            [ "$d/$name.so.1" -ef "$f" ] || continue
            libs=$f
            echo "lib $f"
            echo "link $name ${f##*.so.}"
        done
    done
done
for f in /usr/bin/nvidia-smi; do
    [ -x "$f" ] && echo "smi $f"
done
if [ -f /var/lib/nvidia/log ]; then
    IFS= read -r line </var/lib/nvidia/log && printf 'state %s\n' "$line"
fi
if [ -f "$own/links" ]; then
    echo "links $own/links"
    n=0
    while [ $n -lt 500 ] && IFS=' ' read -r path target; do
        n=$((n + 1))
        # That of somebody else was in its place.
        [ "$path" = "!" ] && path=$target
        if [ "$path" != - ] && [ ! -e "$path" ] && [ ! -L "$path" ]; then
            printf 'lost %s\n' "$path"
            break
        fi
    done <"$own/links"
fi
for what in driver software; do
    if [ -f "$own/$what.installing" ]; then
        line=
        IFS= read -r line <"$own/$what.installing"
        printf 'cut %s %s\n' "$what" "$line"
    fi
done

# Driver files that are mount points: no installer replaces them.
n=0
while [ $n -lt 2000 ] && read -r a b c d point rest; do
    n=$((n + 1))
    case $point in
    # The last is ours.
    /usr/lib/firmware/* | */phoenix-nvidia) ;;
    /usr/lib*nvidia* | /usr/lib*/libcuda* | /usr/lib*/libnv* | /usr/bin/nvidia-* | /usr/lib64 | /usr/lib/*-linux-gnu)
        printf 'mounted %s\n' "$point"
        ;;
    esac
    # What an uninstaller would write through: more than the driver's libraries.
    case $point in
    # Ours, and what no driver in a container has.
    /usr/lib*/glibc-hwcaps/x86-64-v2 | /usr/lib*/x86_64 | /usr/lib*/phoenix-nvidia) ;;
    /usr/lib/modules | /usr/lib/modules/* | /lib/modules | /lib/modules/*) ;;
    /usr/lib | /usr/lib/* | /usr/lib[0-9]* | /lib | /lib/* | /lib[0-9]* | /usr/bin | /usr/bin/nvidia* | \
        /usr/share/nvidia* | /etc/OpenCL* | /etc/vulkan* | /usr/share/vulkan* | /usr/share/glvnd* | /usr/share/egl*)
        printf 'covers %s\n' "$point"
        ;;
    esac
done </proc/self/mountinfo

# Does a package own driver files? dpkg has a list of files per package, empty
# for a removed one whose configuration is left.
some=
for f in "$info"/libnvidia*.list "$info"/nvidia*.list "$info"/libcuda1*.list "$info"/xserver-xorg-video-nvidia*.list; do
    [ -e "$f" ] && some=1 && break
done
if [ -n "$some" ]; then
    grep -lsE '/lib(nvidia-ml|cuda|nvidia-glcore|nvidia-ptxjitcompiler)\.so\.[0-9]|/bin/nvidia-smi$|/usr/src/nvidia|alternate-install-present' \
        "$info"/libnvidia*.list "$info"/nvidia*.list "$info"/libcuda1*.list "$info"/xserver-xorg-video-nvidia*.list |
        while IFS= read -r f; do
            f=${f##*/}
            echo "owner dpkg ${f%.list}"
        done
fi
if [ -n "$libs" ] && [ ! -e /var/lib/nvidia/log ]; then
    if [ -x /usr/bin/rpm ]; then
        rpm -qf --qf 'owner rpm %{NAME}\n' "$libs" 2>/dev/null | grep '^owner'
    elif [ -x /usr/bin/pacman ]; then
        pacman -Qqo "$libs" 2>/dev/null | while IFS= read -r f; do echo "owner pacman $f"; done
    fi
fi

# CUDA and the packages to look for.
for f in /usr/local/cuda*/version.json /usr/local/cuda*/version.txt /usr/local/cuda*/bin/nvcc \
    "$info"/cuda-toolkit-[0-9]*-[0-9].list "$info"/cuda-toolkit-[0-9]*-[0-9][0-9].list "$info"/nvidia-cuda-toolkit.list; do
    [ -e "$f" ] && echo "toolkit $f"
done
source=/etc/apt/sources.list.d/phoenix-nvidia.sources
uri=
signed=
twice=
if [ -f "$source" ]; then
    n=0
    while [ $n -lt 20 ] && IFS= read -r line; do
        n=$((n + 1))
        case $line in
        URIs:*) uri=${line#URIs:} && printf 'source %s\n' "$uri" ;;
        Signed-By:*) signed=${line#Signed-By: } ;;
        esac
    done <"$source"
    uri=${uri#*://}
    uri=${uri%/}
    arch=amd64
    [ -e /lib/ld-linux-aarch64.so.1 ] && arch=arm64
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ "$f" != "$source" ] && has_repository "$uri" "$f" "$signed" "$arch" && echo "twice $f" && twice=$f && break
    done
fi
auth=/etc/apt/auth.conf.d/phoenix-nvidia.conf
if [ -f "$auth" ]; then
    sum=$(sha256sum <"$auth" 2>/dev/null) || sum=unknown
    echo "auth ${sum%% *}"
fi
for p in "$@"; do
    # Not quoted: a name may hold a * of ours, for the part that is the
    # container's distribution.
    for f in "$info"/$p.list "$info"/$p:*.list; do
        [ -e "$f" ] && echo "have $p" && break
    done
done

if [ "$ask" = smi ] && [ -n "$twice" ]; then
    apt-get indextargets --format '$(CREATED_BY)' </dev/null >/dev/null 2>&1 || echo "unreadable yes"
fi
if [ "$ask" = smi ] && [ -x /usr/bin/nvidia-smi ]; then
    # --version exists from 550 on; the first line of the help names the
    # version too, and needs no driver.
    {
        /usr/bin/nvidia-smi --version 2>&1 || /usr/bin/nvidia-smi -h 2>&1
    } | {
        n=0
        while [ $n -lt 30 ] && IFS= read -r line; do
            n=$((n + 1))
            printf 'says %s\n' "$line"
        done
    }
fi
echo "end 1"
exit 0
