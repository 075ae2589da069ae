# The C library, as "key value" lines, for the check and for the links.
libc() {
    for f in /lib/ld-musl-*.so.1 /lib/ld-linux-*.so.* /lib64/ld-linux-*.so.*; do
        [ -e "$f" ] && echo "loader $f"
    done
    # Where both are there: that of the shell is the system's. musl beside glibc may be
    # a package, and glibc's name beside musl a stand-in.
    if [ -e /lib64/ld-linux-x86-64.so.2 ] || [ -e /lib/ld-linux-x86-64.so.2 ] || [ -e /lib/ld-linux-aarch64.so.1 ]; then
        for f in /lib/ld-musl-*.so.1; do
            [ -e "$f" ] && grep -qs /ld-musl- /bin/sh && echo "musl /bin/sh" && break
        done
    fi
}
