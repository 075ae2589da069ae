# Installs packages. $1: seconds to wait for dpkg's lock; $2...: the packages.
# The mark shows an interrupted install to the next probe.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
own=/var/lib/phoenix-nvidia
wait=$1
shift
mkdir -p "$own" && printf '%s\n' "$*" >"$own/software.installing" || exit 1
# Without a pseudo-terminal dpkg stays in our process group and ends with it.
apt-get -y -q -o Dpkg::Use-Pty=0 -o "DPkg::Lock::Timeout=$wait" -o Acquire::Retries=2 \
    -o Acquire::http::Timeout=60 -o Acquire::https::Timeout=60 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
    --no-install-recommends install "$@" </dev/null
rc=$?
[ -z "$(ls /var/lib/dpkg/updates 2>/dev/null)" ] && [ -z "$(dpkg --audit 2>/dev/null)" ] && rm -f "$own/software.installing"
# It does not work in a container and would fail at each start.
for unit in /lib/systemd/system/nvidia-persistenced.service /usr/lib/systemd/system/nvidia-persistenced.service; do
    [ -e "$unit" ] && [ ! -e /etc/systemd/system/nvidia-persistenced.service ] &&
        ln -s /dev/null /etc/systemd/system/nvidia-persistenced.service
done
apt-get clean
exit $rc
