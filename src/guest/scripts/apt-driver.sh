# Whether apt can upgrade a driver's packages, or will by itself. $1: "to" and in
# $2 a version of the driver, or "next" and "-"; $3...: its packages.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
ask=$1
version=$2
shift 2
echo "begin 1"
if [ "$ask" = next ]; then
    dpkg-query -W -f='now ${db:Status-Want} ${binary:Package} ${Version}\n' "$@" 2>/dev/null
    for p in "$@"; do
        apt-cache policy "$p" 2>/dev/null | while read -r key v _; do
            [ "$key" = Candidate: ] && echo "next $p $v"
        done
    done
    echo "end 1"
    exit 0
fi
wanted=
for p in "$@"; do
    v=$(apt-cache madison "$p" 2>/dev/null | while IFS='| ' read -r _ v _; do
        # Without the epoch; what follows the version is the package's own.
        case ${v#*:} in "$version" | "$version"[-+~]*) echo "$v" && break ;; esac
    done)
    if [ -n "$v" ]; then
        wanted="$wanted $p=$v"
        echo "want $p=$v"
        continue
    fi
    # A helper of a version of its own stays as it is.
    v=$(dpkg-query -W -f='${Version}' "$p" 2>/dev/null)
    case ${v#*:} in [3-9][0-9][0-9].[0-9]*) echo "lacks $p" ;; esac
done
if [ -n "$wanted" ]; then
    said=$(apt-get -s --no-install-recommends --allow-change-held-packages install $wanted </dev/null 2>&1)
    echo "sim-rc $?"
    printf '%s\n' "$said" | sed 's/^/sim /'
fi
echo "end 1"
