//! phoenix-nvidia(8), from the command line's own definition and what no
//! option can say.

use crate::roff::Page;
use clap::{Arg, Command};
use phoenix_nvidia::exit::Code;

/// The page.
pub fn make(command: &Command) -> String {
    let mut page = Page::new("PHOENIX-NVIDIA", 8, "System administration");
    page.section("NAME");
    page.text("phoenix-nvidia - NVIDIA GPUs and the matching driver for Proxmox VE containers");
    page.section("SYNOPSIS");
    page.verbatim("phoenix-nvidia [-v] CTID\nphoenix-nvidia CTID PHASE\nphoenix-nvidia COMMAND [ARGUMENTS]");
    description(&mut page);
    page.section("OPTIONS");
    options(&mut page, command);
    page.section("COMMANDS");
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        page.subsection(&synopsis(subcommand));
        page.text(&about(subcommand));
        options(&mut page, subcommand);
    }
    exit_status(&mut page);
    json(&mut page);
    files(&mut page);
    examples(&mut page);
    page.section("SEE ALSO");
    page.text("phoenix-nvidia.env(5), pct(1), lxc.container.conf(5)");
    page.finish()
}

fn description(page: &mut Page) {
    page.section("DESCRIPTION");
    page.text(
        "phoenix-nvidia gives Linux containers of Proxmox VE their NVIDIA GPUs, and inside them the user-space \
         driver that matches the kernel's to the last digit. Attached as a container's hookscript it works by \
         itself at every start; called with a CTID it does the same at once.",
    );
    page.item(
        "phoenix-nvidia CTID",
        "By hand: check the settings and the container, configure its devices, start it if it is stopped, \
         install the driver and CUDA, restart it once if devices or driver changed, verify with nvidia-smi.",
    );
    page.item(
        "phoenix-nvidia CTID pre-start",
        "Called by Proxmox before a start: make missing device nodes, and write the container's device entries \
         and rules into its conf and into the config of this very start.",
    );
    page.item(
        "phoenix-nvidia CTID post-start",
        "Called by Proxmox after a start: look at the driver in the container, which takes milliseconds when it \
         is right; otherwise start its installation and follow it for INSTALL_WAIT seconds.",
    );
    page.item("phoenix-nvidia CTID pre-stop, post-stop", "Called by Proxmox at a stop: nothing is done.");
    page.text(
        "What a container gets is said in its settings, above all GPU_ASSIGNMENT: see phoenix-nvidia.env(5).",
    );
}

/// `attach [OPTIONS] CTID...`
fn synopsis(command: &Command) -> String {
    let mut words = vec![command.get_name().to_owned()];
    for option in command.get_arguments().filter(|a| !a.is_positional() && is_own(a)) {
        words.push(format!("[{}]", option_term(option)));
    }
    for argument in command.get_positionals() {
        let name = value_name(argument);
        let many = argument.get_action().takes_values()
            && argument.get_num_args().is_some_and(|n| n.max_values() > 1);
        let name = if many { format!("{name}...") } else { name };
        words.push(if argument.is_required_set() { name } else { format!("[{name}]") });
    }
    words.join(" ")
}

/// The long description where there is one: its first paragraph is the short
/// one.
fn about(command: &Command) -> String {
    let text = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let paragraphs: Vec<String> = text.split("\n\n").map(|p| sentence(&p.replace('\n', " "))).collect();
    paragraphs.join(" ")
}

fn options(page: &mut Page, command: &Command) {
    let top = command.get_name() == "phoenix-nvidia";
    for argument in command.get_arguments().filter(|a| !a.is_hide_set() && (top || is_own(a))) {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let term = if argument.is_positional() { value_name(argument) } else { option_term(argument) };
        page.item(&term, &sentence(&help));
    }
}

/// Options that every command has are told once.
fn is_own(argument: &Arg) -> bool {
    !argument.is_hide_set() && !matches!(argument.get_id().as_str(), "help" | "version" | "verbose")
}

fn option_term(argument: &Arg) -> String {
    let short = argument.get_short().map(|c| format!("-{c}"));
    let long = argument.get_long().map(|l| format!("--{l}"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    let value = if argument.get_action().takes_values() {
        format!(" {}", value_name(argument))
    } else {
        String::new()
    };
    format!("{}{value}", names.join(", "))
}

fn value_name(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    names.first().map_or_else(|| argument.get_id().as_str().to_uppercase(), ToString::to_string)
}

fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() || text.ends_with(['.', ':', '!']) { text.to_owned() } else { format!("{text}.") }
}

fn exit_status(page: &mut Page) {
    page.section("EXIT STATUS");
    for code in Code::ALL {
        page.item(&(code as u8).to_string(), &sentence(code.meaning()));
    }
    page.text(
        "In pre-start START_POLICY decides: with continue a fault is a warning and the exit status is 0, with \
         fail the start ends with the fault's status. doctor exits with 1 when something is broken.",
    );
}

fn json(page: &mut Page) {
    page.section("JSON");
    page.text(
        "status --json and doctor --json print one object. Its member schema is 1 and changes when a member \
         is removed or changes its meaning; new members may be added without that. Times are seconds since \
         1970 UTC. A level is ok, unknown (it could not be looked at), warning or failure.",
    );
    page.item(
        "status",
        "kernel_driver (or null), problems (what could not be looked at), and containers, each with: ctid, \
         name, running, template, assignment (GPU_ASSIGNMENT as written, or null), gpus (each with minor, model, uuid, \
         pci), kernel_driver, container_driver (as last seen, or null), hookscript (yes, no, other, broken or unknown), \
         last (null, or what, outcome, exit_code, message, at, took_ms), last_success (or null), verdict (a \
         level) and reasons (sentences, the worst first).",
    );
    page.item(
        "doctor",
        "findings, each with: check (its name), container (its number, or null for the host), level, what, \
         cause (or null) and mend (the command that mends it, or null).",
    );
}

fn files(page: &mut Page) {
    page.section("FILES");
    for (file, text) in [
        ("/etc/pve/lxc/CTID.conf", "The container's conf: its settings and device entries."),
        ("/etc/pve/phoenix-nvidia/default.env", "Settings of the cluster."),
        ("/etc/default/phoenix-nvidia", "Settings of the node."),
        ("/var/lib/vz/snippets/phoenix-nvidia", "The hookscript, in the storage local."),
        ("/var/cache/phoenix-nvidia/", "Downloaded driver files."),
        ("/var/log/phoenix-nvidia/CTID.log", "What an install in the background said."),
        ("/run/phoenix-nvidia/state/CTID.json", "What was done last, for status; only root can read it."),
    ] {
        page.item(file, text);
    }
}

fn examples(page: &mut Page) {
    page.section("EXAMPLES");
    for (text, command) in [
        ("Give container 101 the GPUs 0 and 1, and start it:", "phoenix-nvidia attach 101 --gpus 0,1 --now"),
        (
            "The same by names that no new card changes, without CUDA:",
            "phoenix-nvidia attach 101 --gpus 0,1 --by-uuid --cuda none",
        ),
        ("See what a run would change:", "phoenix-nvidia plan 101"),
        (
            "See how all containers fare, and why one does not work:",
            "phoenix-nvidia status\nphoenix-nvidia doctor 101",
        ),
        (
            "As the requirements' script is called, by an orchestrator:",
            "GPU_ASSIGNMENT=0,1 phoenix-nvidia 101",
        ),
    ] {
        page.text(text);
        page.verbatim(command);
    }
}
