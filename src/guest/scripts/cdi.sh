# What the engines in a container read, for the look and for the files.
own=/var/lib/phoenix-nvidia
list=$own/cdi
toolkit=/etc/nvidia-container-runtime/config.toml
daemon=/etc/docker/daemon.json

# Descriptions of the same GPUs that are not ours, one a line.
others() {
    for f in /etc/cdi/*.yaml /etc/cdi/*.json /var/run/cdi/*.yaml /var/run/cdi/*.json; do
        case $f in /etc/cdi/phoenix-nvidia.json | /etc/cdi/phoenix-nvidia-index.json) continue ;; esac
        [ -f "$f" ] && head -c 1000000 "$f" | grep -q 'kind.*nvidia\.com/gpu' && printf '%s\n' "$f"
    done
}

no_cgroups() {
    grep -Eq '^[[:space:]]*no-cgroups[[:space:]]*=[[:space:]]*true' "$toolkit"
}
