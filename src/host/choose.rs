//! Choosing: from what the settings ask for and what the host has to the
//! devices that the container gets. Pure.

use super::assignment::Assignment;
use super::device_node::DeviceNode;
use super::facts::is_dynamic;
use super::gpus::{CAPS_DIR, CTL, Gpu, Inventory, MODESET, UVM, UVM_TOOLS, cap_path, expected, gpu_path};
use super::resolve::{Missing, Resolved, resolve, split_cards};
use anyhow::bail;
use std::collections::BTreeSet;
use std::str::FromStr;

/// `GPU_CAPABILITIES`: what the container is to do with its GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// CUDA; always served.
    pub compute: bool,
    /// nvidia-smi; always served.
    pub utility: bool,
    /// OpenGL and Vulkan: nvidia-modeset and the card's DRM nodes.
    pub graphics: bool,
    /// The same nodes, to drive a screen.
    pub display: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities { compute: true, utility: true, graphics: false, display: false }
    }
}

impl Capabilities {
    /// Whether mode setting and DRM nodes are wanted.
    pub fn wants_display(self) -> bool {
        self.graphics || self.display
    }
}

impl FromStr for Capabilities {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut all = Capabilities { compute: false, utility: false, graphics: false, display: false };
        for word in text.split(',').map(str::trim) {
            match word.to_ascii_lowercase().as_str() {
                "compute" => all.compute = true,
                "utility" => all.utility = true,
                "graphics" => all.graphics = true,
                "display" => all.display = true,
                "all" => all = Capabilities { compute: true, utility: true, graphics: true, display: true },
                _ => bail!(
                    "'{}' is no capability; expected a comma list of compute, utility, graphics, display, or all",
                    word.escape_debug()
                ),
            }
        }
        Ok(all)
    }
}

/// What a device is, as far as others need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// `/dev/nvidiaN`.
    Gpu,
    /// `/dev/nvidiactl`.
    Control,
    /// `/dev/nvidia-modeset`.
    Modeset,
    /// `/dev/nvidia-uvm`.
    Uvm,
    /// `/dev/nvidia-uvm-tools`.
    UvmTools,
    /// The directory `/dev/nvidia-caps`; its numbers are the monitor capability's.
    Caps,
    /// `/dev/nvidia-caps/nvidia-capN`, for a MIG instance.
    CapFile,
    /// `/dev/dri/…` of a chosen card.
    Dri,
}

/// A device that the container gets: it is there, with these numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its path on the host.
    pub path: String,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// What it is.
    pub kind: DeviceKind,
}

/// A device that is wanted and whose node is not there, or is a stale one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToMake {
    /// The path of the node (for the caps directory: of the monitor capability's node).
    pub path: String,
    /// What it is.
    pub kind: DeviceKind,
    /// The numbers it ought to have; none while the module that knows them isn't loaded.
    pub numbers: Option<(u32, u32)>,
    /// What is wrong with it, for messages: `is missing`, `has the stale major 510, not 511`.
    pub why: String,
}

/// The outcome of choosing.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// The devices that are there, in the order of the conf's pairs.
    pub devices: Vec<Device>,
    /// Those that are wanted and whose nodes have to be made first ([`super::nodes::prepare`]).
    pub to_make: Vec<ToMake>,
    /// What can't be given.
    pub missing: Vec<Missing>,
    /// The cards chosen.
    pub gpus: Vec<Gpu>,
    /// What the user may want to know, and is no fault.
    pub notes: Vec<String>,
}

impl Choice {
    /// Once nothing more will be made: what still is to be made, is missing.
    #[must_use]
    pub fn settled(mut self) -> Choice {
        for node in std::mem::take(&mut self.to_make) {
            if node.kind == DeviceKind::Caps {
                // Access to the MIG monitor is a courtesy: nvidia-smi works without it.
                self.notes.push(format!("{} {}: left out", node.path, node.why));
                continue;
            }
            self.missing.push(Missing {
                what: node.path,
                why: node.why,
                has: None,
                remedy: Some(PREPARE.into()),
            });
        }
        self
    }
}

/// What makes the nodes by hand.
const PREPARE: &str = "phoenix-nvidia prepare";

/// Chooses the devices for `assignment` from what the host has.
pub fn choose(inventory: &Inventory, assignment: &Assignment, capabilities: &Capabilities) -> Choice {
    let mut choice = Choice::default();
    let loaded = inventory.driver.is_some() || inventory.majors.has_nvidia();
    let resolved = if loaded { resolve(inventory, assignment) } else { Resolved::default() };
    choice.gpus = resolved.gpus.iter().filter_map(|i| inventory.gpus.get(*i)).cloned().collect();
    for minor in choice.gpus.iter().filter_map(|gpu| gpu.minor).collect::<Vec<_>>() {
        choice.want(inventory, gpu_path(minor), DeviceKind::Gpu);
    }
    choice.want(inventory, CTL.into(), DeviceKind::Control);
    if capabilities.wants_display() {
        choice.want(inventory, MODESET.into(), DeviceKind::Modeset);
    }
    choice.want(inventory, UVM.into(), DeviceKind::Uvm);
    choice.want(inventory, UVM_TOOLS.into(), DeviceKind::UvmTools);
    choice.want_capabilities(inventory, &resolved);
    if capabilities.wants_display() {
        choice.want_dri();
    }
    choice.notes.extend(split_cards(inventory, &resolved));
    choice.missing.splice(0..0, resolved.missing);
    choice
}

/// Of all that this host has, the devices that are `named` by their paths
/// (the caps directory by its own), and nothing else: for a conf whose
/// settings can't be read, and whose entries stay as far as they are right.
pub fn keep(inventory: &Inventory, named: &[String]) -> Choice {
    let display = named.iter().any(|path| path == MODESET || path.starts_with("/dev/dri/"));
    let wanted = Capabilities { graphics: display, ..Capabilities::default() };
    let mut choice = choose(inventory, &Assignment::All, &wanted);
    if !inventory.mig.is_empty() {
        // With every instance chosen the directory was not; it may be what is named.
        choice.want_capabilities(inventory, &Resolved::default());
    }
    let is_named = |kind: DeviceKind, path: &str| {
        let path = if kind == DeviceKind::Caps { CAPS_DIR } else { path };
        named.iter().any(|name| name == path)
    };
    choice.devices.retain(|d| is_named(d.kind, &d.path));
    choice.to_make.retain(|n| is_named(n.kind, &n.path));
    choice.gpus.retain(|g| g.path().is_some_and(|path| is_named(DeviceKind::Gpu, &path)));
    choice.missing.clear();
    choice.notes.clear();
    choice
}

impl Choice {
    /// Takes in the node if it is right, puts it among those to be made if
    /// making it would help, among the missing if not.
    fn want(&mut self, inventory: &Inventory, path: String, kind: DeviceKind) {
        let numbers = expected(inventory, &path);
        let why = match (inventory.node(&path), numbers) {
            (DeviceNode::Device { major, minor, .. }, Some(n)) if n == (*major, *minor) => {
                if kind == DeviceKind::Modeset && modeset_is_unloaded(inventory) {
                    "stands without its module, nvidia-modeset".to_owned()
                } else {
                    return self.take(path, kind, n);
                }
            }
            // /proc/devices could not be read: a node in the dynamic range is believed.
            (DeviceNode::Device { major, minor, .. }, None)
                if inventory.majors.is_empty() && is_dynamic(*major) =>
            {
                return self.take(path, kind, (*major, *minor));
            }
            (DeviceNode::Device { major, .. }, None) => {
                format!("has major {major}, and its module isn't loaded")
            }
            (DeviceNode::Device { major, minor, .. }, Some(n)) => {
                format!("is the device {major}:{minor}, not {}:{}", n.0, n.1)
            }
            (DeviceNode::Absent, Some(_)) => "is missing".to_owned(),
            (DeviceNode::Absent, None) => "is missing, and its module isn't loaded".to_owned(),
            (DeviceNode::Other(what), _) => {
                let remedy = format!("ls -l {path}; if nothing needs it: rm -r {path} && {PREPARE}");
                let why = format!("is {what} on this host, not a device");
                return self.missing.push(Missing { what: path, why, has: None, remedy: Some(remedy) });
            }
            (DeviceNode::Unknown, _) => {
                let why = "could not be looked at".to_owned();
                return self.missing.push(Missing { what: path, why, has: None, remedy: None });
            }
        };
        self.to_make.push(ToMake { path, kind, numbers, why });
    }

    fn take(&mut self, path: String, kind: DeviceKind, (major, minor): (u32, u32)) {
        let path = if kind == DeviceKind::Caps { CAPS_DIR.to_owned() } else { path };
        self.devices.push(Device { path, major, minor, kind });
    }

    /// The capability nodes of the chosen MIG instances; without any, the
    /// directory, with the right to monitor.
    fn want_capabilities(&mut self, inventory: &Inventory, resolved: &Resolved) {
        let chosen = resolved.mig.iter().filter_map(|i| inventory.mig.get(*i));
        let minors: BTreeSet<u32> = chosen.flat_map(|m| [m.gi_minor, m.ci_minor]).collect();
        for minor in &minors {
            self.want(inventory, cap_path(*minor), DeviceKind::CapFile);
        }
        if let (true, Some(monitor)) = (minors.is_empty(), inventory.monitor) {
            self.want(inventory, cap_path(monitor), DeviceKind::Caps);
        }
    }

    /// The DRM nodes of the chosen cards. The kernel makes them; we can't.
    fn want_dri(&mut self) {
        for gpu in &self.gpus {
            let Some(card) = gpu.path() else { continue };
            if gpu.dri.is_empty() {
                self.missing.push(Missing {
                    what: format!("the DRM nodes of {card}"),
                    why: "the kernel shows none for this card: nvidia-drm isn't loaded".into(),
                    has: None,
                    remedy: Some("modprobe nvidia-drm".into()),
                });
            }
            self.devices.extend(gpu.dri.iter().map(|dri| Device {
                path: dri.path.clone(),
                major: dri.major,
                minor: dri.minor,
                kind: DeviceKind::Dri,
            }));
        }
    }
}

/// Newer drivers list nvidia-modeset by itself in /proc/devices; up to 535
/// the front end holds the major for all, and nothing there tells.
fn modeset_is_unloaded(inventory: &Inventory) -> bool {
    inventory.majors.of("nvidia").is_some() && !inventory.majors.has_modeset()
}
