//! phoenix-nvidia(8), from the command line's own definition and what no
//! option can say.

use crate::page::Page;
use clap::Command;
use phoenix_nvidia::exit::Code;
use phoenix_nvidia::settings::{CLUSTER_FILE, NODE_FILE};

/// The page.
pub fn make(command: &Command) -> String {
    let mut page = Page::new("PHOENIX-NVIDIA", "8", "System administration");
    page.section("NAME");
    page.text("phoenix-nvidia - NVIDIA GPUs and the matching driver for Proxmox VE containers");
    page.section("SYNOPSIS");
    page.verbatim("phoenix-nvidia [-v] CTID\nphoenix-nvidia CTID PHASE\nphoenix-nvidia COMMAND [ARGUMENTS]");
    description(&mut page);
    page.section("OPTIONS");
    page.options(command);
    page.section("COMMANDS");
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        page.subsection(subcommand.get_name());
        let usage = subcommand.clone().render_usage().to_string();
        page.verbatim(usage.trim_start_matches("Usage: "));
        about(&mut page, subcommand);
        page.options(&own(subcommand));
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
        "phoenix-nvidia gives Linux containers of Proxmox VE their NVIDIA GPUs, and the user-space driver that \
         matches the host's kernel driver to the last digit. As a container's hookscript it runs at every start. \
         Called with a CTID it does the same at once.",
    );
    page.item(
        "phoenix-nvidia CTID",
        "By hand: check the settings and the container, configure its devices, start it if it is stopped, install \
         driver and CUDA, restart it once if devices or driver changed, verify the driver with nvidia-smi.",
    );
    page.item(
        "phoenix-nvidia CTID pre-start",
        "Called by Proxmox before a start: make missing device nodes, and write the container's device entries and \
         device rules into its conf and into the config of this start.",
    );
    page.item(
        "phoenix-nvidia CTID post-start",
        "Called by Proxmox after a start: check the driver in the container, which takes milliseconds if it is \
         right. If not, start an install and follow it for INSTALL_WAIT seconds.",
    );
    page.item("phoenix-nvidia CTID pre-stop, post-stop", "Called by Proxmox at a stop: do nothing.");
    page.text(
        "The settings, GPU_ASSIGNMENT above all, say what a container gets: see phoenix-nvidia.env(5).",
    );
}

/// The long description where there is one: its first paragraph is the short
/// one.
fn about(page: &mut Page, command: &Command) {
    let text = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    for paragraph in text.split("\n\n") {
        page.text(&sentence(&paragraph.replace('\n', " ")));
    }
}

/// The command without the options that all have.
fn own(command: &Command) -> Command {
    let all_have = ["help", "version", "verbose"];
    command.clone().mut_args(|argument| {
        let hidden = argument.is_hide_set() || all_have.contains(&argument.get_id().as_str());
        argument.hide(hidden)
    })
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
        "In pre-start, START_POLICY decides: with continue, a fault is a warning and the exit status is 0; with fail, \
         the start stops with the fault's exit status. doctor exits with 1 when it finds a failure.",
    );
}

fn json(page: &mut Page) {
    page.section("JSON");
    page.text(
        "status --json and doctor --json print one object. Its member schema, 1 for status and 2 for doctor, changes \
         when a member is removed or changes its meaning; new members may come without that. Times are seconds since \
         1970 UTC. A level is ok, unknown (could not be read), warning or failure.",
    );
    page.item(
        "status",
        "kernel_driver (or null), problems (what could not be read), and containers, each with: ctid, \
         name, running, template, assignment (GPU_ASSIGNMENT as written, or null), gpus (each with minor, model, uuid, \
         pci), kernel_driver, driver_mode (install or inject), container_driver (as last seen, or null), hookscript (yes, no, other, broken or unknown), \
         last (null, or what, outcome, exit_code, message, at, took_ms), last_success (or null), verdict (a \
         level), reasons (sentences, the worst first), restart_due (true or false) and obstacles (what its next \
         start would be refused for, each with kind). An outcome is running, ok, warning or failed.",
    );
    page.item(
        "doctor",
        "findings, each with: check (its name), container (its number, or null for the host), level, what, \
         why (or null) and fix (the remedy, or null).",
    );
}

fn files(page: &mut Page) {
    page.section("FILES");
    for (file, text) in [
        ("/etc/pve/lxc/CTID.conf", "The container's conf: its settings and device entries."),
        (CLUSTER_FILE, "Settings of the cluster."),
        (NODE_FILE, "Settings of the node."),
        ("/var/lib/vz/snippets/phoenix-nvidia", "The hookscript, in the storage local."),
        ("/var/cache/phoenix-nvidia/", "Downloaded runfiles."),
        (
            "/var/lib/phoenix-nvidia/driver/VERSION",
            "The host's driver files for DRIVER_MODE=inject; containers mount them from /run/phoenix-nvidia/driver.",
        ),
        (
            "/etc/apt/apt.conf.d/20phoenix-nvidia",
            "Before the host's apt changes packages, the files of the loaded driver are copied to that directory, if that was not \
             done. It never stops apt.",
        ),
        (
            "phoenix-nvidia-nodes.service, phoenix-nvidia-prepare.service",
            "Call prepare at boot before the first guest, and after a reload of the driver (by udev).",
        ),
        ("/var/log/phoenix-nvidia/CTID.log", "Log of the installs in the background."),
        (
            "/run/phoenix-nvidia/dev",
            "A small tmpfs with the DRM nodes that containers get, since devices on /run itself cannot be opened.",
        ),
        ("/run/phoenix-nvidia/state/CTID.json", "Result of the last run, for status. Only root can read it."),
        (
            "/run/phoenix-nvidia/state/CTID.rules",
            "The device rules that a running container was given. Without it, apply shuts every card that is not the container's.",
        ),
    ] {
        page.item(file, text);
    }
}

fn examples(page: &mut Page) {
    page.section("EXAMPLES");
    for (text, command) in [
        ("Give container 101 the GPUs 0 and 1, and start it:", "phoenix-nvidia attach 101 --gpus 0,1 --now"),
        (
            "The same by UUIDs, which no new card changes, without CUDA:",
            "phoenix-nvidia attach 101 --gpus 0,1 --by-uuid --cuda none",
        ),
        ("Show what a run would change:", "phoenix-nvidia plan 101"),
        (
            "Give a running container a second GPU, without a restart:",
            "phoenix-nvidia attach 101 --gpus 0,1 --live",
        ),
        (
            "Show the state of all containers, and what is wrong with one:",
            "phoenix-nvidia status\nphoenix-nvidia doctor 101",
        ),
        ("Run it as an orchestrator does:", "GPU_ASSIGNMENT=0,1 phoenix-nvidia 101"),
    ] {
        page.text(text);
        page.verbatim(command);
    }
}
