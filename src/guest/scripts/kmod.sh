# Installs kmod with the package manager of the container. $1: seconds to wait
# for dpkg's lock.
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
if command -v apt-get >/dev/null; then
    set -- -y -o Dpkg::Use-Pty=0 -o "DPkg::Lock::Timeout=$1" --no-install-recommends install kmod
    apt-get "$@" </dev/null || { apt-get update </dev/null && apt-get "$@" </dev/null; }
elif command -v dnf >/dev/null; then
    dnf -y install kmod </dev/null
elif command -v zypper >/dev/null; then
    zypper --non-interactive install kmod </dev/null
elif command -v pacman >/dev/null; then
    pacman -Sy --noconfirm kmod </dev/null
else
    echo 'no known package manager'
    exit 1
fi
command -v modprobe >/dev/null
