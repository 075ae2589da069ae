#! /bin/sh
CRCsum=@CRC@
MD5=@MD5@
skip=@SKIP@
skip_decompress=@DSKIP@
size_decompress=@DSIZE@
label="NVIDIA Accelerated Graphics Driver for Linux-@ARCH@ @VERSION@"
version_string=@VERSION@
TARGET_ARCH=@ARCH@
# The lab's self-extracting archive: the driver's lines above, a tar archive after this script, and both sums over
# everything behind the third line.
name="NVIDIA-Linux-$TARGET_ARCH-$version_string"
self=$0
action=install
directory=
keep=
verbose=yes

stop() {
    echo "$*" >&2
    exit 1
}

whole() {
    crc=$(tail -n +4 "$self" | cksum | cut -d ' ' -f 1)
    test "$crc" = "$CRCsum" || stop "Error in checksums: $crc is different from $CRCsum"
    test -n "$(command -v md5sum)" || return 0
    md5=$(tail -n +4 "$self" | md5sum | cut -d ' ' -f 1)
    test "$md5" = "$MD5" || stop "Error in MD5 checksums: $md5 is different from $MD5"
}

usage() {
    echo "$0: $label"
    echo "  --check                 check that the file is whole"
    echo "  --info                  tell what it is"
    echo "  --list                  list the files in it"
    echo "  -x, --extract-only      unpack it and do nothing else"
    echo "  --target DIR            unpack it there"
    echo "  --tmpdir DIR            unpack it below that directory"
    echo "  --keep                  keep the unpacked files"
    echo "All other options are the installer's."
}

# A directory in which a program can be run: /tmp is often mounted noexec.
executable() {
    probe="$1/.$name.$$"
    printf '#! /bin/sh\nexit 0\n' 2>/dev/null > "$probe" && chmod 755 "$probe" && "$probe" 2>/dev/null
    result=$?
    rm -f "$probe"
    return $result
}

silent=
given=
for argument in "$@"; do
    if test -n "$given"; then
        eval "$given=\$argument"
        given=
        continue
    fi
    case $argument in
        --check) action=check ;;
        --info | -i) action=info ;;
        --list) action=list ;;
        --help | -h) action=help ;;
        --extract-only | -x) action=extract ;;
        --target) given=directory ;;
        --target=*) directory=${argument#*=} ;;
        --tmpdir) given=TMPDIR ;;
        --tmpdir=*) TMPDIR=${argument#*=} ;;
        --keep) keep=yes ;;
        --silent | -s) silent=yes ;;
    esac
done

case $action in
    help) usage; exit 0 ;;
    info)
        echo "Identification: $label"
        echo "Target Architecture: $TARGET_ARCH"
        exit 0
        ;;
    list) tail -n "+$skip" "$self" | @UNDO@ | tar -tf -; exit $? ;;
esac

printf 'Verifying archive integrity... '
whole
echo OK
test "$action" = check && exit 0

if test "$action" = install; then
    test "$(uname -m)" = "$TARGET_ARCH" || stop "This is a driver for $TARGET_ARCH; this machine is a $(uname -m)."
fi
if test "$action" = extract; then
    keep=yes
    directory=${directory:-./$name}
fi
if test -z "$directory"; then
    test -d "${TMPDIR:-/tmp}" || stop "The temporary directory ${TMPDIR:-/tmp} is not there."
    executable "${TMPDIR:-/tmp}" || stop "No program can be run in ${TMPDIR:-/tmp}; use --tmpdir=DIR."
    directory="${TMPDIR:-/tmp}/makeself.$name.$$"
fi
test -e "$directory" && stop "$directory exists already; use --target to name another."
mkdir -p "$directory" || stop "Cannot create $directory."
test -n "$keep" || trap 'rm -rf "$directory"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
room=$(df -Pk "$directory" | awk 'NR == 2 { print $4 }')
test "${room:-0}" -ge @NEED@ || stop "Not enough space left in $directory ($room KB) to unpack $self (@NEED@ KB)."

echo "Uncompressing $label"
tail -n "+$skip" "$self" | @UNDO@ | tar -xf - -C "$directory" --no-same-owner || stop "Unpacking into $directory failed."
test "$action" = extract && exit 0

cd "$directory" || stop "Cannot enter $directory."
./nvidia-installer "$@"
code=$?
cd /
exit $code
