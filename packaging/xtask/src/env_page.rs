//! phoenix-nvidia.env(5), from the table of settings.

use crate::page::Page;
use phoenix_nvidia::settings::{CLUSTER_FILE, NODE_FILE, keys};

const PLACES: &str = "Each setting is read from the first of these places that has it: the container's conf (main \
    section), the cluster's file, the node's file. When a person or an orchestrator calls phoenix-nvidia, the \
    process environment comes before these places. When Proxmox calls it, the environment comes last.";

const FORMAT: &str = "The two files have lines NAME=VALUE, as in EnvironmentFile= of systemd. Blank lines and lines \
    that begin with # or ; are ignored. A value may be in single or double quotes. Nothing is expanded or executed. \
    In the conf, each setting is a line of its own, which clone, snapshot, backup and migration keep:";

const VALUES: &str = "An empty value counts as not set: the next place is read. The value none turns off what another \
    place sets: HOOK_CHAIN=none. Words are read in any case; yes, on and true mean the same, and so do no, off and \
    false.";

const PROBLEMS: &str = "A call by hand, attach, plan and doctor report all settings that cannot be read. At a start, \
    such a setting is a warning and its default counts, with two exceptions: for GPUs, START_POLICY decides; \
    and if INSTALL, the driver version, a URL or the checksum cannot be read, nothing is installed.";

const ATTACH: &str = "phoenix-nvidia attach writes these lines, also for settings in its own environment that the \
    next start would not find. Only root can write them. lxc.environment.runtime, which other users can set, is \
    never read.";

const BEFORE: &str = "attach also writes PHOENIX_NVIDIA_BEFORE into the conf: the device entries that stood there before. \
    It is no setting; detach puts the entries back and removes it.";

const PLACEHOLDERS: &str = "Placeholders in URLs and package names: {version}, the driver version (580.95.05); \
    {branch}, its first number (580); {cuda}, the newest CUDA version of that branch (13-0); {arch}, the \
    architecture (x86_64; on ARM aarch64, in NVIDIA_REPO_URL sbsa); {platform}, NVIDIA's directory of runfiles for it \
    (Linux-x86_64, aarch64); {distro}, the container's distribution (debian12, ubuntu2404).";

const SECRETS: &str = "A name, password or token in a URL (https://NAME:PASSWORD@HOST/..., ?token=...) appears in no \
    message, and in no other file than yours. For the repository there is one exception: \
    /etc/apt/auth.conf.d/phoenix-nvidia.conf in the container, which only its root can read. Every process in the \
    container can read its lxc.environment lines. Put a secret into the cluster's file, which root and www-data can \
    read, or into the node's file after chmod 600.";

/// The page.
pub fn make() -> String {
    let mut page = Page::new("PHOENIX-NVIDIA.ENV", "5", "File formats");
    page.section("NAME");
    page.text("phoenix-nvidia.env - settings of phoenix-nvidia");
    page.section("SYNOPSIS");
    page.verbatim(&format!(
        "/etc/pve/lxc/CTID.conf   (lxc.environment: NAME=VALUE)\n{CLUSTER_FILE}\n{NODE_FILE}"
    ));
    page.section("DESCRIPTION");
    page.text(PLACES);
    page.text(FORMAT);
    page.verbatim("lxc.environment: GPU_ASSIGNMENT=0,1");
    for text in [VALUES, PROBLEMS, ATTACH, BEFORE, PLACEHOLDERS, SECRETS] {
        page.text(text);
    }
    page.section("SETTINGS");
    for key in keys::ALL {
        page.item(key.name, key.help());
        page.also(&match key.default {
            None => format!("Required ({}).", key.unit),
            Some(default) => format!("Default: {default} ({}).", key.unit),
        });
        if !key.example.is_empty() && key.default != Some(key.example) {
            page.also(&format!("Example: {}={}", key.name, key.example));
        }
    }
    page.section("FILES");
    page.item(CLUSTER_FILE, "Settings of the cluster.");
    page.item(NODE_FILE, "Settings of the node. The package sets all required settings but GPU_ASSIGNMENT.");
    page.section("SEE ALSO");
    page.text("phoenix-nvidia(8), pct(1), pct.conf(5)");
    page.finish()
}
