//! Completions, from the command line's own definition.

use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate};

const NAME: &str = "phoenix-nvidia";
const PLAIN: &str = "phoenix_nvidia";

/// The files for bash, zsh and fish.
pub fn make() -> Vec<(&'static str, String)> {
    vec![
        ("packaging/completions/phoenix-nvidia.bash", with_ctids(&of(Shell::Bash))),
        ("packaging/completions/_phoenix-nvidia", of(Shell::Zsh)),
        ("packaging/completions/phoenix-nvidia.fish", of(Shell::Fish)),
    ]
}

fn of(shell: Shell) -> String {
    let mut bytes = Vec::new();
    // The hidden command is for machines.
    let mut command = shown(phoenix_nvidia::cli::Cli::command());
    // The generator for bash takes the hyphen in a name for a subcommand's.
    let name = if shell == Shell::Bash { PLAIN } else { NAME };
    generate(shell, &mut command, name, &mut bytes);
    String::from_utf8_lossy(&bytes).replace(&format!(" {PLAIN}\n"), &format!(" {NAME}\n"))
}

/// The command without its hidden subcommands.
fn shown(command: Command) -> Command {
    let visible: Vec<Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).cloned().collect();
    let hidden: Vec<String> =
        command.get_subcommands().filter(|c| c.is_hide_set()).map(|c| c.get_name().to_owned()).collect();
    if hidden.is_empty() {
        return command;
    }
    let mut bare = Command::new(NAME).args(command.get_arguments().cloned().collect::<Vec<_>>());
    for subcommand in visible {
        bare = bare.subcommand(subcommand);
    }
    bare
}

/// bash: where a container may be named, the numbers of this node's.
fn with_ctids(generated: &str) -> String {
    let command = phoenix_nvidia::cli::Cli::command();
    let takes_ctid = |c: &&Command| {
        c.get_arguments().any(|a| a.is_positional() && a.get_id().as_str().starts_with("ctid"))
    };
    let commands: Vec<&str> = command
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .filter(takes_ctid)
        .map(Command::get_name)
        .collect();
    let valued = |c: &Command| {
        let options = c.get_arguments().filter(|a| !a.is_positional() && a.get_action().takes_values());
        options.filter_map(|a| Some(format!("--{}", a.get_long()?))).collect::<Vec<_>>()
    };
    // The name of the generated function is the generator's choice.
    let function =
        generated.split("complete -F ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("true");
    let options: Vec<String> = command.get_subcommands().flat_map(valued).collect();
    format!(
        "{generated}
# The containers of this node, wherever one may be named.
_phoenix_nvidia_with_ctids() {{
    {function} \"$@\"
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} word ctids
    [[ $cur == -* ]] && return
    case $prev in {options}) return ;; esac
    if ((COMP_CWORD > 1)); then
        case ${{COMP_WORDS[1]}} in {commands}) ;; *) return ;; esac
    fi
    ctids=$(cd /etc/pve/lxc 2>/dev/null && printf '%s\\n' [0-9]*.conf)
    for word in ${{ctids//.conf/}}; do
        [[ $word == \"$cur\"* && $word != '[0-9]*' ]] && COMPREPLY+=(\"$word\")
    done
}}
complete -F _phoenix_nvidia_with_ctids -o nosort -o bashdefault -o default {NAME} 2>/dev/null ||
    complete -F _phoenix_nvidia_with_ctids -o bashdefault -o default {NAME}
",
        options = options.join(" | "),
        commands = commands.join(" | "),
    )
}
