# Removes our source: apt must keep working for the container's owner.
rm -f /etc/apt/sources.list.d/phoenix-nvidia.sources /etc/apt/auth.conf.d/phoenix-nvidia.conf \
    /usr/share/keyrings/phoenix-nvidia.asc
