//! Makes missing device nodes. The kernel driver makes none: after a boot they
//! are missing until something makes them.

use super::choose::ToMake;
use super::device_node::DeviceNode;
use super::drm;
use super::facts::{self, Majors, Params};
use super::gpus::Inventory;
use super::new_node::{Directory, Wanted};
use crate::device::{CAPS_DIR, DevicePath, Number};
use crate::sys::look::{Look, Op, Question, View};
use crate::sys::process::{self, Cmd, Failure};
use crate::sys::time::Deadline;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// NVIDIA's program that loads modules and makes nodes.
const NVIDIA_MODPROBE: &str = "/usr/bin/nvidia-modprobe";
/// The kernel's program that loads modules.
const MODPROBE: [&str; 2] = ["/usr/sbin/modprobe", "/sbin/modprobe"];
/// The timeout of a program that only makes nodes, which takes milliseconds.
const MAKE: Duration = Duration::from_secs(10);
/// The timeout of one that loads modules: half a minute with eight cards.
const LOAD: Duration = Duration::from_secs(60);

/// What [`prepare`] did.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// The nodes that were wrong or missing and are now right.
    pub made: Vec<DevicePath>,
    /// What went wrong, each in one line. Nodes that are still missing show
    /// when the caller chooses again.
    pub problems: Vec<String>,
}

/// Makes the nodes in `wanted` and loads the modules that they need: with
/// nvidia-modprobe if it is installed, the rest by itself.
///
/// Replaces a node with a wrong number, unless that number now belongs to
/// another driver.
pub fn prepare<'a>(
    view: impl Into<View<'a>>,
    inventory: &Inventory,
    wanted: &[ToMake],
    deadline: &Deadline,
) -> Prepared {
    let view = view.into();
    let mut maker = Maker {
        look: Look::new(view.root()),
        params: Look::new(view.root()),
        root: view.root(),
        inventory,
        majors: inventory.majors.clone(),
        deadline,
        stuck: false,
        prepared: Prepared::default(),
    };
    let wanted: Vec<&ToMake> = wanted.iter().filter(|node| maker.may_be_made(node)).collect();
    // Only absent ones: nvidia-modprobe removes a wrong node before it makes
    // the right one. We replace it in one step.
    let absent: Vec<&ToMake> = wanted
        .iter()
        .copied()
        .filter(|n| n.number.is_none() || *inventory.node(n.path) == DeviceNode::Absent)
        .collect();
    if !absent.is_empty() {
        maker.nvidia_modprobe(&absent);
    }
    maker.load_missing_modules(&wanted);
    let files = wanted.iter().map(|node| Question::new(Op::Read, maker.params_file(node)));
    let files: BTreeSet<Question> = files.collect();
    maker.params = Look::at_files(view, files.into_iter().collect());
    for node in &wanted {
        maker.finish(node);
    }
    let problems =
        [std::mem::take(&mut maker.look.problems), std::mem::take(&mut maker.params.problems)].concat();
    maker.prepared.problems.extend(problems);
    maker.prepared
}

struct Maker<'a> {
    root: &'a Path,
    look: Look<'a>,
    /// The driver's files with the modes of nodes, read once its modules are loaded.
    params: Look<'a>,
    inventory: &'a Inventory,
    majors: Majors,
    deadline: &'a Deadline,
    /// A program timed out: no other one runs.
    stuck: bool,
    prepared: Prepared,
}

impl Maker<'_> {
    /// Whether the path is free, or has a node of the NVIDIA driver.
    fn may_be_made(&mut self, node: &ToMake) -> bool {
        if node.path.is_drm() {
            // Nobody else has anything where they are.
            return true;
        }
        let at = self.look.at(&node.path.to_string());
        if fs::symlink_metadata(&at).is_ok_and(|m| m.file_type().is_symlink()) {
            self.problem(format!("{} is a symlink: not replaced", node.path));
            return false;
        }
        let DeviceNode::Device { number, .. } = self.inventory.node(node.path) else { return true };
        let owner = match self.majors.owner(number.major) {
            Some(owner) if !owner.starts_with("nvidia") => format!("driver {owner}"),
            None if self.majors.is_empty() => "an unknown driver, /proc/devices is not readable".to_owned(),
            _ => return true,
        };
        let path = node.path;
        self.problem(format!("{path} is {number} of {owner}: not replaced; if unused: rm {path}"));
        false
    }

    fn nvidia_modprobe(&mut self, nodes: &[&ToMake]) {
        if !process::installed(self.look.at(NVIDIA_MODPROBE)) {
            return;
        }
        let wanted = |path: DevicePath| nodes.iter().any(|node| node.path == path);
        let mut args: Vec<String> = Vec::new();
        // nvidiactl has a minor of its own: those of the cards do not include it.
        for node in nodes.iter().filter(|n| matches!(n.path, DevicePath::Gpu(_) | DevicePath::Control)) {
            let minor = node.path.static_number().map(|number| number.minor);
            args.extend(minor.into_iter().flat_map(|minor| ["-c".to_owned(), minor.to_string()]));
        }
        if wanted(DevicePath::Modeset) {
            args.push("-m".to_owned());
        }
        for node in nodes {
            let file = self.capability_file(node);
            args.extend(file.into_iter().flat_map(|file| ["-f".to_owned(), file]));
        }
        if !args.is_empty() {
            self.run(NVIDIA_MODPROBE, &args);
        }
        if (wanted(DevicePath::Uvm) || wanted(DevicePath::UvmTools)) && self.may_make_both_uvm_nodes() {
            self.run(NVIDIA_MODPROBE, &["-u".to_owned(), "-c".to_owned(), "0".to_owned()]);
        }
        self.read_majors();
    }

    /// nvidia-modprobe makes both, and first removes what is at either path.
    fn may_make_both_uvm_nodes(&self) -> bool {
        [DevicePath::Uvm, DevicePath::UvmTools].into_iter().all(|path| match self.inventory.node(path) {
            DeviceNode::Device { number, .. } => {
                self.majors.owner(number.major).is_none_or(|owner| owner.starts_with("nvidia"))
            }
            other => *other == DeviceNode::Absent,
        })
    }

    /// Loads the modules that nvidia-modprobe did not load.
    fn load_missing_modules(&mut self, wanted: &[&ToMake]) {
        let Some(modprobe) = MODPROBE.into_iter().find(|path| process::installed(self.look.at(path))) else {
            return;
        };
        let uvm = wanted.iter().any(|n| matches!(n.path, DevicePath::Uvm | DevicePath::UvmTools));
        let modeset = wanted.iter().any(|n| n.path == DevicePath::Modeset);
        let driver = !self.majors.has_nvidia() && self.inventory.driver.is_none();
        let needs = [
            ("nvidia", driver),
            ("nvidia-uvm", uvm && self.majors.uvm().is_none()),
            ("nvidia-modeset", modeset && !self.majors.has_modeset() && self.majors.of("nvidia").is_some()),
        ];
        let mut ran = false;
        for (module, needed) in needs {
            if needed {
                ran = true;
                self.run(modprobe, &[module.to_owned()]);
            }
        }
        if ran {
            self.read_majors();
        }
    }

    /// Makes the node unless it is right by now.
    fn finish(&mut self, node: &ToMake) {
        let Some(number) = self.number(node) else { return };
        // One of ours may have the right number and a wrong mode.
        if node.path.is_drm() || !DeviceNode::at(&mut self.look, node.path).is(number) {
            if let Err(error) = self.make(node, number) {
                return self.problem(format!("cannot make {} ({number}): {error}", node.path.on_host()));
            }
        }
        self.prepared.made.push(node.path);
    }

    /// The node's number by the current majors: its module may be loaded by now.
    fn number(&self, node: &ToMake) -> Option<Number> {
        match node.path {
            path if path.is_drm() => node.number,
            DevicePath::Uvm | DevicePath::UvmTools => self.majors.number_of(node.path),
            _ if self.majors.has_nvidia() || self.inventory.driver.is_some() => node.number,
            _ => None,
        }
    }

    /// Makes one node with its mode and owner.
    fn make(&mut self, node: &ToMake, number: Number) -> anyhow::Result<()> {
        let params = self.params(node);
        if node.path.is_drm() {
            drm::mount(self.root, self.deadline)?;
        } else if !params.modify {
            anyhow::bail!("forbidden by the driver's parameter ModifyDeviceFiles: 0");
        }
        if matches!(node.path, DevicePath::CapFile(_)) {
            let dir = self.look.at(CAPS_DIR);
            if fs::symlink_metadata(&dir).is_err() {
                fs::create_dir(&dir)?;
                fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
            }
        }
        let path = self.look.at(&node.path.on_host());
        if node.path.is_drm() && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            fs::remove_dir_all(&path)?;
        }
        Directory::of(&path)?.place(&Wanted { number, mode: params.mode, uid: params.uid, gid: params.gid })
    }

    fn params(&mut self, node: &ToMake) -> Params {
        let file = self.params_file(node);
        self.params.text(&file).map(|text| facts::params(&text)).unwrap_or_default()
    }

    /// The driver's file with the mode of the node.
    fn params_file(&self, node: &ToMake) -> String {
        self.capability_file(node).unwrap_or_else(|| "/proc/driver/nvidia/params".to_owned())
    }

    /// The driver's file for a capability.
    fn capability_file(&self, node: &ToMake) -> Option<String> {
        match node.path {
            DevicePath::CapFile(minor) => self.inventory.capability_file(minor),
            _ => None,
        }
    }

    fn read_majors(&mut self) {
        if let Some(text) = self.look.text("/proc/devices") {
            self.majors = Majors::parse(&text);
        }
    }

    fn run(&mut self, program: &str, args: &[String]) {
        if self.stuck {
            return;
        }
        let limit = if self.inventory.driver.is_some() { MAKE } else { LOAD };
        let line = format!("{program} {}", args.join(" "));
        match Cmd::new(self.root.join(program.trim_start_matches('/')))
            .args(args)
            .run(&self.deadline.at_most(limit))
        {
            Ok(output) if output.success() => log::debug!("{line}: done"),
            Ok(output) => {
                let said = output.last_lines(2);
                let said = if said.is_empty() { String::new() } else { format!(": {}", said.join(" | ")) };
                self.problem(format!("{line}: {}{said}", output.ended));
            }
            Err(failure) => {
                self.stuck = !matches!(failure, Failure::Missing(_) | Failure::Spawn(..));
                self.problem(format!("{line}: {failure}"));
            }
        }
    }

    fn problem(&mut self, text: String) {
        self.prepared.problems.push(text);
    }
}
