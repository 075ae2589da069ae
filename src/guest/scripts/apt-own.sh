# Our apt source, with its login and key. Where the key is NVIDIA's, its path is
# that of NVIDIA's own package cuda-keyring: two sources of one repository with
# different keys make all of apt unreadable.
own=/var/lib/phoenix-nvidia
source=/etc/apt/sources.list.d/phoenix-nvidia.sources
shared=/usr/share/keyrings/cuda-archive-keyring.gpg
key=/usr/share/keyrings/phoenix-nvidia.gpg

# Whether the keyring at the shared path is the one that we wrote.
shared_is_ours() {
    [ -e "$own/keyring" ] && ! grep -qsxF "$shared" /var/lib/dpkg/info/*.list
}

# Another source that names our keyring keeps it. $1: "for" another source of the
# repository, which may have no login but ours: apt takes it by the server's name.
# .asc: up to version 0.2.0.
remove_source() {
    [ -e "$source" ] && echo "removed $source"
    rm -f "$source" "$key" "${key%.gpg}.asc"
    [ "$1" = for ] || rm -f /etc/apt/auth.conf.d/phoenix-nvidia.conf
    if shared_is_ours && ! grep -qsF "$shared" /etc/apt/sources.list /etc/apt/sources.list.d/*; then
        rm -f "$shared"
    fi
    rm -f "$own/keyring"
}
