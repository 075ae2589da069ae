//! Joins settings and facts: the devices and mounts that a container gets, and
//! how the running container differs. Pure.

pub mod dropped;
pub mod narrow;

use crate::device::assignment::{Assignment, GpuName};
use crate::device::{Device, DevicePath, Number};
use crate::driver::injection::Injection;
use crate::exit::{Code, Fault};
use crate::guest::attached::Attached;
use crate::host::choose::{Capabilities, Choice, PREPARE, ToMake, choose, keep};
use crate::host::device_node::DeviceNode;
use crate::host::gpus::Inventory;
use crate::host::masks::{self, Masks};
use crate::host::provide::Request;
use crate::pve::conf::devices::present;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::mounts::{self, Mount};
use crate::pve::conf::reconcile::{pairs_are_right, reconcile, without_passed};
use crate::pve::passthrough::{self, DevLine};
use crate::settings::{Problem, Settings, keys};
use crate::sys::text;
use crate::types::Ctid;
use std::collections::BTreeSet;

/// The most lines of one kind in a message.
pub const MOST_LINES: usize = 20;

/// Which devices a container gets.
#[derive(Clone, Debug)]
pub enum Intent {
    /// Those of the settings.
    Assigned(Assignment, Capabilities),
    /// GPU_ASSIGNMENT is not set or invalid: keep the devices that the conf has,
    /// as far as this host has them.
    Keep,
}

impl Intent {
    /// From the settings, with those that cannot be read: without a valid
    /// assignment [`Intent::Keep`], without valid capabilities the default. The
    /// conf's environment for the container narrows both.
    pub fn of(settings: &Settings, conf: &Document) -> (Intent, Vec<Problem>) {
        let assignment = settings.get(keys::GPU_ASSIGNMENT);
        let unread = settings.get(keys::GPU_CAPABILITIES).err();
        let problems = [assignment.as_ref().err().cloned(), unread].into_iter().flatten().collect();
        let intent = match assignment {
            Ok(assignment) => {
                let narrowing = narrow::Narrowing::of(conf);
                let capabilities = narrowing.capabilities(settings.value(keys::GPU_CAPABILITIES));
                Intent::Assigned(narrowing.assignment(assignment), capabilities)
            }
            Err(_) => Intent::Keep,
        };
        (intent, problems)
    }

    /// Whether it needs the host's display nodes.
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

    /// The GPUs that it names: an inventory needs their UUIDs before [`Intent::on`]
    /// ([`Inventory::look_up`]).
    pub fn names(&self) -> Vec<GpuName> {
        match self {
            Intent::Assigned(assignment, _) => assignment.names(),
            Intent::Keep => Vec::new(),
        }
    }

    /// The devices on this host now; makes no nodes.
    pub fn on(&self, inventory: &Inventory, conf: &Document) -> Choice {
        match self {
            Intent::Assigned(assignment, capabilities) => choose(inventory, assignment, capabilities),
            Intent::Keep => keep(inventory, &named(conf)).settled(PREPARE),
        }
    }

    /// How many GPUs nvidia-smi must list; `None` if unknown.
    pub fn gpus(&self, choice: &Choice) -> Option<usize> {
        match self {
            Intent::Assigned(..) => Some(choice.gpus.len()),
            Intent::Keep => None,
        }
    }
}

/// The devices that a conf has, for [`Intent::Keep`].
pub fn named(conf: &Document) -> Vec<DevicePath> {
    present(conf).iter().map(|pair| pair.path).collect()
}

/// The chosen devices, including those whose nodes are not made yet, as far as
/// their numbers are known.
pub fn wanted_once_made(choice: &Choice) -> Vec<Device> {
    let made = |node: &ToMake| {
        let Number { major, minor } = node.number?;
        Some(Device { path: node.path, major, minor })
    };
    choice.devices.iter().copied().chain(choice.to_make.iter().filter_map(made)).collect()
}

/// The nodes among the devices that a container must be able to open: without the
/// monitor's, whose mode may be root's alone.
pub fn nodes(devices: &[Device], monitor: Option<DevicePath>) -> Vec<DevicePath> {
    devices.iter().map(|device| device.path).filter(|path| Some(*path) != monitor).collect()
}

/// Whether the pairs of a conf are those of the devices, or differ in no more than
/// that they still have the capabilities' directory in the place of the monitor's node.
pub fn pairs_will_do(conf: &Document, devices: &[Device], monitor: Option<DevicePath>) -> bool {
    let as_directory = |device: &Device| match Some(device.path) == monitor {
        true => Device { path: DevicePath::Caps, ..*device },
        false => *device,
    };
    let older: Vec<Device> = devices.iter().map(as_directory).collect();
    pairs_are_right(conf, devices, Form::Pve) || pairs_are_right(conf, &older, Form::Pve)
}

/// What the container sees of `/proc/driver/nvidia`: the cards of its settings
/// and those of its `devN:` lines.
pub fn masks(conf: &Document, inventory: &Inventory, choice: &Choice) -> Masks {
    let lines = passthrough::next(conf);
    let gpus = lines.iter().filter_map(|line| match line.device()? {
        DevicePath::Gpu(minor) => Some(minor),
        _ => None,
    });
    Masks::of(inventory, &gpus.chain(choice.gpus.iter().filter_map(|gpu| gpu.minor)).collect())
}

/// The mounts of the masks and of the host's driver. With [`Intent::Keep`] only
/// if the conf has any.
pub fn mounts(ctid: Ctid, intent: &Intent, conf: &Document, injection: &Injection) -> Vec<Mount> {
    match intent {
        Intent::Keep if mounts::mounts(conf).is_empty() => Vec::new(),
        _ => [masks::mounts(ctid), injection.mounts()].concat(),
    }
}

/// Whether a conf has the devices and mounts already.
pub fn is_right(conf: &Document, devices: &[Device], mounts: &[Mount]) -> bool {
    reconcile(conf, devices, mounts, Form::Pve).is_none()
}

/// What the masks do.
pub const MASKS: &str = "/proc/driver/nvidia in the container lists its own GPUs only, and nvidia-smi makes no device nodes there";

/// The chosen nodes that an unprivileged container may not open: its root is
/// uid 100000 on the host. A container with its own `lxc.idmap` is not checked.
pub fn closed(conf: &Document, inventory: &Inventory, choice: &Choice) -> Vec<DevicePath> {
    if conf.get("unprivileged").as_deref() != Some("1") || conf.get("lxc.idmap").is_some() {
        return Vec::new();
    }
    let shut = |path: &DevicePath| {
        let needs = match path {
            DevicePath::Gpu(_) | DevicePath::Control | DevicePath::Uvm | DevicePath::UvmTools => 0o006,
            // Ours, with the mode of the driver's parameter.
            DevicePath::Card(_) | DevicePath::Render(_) => 0o006,
            // Nobody's GPU: the driver may keep it to root.
            path if Some(*path) == choice.monitor => 0,
            // A process holds a capability by opening its node for reading.
            DevicePath::CapFile(_) => 0o004,
            DevicePath::Modeset | DevicePath::Caps => 0,
        };
        matches!(inventory.node(*path), DeviceNode::Device { mode, .. } if mode & needs != needs)
    };
    choice.devices.iter().map(|device| device.path).filter(shut).collect()
}

/// How the devices of a running container differ from `wanted`, one sentence
/// each; none if they need no restart. A node that could not be checked does not
/// count, nor the `monitor`'s: a container that was started with the directory of the
/// capabilities in its place, or without either, lacks nothing.
pub fn differences(
    conf: &Document,
    has: &Attached,
    wanted: &[Device],
    monitor: Option<DevicePath>,
) -> Vec<String> {
    let mut said = Vec::new();
    for device in without_passed(conf, wanted).into_iter().filter(|device| Some(device.path) != monitor) {
        let is_right = |number: &Option<Number>| number.is_none_or(|number| number == device.number());
        let seen = !has.unseen.contains_key(&device.path);
        if seen && !has.nodes.get(&device.path).is_some_and(is_right) {
            said.push(format!("the running container does not have {} yet", device.path));
        }
    }
    said.extend(kept(conf, has, wanted).iter().map(|path| format!("the running container still has {path}")));
    said
}

/// The devices that a running container has and is not to have: by its mounts, and by
/// the note of its rules, since root inside can hide a node.
pub fn kept(conf: &Document, has: &Attached, wanted: &[Device]) -> Vec<DevicePath> {
    // The devices of devN lines are the user's, also of pending lines.
    let lines: Vec<_> = passthrough::now(conf).into_iter().chain(passthrough::next(conf)).collect();
    let is_passed = |path| lines.iter().any(|line| line.device() == Some(path));
    let is_wanted = |path| wanted.iter().any(|device| device.path == path);
    // DRM nodes may be the user's, unless their rules are ours.
    let nodes = has.nodes.keys().copied().filter(|path| !path.is_drm());
    let noted = has.noted.iter().flat_map(|noted| &noted.devices).map(|device| device.path);
    // Another finding tells the capabilities' directory of an older start.
    let there: BTreeSet<DevicePath> = nodes.chain(noted).filter(|path| *path != DevicePath::Caps).collect();
    there.into_iter().filter(|path| !is_passed(*path) && !is_wanted(*path)).collect()
}

/// The wanted devices that only a `devN:` line pending deletion passes, one
/// sentence each. A reboot from inside runs no hookscript that could add a pair.
pub fn going(conf: &Document, wanted: &[Device]) -> Vec<String> {
    let there = present(conf);
    let is_wanted = |path| wanted.iter().any(|device| device.path == path);
    let has_pair = |path| there.iter().any(|pair| pair.path == path);
    let lines = passthrough::going(conf).into_iter();
    let said = |line: DevLine| {
        let path = line.device().filter(|path| is_wanted(*path) && !has_pair(*path))?;
        Some(format!(
            "{} is pending deletion: the next start, also a reboot from inside, removes {path}",
            line.key
        ))
    };
    lines.filter_map(said).collect()
}

/// How many GPUs `devN:` lines pass to a running container in addition to
/// `nodes`: nvidia-smi lists them too.
pub fn gpus_beside(conf: &Document, nodes: &[DevicePath]) -> usize {
    let lines = passthrough::now(conf);
    let devices: BTreeSet<DevicePath> = lines.iter().filter_map(DevLine::device).collect();
    devices.iter().filter(|path| matches!(path, DevicePath::Gpu(_)) && !nodes.contains(path)).count()
}

/// The fault of missing devices; none if none is missing.
pub fn fault(choice: &Choice) -> Option<Fault> {
    if choice.missing.is_empty() {
        return None;
    }
    let all = text::few(choice.missing.iter().map(ToString::to_string).collect(), MOST_LINES);
    let fault = Fault::new(Code::Passthrough, all.join("; "));
    let remedy = choice.missing.iter().find_map(|missing| missing.remedy.clone());
    Some(match remedy {
        Some(remedy) => fault.remedy(remedy),
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
    use crate::guest::attached::points;
    use crate::pve::in_force::InForce;

    fn conf(text: &str) -> Document {
        Document::parse(text.as_bytes())
    }

    fn has(paths: &[&str]) -> Attached {
        let table: String = paths.iter().map(|path| format!("1 1 0:5 /x {path} rw\n")).collect();
        let number = Some(Number { major: 195, minor: 0 });
        let nodes = points(&table).into_iter().map(|path| (path, number)).collect();
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
        assert!(differences(&conf(""), &has(&theirs), &[], None).is_empty());
        let said = differences(&conf(""), &has(&["/dev/nvidia1"]), &[], None);
        assert_eq!(said, ["the running container still has /dev/nvidia1"]);
    }

    #[test]
    fn a_card_whose_node_is_hidden_is_known_by_its_rule() {
        let drm = Device { path: "/dev/dri/card1".parse().unwrap(), major: 226, minor: 1 };
        let init = "7@42".parse().unwrap();
        let noted = Some(InForce { init, devices: vec![gpu(0), gpu(1), drm], all: true });
        let has = Attached { noted, ..has(&["/dev/nvidia0"]) };
        let said = differences(&conf(""), &has, &[gpu(0)], None);
        let still = |path: &str| format!("the running container still has {path}");
        assert_eq!(said, [still("/dev/nvidia1"), still("/dev/dri/card1")]);
        assert_eq!(
            differences(&conf("dev0: /dev/nvidia1\n"), &has, &[gpu(0), drm], None).len(),
            1,
            "its node is gone"
        );
    }

    #[test]
    fn a_running_container_with_the_capabilities_directory_lacks_nothing() {
        let monitor = Device { path: DevicePath::CapFile(2), major: 510, minor: 2 };
        let said =
            |has: &Attached, wanted: &[Device]| differences(&conf(""), has, wanted, Some(monitor.path));
        let old = has(&["/dev/nvidia0", "/dev/nvidia-caps"]);
        let wanted = [Device { minor: 0, ..gpu(0) }, monitor];
        assert_eq!(said(&old, &wanted), [""; 0]);
        assert_eq!(said(&has(&["/dev/nvidia0"]), &wanted), [""; 0], "the monitor is nobody's GPU");
        // An instance's node is needed, and lies in no directory of ours.
        let mig = Device { path: DevicePath::CapFile(12), major: 195, minor: 0 };
        let lacks = ["the running container does not have /dev/nvidia-caps/nvidia-cap12 yet"];
        assert_eq!(said(&old, &[gpu(0), mig]), lacks);
        assert_eq!(nodes(&[gpu(0), monitor, mig], Some(monitor.path)), [DevicePath::Gpu(0), mig.path]);
    }

    #[test]
    fn pairs_with_the_directory_in_the_nodes_place_will_do_until_the_next_start() {
        let monitor = Device { path: DevicePath::CapFile(2), major: 510, minor: 2 };
        let does = |text: &str| pairs_will_do(&conf(text), &[gpu(0), monitor], Some(monitor.path));
        let gpu = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
            lxc.cgroup2.devices.allow: c 195:0 rwm\n";
        let old = "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir 0 0\n\
            lxc.cgroup2.devices.allow: c 510:2 rwm\n";
        let new = old.replace("create=dir", "create=file").replace("caps ", "caps/nvidia-cap2 ");
        assert!(does(&format!("{gpu}{old}")) && does(&format!("{gpu}{new}")));
        assert!(!does(gpu) && !does(old) && !does(&format!("{gpu}{}", old.replace("510", "509"))));
    }

    #[test]
    fn a_device_of_a_dev_line_is_the_users_until_it_is_gone() {
        for text in [
            "dev0: gid=44,path=/dev//nvidia1\n",
            "dev0: /dev/nvidia1\n[pve:pending]\ndelete: dev0\n",
            "[pve:pending]\ndev0: /dev/nvidia1\n",
        ] {
            assert!(differences(&conf(text), &has(&["/dev/nvidia1"]), &[], None).is_empty(), "{text}");
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
        let node = |path: &str| vec![path.parse().unwrap()];
        assert_eq!(gpus_beside(&conf, &[]), 2);
        assert_eq!(gpus_beside(&conf, &node("/dev/nvidia0")), 1);
    }
}
