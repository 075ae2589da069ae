# Takes our source away again: apt must work for the container's owner.
rm -f /etc/apt/sources.list.d/phoenix-nvidia.sources /usr/share/keyrings/phoenix-nvidia.asc
