//! Joins settings and facts into what a container is to have. Pure.
//!
//! `conf` and `host` don't know each other: this is where a host's device
//! becomes a conf's pair.

use crate::conf::devices::{Kind, Wanted, passed_by_dev_lines, present, without_passed};
use crate::conf::document::Document;
use crate::guest::attached::Attached;
use crate::host::assignment::Assignment;
use crate::host::choose::{Capabilities, Choice, Device, DeviceKind, choose, keep};
use crate::host::gpus::{Inventory, Node};
use crate::host::provide::Request;
use crate::settings::{Problem, Settings, keys};
use crate::types::Ctid;

/// Which devices are meant.
#[derive(Clone, Debug)]
pub enum Intent {
    /// What the settings say.
    Assigned(Assignment, Capabilities),
    /// The settings don't say, or can't be read: what the conf has stays as
    /// far as it is right.
    Keep,
}

impl Intent {
    /// From the settings; problems make it [`Intent::Keep`].
    pub fn of(settings: &Settings) -> (Intent, Vec<Problem>) {
        match (settings.get(keys::GPU_ASSIGNMENT), settings.get(keys::GPU_CAPABILITIES)) {
            (Ok(assignment), Ok(capabilities)) => (Intent::Assigned(assignment, capabilities), Vec::new()),
            (assignment, capabilities) => {
                let problems = [assignment.err(), capabilities.err()].into_iter().flatten().collect();
                (Intent::Keep, problems)
            }
        }
    }

    /// Whether the host's display nodes are to be looked at.
    pub fn display(&self, conf: &Document) -> bool {
        match self {
            Intent::Assigned(_, capabilities) => capabilities.wants_display(),
            Intent::Keep => {
                present(conf).iter().any(|p| matches!(p.source.kind(), Kind::Dri | Kind::Modeset))
            }
        }
    }

    /// The request to the host; `None` for [`Intent::Keep`].
    pub fn request(&self, exclusive: Option<Ctid>) -> Option<Request> {
        match self {
            Intent::Assigned(assignment, capabilities) => {
                Some(Request { assignment: assignment.clone(), capabilities: *capabilities, exclusive })
            }
            Intent::Keep => None,
        }
    }

    /// The devices on this host as it is, nothing made.
    pub fn on(&self, inventory: &Inventory, conf: &Document) -> Choice {
        match self {
            Intent::Assigned(assignment, capabilities) => choose(inventory, assignment, capabilities),
            Intent::Keep => keep(inventory, &named(conf)).settled(),
        }
    }

    /// How many GPUs nvidia-smi is to list; `None` where that can't be known.
    pub fn gpus(&self, choice: &Choice) -> Option<usize> {
        match self {
            Intent::Assigned(..) => Some(choice.gpus.len()),
            Intent::Keep => None,
        }
    }
}

/// The host's devices that a conf names: for [`Intent::Keep`].
pub fn named(conf: &Document) -> Vec<String> {
    present(conf).iter().map(|pair| pair.source.as_str().to_owned()).collect()
}

/// The chosen devices as the conf's pairs. A path that the conf has no kind
/// for is none of ours and left out.
pub fn wanted(choice: &Choice) -> Vec<Wanted> {
    let pair = |device: &Device| {
        Some(Wanted { source: device.path.parse().ok()?, major: device.major, minor: device.minor })
    };
    choice.devices.iter().filter_map(pair).collect()
}

/// The same, with the devices whose nodes are still to be made, as far as
/// their numbers are known.
pub fn wanted_once_made(choice: &Choice) -> Vec<Wanted> {
    let made = |node: &crate::host::choose::ToMake| {
        let caps = node.kind == DeviceKind::Caps;
        let path = if caps { crate::host::gpus::CAPS_DIR } else { node.path.as_str() };
        let (major, minor) = node.numbers?;
        Some(Wanted { source: path.parse().ok()?, major, minor })
    };
    wanted(choice).into_iter().chain(choice.to_make.iter().filter_map(made)).collect()
}

/// The chosen nodes whose mode keeps an unprivileged container out: to the
/// host its root is nobody. One that maps users in its own way may well be let
/// in, and is not judged.
pub fn closed<'a>(conf: &Document, inventory: &Inventory, choice: &'a Choice) -> Vec<&'a str> {
    if conf.get("unprivileged").as_deref() != Some("1") || conf.get("lxc.idmap").is_some() {
        return Vec::new();
    }
    let shut = |device: &&Device| {
        let kept_out =
            matches!(inventory.node(&device.path), Node::Device { mode, .. } if mode & 0o006 != 0o006);
        let matters = matches!(
            device.kind,
            DeviceKind::Gpu | DeviceKind::Control | DeviceKind::Uvm | DeviceKind::UvmTools
        );
        kept_out && matters
    };
    choice.devices.iter().filter(shut).map(|device| device.path.as_str()).collect()
}

/// What a running container has, compared with what is wanted: one sentence
/// for each difference, none when no restart is needed for its devices.
pub fn differences(conf: &Document, has: &Attached, wanted: &[Wanted]) -> Vec<String> {
    let passed = passed_by_dev_lines(conf);
    let mut said = Vec::new();
    for device in without_passed(conf, wanted) {
        let path = device.source.as_str();
        let right = match has.get(path) {
            Some((0, 0)) => true,
            Some(number) => *number == (device.major, device.minor),
            None => false,
        };
        if !right {
            said.push(format!("the running container does not have {path} yet"));
        }
    }
    for path in has.keys().filter(|p| !passed.contains(*p) && p.starts_with("/dev/nvidia")) {
        if !wanted.iter().any(|w| w.source.as_str() == path) {
            said.push(format!("the running container still has {path}"));
        }
    }
    said
}

/// The devices in a few words: `GPU 0, GPU 1 (NVIDIA H200)`.
pub fn describe(choice: &Choice) -> String {
    let mut words: Vec<String> = Vec::new();
    for gpu in &choice.gpus {
        match gpu.minor {
            Some(minor) => words.push(format!("GPU {minor} ({})", gpu.model)),
            None => words.push(gpu.model.clone()),
        }
    }
    if words.is_empty() { "no GPU".to_owned() } else { words.join(", ") }
}
