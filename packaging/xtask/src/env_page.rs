//! phoenix-nvidia.env(5), from the table of settings.

use crate::roff::Page;
use phoenix_nvidia::settings::{CLUSTER_FILE, NODE_FILE, keys};

/// The page.
pub fn make() -> String {
    let mut page = Page::new("PHOENIX-NVIDIA.ENV", 5, "File formats");
    page.section("NAME");
    page.text("phoenix-nvidia.env - settings of phoenix-nvidia");
    page.section("SYNOPSIS");
    page.verbatim(&format!(
        "/etc/pve/lxc/CTID.conf   (lxc.environment: NAME=VALUE)\n{CLUSTER_FILE}\n{NODE_FILE}"
    ));
    page.section("DESCRIPTION");
    page.text(
        "A setting is looked for in these places, and the first that has it counts: the container's conf \
         (main section), the cluster's file, the node's file. Called by hand, the process environment comes \
         before all of them; when Proxmox calls, it comes last.",
    );
    page.text(
        "The two files have lines NAME=VALUE. Blank lines and lines that begin with # or ; are skipped; a \
         value may stand in single or double quotes. Nothing is expanded and nothing is executed. In a conf \
         a setting is a line of its own, which clones, snapshots, backups and migrations take along:",
    );
    page.verbatim("lxc.environment: GPU_ASSIGNMENT=0,1");
    page.text(
        "An empty value is not set there: the next place is asked. None leaves out what a nearer place wants \
         to be without: HOOK_CHAIN=none. Words are read in any case, and yes, on and true mean the same, as no, \
         off and false do. A call by hand, attach, plan and doctor tell of everything that cannot be read; at a \
         start that is a warning and the default counts, but for the assignment of GPUs (START_POLICY decides) \
         and for what is installed and from where: that is not touched then.",
    );
    page.text(
        "phoenix-nvidia attach writes such lines, also for what its own environment says and the next start \
         would not find. Only root can write them; lxc.environment.runtime, which \
         other users may set, is never read.",
    );
    page.text(
        "In URLs and names of packages these are filled in: {version} the driver's version (580.95.05), \
         {branch} its first number (580), {cuda} the newest CUDA of that branch (13-0), {arch} the \
         architecture, {distro} the container's distribution (debian12, ubuntu2404).",
    );
    page.text(
        "A name, a password or a token in a URL (https://NAME:PASSWORD@HOST/..., ?token=...) is shown in no \
         message and kept in no file but the one where you wrote it, and, for the repository, \
         /etc/apt/auth.conf.d/phoenix-nvidia.conf in the container, which only its root can read. Every \
         lxc.environment line is part of the environment of the container's processes: whoever is in the \
         container can read it. A secret belongs into the cluster's file, which root and www-data can read, \
         or into the node's file after chmod 600.",
    );
    page.section("SETTINGS");
    for key in keys::ALL {
        page.item(key.name, key.help());
        page.also(&match key.default {
            None => format!("Required ({}).", key.unit),
            Some(default) => format!("Default: {default} ({}).", key.unit),
        });
        if !key.example.is_empty() {
            page.also(&format!("Example: {}={}", key.name, key.example));
        }
    }
    page.section("FILES");
    page.item(CLUSTER_FILE, "Settings for all nodes of the cluster.");
    page.item(NODE_FILE, "Settings for this node, with values that work for all but GPU_ASSIGNMENT.");
    page.section("SEE ALSO");
    page.text("phoenix-nvidia(8), pct(1), pct.conf(5)");
    page.finish()
}
