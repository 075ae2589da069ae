# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_phoenix_nvidia_global_optspecs
    string join \n v/verbose h/help
end

function __fish_phoenix_nvidia_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_phoenix_nvidia_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_phoenix_nvidia_using_subcommand
    set -l cmd (__fish_phoenix_nvidia_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -s h -l help -d 'Print help'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "attach" -d 'Give containers GPUs: write their settings and set the hookscript'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "detach" -d 'Remove settings, device entries and hookscript from containers'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "apply" -d 'Bring a running container to its settings without a restart'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "plan" -d 'Show what `phoenix-nvidia CTID` would change, and change nothing'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "status" -d 'List containers with their GPUs, driver and state'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "doctor" -d 'Find what is wrong, with the cause and the command that repairs it'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "prepare" -d 'Make missing device nodes and driver copies, as at boot'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "prefetch" -d 'Fetch drivers ahead, so that starts need no network'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_needs_command" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l gpus -d 'GPUs: none, all, or indices, UUIDs, PCI addresses, MIG instances' -r
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l capabilities -d 'Use of the GPUs: compute, utility, graphics, display, or all' -r
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l cuda -d 'CUDA from apt: none, toolkit, or package names' -r
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l driver -d 'Driver in the container: a version, or host' -r
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l storage -d 'Storage for the hookscript' -r
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l by-uuid -d 'Write UUIDs instead of indices, which can change'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l inject -d 'Mount the host\'s driver files instead of an install: DRIVER_MODE=inject'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l install -d 'Install the driver in the container: DRIVER_MODE=install'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l nested -d 'Give Docker and Podman in the container the GPUs: NESTED=cdi'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l nested-replace -d 'The same, and put a description of NVIDIA\'s toolkit aside: NESTED=replace'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l no-nested -d 'Leave Docker and Podman alone: NESTED=none'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l chain -d 'Keep the container\'s own hookscript: both run'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l now -d 'Start or restart the containers now, and wait for the install'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -l live -d 'Change those that run without a restart, as `apply` does'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand attach" -s h -l help -d 'Print help'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand detach" -l keep-driver -d 'Keep the driver in the container, and apt from replacing it'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand detach" -l live -d 'Take the GPUs away from those that run, without a restart'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand detach" -l force -d 'With --live: also cards that are in use'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand detach" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand detach" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand apply" -l force -d 'Take cards away that are in use: what has them open keeps them'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand apply" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand apply" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand plan" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand plan" -s h -l help -d 'Print help'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand status" -l json -d 'Print JSON, described in phoenix-nvidia(8)'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand status" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand status" -s h -l help -d 'Print help'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand doctor" -l json -d 'Print JSON, described in phoenix-nvidia(8)'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand doctor" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand prepare" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand prepare" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand prefetch" -s v -l verbose -d 'Show each step in detail'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand prefetch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "attach" -d 'Give containers GPUs: write their settings and set the hookscript'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "detach" -d 'Remove settings, device entries and hookscript from containers'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "apply" -d 'Bring a running container to its settings without a restart'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "plan" -d 'Show what `phoenix-nvidia CTID` would change, and change nothing'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "status" -d 'List containers with their GPUs, driver and state'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "doctor" -d 'Find what is wrong, with the cause and the command that repairs it'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "prepare" -d 'Make missing device nodes and driver copies, as at boot'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "prefetch" -d 'Fetch drivers ahead, so that starts need no network'
complete -c phoenix-nvidia -n "__fish_phoenix_nvidia_using_subcommand help; and not __fish_seen_subcommand_from attach detach apply plan status doctor prepare prefetch help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
