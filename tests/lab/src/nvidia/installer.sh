#! /bin/sh
# The lab's nvidia-installer: installs what lies beside it, knows the options of its version and no others, and
# refuses, replaces and breaks where the real one does. Installed, it is nvidia-uninstall too.
LC_ALL=C
export LC_ALL
version=@VERSION@
state=/var/lib/nvidia
list=$state/log
log=/var/log/nvidia-installer.log
kernel_module=yes
alternate_check=yes
nouveau_check=yes
glvnd=
silent=
uninstall=
module_unload=yes
test "${0##*/}" = nvidia-uninstall && uninstall=yes
test -n "$uninstall" && log=/var/log/nvidia-uninstall.log

note() {
    echo "$*" >> "$log"
}

fail() {
    note "ERROR: $*"
    printf '\nERROR: %s\n\n' "$*" >&2
    echo "ERROR: Installation has failed.  Please see the file '$log' for details." >&2
    exit 1
}

bad_option() {
    echo "$0: unrecognized option: \"$1\"" >&2
    printf '\nERROR: Invalid commandline, please run `%s --help` for usage information.\n\n' "$0" >&2
    exit 1
}

value_of=
for argument in "$@"; do
    if test -n "$value_of"; then
        test "$value_of" = log && log=$argument
        value_of=
        continue
    fi
    case $argument in
        --help | -h) echo "nvidia-installer: version $version"; exit 0 ;;
        --version | -v) echo "nvidia-installer:  version $version"; exit 0 ;;
        --uninstall) uninstall=yes ;;
        --silent | -s) silent=yes ;;
        --no-kernel-module@PLURAL@) kernel_module= ;;
        --no-nouveau-check) nouveau_check= ;;
        --skip-module-unload) module_unload=; case $argument in @FLAGS@) ;; *) bad_option "$argument" ;; esac ;;
        @GLVND@) glvnd=$argument ;;
        @ALTERNATES@) alternate_check= ;;
        --log-file-name=*) log=${argument#*=} ;;
        --log-file-name) value_of=log ;;
        @VALUES@) value_of=ignored ;;
        @VALUES_JOINED@) ;;
        @FLAGS@) ;;
        *) bad_option "$argument" ;;
    esac
done
test -z "$value_of" || bad_option "$argument"

test "$(id -u)" = 0 || { echo "ERROR: nvidia-installer must be run as root" >&2; exit 1; }
mkdir -p "$state" "${log%/*}"

case $(uname -m) in
    aarch64) multiarch=/usr/lib/aarch64-linux-gnu ;;
    *) multiarch=/usr/lib/x86_64-linux-gnu ;;
esac
libdir=/usr/lib
test -d /usr/lib64 && libdir=/usr/lib64
test -d "$multiarch" && libdir=$multiarch

# Takes away what the list says was installed, as long as it is still what was installed, and puts back what was moved
# aside. Lines of the list: a number and a path; then a link's target, a file's sum, or nothing for what was moved.
remove_installed() {
    test -e "$list" || return 0
    { read -r _; read -r _; while read -r number path; do
        case $number in
            0:) read -r target
                test "$(readlink "$path")" = "$target" && rm -f "$path" ;;
            1:) read -r sum
                if test -f "$path" && test "$(cksum < "$path" | cut -d ' ' -f 1)" = "$sum"; then
                    rm -f "$path"
                else
                    note "WARNING: $path was altered after its installation; it stays."
                fi ;;
        esac
    done; } < "$list"
    { read -r _; read -r _; while read -r number path; do
        case $number in
            0: | 1:) read -r _ ;;
            *) test -e "$path" || mv "$state/${number%:}" "$path" ;;
        esac
    done; } < "$list"
    rm -f "$list"
}

if test -n "$uninstall"; then
    note "nvidia-installer --uninstall, $version"
    # Measured in its source: whatever it comes to, it ends with 0.
    test -e "$list" || { echo "There is no NVIDIA driver currently installed." >&2; exit 0; }
    test -e /root/uninstall-fails && { echo "ERROR: Uninstallation failed." >&2; exit 0; }
    remove_installed
    rm -rf "$state"
    test -n "$module_unload" && note "running rmmod nvidia"
    command -v ldconfig > /dev/null && ldconfig
    exit 0
fi

echo "nvidia-installer log file '$log'" > "$log"
note "creation time: $(date)"
note "installer version: $version"
note "command line: $*"
test -n "$silent" || echo "Welcome to the NVIDIA Software Installer for Unix/Linux"

@FLAW@

command -v modprobe > /dev/null || test -x /sbin/modprobe || fail "Unable to find the module utility 'modprobe'; please make sure you have the package 'module-init-tools' or 'kmod' installed."
if test -n "$alternate_check" && test -e /usr/lib/nvidia/alternate-install-present; then
    fail "The NVIDIA driver appears to have been installed previously using a different installer: /usr/lib/nvidia/alternate-install-present exists."
fi
if test -n "$nouveau_check"; then
    for device in /sys/bus/pci/drivers/nouveau/0000:*; do
        test -e "$device" && fail "The Nouveau kernel driver is currently in use by your system."
    done
fi
if test -n "$kernel_module"; then
    test -e "/lib/modules/$(uname -r)/build" || fail "Unable to find the kernel source tree for the currently running kernel."
    fail "Unable to build the kernel module."
fi
if test -z "$glvnd" && test -n "@GLVND_CHOICE@"; then
    there=0
    for library in libGLdispatch.so.0 libGL.so.1 libGLX.so.0 libOpenGL.so.0 libEGL.so.1; do
        test -e "$libdir/$library" && there=$((there + 1))
    done
    case $there in
        0 | 5) ;;
        *) fail "An incomplete installation of libglvnd was found. Use --install-libglvnd or --no-install-libglvnd to choose." ;;
    esac
fi

test -e "$list" && note "removing the driver that was installed before"
remove_installed

saved=100
printf '1.0-%s (%s)\nNVIDIA Accelerated Graphics Driver for Linux-@ARCH@ (%s)\n' "$(echo "$version" | tr -d .)" "$version" "$version" > "$list"

# A file of somebody else's at this path is moved aside without a word, also where it is dpkg's.
move_aside() {
    if test -e "$1" || test -L "$1"; then
        while test -e "$state/$saved"; do saved=$((saved + 1)); done
        said=$(mv "$1" "$state/$saved" 2>&1) || { cannot "$said"; return; }
        echo "$saved: $1" >> "$list"
        note "moved $1 aside to $state/$saved"
    fi
}

# The real one writes through a mapping: on a full disk it dies of SIGBUS, half way. What it can't write for another
# reason it notes, and ends with 0 all the same.
cannot() {
    case $1 in
        *"No space left"*) kill -BUS $$ ;;
    esac
    note "WARNING: $1"
}

place() {
    move_aside "$2"
    mkdir -p "${2%/*}"
    said=$(cp "$1" "$2" 2>&1 && chmod "$3" "$2" 2>&1) || { cannot "$said"; return; }
    printf '1: %s\n%s\n' "$2" "$(cksum < "$2" | cut -d ' ' -f 1)" >> "$list"
}

link() {
    move_aside "$2"
    said=$(ln -s "$1" "$2" 2>&1) || { cannot "$said"; return; }
    printf '0: %s\n%s\n' "$2" "$1" >> "$list"
}

while read -r kind file rest; do
    case $kind in
        lib) place "$file" "$libdir/$file" 755 ;;
        link) link "$rest" "$libdir/$file" ;;
        bin) place "$file" "/usr/bin/$file" 755 ;;
        binlink) link "$rest" "/usr/bin/$file" ;;
        half) @HALF@ ;;
    esac
done < manifest
command -v ldconfig > /dev/null && ldconfig
note "installation of the NVIDIA driver $version is complete"
if test -z "$silent"; then
    echo "Installation of the NVIDIA Accelerated Graphics Driver for Linux-@ARCH@ (version: $version) is now complete."
fi
exit 0
