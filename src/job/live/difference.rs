//! How a running container differs from what it is to have, as steps: each is
//! done while it runs, or waits for its next start. Pure.

use crate::device::{CAPS_DIR, Device, DevicePath, Number};
use crate::driver::injection::is_driver;
use crate::driver::tree;
use crate::host::gpus::Inventory;
use crate::plan::MOST_LINES;
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::reconcile::without_passed;
use crate::pve::passthrough;
use crate::sys::mountinfo::{self, at, file_system};
use crate::sys::text;
use crate::types::Version;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a running container has.
#[derive(Debug, Default)]
pub struct Running {
    /// The nodes that are mounted, with their numbers; none for a directory.
    pub nodes: BTreeMap<DevicePath, Option<Number>>,
    /// Those that could not be looked at.
    pub unseen: BTreeSet<DevicePath>,
    /// The devices of our pairs whose rules are in force.
    pub rules: Vec<Device>,
    /// The nodes that it has and may not open.
    pub shut: BTreeSet<DevicePath>,
    /// Its mount table.
    pub table: String,
}

impl Running {
    /// Whether it may open the device, as far as is known.
    fn opens(&self, device: Device) -> bool {
        self.has_rule(device.path, device.number()) && !self.shut.contains(&device.path)
    }

    /// Whether this rule of the device is in force: by what is noted on the host, since
    /// the container chooses what it mounts at a path.
    fn has_rule(&self, path: DevicePath, number: Number) -> bool {
        self.rules.iter().any(|device| device.path == path && device.number() == number)
    }

    /// Whether a rule of a pair opens this number now.
    pub fn opens_number(&self, number: Number) -> bool {
        let opens = |device: &Device| device.number() == number && !self.shut.contains(&device.path);
        self.rules.iter().any(opens)
    }

    /// The nodes that may be NVIDIA's. Anything else that is mounted at a path of
    /// one, /dev/null say, is the container's own.
    fn mounted(&self) -> impl Iterator<Item = DevicePath> + '_ {
        let fits = |path: DevicePath, number: Option<Number>| match number {
            // DRM nodes may be the user's.
            Some(number) => !path.is_drm() && path.may_have(number),
            None => path == DevicePath::Caps,
        };
        self.nodes.iter().filter(move |(path, number)| fits(**path, **number)).map(|(path, _)| *path)
    }
}

/// What it is to have.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Its devices.
    pub devices: Vec<Device>,
    /// Our mounts.
    pub mounts: Vec<Mount>,
    /// The loaded driver: the version of its tree.
    pub kernel: Option<Version>,
    /// The cards with MIG instances.
    pub mig: BTreeSet<u32>,
    /// All cards of this host.
    pub cards: BTreeSet<u32>,
    /// The node of the MIG monitor capability.
    pub monitor: Option<DevicePath>,
}

impl Wanted {
    /// These devices and mounts, of this host.
    pub fn of(inventory: &Inventory, devices: Vec<Device>, mounts: Vec<Mount>) -> Wanted {
        Wanted {
            devices,
            mounts,
            kernel: inventory.driver.as_ref().map(|driver| driver.version.clone()),
            mig: inventory.mig.iter().map(|instance| instance.gpu).collect(),
            cards: inventory.gpus.iter().filter_map(|gpu| gpu.minor).collect(),
            monitor: inventory.monitor.map(DevicePath::CapFile),
        }
    }
}

/// A step that is done while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The node is mounted and its rule set; `over` a node of another number.
    Add {
        /// The device.
        device: Device,
        /// In place of this number.
        over: Option<Number>,
    },
    /// The node is there, its rule is not.
    Allow(Device),
    /// The rule goes, then the node.
    Take(DevicePath, Option<Number>),
    /// The driver tree.
    Tree(Exchange),
}

impl Step {
    /// Whether the container gets something by it, so that the conf has it first.
    pub fn adds(&self) -> bool {
        match self {
            Step::Add { .. } | Step::Allow(_) => true,
            Step::Take(..) => false,
            Step::Tree(exchange) => !exchange.places.is_empty(),
        }
    }

    /// Whether it may as well be done by the next start: no card needs the monitor's node or
    /// the directory of MIG's nodes, and the container may have something else in its place.
    pub fn can_wait(&self) -> bool {
        self.waiting().is_some()
    }

    /// The device of a step that can wait; those of instances are no steps.
    fn waiting(&self) -> Option<DevicePath> {
        let path = match self {
            Step::Add { device, .. } => device.path,
            Step::Take(path, _) => *path,
            Step::Allow(_) | Step::Tree(_) => return None,
        };
        Some(path).filter(|path| matches!(path, DevicePath::Caps | DevicePath::CapFile(_)))
    }
}

/// A change of the driver tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The version that is mounted.
    pub old: Option<Version>,
    /// The version that is to be.
    pub new: Option<Version>,
    /// The device number of the mounted one, as in the table.
    pub device: String,
    /// The places that get the new one, and whether an old one is there.
    pub places: Vec<(Mount, bool)>,
    /// The places, relative to the root, that have it no more.
    pub leaves: Vec<String>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Add { device, .. } => write!(f, "add {}", device.path),
            Step::Allow(device) => write!(f, "add the device rule of {}", device.path),
            Step::Take(path, _) => write!(f, "take away {path}"),
            Step::Tree(Exchange { old: None, new: Some(new), .. }) => write!(f, "mount driver {new}"),
            Step::Tree(Exchange { old: Some(old), new: Some(new), .. }) if old != new => {
                write!(f, "exchange driver {old} for {new}")
            }
            Step::Tree(Exchange { new: Some(new), .. }) => write!(f, "mount driver {new} at its places"),
            Step::Tree(Exchange { old, .. }) => {
                write!(f, "take away driver {}", old.as_ref().map_or("", Version::as_str))
            }
        }
    }
}

/// The whole difference.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What is done now, in this order.
    pub live: Vec<Step>,
    /// What waits for the next start: devices that come, and those that go.
    pub later: Vec<(DevicePath, bool)>,
    /// The node that comes in the place of the capabilities' directory: that is not
    /// told, since the container lacks nothing until its next start.
    untold: Option<DevicePath>,
}

impl Difference {
    /// That of a container with this conf.
    pub fn of(conf: &Document, has: &Running, wanted: &Wanted) -> Difference {
        let mut difference = Difference::default();
        let devices = without_passed(conf, &wanted.devices);
        let later = Later::of(has, wanted);
        for device in &devices {
            let there = has.nodes.get(&device.path);
            let right = |number: &Option<Number>| number.is_none_or(|number| number == device.number());
            match there {
                Some(number) if right(number) => {
                    if !later.has(device.path) && !has.opens(*device) {
                        difference.live.push(Step::Allow(*device));
                    }
                }
                None if has.unseen.contains(&device.path) => {}
                // The host's directory is given to nobody: an entry of a guide's that comes back.
                _ if later.has(device.path) || device.path == DevicePath::Caps => {
                    difference.later.push((device.path, true));
                }
                there => {
                    // Only what was mounted with its rule is replaced.
                    let ours = |number: &Number| has.has_rule(device.path, *number);
                    let over = there.copied().flatten().filter(ours);
                    difference.live.push(Step::Add { device: *device, over });
                }
            }
        }
        difference.take(conf, has, &later, &devices);
        let waits = |path: DevicePath, comes: bool| difference.later.contains(&(path, comes));
        let instead = |monitor: &DevicePath| waits(*monitor, true) && waits(DevicePath::Caps, false);
        difference.untold = wanted.monitor.filter(instead);
        difference.live.extend(exchange(has, wanted).map(Step::Tree));
        difference
    }

    /// What the container has and is not to have: what it has mounted, and what its
    /// rules allow.
    fn take(&mut self, conf: &Document, has: &Running, later: &Later<'_>, devices: &[Device]) {
        let passed = passed(conf);
        let is_passed = |path| passed.contains(&path);
        let is_wanted = |path| devices.iter().any(|device| device.path == path);
        let all: BTreeSet<DevicePath> =
            has.mounted().chain(has.rules.iter().map(|device| device.path)).collect();
        for path in all.into_iter().filter(|path| !is_wanted(*path) && !is_passed(*path)) {
            if later.has(path) {
                self.later.push((path, false));
                continue;
            }
            // Never what the container shows at the path, if that can be known: it
            // would keep the card by mounting another device there.
            let rule = has.rules.iter().find(|device| device.path == path).map(|device| device.number());
            let node = || has.nodes.get(&path).copied().flatten().filter(|number| path.may_have(*number));
            let number = rule.or_else(|| path.static_number()).or_else(node);
            self.live.push(Step::Take(path, number));
        }
    }

    /// Leaves a step that [can wait](Step::can_wait) to the next start.
    pub fn put_off(&mut self, step: &Step) {
        self.live.retain(|other| other != step);
        self.later.extend(step.waiting().map(|path| (path, step.adds())));
    }

    /// The cards of this host that are none of the container's: where nobody knows all
    /// rules that are in force, it may have any of them.
    pub fn others(&self, conf: &Document, wanted: &Wanted) -> Vec<Device> {
        let mut known = passed(conf);
        known.extend(wanted.devices.iter().map(|device| device.path));
        known.extend(self.later.iter().map(|(path, _)| *path));
        let device = |minor: &u32| {
            let path = DevicePath::Gpu(*minor);
            let Number { major, minor } = path.static_number()?;
            Some(Device { path, major, minor }).filter(|_| !known.contains(&path))
        };
        wanted.cards.iter().filter_map(device).collect()
    }

    /// The devices whose rules are in force once the steps are done.
    pub fn rules_after(&self, has: &Running) -> Vec<Device> {
        let mut rules = has.rules.clone();
        for step in &self.live {
            match step {
                Step::Add { device, .. } | Step::Allow(device) => {
                    rules.retain(|rule| rule.path != device.path);
                    rules.push(*device);
                }
                Step::Take(path, _) => rules.retain(|rule| rule.path != *path),
                Step::Tree(_) => {}
            }
        }
        rules.sort_by_key(|rule| rule.path);
        rules
    }

    /// What is done now, in one line each.
    pub fn told(&self) -> Vec<String> {
        self.live.iter().map(ToString::to_string).collect()
    }

    /// What waits for the next start, in one line.
    pub fn waiting(&self) -> Option<String> {
        let told =
            |path: DevicePath| self.untold.is_none_or(|untold| path != untold && path != DevicePath::Caps);
        let of = |comes: bool| -> Vec<String> {
            let paths = self.later.iter().filter(|(path, is)| *is == comes && told(*path));
            text::few(paths.map(|(path, _)| path.to_string()).collect(), MOST_LINES)
        };
        let (come, go) = (of(true), of(false));
        let mut parts = Vec::new();
        if !come.is_empty() {
            parts.push(format!("{} come", come.join(", ")));
        }
        if !go.is_empty() {
            parts.push(format!("{} go", go.join(", ")));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Whether there is nothing to do now.
    pub fn is_none(&self) -> bool {
        self.live.is_empty()
    }
}

/// The devices of the user's `devN:` lines, also of pending ones.
fn passed(conf: &Document) -> BTreeSet<DevicePath> {
    let lines = passthrough::now(conf).into_iter().chain(passthrough::next(conf));
    lines.filter_map(|line| line.device()).collect()
}

/// Which devices come and go with a start alone: MIG instances, with their cards, and
/// DRM nodes; the monitor's node and the directory where that is safer.
struct Later<'a> {
    mig: &'a BTreeSet<u32>,
    /// The directory of MIG's nodes too, as an older start gave it: something is in it,
    /// comes in its place, or it is not to be touched.
    directory: bool,
    /// The monitor's node, where that comes and goes at once: no directory is in its place.
    monitor: Option<DevicePath>,
}

impl Later<'_> {
    fn of<'a>(has: &Running, wanted: &'a Wanted) -> Later<'a> {
        let there = || has.nodes.keys().copied().chain(has.rules.iter().map(|device| device.path));
        let mut all = there().chain(wanted.devices.iter().map(|device| device.path));
        let nodes = all.any(|path| matches!(path, DevicePath::CapFile(_)));
        let unseen = has.unseen.contains(&DevicePath::Caps);
        let fuse = |path: &str| file_system(&has.table, path).is_some_and(|kind| kind.starts_with("fuse"));
        let directory = unseen || there().any(|path| path == DevicePath::Caps);
        Later {
            mig: &wanted.mig,
            directory: nodes || unseen || fuse(CAPS_DIR),
            monitor: wanted.monitor.filter(|path| !directory && !fuse(&path.to_string())),
        }
    }

    fn has(&self, path: DevicePath) -> bool {
        match path {
            DevicePath::CapFile(_) => self.monitor != Some(path),
            DevicePath::Card(_) | DevicePath::Render(_) => true,
            DevicePath::Caps => self.directory,
            DevicePath::Gpu(minor) => self.mig.contains(&minor),
            DevicePath::Control | DevicePath::Modeset | DevicePath::Uvm | DevicePath::UvmTools => false,
        }
    }
}

/// What is to be done about the driver tree.
fn exchange(has: &Running, wanted: &Wanted) -> Option<Exchange> {
    let mut all: Vec<(String, Version, &str)> = Vec::new();
    for mount in mountinfo::mounts(&has.table) {
        // What is mounted on it covers it.
        let top = at(&has.table, mount.at) == Some(mount);
        if let (true, Some(version)) = (top, tree::version_of(&mount)) {
            all.push((mount.at.trim_start_matches('/').to_owned(), version, mount.device));
        }
    }
    let mut exchange = Exchange { new: wanted.kernel.clone(), ..Exchange::default() };
    let places: Vec<&Mount> = wanted.mounts.iter().filter(|mount| is_driver(mount)).collect();
    if places.is_empty() {
        exchange.new = None;
    } else if wanted.kernel.is_none() {
        // No driver is loaded: nobody knows what is right.
        return None;
    }
    for place in &places {
        let there = all.iter().find(|(target, ..)| *target == place.target);
        if there.is_none_or(|(_, version, _)| Some(version) != wanted.kernel.as_ref()) {
            exchange.places.push(((*place).clone(), there.is_some()));
        }
    }
    let leaves = all.iter().filter(|(target, ..)| !places.iter().any(|place| place.target == *target));
    exchange.leaves = leaves.map(|(target, ..)| target.clone()).collect();
    let moved = |target: &String| {
        exchange.leaves.contains(target) || exchange.places.iter().any(|(place, _)| place.target == *target)
    };
    if let Some((_, version, device)) = all.iter().find(|(target, ..)| moved(target)) {
        exchange.old = Some(version.clone());
        (*device).clone_into(&mut exchange.device);
    }
    (!exchange.places.is_empty() || !exchange.leaves.is_empty()).then_some(exchange)
}

#[cfg(test)]
#[path = "difference_tests.rs"]
mod tests;
