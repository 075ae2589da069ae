//! Choosing: from what the settings ask for and what the host has to the
//! devices that the container gets. Pure.

use super::device_node::DeviceNode;
use super::gpus::{Gpu, Inventory};
use super::resolve::{Missing, Resolved, resolve, split_cards};
use crate::device::assignment::Assignment;
use crate::device::{Device, DevicePath, Number, is_dynamic};
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

/// A device that is wanted and whose node is not there, or is a stale one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToMake {
    /// The device that the container gets.
    pub path: DevicePath,
    /// Its node; another path for the caps directory alone: the monitor capability's.
    pub node: DevicePath,
    /// The number it ought to have; none while the module that knows it isn't loaded.
    pub number: Option<Number>,
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
            if node.path == DevicePath::Caps {
                // Access to the MIG monitor is a courtesy: nvidia-smi works without it.
                self.notes.push(format!("{} {}: left out", node.node, node.why));
                continue;
            }
            self.missing.push(Missing {
                what: node.path.to_string(),
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
        choice.want(inventory, DevicePath::Gpu(minor));
    }
    choice.want(inventory, DevicePath::Control);
    if capabilities.wants_display() {
        choice.want(inventory, DevicePath::Modeset);
    }
    choice.want(inventory, DevicePath::Uvm);
    choice.want(inventory, DevicePath::UvmTools);
    choice.want_capabilities(inventory, &resolved);
    if capabilities.wants_display() {
        choice.want_dri();
    }
    choice.notes.extend(split_cards(inventory, &resolved));
    choice.missing.splice(0..0, resolved.missing);
    choice
}

/// Of all that this host has, the devices that are `named`, and nothing else:
/// for a conf whose settings can't be read, and whose entries stay as far as
/// they are right.
pub fn keep(inventory: &Inventory, named: &[DevicePath]) -> Choice {
    let display = named.iter().any(|path| path.is_display());
    let wanted = Capabilities { graphics: display, ..Capabilities::default() };
    let mut choice = choose(inventory, &Assignment::All, &wanted);
    if !inventory.mig.is_empty() {
        // With every instance chosen the directory was not; it may be what is named.
        choice.want_capabilities(inventory, &Resolved::default());
    }
    choice.devices.retain(|device| named.contains(&device.path));
    choice.to_make.retain(|node| named.contains(&node.path));
    choice.gpus.retain(|gpu| gpu.path().is_some_and(|path| named.contains(&path)));
    choice.missing.clear();
    choice.notes.clear();
    choice
}

impl Choice {
    /// Takes in the node if it is right, puts it among those to be made if
    /// making it would help, among the missing if not.
    fn want(&mut self, inventory: &Inventory, path: DevicePath) {
        self.want_by(inventory, path, path);
    }

    /// The same, for a device whose node has another path.
    fn want_by(&mut self, inventory: &Inventory, path: DevicePath, node: DevicePath) {
        let number = inventory.majors.number_of(node);
        let why = match (inventory.node(node), number) {
            (DeviceNode::Device { major, minor, .. }, Some(n)) if (n.major, n.minor) == (*major, *minor) => {
                if path == DevicePath::Modeset && modeset_is_unloaded(inventory) {
                    "stands without its module, nvidia-modeset".to_owned()
                } else {
                    return self.devices.push(Device { path, major: *major, minor: *minor });
                }
            }
            // /proc/devices could not be read: a node in the dynamic range is believed.
            (DeviceNode::Device { major, minor, .. }, None)
                if inventory.majors.is_empty() && is_dynamic(*major) =>
            {
                return self.devices.push(Device { path, major: *major, minor: *minor });
            }
            (DeviceNode::Device { major, .. }, None) => {
                format!("has major {major}, and its module isn't loaded")
            }
            (DeviceNode::Device { major, minor, .. }, Some(n)) => {
                format!("is the device {major}:{minor}, not {}:{}", n.major, n.minor)
            }
            (DeviceNode::Absent, Some(_)) => "is missing".to_owned(),
            (DeviceNode::Absent, None) => "is missing, and its module isn't loaded".to_owned(),
            (DeviceNode::Other(what), _) => {
                let remedy = format!("ls -l {node}; if nothing needs it: rm -r {node} && {PREPARE}");
                let why = format!("is {what} on this host, not a device");
                let what = node.to_string();
                return self.missing.push(Missing { what, why, has: None, remedy: Some(remedy) });
            }
            (DeviceNode::Unknown, _) => {
                let why = "could not be looked at".to_owned();
                let what = node.to_string();
                return self.missing.push(Missing { what, why, has: None, remedy: None });
            }
        };
        self.to_make.push(ToMake { path, node, number, why });
    }

    /// The capability nodes of the chosen MIG instances; without any, the
    /// directory, with the right to monitor.
    fn want_capabilities(&mut self, inventory: &Inventory, resolved: &Resolved) {
        let chosen = resolved.mig.iter().filter_map(|i| inventory.mig.get(*i));
        let minors: BTreeSet<u32> = chosen.flat_map(|m| [m.gi_minor, m.ci_minor]).collect();
        for minor in &minors {
            self.want(inventory, DevicePath::CapFile(*minor));
        }
        if let (true, Some(monitor)) = (minors.is_empty(), inventory.monitor) {
            self.want_by(inventory, DevicePath::Caps, DevicePath::CapFile(monitor));
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
            self.devices.extend(&gpu.dri);
        }
    }
}

/// Newer drivers list nvidia-modeset by itself in /proc/devices; up to 535
/// the front end holds the major for all, and nothing there tells.
fn modeset_is_unloaded(inventory: &Inventory) -> bool {
    inventory.majors.of("nvidia").is_some() && !inventory.majors.has_modeset()
}
