# Directories for the runfile: file system, free kB (- if unknown) and whether
# programs can run there. Removes the files of an interrupted install.
LC_ALL=C
export LC_ALL
free_kb() {
    df -Pk "$1" 2>/dev/null | { read -r _ && read -r _ _ _ kb _ && echo "$kb"; }
}
for d in /tmp /var/tmp; do
    [ -d "$d" ] || continue
    rm -rf "$d/nvidia-driver-installer.run" "$d/phoenix-nvidia.unpack" "$d/phoenix-nvidia.try"
    runs=noexec
    try=$d/phoenix-nvidia.try
    # Noclobber protects only regular files, and the owner of a fifo could replace
    # it: run nothing but our own file.
    if (set -C && umask 077 && printf '#!/bin/sh\nexit 0\n' >"$try") 2>/dev/null &&
        [ -f "$try" ] && [ ! -L "$try" ] && [ -O "$try" ]; then
        chmod 700 "$try" && "$try" 2>/dev/null && runs=exec
    else
        runs=readonly
    fi
    rm -f "$try"
    type=$(stat -f -c %T "$d" 2>/dev/null)
    kb=$(free_kb "$d")
    echo "place $d ${type:-unknown} ${kb:--} $runs"
done
kb=$(free_kb /usr)
echo "usr ${kb:--}"
[ -w /usr/bin ] || echo "readonly /usr/bin"
command -v modprobe >/dev/null && echo "modprobe yes"
echo "end 1"
