# The host's driver, mounted in a container: what programs besides the dynamic
# linker look for. Facts as "key value" lines; for any POSIX sh.
# $1: "link", "unlink" or "look"; $2: "drop-in" where the dynamic linker does not search
# the mount by itself; $3: the driver's version; $4...: the mounts.
do=$1
drop_in=$2
version=$3
shift 3
own=/var/lib/phoenix-nvidia
list=$own/links
conf=/etc/ld.so.conf.d/phoenix-nvidia.conf

echo "begin 1"

# Removes the links of ours that are still ours: a package may have put a file
# in the place of one. The list goes with the last of them; what cannot be removed is
# in $left, as the list has it.
left=
unlink() {
    [ -f "$list" ] || return 0
    while IFS=' ' read -r path target; do
        [ "$path" = - ] && complete=1
        if [ -L "$path" ] && [ "$(readlink "$path")" = "$target" ]; then
            if rm -f "$path" && [ ! -L "$path" ]; then
                echo "removed $path"
            else
                left="$left$path $target
"
                echo "left $path"
            fi
        fi
    done <"$list"
    [ -n "$left" ] || rm -f "$list"
}

# $1: the path of a link, $2: its target. What is there and is no link that leads
# nowhere is somebody's, unless it is just that link.
link() {
    if [ ! -L "$1" ] || [ "$(readlink "$1")" != "$2" ]; then
        # Looked for again when it has gone.
        [ -e "$1" ] && printf '! %s\n' "$1" >>"$list" && return 0
        mkdir -p "${1%/*}" && ln -sfn "$2" "$1" || return 0
        echo "linked $1"
    fi
    printf '%s %s\n' "$1" "$2" >>"$list"
}

# What lies below the mounts, seen through another mount of the directory above, which
# this look alone has. What a copy of the container took of ours is ours. By mount(2):
# AppArmor refuses the newer way of libmount (Debian 13), and logs it. $1...: the
# mounts.
hidden() {
    command -v unshare >/dev/null && command -v mount >/dev/null || return 0
    unshare -m sh -c '
        at=$1
        shift
        for d in "$@"; do
            above=${d%/glibc-hwcaps/*}
            [ "$above" = "$d" ] && above=${d%/*}
            [ -f "$d/.phoenix-nvidia" ] && LIBMOUNT_FORCE_MOUNT2=always mount --bind "$above" "$at" || continue
            below=$at/${d#"$above/"}
            for f in "$below"/* "$below"/.[!.]* "$below"/..?*; do
                [ -e "$f" ] || [ -L "$f" ] || continue
                [ -e "$below/.phoenix-nvidia" ] || echo "hidden $d"
                break
            done
        done' sh "$own" "$@" 2>/dev/null
}

refresh() {
    for f in /sbin/ldconfig /usr/sbin/ldconfig; do
        if [ -x "$f" ]; then
            "$f" && echo "ldconfig yes"
            return 0
        fi
    done
}

if [ "$do" = unlink ]; then
    some=
    [ -f "$list" ] && some=1
    unlink
    if [ -f "$conf" ]; then
        some=1
        rm -f "$conf" && echo "removed $conf"
        [ ! -e "$conf" ] || echo "left $conf"
    fi
    if [ -n "$some" ]; then
        rmdir "$own" 2>/dev/null
        refresh
    fi
    [ ! -e "$list" ] && [ ! -e "$conf" ] || exit 1
    echo "end 1"
    exit 0
fi

dir=
for d in "$@"; do
    if [ -f "$d/.phoenix-nvidia" ]; then
        while IFS=' ' read -r key value; do
            [ "$key $value" = "version $version" ] && [ -z "$dir" ] && dir=$d
            [ "$key" = version ] && break
        done <"$d/.phoenix-nvidia"
    fi
done
libc
# glibc tells its version when it is run.
for f in /lib/x86_64-linux-gnu/libc.so.6 /lib/aarch64-linux-gnu/libc.so.6 /lib64/libc.so.6 /usr/lib/libc.so.6; do
    if [ -x "$f" ]; then
        "$f" 2>/dev/null | {
            IFS= read -r line
            printf 'glibc %s\n' "$line"
        }
        break
    fi
done
# Nothing is mounted: what a mount would hide.
if [ "$do" = look ]; then
    for d in "$@"; do
        [ -e "$d/.phoenix-nvidia" ] && continue
        for f in "$d"/* "$d"/.[!.]* "$d"/..?*; do
            if [ -e "$f" ] || [ -L "$f" ]; then
                echo "hidden $d"
                break
            fi
        done
    done
    echo "end 1"
    exit 0
fi
if [ -z "$dir" ]; then
    echo "end 1"
    exit 0
fi
echo "mounted $dir"
mkdir -p "$own"
hidden "$@"
complete=
unlink >/dev/null
[ -n "$complete" ] || echo "first yes"
# Not a special builtin, whose failed redirection ends the shell. What an earlier link
# could not be removed of is ours still.
if ! printf '%s' "$left" >"$list"; then
    echo "end 1"
    exit 0
fi

# The library directory that programs with a loader of their own search.
libdir=${dir%/glibc-hwcaps/*}
[ "$libdir" = "$dir" ] && libdir=${dir%/*}
below=${dir#"$libdir/"}
# A driver of another version: until the cache is new, programs find that.
for d in "$libdir" /usr/lib64 /usr/lib; do
    for f in "$d"/libcuda.so.[0-9]*.[0-9]* "$d"/libnvidia-ml.so.[0-9]*.[0-9]* \
        "$d"/nvidia/*/libcuda.so.[0-9]*.[0-9]* "$d"/nvidia/*/libnvidia-ml.so.[0-9]*.[0-9]*; do
        [ -f "$f" ] && [ ! -L "$f" ] && [ "${f##*.so.}" != "$version" ] && echo "other ${f##*.so.}"
    done
done
for f in "$dir"/lib*.so "$dir"/lib*.so.*; do
    [ -L "$f" ] && link "$libdir/${f##*/}" "$below/${f##*/}"
done
[ -e "$dir/libnvidia-allocator.so.1" ] &&
    link "$libdir/gbm/nvidia-drm_gbm.so" "../$below/libnvidia-allocator.so.1"
for f in "$dir"/bin/*; do
    [ -f "$f" ] && link "/usr/bin/${f##*/}" "../${dir#/usr/}/bin/${f##*/}"
done
for f in "$dir"/share/OpenCL/vendors/*; do
    [ -f "$f" ] && link "/etc/OpenCL/vendors/${f##*/}" "../../..$f"
done
for kind in vulkan/icd.d vulkan/implicit_layer.d glvnd/egl_vendor.d egl/egl_external_platform.d; do
    for f in "$dir/share/$kind"/*; do
        [ -f "$f" ] && link "/usr/share/$kind/${f##*/}" "../../../..$f"
    done
done
for f in "$dir"/share/nvidia/*; do
    [ -f "$f" ] && link "/usr/share/nvidia/${f##*/}" "../../..$f"
done
if [ "$drop_in" = drop-in ]; then
    mkdir -p "${conf%/*}"
    for d in "$@"; do echo "$d"; done >"$conf" && echo "linked $conf"
else
    rm -f "$conf"
fi
refresh
# Nothing was left undone.
echo "- end" >>"$list"
echo "end 1"
exit 0
