//! The GPUs of a container, described for the engines in it: Podman from 4.1 and
//! Docker from 25 give them to their containers by such a description (CDI, the
//! Container Device Interface), with no program of NVIDIA. Pure.
//!
//! The engines refuse a device that two files of one directory describe, and the
//! whole of a file in which they do not know something. So what names begin with
//! a digit, which CDI allows from 0.5.0 on, stands in a file of its own: Podman
//! 4.1 and 4.2 read the other one.

use crate::device::DevicePath;
use crate::driver::tree::HWCAPS;
use crate::host::choose::Choice;
use crate::host::gpus::{Gpu, Inventory};
use crate::host::mig::MigInstance;
use crate::sys::url::hex;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;

/// The file with the names that every version of CDI knows, and that with the
/// indices. `/etc` and not `/var/run`, which is empty after a reboot from inside.
pub const FILES: [&str; 2] = ["/etc/cdi/phoenix-nvidia.json", "/etc/cdi/phoenix-nvidia-index.json"];
/// What NVIDIA's toolkit calls them too.
pub const KIND: &str = "nvidia.com/gpu";
/// The least that each file needs.
const VERSIONS: [&str; 2] = ["0.3.0", "0.5.0"];
/// A mount of the driver is for reading, as in the container itself.
const OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "rbind", "rprivate"];

/// The library directories of images: Debian's and everybody else's.
#[cfg(target_arch = "x86_64")]
const LIBRARIES: [&str; 2] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"];
#[cfg(not(target_arch = "x86_64"))]
const LIBRARIES: [&str; 2] = ["/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
/// NVIDIA's own images have this in their LD_LIBRARY_PATH.
const OF_NVIDIA: &str = "/usr/local/nvidia/lib64";

/// One name of the engines' `--device`, and the nodes that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// `0`, `GPU-…`, `0:1` for an instance, `all`.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<String>,
}

/// The devices of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Devices {
    /// All names; none without a GPU.
    pub named: Vec<Named>,
    /// The nodes that each needs.
    common: Vec<String>,
    /// Graphics are wanted too.
    graphics: bool,
}

impl Devices {
    /// Those of a choice, and of the GPUs that `devN:` lines pass in addition. A
    /// GPU's index is that of nvidia-smi in the container: its place by PCI address.
    pub fn of(choice: &Choice, inventory: &Inventory, passed: &BTreeSet<DevicePath>) -> Devices {
        let has = |path: &DevicePath| {
            choice.devices.iter().any(|device| device.path == *path) || passed.contains(path)
        };
        let mut cards: Vec<&Gpu> =
            inventory.gpus.iter().filter(|gpu| gpu.path().is_some_and(|path| has(&path))).collect();
        cards.sort_by_key(|gpu| (gpu.pci.is_none(), gpu.pci.map(|pci| pci.to_string()), gpu.minor));
        let common = [DevicePath::Control, DevicePath::Modeset, DevicePath::Uvm, DevicePath::UvmTools];
        let mut named = Vec::new();
        for (index, card) in cards.iter().enumerate() {
            let drm = card.dri.iter().map(|device| device.path).filter(has);
            let nodes: Vec<DevicePath> = card.path().into_iter().chain(drm).collect();
            let caps =
                |instance: &MigInstance| [instance.gi_minor, instance.ci_minor].map(DevicePath::CapFile);
            let of_card = inventory.mig.iter().filter(|instance| Some(instance.gpu) == card.minor);
            let instances: Vec<&MigInstance> = of_card.filter(|i| caps(i).iter().all(has)).collect();
            // A card with instances cannot be used as a whole.
            if instances.is_empty() {
                named.extend(both(index.to_string(), card.uuid.clone(), &nodes));
            }
            for (number, instance) in instances.into_iter().enumerate() {
                let nodes = [nodes.as_slice(), &caps(instance)].concat();
                named.extend(both(format!("{index}:{number}"), instance.uuid.clone(), &nodes));
            }
        }
        if !named.is_empty() {
            let mut all: Vec<String> = Vec::new();
            for node in named.iter().flat_map(|named| &named.nodes) {
                if !all.contains(node) {
                    all.push(node.clone());
                }
            }
            named.push(Named { name: "all".to_owned(), nodes: all });
        }
        let common: Vec<String> = common.iter().filter(|path| has(path)).map(ToString::to_string).collect();
        let graphics =
            has(&DevicePath::Modeset) || named.iter().any(|n| n.nodes.iter().any(|p| p.contains("/dri/")));
        Devices { named, common, graphics }
    }

    /// Whether graphics are wanted too.
    pub fn graphics(&self) -> bool {
        self.graphics
    }

    /// The same for the same devices, and for no others. Without the UUIDs of MIG
    /// instances: they follow from card and place, and not every look asks for them.
    pub fn fingerprint(&self) -> String {
        let mut same = self.clone();
        same.named.retain(|named| !named.name.starts_with("MIG-"));
        fingerprint(&serde_json::to_string(&same).unwrap_or_default())
    }

    /// The names, for a message.
    pub fn names(&self) -> String {
        let names = self.named.iter().map(|named| named.name.as_str());
        names.filter(|name| !name.contains('-')).collect::<Vec<_>>().join(", ")
    }
}

/// A short digest of a text.
pub fn fingerprint(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes())[..16])
}

/// A GPU by its index and, where that is known, by its UUID.
fn both(index: String, uuid: Option<String>, nodes: &[DevicePath]) -> Vec<Named> {
    let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    let names = std::iter::once(index).chain(uuid.filter(|uuid| is_name(uuid)));
    names.map(|name| Named { name, nodes: nodes.clone() }).collect()
}

/// Whether the engines take it for a device's name.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_-.:".contains(&b);
    let ends = [text.bytes().next(), text.bytes().last()];
    text.bytes().all(inner) && ends.iter().all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
}

/// What a look inside found of the driver. Paths in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The directory that is mounted, where the loader of an image finds it at the
    /// same place.
    pub directory: Option<String>,
    /// Libraries, one by one.
    pub libraries: Vec<String>,
    /// Programs and descriptions: where they are, and where they belong.
    pub files: Vec<(String, String)>,
}

/// The mounts of a nested container: source and target. A target that the image's
/// loader does not search does no harm, and LD_LIBRARY_PATH of the image stays.
fn mounts(found: &Found, graphics: bool) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut add = |from: &str, to: String| {
        if !all.iter().any(|(_, known)| *known == to) {
            all.push((from.to_owned(), to));
        }
    };
    if let Some(directory) = &found.directory {
        for libraries in LIBRARIES {
            HWCAPS.iter().for_each(|below| add(directory, format!("{libraries}/{below}")));
        }
        add(directory, OF_NVIDIA.to_owned());
    }
    for path in found.libraries.iter().filter(|path| graphics || !is_graphics(name(path))) {
        LIBRARIES.iter().for_each(|libraries| add(path, format!("{libraries}/{}", name(path))));
        if graphics && name(path) == "libnvidia-allocator.so.1" {
            LIBRARIES.iter().for_each(|libraries| add(path, format!("{libraries}/gbm/nvidia-drm_gbm.so")));
        }
    }
    for (from, to) in &found.files {
        if graphics || to.starts_with("/usr/bin/") || to.starts_with("/etc/OpenCL/") {
            add(from, to.clone());
        }
    }
    all
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// What the names of libraries that serve graphics alone begin with.
const OF_GRAPHICS: [&str; 13] = [
    "libGL",
    "libEGL",
    "libvdpau",
    "libnvidia-gl",
    "libnvidia-egl",
    "libnvidia-rtcore",
    "libnvidia-fbc",
    "libnvidia-wayland",
    "libnvidia-gtk",
    "libnvidia-vksc",
    "libnvidia-tls",
    "libnvidia-ngx",
    "libnvoptix",
];

fn is_graphics(name: &str) -> bool {
    OF_GRAPHICS.iter().any(|prefix| name.starts_with(prefix))
}

/// The content of [`FILES`]; none of one that would describe no device, which
/// the engines refuse.
pub fn describe(devices: &Devices, found: &Found) -> [Option<String>; 2] {
    let nodes = |paths: &[String]| paths.iter().map(|path| json!({ "path": path })).collect::<Vec<Value>>();
    let mounts: Vec<Value> = mounts(found, devices.graphics)
        .iter()
        .map(|(from, to)| json!({ "hostPath": from, "containerPath": to, "options": OPTIONS }))
        .collect();
    let mut edits = json!({
        // NVIDIA's runtime, where it is installed too, has nothing left to do.
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": nodes(&devices.common),
    });
    if !mounts.is_empty() {
        edits["mounts"] = Value::Array(mounts);
    }
    let file = |digit: bool| {
        let begins = |name: &str| name.starts_with(|c: char| c.is_ascii_digit());
        let of_file = devices.named.iter().filter(|named| begins(&named.name) == digit);
        let all: Vec<Value> = of_file
            .map(|named| json!({ "name": named.name, "containerEdits": { "deviceNodes": nodes(&named.nodes) } }))
            .collect();
        let content = json!({
            "cdiVersion": VERSIONS[usize::from(digit)], "kind": KIND, "devices": all, "containerEdits": edits,
        });
        (!all.is_empty()).then(|| content.to_string())
    };
    [file(false), file(true)]
}
