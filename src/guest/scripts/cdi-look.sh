# Looks for the driver's files, other descriptions and the engines. Facts as
# "key value" lines; for any POSIX sh.
# $1: "directory" for the mounted driver as a whole, "files" for its files one by
# one, "installed" for a driver in the container; $2: its version; $3...: the mounts.
how=$1
version=$2
shift 2
echo "begin 1"

library() {
    case ${1##*/} in lib*.so | lib*.so.*) [ -f "$1" ] && echo "library $1" ;; esac
}

mounted() {
    for d in "$@"; do
        [ -f "$d/.phoenix-nvidia" ] && grep -qx "version $version" "$d/.phoenix-nvidia" && break
        d=
    done
    [ -n "$d" ] || return 0
    if [ "$how" = directory ]; then
        echo "directory $d"
    else
        for f in "$d"/lib*; do library "$f"; done
    fi
    for f in "$d"/bin/*; do
        [ -f "$f" ] && echo "file $f /usr/bin/${f##*/}"
    done
    for f in "$d"/share/OpenCL/vendors/*; do
        [ -f "$f" ] && echo "file $f /etc/OpenCL/vendors/${f##*/}"
    done
    for kind in vulkan/icd.d vulkan/implicit_layer.d glvnd/egl_vendor.d egl/egl_external_platform.d nvidia; do
        for f in "$d/share/$kind"/*; do
            [ -f "$f" ] && echo "file $f /usr/share/$kind/${f##*/}"
        done
    done
}

installed() {
    for d in /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 /usr/lib; do
        [ -d "$d" ] && [ ! -L "$d" ] || continue
        for f in "$d"/lib*.so."$version" "$d"/nvidia/*/lib*.so."$version"; do library "$f"; done
        # The names that programs ask for lead to these.
        for f in "$d"/libcuda* "$d"/lib*nvidia* "$d"/libnvcuvid* "$d"/libnvoptix*; do
            [ -L "$f" ] || continue
            case $(readlink -f "$f") in */lib*.so."$version") library "$f" ;; esac
        done
    done
    for f in nvidia-smi nvidia-debugdump nvidia-cuda-mps-control nvidia-cuda-mps-server; do
        [ -f "/usr/bin/$f" ] && echo "file /usr/bin/$f /usr/bin/$f"
    done
    for f in /etc/OpenCL/vendors/nvidia*.icd /etc/vulkan/icd.d/nvidia*.json /usr/share/vulkan/icd.d/nvidia*.json \
        /usr/share/vulkan/implicit_layer.d/nvidia*.json /usr/share/glvnd/egl_vendor.d/*nvidia*.json \
        /usr/share/egl/egl_external_platform.d/*nvidia*.json /usr/share/nvidia/nvoptix.bin; do
        [ -f "$f" ] && echo "file $f $f"
    done
}

if [ "$how" = installed ]; then installed; else mounted "$@"; fi

# Theirs, with the driver version that it was made for.
others | while IFS= read -r f; do
    echo "other $f"
    made=$(head -c 1000000 "$f" | sed -n 's/.*lib\(nvidia-ml\|cuda\)\.so\.\([0-9][0-9]*\.[0-9][0-9.]*[0-9]\).*/\2/p' | head -n 1)
    [ -n "$made" ] && echo "made $made"
done
for f in /etc/cdi/phoenix-nvidia.json /etc/cdi/phoenix-nvidia-index.json; do
    [ -f "$f" ] && echo "ours $f"
done

# $1: what the line begins with, $2: the program.
version() {
    "$2" --version 2>/dev/null | {
        IFS= read -r line
        printf '%s %s\n' "$1" "${line:-?}"
    }
}

podman=
for f in /usr/bin/podman /usr/local/bin/podman; do
    [ -x "$f" ] && podman=$(version podman "$f") && printf '%s\n' "$podman" && break
done
for f in /usr/bin/dockerd /usr/sbin/dockerd /usr/local/bin/dockerd; do
    if [ -x "$f" ]; then
        docker=$(version docker "$f")
        printf '%s\n' "$docker"
        # Where this one knows no CDI: is there a Podman to be had?
        case $docker in *"version "[0-9].* | *"version "1[0-9].* | *"version "2[0-4].*)
            [ -n "$podman" ] || LC_ALL=C apt-cache policy podman 2>/dev/null |
                sed -n 's/^ *Candidate: *\([0-9]*:\)\{0,1\}\([0-9]\)/candidate version \2/p'
            ;;
        esac
        if no_settings; then
            echo "daemon absent"
        elif tr -d ' \t\n' <"$daemon" | grep -q '"cdi":true'; then
            echo "daemon on"
        elif grep -q '"features"' "$daemon"; then
            echo "daemon features"
        else
            echo "daemon other"
        fi
        # An engine keeps the storage driver that it began with.
        for d in overlay2 fuse-overlayfs btrfs zfs; do
            [ -d "/var/lib/docker/$d" ] && break
            d=
        done
        [ -z "$d" ] && [ -d /var/lib/docker/vfs ] && echo "storage vfs"
        break
    fi
done
echo "end 1"
exit 0
