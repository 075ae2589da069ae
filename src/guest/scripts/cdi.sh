# What the engines in a container read, for the look and for the files.
own=/var/lib/phoenix-nvidia
list=$own/cdi
toolkit=/etc/nvidia-container-runtime/config.toml
daemon=/etc/docker/daemon.json

# The kind of this description, in JSON and YAML. Others of NVIDIA's end in the same
# words (k8s.device-plugin.nvidia.com/gpu), and are no matter of the engines here.
same="(^|[{,])[[:space:]]*[\"']?kind[\"']?[[:space:]]*:[[:space:]]*[\"']?nvidia\.com/gpu[\"']?[[:space:]]*([,}#]|\$)"

# Descriptions of the same GPUs that are not ours, one a line.
others() {
    for f in /etc/cdi/*.yaml /etc/cdi/*.json /var/run/cdi/*.yaml /var/run/cdi/*.json; do
        case $f in /etc/cdi/phoenix-nvidia.json | /etc/cdi/phoenix-nvidia-index.json) continue ;; esac
        [ -f "$f" ] && head -c 1000000 "$f" | grep -Eq "$same" && printf '%s\n' "$f"
    done
}

no_cgroups() {
    grep -Eq '^[[:space:]]*no-cgroups[[:space:]]*=[[:space:]]*true' "$toolkit"
}

# Whether Docker has no settings: an empty file and an empty object are none.
no_settings() {
    [ ! -L "$daemon" ] || return 1
    [ -e "$daemon" ] || return 0
    [ -f "$daemon" ] || return 1
    case $(head -c 1000 "$daemon" | tr -d ' \t\r\n') in '' | '{}') return 0 ;; esac
    return 1
}
