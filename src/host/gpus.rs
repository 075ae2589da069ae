//! The inventory: which GPUs this host has, and what the driver made of them.

use super::device_node::DeviceNode;
use super::facts::{self, Information, Majors};
use super::kernel_driver::{self, KernelDriver};
use super::mig::{self, MigInstance};
use crate::device::pci::PciAddress;
use crate::device::{Device, DevicePath};
use crate::pve::sharing::{self, Claim};
use crate::pve::vms;
use crate::sys::look::{Look, View, Walk};
use crate::types::Ctid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One NVIDIA card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its place; unknown where the driver does not list its cards.
    pub pci: Option<PciAddress>,
    /// Unknown until the card was first used.
    pub uuid: Option<String>,
    /// The driver's name of it, or its PCI ids.
    pub model: String,
    /// The N of `/dev/nvidiaN`; none when the NVIDIA driver doesn't have the card.
    pub minor: Option<u32>,
    /// The kernel driver bound to it (`nvidia`, `vfio-pci`, `nouveau`); none when unbound or not looked at.
    pub bound_to: Option<String>,
    /// The driver was told to leave it alone.
    pub excluded: bool,
    /// Its DRM nodes, card and render, when they were asked for.
    pub dri: Vec<Device>,
}

impl Gpu {
    /// A card of which nothing is known yet.
    pub(super) fn unknown() -> Gpu {
        Gpu {
            pci: None,
            uuid: None,
            model: "NVIDIA card".to_owned(),
            minor: None,
            bound_to: None,
            excluded: false,
            dri: Vec::new(),
        }
    }

    /// The path of its node.
    pub fn path(&self) -> Option<DevicePath> {
        self.minor.map(DevicePath::Gpu)
    }
}

/// What this host has.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The kernel driver; none when it isn't loaded.
    pub driver: Option<KernelDriver>,
    /// The cards, by minor, those that the driver doesn't have last.
    pub gpus: Vec<Gpu>,
    /// Character device majors.
    pub majors: Majors,
    /// MIG compute instances, by card, GPU instance, compute instance.
    pub mig: Vec<MigInstance>,
    /// Minor of the capability to monitor MIG, the one that is passed for the caps directory.
    pub monitor: Option<u32>,
    /// VMs by the cards that their hostpci lines name (see [`vms`]); not read by default.
    pub vms: BTreeMap<PciAddress, Vec<u32>>,
    /// What other running containers have (see [`sharing`]); not read by default.
    pub claims: Vec<(Ctid, Claim)>,
    /// What could not be looked at. It is not known to be missing.
    pub problems: Vec<String>,
    /// Whether the driver lists its cards; if not, a node under /dev is all there is to go by.
    pub listed: bool,
    /// The nodes that were looked at.
    pub nodes: BTreeMap<DevicePath, DeviceNode>,
    /// The driver's own texts, for the copies that containers see.
    pub shown: Proc,
}

/// What stands under `/proc/driver/nvidia`, word for word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proc {
    /// `params`; none where it could not be read.
    pub params: Option<String>,
    /// The cards of `gpus`.
    pub cards: Vec<Shown>,
}

/// One card there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The name of its directory, its PCI address.
    pub name: String,
    /// Its `information`.
    pub text: String,
    /// The N of `/dev/nvidiaN` in it.
    pub minor: Option<u32>,
}

/// How much of the host an inventory is to hold.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Scope {
    /// Mode setting and DRM too.
    pub display: bool,
}

impl Walk for Scope {
    const NAME: &'static str = "inventory";

    fn walk(&self, look: &mut Look<'_>) {
        Inventory::seen(look, self);
    }
}

impl Inventory {
    /// Everything, for those who have time: also the cards that another
    /// driver has, and the DRM nodes. Runs no program and touches no card.
    pub fn read<'a>(view: impl Into<View<'a>>) -> Inventory {
        let view = view.into();
        let mut inventory = Inventory::read_for(view, true);
        inventory.add_other_cards(view.root());
        inventory
    }

    /// What a start needs, with as few system calls as that takes: the
    /// driver, its cards, their nodes; mode setting and DRM for `display`.
    pub fn read_for<'a>(view: impl Into<View<'a>>, display: bool) -> Inventory {
        let scope = Scope { display };
        Inventory::seen(&mut Look::of(view, &[scope.asked()]), &scope)
    }

    /// What a look for this scope shows.
    pub fn seen(look: &mut Look, scope: &Scope) -> Inventory {
        let mut inventory = Inventory { driver: kernel_driver::loaded(look), ..Inventory::default() };
        inventory.majors = look.text("/proc/devices").map(|t| Majors::parse(&t)).unwrap_or_default();
        inventory.read_cards(look);
        inventory.read_capabilities(look);
        if scope.display {
            inventory.read_display(look);
        }
        inventory.read_nodes(look, scope.display);
        inventory.problems = std::mem::take(&mut look.problems);
        inventory
    }

    /// What stands at `path`; a path that was not looked at is unknown.
    pub fn node(&self, path: DevicePath) -> &DeviceNode {
        self.nodes.get(&path).unwrap_or(&DeviceNode::Unknown)
    }

    /// The file of the driver that stands for the capability with this minor.
    pub fn capability_file(&self, minor: u32) -> Option<String> {
        let base = "/proc/driver/nvidia/capabilities";
        if self.monitor == Some(minor) {
            return Some(format!("{base}/mig/monitor"));
        }
        let instance = self.mig.iter().find(|m| m.gi_minor == minor || m.ci_minor == minor)?;
        let gi = format!("{base}/gpu{}/mig/gi{}", instance.gpu, instance.gi);
        let whole = instance.gi_minor == minor;
        Some(if whole { format!("{gi}/access") } else { format!("{gi}/ci{}/access", instance.ci) })
    }

    /// The card with this minor.
    pub fn by_minor(&self, minor: u32) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.minor == Some(minor))
    }

    fn read_cards(&mut self, look: &mut Look) {
        match look.names("/proc/driver/nvidia/gpus") {
            Some(names) => {
                self.listed = true;
                for name in names {
                    let text = look.text(&format!("/proc/driver/nvidia/gpus/{name}/information"));
                    let info = text.as_deref().map(facts::information).unwrap_or_default();
                    let minor = info.minor;
                    self.gpus.push(card(&name, info));
                    self.shown.cards.extend(text.map(|text| Shown { name, text, minor }));
                }
                self.shown.params = look.text("/proc/driver/nvidia/params");
            }
            // A driver that doesn't show its cards: believe the nodes.
            None if self.driver.is_some() => {
                let names = look.names("/dev").into_iter().flatten();
                let minor = |name: String| match format!("/dev/{name}").parse() {
                    Ok(DevicePath::Gpu(minor)) => Some(minor),
                    _ => None,
                };
                let card = |minor| Gpu { minor: Some(minor), ..Gpu::unknown() };
                self.gpus.extend(names.filter_map(minor).map(card));
            }
            None => {}
        }
        self.sort();
    }

    fn read_capabilities(&mut self, look: &mut Look) {
        if self.majors.caps().is_none() {
            return;
        }
        let text = look.text("/proc/driver/nvidia/capabilities/mig/monitor");
        self.monitor = text.and_then(|t| facts::capability_minor(&t));
        let minors: Vec<u32> = self.gpus.iter().filter_map(|gpu| gpu.minor).collect();
        self.mig = minors.into_iter().flat_map(|minor| mig::read(look, minor)).collect();
    }

    fn read_display(&mut self, look: &mut Look) {
        for gpu in &mut self.gpus {
            if let Some(pci) = gpu.pci {
                gpu.dri = dri_nodes(look, pci);
            }
        }
    }

    fn read_nodes(&mut self, look: &mut Look, display: bool) {
        let mut paths: Vec<DevicePath> = self.gpus.iter().filter_map(Gpu::path).collect();
        paths.extend([DevicePath::Control, DevicePath::Uvm, DevicePath::UvmTools]);
        paths.extend(self.monitor.map(DevicePath::CapFile));
        paths.extend(self.mig.iter().flat_map(|m| [m.gi_minor, m.ci_minor]).map(DevicePath::CapFile));
        if display {
            paths.push(DevicePath::Modeset);
            paths.extend(self.gpus.iter().flat_map(|gpu| &gpu.dri).map(|dri| dri.path));
        }
        for path in paths {
            self.nodes.entry(path).or_insert_with(|| DeviceNode::at(look, path));
        }
    }

    /// Adds the cards on the PCI bus that the NVIDIA driver doesn't have, and
    /// tells of all who has them.
    pub fn add_other_cards(&mut self, root: &Path) {
        let mut look = Look::new(root);
        for address in look.names("/sys/bus/pci/devices").unwrap_or_default() {
            let Ok(pci) = address.parse::<PciAddress>() else { continue };
            let known = self.gpus.iter().position(|gpu| gpu.pci == Some(pci));
            let device = format!("/sys/bus/pci/devices/{address}");
            if known.is_none() && !is_nvidia_display(&mut look, &device) {
                continue;
            }
            let bound_to = look.link_name(&format!("{device}/driver"));
            match known.and_then(|i| self.gpus.get_mut(i)) {
                Some(gpu) => gpu.bound_to = bound_to,
                None => {
                    let id = look.text(&format!("{device}/device")).unwrap_or_default();
                    let model = format!("NVIDIA card 10de:{}", id.trim().trim_start_matches("0x"));
                    self.gpus.push(Gpu { pci: Some(pci), model, bound_to, ..Gpu::unknown() });
                }
            }
        }
        self.problems.append(&mut look.problems);
        self.sort();
    }

    /// Learns which VMs of this node have these cards in their confs.
    pub fn add_vms(&mut self, root: &Path) {
        let mut look = Look::new(root);
        for (vm, slots) in vms::on_this_node(&mut look) {
            for pci in self.gpus.iter().filter_map(|gpu| gpu.pci) {
                if slots.iter().any(|slot| slot.covers(pci)) {
                    self.vms.entry(pci).or_default().push(vm);
                }
            }
        }
        self.problems.append(&mut look.problems);
    }

    /// Learns what the other running containers of this node have.
    pub fn add_claims(&mut self, root: &Path, except: Ctid) {
        let mut look = Look::new(root);
        self.claims.extend(sharing::claims(&mut look, except));
        self.problems.append(&mut look.problems);
    }

    fn sort(&mut self) {
        self.gpus.sort_by_key(|gpu| (gpu.minor.is_none(), gpu.minor, gpu.pci));
    }
}

fn card(name: &str, info: Information) -> Gpu {
    Gpu {
        pci: info.bus.or_else(|| name.parse().ok()),
        uuid: info.uuid,
        model: info.model.unwrap_or_else(|| "NVIDIA card".to_owned()),
        minor: info.minor,
        bound_to: Some("nvidia".to_owned()),
        excluded: info.excluded,
        dri: Vec::new(),
    }
}

/// VGA (0300) and 3D (0302) controllers; a card's sound function is none.
fn is_nvidia_display(look: &mut Look, device: &str) -> bool {
    let is = |text: Option<String>, start: &str| text.is_some_and(|t| t.starts_with(start));
    is(look.text(&format!("{device}/vendor")), "0x10de") && is(look.text(&format!("{device}/class")), "0x03")
}

fn dri_nodes(look: &mut Look, pci: PciAddress) -> Vec<Device> {
    let drm = format!("/sys/bus/pci/devices/{pci}/drm");
    let names = look.names(&drm).unwrap_or_default();
    let node = |look: &mut Look, name: &str| {
        let path = format!("/dev/dri/{name}").parse().ok()?;
        let numbers = look.text(&format!("{drm}/{name}/dev"))?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some(Device { path, major: major.parse().ok()?, minor: minor.parse().ok()? })
    };
    names.iter().filter_map(|name| node(look, name)).collect()
}
