# apt-get update. $1: the one source file to read, or nothing for all.
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
file=$1
set -- -o Dpkg::Use-Pty=0 -o Acquire::Retries=1 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30
if [ -n "$file" ]; then
    set -- "$@" -o "Dir::Etc::sourcelist=$file" -o Dir::Etc::sourceparts=- \
        -o APT::Get::List-Cleanup=0 -o APT::Update::Error-Mode=any
fi
exec apt-get -q "$@" update </dev/null
