//! Chooses the devices of a container, from its settings and what the host
//! has. Pure.

use super::device_node::DeviceNode;
use super::gpus::{Gpu, Inventory};
use super::resolve::{Missing, Resolved, resolve, split_cards, unnumbered};
use crate::device::assignment::Assignment;
use crate::device::{Device, DevicePath, Number, is_dynamic};
use anyhow::bail;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// `GPU_CAPABILITIES`: what the container uses its GPUs for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// CUDA; always given.
    pub compute: bool,
    /// nvidia-smi; always given.
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
    /// Whether mode setting and DRM nodes are needed.
    pub fn wants_display(self) -> bool {
        self.graphics || self.display
    }
}

/// As in the setting.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.compute, "compute"),
            (self.utility, "utility"),
            (self.graphics, "graphics"),
            (self.display, "display"),
        ];
        let words: Vec<&str> = all.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
        f.write_str(&words.join(","))
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
                    "unknown capability '{}': expected a comma list of compute, utility, graphics, display, or all",
                    word.escape_debug()
                ),
            }
        }
        Ok(all)
    }
}

/// A chosen device whose node is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToMake {
    /// The device.
    pub path: DevicePath,
    /// Its right number; `None` while its module is not loaded.
    pub number: Option<Number>,
    /// What is wrong, for messages: `is missing`.
    pub why: String,
}

/// The outcome of choosing.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// The devices whose nodes are right, in the order of the conf's pairs.
    pub devices: Vec<Device>,
    /// Those whose nodes must be made first ([`super::nodes::prepare`]).
    pub to_make: Vec<ToMake>,
    /// What the host cannot give.
    pub missing: Vec<Missing>,
    /// The chosen cards.
    pub gpus: Vec<Gpu>,
    /// Cards that `all` is without because the driver does not number them.
    pub left_out: Vec<String>,
    /// Information that is no fault.
    pub notes: Vec<String>,
    /// The list that was to narrow the assignment names none of its cards.
    pub unmatched: bool,
    /// The node of the MIG monitor capability, where it is chosen: nvidia-smi works
    /// without it, and it is nobody's GPU. It need not be there, nor open.
    pub monitor: Option<DevicePath>,
}

impl Choice {
    /// Once no more nodes are made: those still to make are missing, with what makes
    /// them.
    #[must_use]
    pub fn settled(mut self, remedy: &str) -> Choice {
        for node in std::mem::take(&mut self.to_make) {
            if self.monitor == Some(node.path) {
                self.notes.push(left_out(node.path, &node.why));
                continue;
            }
            let remedy = Some(remedy.into());
            self.missing.push(Missing { remedy, ..Missing::new(node.path.on_host(), node.why) });
        }
        self
    }
}

fn left_out(path: DevicePath, why: &str) -> String {
    format!("{path} {why}: left out")
}

/// The command that makes the nodes.
pub const PREPARE: &str = "phoenix-nvidia prepare";

/// Chooses the devices for an assignment.
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
        choice.want_dri(inventory);
    }
    if *assignment == Assignment::All && !choice.gpus.is_empty() {
        choice.left_out = unnumbered(inventory);
    }
    choice.unmatched = resolved.unmatched;
    choice.notes.extend(split_cards(inventory, &resolved));
    choice.missing.splice(0..0, resolved.missing);
    choice
}

/// Chooses these nodes, whoever passes them to a container; missing are those
/// that nothing makes on this host.
pub fn only(inventory: &Inventory, paths: &[DevicePath]) -> Choice {
    let mut choice = Choice::default();
    for path in paths.iter().copied() {
        let absent = match path {
            DevicePath::Gpu(minor) if inventory.listed && inventory.by_minor(minor).is_none() => {
                Some("the NVIDIA driver has no such card")
            }
            DevicePath::CapFile(minor) if inventory.listed && inventory.capability_file(minor).is_none() => {
                Some("the NVIDIA driver has no such capability")
            }
            DevicePath::Card(_) | DevicePath::Render(_) => {
                let mut drm = inventory.gpus.iter().flat_map(|gpu| &gpu.dri);
                match drm.find(|device| device.path == path) {
                    Some(device) => choice.want_drm_node(inventory, device),
                    None => choice.missing.push(Missing::new(path, "no NVIDIA card has this DRM node")),
                }
                continue;
            }
            _ => None,
        };
        match (absent, path, inventory.monitor) {
            (Some(why), ..) => choice.missing.push(Missing::new(path, why)),
            // A directory of the host is never given: the one node in it is.
            (None, DevicePath::Caps, Some(monitor)) => choice.want_monitor(inventory, monitor),
            (None, DevicePath::Caps, None) => {}
            (None, ..) => choice.want(inventory, path),
        }
    }
    choice
}

/// Chooses the named devices and no other: for a conf with unreadable settings,
/// whose right entries stay. In the place of the capabilities' directory stands
/// the monitor's node.
pub fn keep(inventory: &Inventory, named: &[DevicePath]) -> Choice {
    let display = named.iter().any(|path| path.is_display());
    let wanted = Capabilities { graphics: display, ..Capabilities::default() };
    let mut choice = choose(inventory, &Assignment::All, &wanted);
    if !inventory.mig.is_empty() {
        // The monitor may be named too, and is not chosen beside instances.
        choice.want_capabilities(inventory, &Resolved::default());
    }
    let of_directory = choice.monitor.filter(|_| named.contains(&DevicePath::Caps));
    let is_named = |path: DevicePath| named.contains(&path) || of_directory == Some(path);
    choice.devices.retain(|device| is_named(device.path));
    choice.to_make.retain(|node| is_named(node.path));
    choice.gpus.retain(|gpu| gpu.path().is_some_and(|path| named.contains(&path)));
    choice.missing.clear();
    choice.left_out.clear();
    choice.notes.clear();
    choice
}

impl Choice {
    /// Adds a device: to the devices if its node is right, else to those to
    /// make, or to the missing if making it does not help.
    fn want(&mut self, inventory: &Inventory, path: DevicePath) {
        let right = inventory.majors.number_of(path);
        let why = match (inventory.node(path), right) {
            (DeviceNode::Device { number, .. }, Some(right)) if *number != right => {
                format!("is {number} instead of {right}")
            }
            (DeviceNode::Device { number, .. }, None)
                if !inventory.majors.is_empty() || !is_dynamic(number.major) =>
            {
                format!("exists ({number}), but its module is not loaded")
            }
            (DeviceNode::Device { .. }, _)
                if path == DevicePath::Modeset && modeset_is_unloaded(inventory) =>
            {
                "exists, but nvidia-modeset is not loaded".to_owned()
            }
            // Without /proc/devices a node in the dynamic range counts as right.
            (DeviceNode::Device { number: Number { major, minor }, .. }, _) => {
                return self.devices.push(Device { path, major: *major, minor: *minor });
            }
            (DeviceNode::Absent, Some(_)) => "is missing".to_owned(),
            (DeviceNode::Absent, None) => "is missing, its module is not loaded".to_owned(),
            (DeviceNode::Other(what), _) => {
                // A directory may hold something of somebody's, or a mount.
                let remove = if *what == "a directory" { "rmdir" } else { "rm" };
                let remedy = Some(format!("{remove} {path} && {PREPARE}"));
                let why = format!("is {what}, not a device");
                return self.missing.push(Missing { remedy, ..Missing::new(path, why) });
            }
            (DeviceNode::Unknown, _) => {
                return self.missing.push(Missing::new(path, "is not readable"));
            }
        };
        self.to_make.push(ToMake { path, number: right, why });
    }

    /// Adds the monitor's node; what is in its place is no fault of a start.
    fn want_monitor(&mut self, inventory: &Inventory, minor: u32) {
        let path = DevicePath::CapFile(minor);
        self.monitor = Some(path);
        match inventory.node(path) {
            DeviceNode::Other(what) => self.notes.push(left_out(path, &format!("is {what}, not a device"))),
            DeviceNode::Unknown => self.notes.push(left_out(path, "is not readable")),
            _ => self.want(inventory, path),
        }
    }

    /// Adds the capability nodes of the chosen MIG instances; without any, that of
    /// the monitor.
    fn want_capabilities(&mut self, inventory: &Inventory, resolved: &Resolved) {
        let chosen = resolved.mig.iter().filter_map(|i| inventory.mig.get(*i));
        let minors: BTreeSet<u32> = chosen.flat_map(|m| [m.gi_minor, m.ci_minor]).collect();
        for minor in &minors {
            self.want(inventory, DevicePath::CapFile(*minor));
        }
        if let (true, Some(monitor)) = (minors.is_empty(), inventory.monitor) {
            self.want_monitor(inventory, monitor);
        }
    }

    /// Adds the DRM nodes of the chosen cards: nodes of ours with the numbers of
    /// the kernel's, and the mode of the driver's other nodes.
    fn want_dri(&mut self, inventory: &Inventory) {
        for gpu in &self.gpus.clone() {
            let Some(card) = gpu.path() else { continue };
            if gpu.dri.is_empty() {
                let missing = Missing::new(format!("DRM nodes of {card}"), "nvidia-drm is not loaded");
                let remedy = Some("modprobe nvidia-drm".into());
                self.missing.push(Missing { remedy, ..missing });
            }
            gpu.dri.iter().for_each(|device| self.want_drm_node(inventory, device));
        }
    }

    fn want_drm_node(&mut self, inventory: &Inventory, device: &Device) {
        let right = inventory.node_params();
        let (path, number) = (device.path, Some(device.number()));
        let why = match inventory.node(path) {
            DeviceNode::Device { number, .. } if *number != device.number() => {
                format!("is {number} instead of {}", device.number())
            }
            DeviceNode::Device { mode, uid, gid, .. }
                if (*mode, *uid, *gid) != (right.mode, right.uid, right.gid) =>
            {
                format!("has mode {mode:04o} of {uid}:{gid}")
            }
            DeviceNode::Device { .. } => return self.devices.push(*device),
            DeviceNode::Other(what) => format!("is {what}, not a device"),
            DeviceNode::Absent | DeviceNode::Unknown => "is missing".to_owned(),
        };
        self.to_make.push(ToMake { path, number, why });
    }
}

/// Newer drivers list nvidia-modeset in /proc/devices. Up to 535 the front end
/// has the major for all, so this is unknown.
fn modeset_is_unloaded(inventory: &Inventory) -> bool {
    inventory.majors.of("nvidia").is_some() && !inventory.majors.has_modeset()
}
