//! Joins settings and facts into what a container is to have. Pure.
//!
//! This is where a host's device becomes a conf's pair.

use crate::device::assignment::Assignment;
use crate::device::{Device, DevicePath, Number};
use crate::exit::{Code, Fault};
use crate::guest::attached::Attached;
use crate::host::choose::{Capabilities, Choice, ToMake, choose, keep};
use crate::host::device_node::DeviceNode;
use crate::host::gpus::Inventory;
use crate::host::masks::{self, Masks};
use crate::host::provide::Request;
use crate::pve::conf::devices::present;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::reconcile::{reconcile, without_passed};
use crate::pve::passthrough::{self, DevLine};
use crate::settings::{Problem, Settings, keys};
use crate::sys::text;
use crate::types::Ctid;
use std::collections::BTreeSet;

/// Of many things of one kind, so many are told one by one.
pub const MOST_LINES: usize = 20;

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
    /// From the settings, with what cannot be read of them. Without an
    /// assignment it is [`Intent::Keep`]; capabilities have a default.
    pub fn of(settings: &Settings) -> (Intent, Vec<Problem>) {
        let assignment = settings.get(keys::GPU_ASSIGNMENT);
        let unread = settings.get(keys::GPU_CAPABILITIES).err();
        let problems = [assignment.as_ref().err().cloned(), unread].into_iter().flatten().collect();
        let intent = match assignment {
            Ok(assignment) => Intent::Assigned(assignment, settings.value(keys::GPU_CAPABILITIES)),
            Err(_) => Intent::Keep,
        };
        (intent, problems)
    }

    /// Whether the host's display nodes are to be looked at.
    pub fn display(&self, conf: &Document) -> bool {
        match self {
            Intent::Assigned(_, capabilities) => capabilities.wants_display(),
            Intent::Keep => present(conf).iter().any(|pair| pair.path.is_display()),
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
pub fn named(conf: &Document) -> Vec<DevicePath> {
    present(conf).iter().map(|pair| pair.path).collect()
}

/// The chosen devices, with those whose nodes are still to be made, as far as
/// their numbers are known.
pub fn wanted_once_made(choice: &Choice) -> Vec<Device> {
    let made = |node: &ToMake| {
        let Number { major, minor } = node.number?;
        Some(Device { path: node.path, major, minor })
    };
    choice.devices.iter().copied().chain(choice.to_make.iter().filter_map(made)).collect()
}

/// The paths that the verification opens: files, not directories.
pub fn nodes(choice: &Choice) -> Vec<String> {
    files(&choice.devices)
}

/// The same of a list of devices.
pub fn files(devices: &[Device]) -> Vec<String> {
    let files = devices.iter().map(|device| device.path).filter(|path| *path != DevicePath::Caps);
    files.map(|path| path.to_string()).collect()
}

/// What the container is shown of `/proc/driver/nvidia`: of the cards that the
/// settings give it, and of those that `devN:` lines do.
pub fn masks(conf: &Document, inventory: &Inventory, choice: &Choice) -> Masks {
    let lines = passthrough::next(conf);
    let gpus = lines.iter().filter_map(|line| match line.device()? {
        DevicePath::Gpu(minor) => Some(minor),
        _ => None,
    });
    Masks::of(inventory, &gpus.chain(choice.gpus.iter().filter_map(|gpu| gpu.minor)).collect())
}

/// The entries that bind it. Where the settings don't say which devices are
/// meant, those in the conf stay.
pub fn mounts(ctid: Ctid, intent: &Intent, conf: &Document) -> Vec<Mount> {
    match intent {
        Intent::Keep if crate::pve::conf::mounts::mounts(conf).is_empty() => Vec::new(),
        _ => masks::mounts(ctid),
    }
}

/// Whether a conf has the devices and mounts already.
pub fn is_right(conf: &Document, devices: &[Device], mounts: &[Mount]) -> bool {
    reconcile(conf, devices, mounts, Form::Pve).is_none()
}

/// What they are, for people.
pub const MASKS: &str = "/proc/driver/nvidia inside shows the container's own GPUs alone, and nvidia-smi makes no device nodes there \
     (hygiene; the device rules are what keeps the others out)";

/// The chosen nodes whose mode keeps an unprivileged container out: to the
/// host its root is nobody. One that maps users in its own way may well be let
/// in, and is not judged.
pub fn closed(conf: &Document, inventory: &Inventory, choice: &Choice) -> Vec<DevicePath> {
    if conf.get("unprivileged").as_deref() != Some("1") || conf.get("lxc.idmap").is_some() {
        return Vec::new();
    }
    let shut = |path: &DevicePath| {
        let needs = match path {
            DevicePath::Gpu(_) | DevicePath::Control | DevicePath::Uvm | DevicePath::UvmTools => 0o006,
            // A capability is held by having its node open, for reading.
            DevicePath::CapFile(_) => 0o004,
            DevicePath::Modeset | DevicePath::Caps | DevicePath::Card(_) | DevicePath::Render(_) => 0,
        };
        matches!(inventory.node(*path), DeviceNode::Device { mode, .. } if mode & needs != needs)
    };
    choice.devices.iter().map(|device| device.path).filter(shut).collect()
}

/// What a running container has, compared with what is wanted: one sentence
/// for each difference, none when no restart is needed for its devices. What
/// could not be looked at is not known to differ.
pub fn differences(conf: &Document, has: &Attached, wanted: &[Device]) -> Vec<String> {
    let mut said = Vec::new();
    for device in without_passed(conf, wanted) {
        let path = device.path.to_string();
        if has.unseen.contains_key(&path) {
            continue;
        }
        let right = match has.nodes.get(&path) {
            Some((0, 0)) => true,
            Some(number) => *number == (device.major, device.minor),
            None => false,
        };
        if !right {
            said.push(format!("the running container does not have {path} yet"));
        }
    }
    // What a devN line passes is the user's, also one that is on its way in or out.
    let lines: Vec<_> = passthrough::now(conf).into_iter().chain(passthrough::next(conf)).collect();
    let is_passed = |path| lines.iter().any(|line| line.device() == Some(path));
    for path in has.nodes.keys().filter_map(|path| path.parse::<DevicePath>().ok()) {
        // A DRM node may be the user's, and so is any other node of NVIDIA's
        // (nvidia-nvswitchctl, nvidia-fs, IMEX channels).
        if !path.is_drm() && !is_passed(path) && !wanted.iter().any(|device| device.path == path) {
            said.push(format!("the running container still has {path}"));
        }
    }
    said
}

/// One sentence for each wanted device that only a `devN:` line passes which
/// is pending deletion: its next start takes the device away, and a reboot
/// from inside asks no hookscript before.
pub fn going(conf: &Document, wanted: &[Device]) -> Vec<String> {
    let there = present(conf);
    let is_wanted = |path| wanted.iter().any(|device| device.path == path);
    let has_pair = |path| there.iter().any(|pair| pair.path == path);
    let lines = passthrough::going(conf).into_iter();
    let said = |line: DevLine| {
        let path = line.device().filter(|path| is_wanted(*path) && !has_pair(*path))?;
        Some(format!(
            "{} is pending deletion: the next start, also a reboot from inside, takes {path} away",
            line.key
        ))
    };
    lines.filter_map(said).collect()
}

/// The GPUs that `devN:` lines pass to a running container beside the nodes
/// that our settings give it: nvidia-smi lists them too.
pub fn gpus_beside(conf: &Document, nodes: &[String]) -> usize {
    let lines = passthrough::now(conf);
    let devices: BTreeSet<DevicePath> = lines.iter().filter_map(DevLine::device).collect();
    let beside = |path: &&DevicePath| !nodes.iter().any(|node| *node == path.to_string());
    devices.iter().filter(|path| matches!(path, DevicePath::Gpu(_))).filter(beside).count()
}

/// The fault that missing devices are, where a policy asks for one.
pub fn fault(choice: &Choice) -> Option<Fault> {
    let first = choice.missing.first()?;
    let all = text::few(choice.missing.iter().map(ToString::to_string).collect(), MOST_LINES);
    let fault = Fault::new(Code::Passthrough, all.join("; "));
    Some(match &first.remedy {
        Some(remedy) => fault.remedy(remedy.clone()),
        None => fault,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> Document {
        Document::parse(text.as_bytes())
    }

    fn has(paths: &[&str]) -> Attached {
        let nodes = paths.iter().map(|path| ((*path).to_owned(), (195, 0))).collect();
        Attached { nodes, ..Attached::default() }
    }

    fn gpu(number: u32) -> Device {
        Device { path: DevicePath::Gpu(number), major: 195, minor: number }
    }

    #[test]
    fn nodes_of_nvidia_that_are_none_of_ours_are_left_to_the_user() {
        let theirs = [
            "/dev/nvidia-nvswitchctl",
            "/dev/nvidia-nvswitch0",
            "/dev/nvidia-fs0",
            "/dev/nvidia-caps-imex-channels/channel0",
            "/dev/dri/card0",
        ];
        assert!(differences(&conf(""), &has(&theirs), &[]).is_empty());
        let said = differences(&conf(""), &has(&["/dev/nvidia1"]), &[]);
        assert_eq!(said, ["the running container still has /dev/nvidia1"]);
    }

    #[test]
    fn a_device_of_a_dev_line_is_the_users_until_it_is_gone() {
        for text in [
            "dev0: gid=44,path=/dev//nvidia1\n",
            "dev0: /dev/nvidia1\n[pve:pending]\ndelete: dev0\n",
            "[pve:pending]\ndev0: /dev/nvidia1\n",
        ] {
            assert!(differences(&conf(text), &has(&["/dev/nvidia1"]), &[]).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_gpu_that_goes_with_its_line_is_told_unless_it_has_a_pair() {
        let text = "dev0: /dev/nvidia0\n[pve:pending]\ndelete: dev0\n";
        assert_eq!(going(&conf(text), &[gpu(0)]).len(), 1);
        assert!(going(&conf(text), &[gpu(1)]).is_empty(), "not assigned: it goes as it is meant to");
        let pair = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n";
        assert!(going(&conf(&format!("{pair}{text}")), &[gpu(0)]).is_empty());
        assert!(going(&conf("dev0: /dev/nvidia0\n"), &[gpu(0)]).is_empty());
    }

    #[test]
    fn gpus_of_dev_lines_are_counted_beside_those_of_the_settings() {
        let conf = conf("dev0: gid=44,path=/dev/nvidia1\ndev1: /dev/nvidia0\ndev2: /dev/nvidiactl\n");
        let node = |path: &str| vec![path.to_owned()];
        assert_eq!(gpus_beside(&conf, &[]), 2);
        assert_eq!(gpus_beside(&conf, &node("/dev/nvidia0")), 1);
    }
}
