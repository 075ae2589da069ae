//! The inventory: the GPUs of this host, and what the driver shows of them.

use super::cards::Unfit;
use super::device_node::DeviceNode;
use super::facts::{self, Information, Majors, Params};
use super::kernel_driver::{self, KernelDriver};
use super::mig::{self, MigInstance};
use super::supported::Supported;
use crate::device::pci::PciAddress;
use crate::device::{Device, DevicePath};
use crate::pve::sharing::{self, Claim};
use crate::pve::vms;
use crate::sys::look::{Look, View, Walk};
use crate::sys::time::Deadline;
use crate::types::Ctid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One NVIDIA card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its PCI address; unknown if the driver does not list its cards.
    pub pci: Option<PciAddress>,
    /// Unknown until the card is first used.
    pub uuid: Option<String>,
    /// Its PCI device id, if read.
    pub id: Option<u16>,
    /// The driver's name of it, or its PCI id.
    pub model: String,
    /// The N of `/dev/nvidiaN`; `None` if the NVIDIA driver does not have the card.
    pub minor: Option<u32>,
    /// The kernel driver bound to it (`nvidia`, `vfio-pci`, `nouveau`); `None` if unbound or not read.
    pub bound_to: Option<String>,
    /// Excluded by a parameter of the driver.
    pub excluded: bool,
    /// Why the loaded driver does not drive it, as far as its id tells.
    pub unfit: Option<Unfit>,
    /// Its DRM nodes, if read: card and render.
    pub dri: Vec<Device>,
}

impl Gpu {
    /// A card without any known property.
    pub(crate) fn unknown() -> Gpu {
        Gpu {
            pci: None,
            uuid: None,
            id: None,
            model: "NVIDIA card".to_owned(),
            minor: None,
            bound_to: None,
            excluded: false,
            unfit: None,
            dri: Vec::new(),
        }
    }

    /// It in a message, and the reason why the driver does not drive it, if so.
    pub fn undriven(&self) -> Option<String> {
        let unfit = self.unfit.as_ref()?;
        let minor = self.minor.map_or("card".to_owned(), |minor| format!("GPU {minor}"));
        let pci = self.pci.map(|pci| format!("{pci} ")).unwrap_or_default();
        Some(format!("{minor} ({pci}{}): {}", self.model, unfit.why))
    }

    /// The path of its node.
    pub fn path(&self) -> Option<DevicePath> {
        self.minor.map(DevicePath::Gpu)
    }
}

/// The GPUs of this host, and their driver.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The kernel driver, if loaded.
    pub driver: Option<KernelDriver>,
    /// The cards by minor; those that the driver does not have come last.
    pub gpus: Vec<Gpu>,
    /// Character device majors.
    pub majors: Majors,
    /// MIG compute instances, by card, GPU instance, compute instance.
    pub mig: Vec<MigInstance>,
    /// Minor of the MIG monitor capability, given with the caps directory.
    pub monitor: Option<u32>,
    /// The capabilities that no container is given, by minor, each with its
    /// name; read for `display`.
    pub others: BTreeMap<u32, &'static str>,
    /// The VMs whose hostpci lines name a card; not read by default.
    pub vms: BTreeMap<PciAddress, Vec<u32>>,
    /// The devices of other running containers; not read by default.
    pub claims: Vec<(Ctid, Claim)>,
    /// What could not be read, which is not the same as missing.
    pub problems: Vec<String>,
    /// Whether the driver lists its cards; if not, the nodes under /dev count.
    pub listed: bool,
    /// The nodes that were read.
    pub nodes: BTreeMap<DevicePath, DeviceNode>,
    /// The driver's files, for the masks of containers.
    pub shown: Proc,
}

/// Files of `/proc/driver/nvidia`, as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proc {
    /// `params`; `None` if not readable.
    pub params: Option<String>,
    /// The cards of `gpus`.
    pub cards: Vec<Shown>,
}

/// A card in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The name of its directory: its PCI address.
    pub name: String,
    /// Its `information`.
    pub text: String,
    /// The N of `/dev/nvidiaN` in it.
    pub minor: Option<u32>,
}

/// How much of the host an inventory holds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Scope {
    /// Also mode setting, DRM and the capabilities that only a conf names.
    pub display: bool,
}

/// Where the driver has its capabilities.
const CAPABILITIES: &str = "/proc/driver/nvidia/capabilities";
/// Those that no container is given by its settings.
const OTHERS: [&str; 2] = ["mig/config", "fabric-imex-mgmt"];

impl Walk for Scope {
    const NAME: &'static str = "inventory";

    fn walk(&self, look: &mut Look<'_>) {
        Inventory::seen(look, self);
    }
}

impl Inventory {
    /// Reads everything, with DRM nodes and cards of other drivers. Runs no
    /// program and wakes no card.
    pub fn read<'a>(view: impl Into<View<'a>>) -> Inventory {
        let view = view.into();
        let mut inventory = Inventory::read_for(view, true);
        inventory.add_other_cards(view);
        inventory
    }

    /// Reads what a start needs with as few system calls as possible: driver,
    /// cards, nodes; mode setting and DRM for `display`.
    pub fn read_for<'a>(view: impl Into<View<'a>>, display: bool) -> Inventory {
        let scope = Scope { display };
        Inventory::seen(&mut Look::of(view, &[scope.asked()]), &scope)
    }

    /// Reads an inventory of this scope.
    pub fn seen(look: &mut Look, scope: &Scope) -> Inventory {
        let mut inventory = Inventory { driver: kernel_driver::loaded(look), ..Inventory::default() };
        inventory.majors = look.text("/proc/devices").map(|t| Majors::parse(&t)).unwrap_or_default();
        inventory.read_cards(look);
        inventory.read_capabilities(look);
        if scope.display {
            inventory.read_display(look);
            inventory.read_other_capabilities(look);
        }
        inventory.read_nodes(look, scope.display);
        inventory.problems = std::mem::take(&mut look.problems);
        inventory
    }

    /// The node at `path`; unknown if not read.
    pub fn node(&self, path: DevicePath) -> &DeviceNode {
        self.nodes.get(&path).unwrap_or(&DeviceNode::Unknown)
    }

    /// Mode and owner of the driver's nodes.
    pub fn node_params(&self) -> Params {
        self.shown.params.as_deref().map(facts::params).unwrap_or_default()
    }

    /// The driver's file for the capability with this minor.
    pub fn capability_file(&self, minor: u32) -> Option<String> {
        let base = CAPABILITIES;
        if self.monitor == Some(minor) {
            return Some(format!("{base}/mig/monitor"));
        }
        if let Some(name) = self.others.get(&minor) {
            return Some(format!("{base}/{name}"));
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
                    let id = device_id(look, &name);
                    self.gpus.push(Gpu { id, ..card(&name, info) });
                    self.shown.cards.extend(text.map(|text| Shown { name, text, minor }));
                }
                self.shown.params = look.text("/proc/driver/nvidia/params");
            }
            // The driver does not list its cards: take them from the nodes.
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
        self.judge(&Supported::default());
        self.sort();
    }

    /// Judges which cards the loaded driver does not drive.
    fn judge(&mut self, list: &Supported) {
        let Some(driver) = &self.driver else { return };
        for gpu in &mut self.gpus {
            gpu.unfit = gpu.id.and_then(|id| list.support(id)?.unfit(driver));
        }
    }

    fn read_capabilities(&mut self, look: &mut Look) {
        if self.majors.caps().is_none() {
            return;
        }
        let text = look.text(&format!("{CAPABILITIES}/mig/monitor"));
        self.monitor = text.and_then(|t| facts::capability_minor(&t));
        let minors: Vec<u32> = self.gpus.iter().filter_map(|gpu| gpu.minor).collect();
        self.mig = minors.into_iter().flat_map(|minor| mig::read(look, minor)).collect();
    }

    fn read_other_capabilities(&mut self, look: &mut Look) {
        if self.majors.caps().is_none() {
            return;
        }
        for name in OTHERS {
            let text = look.text(&format!("{CAPABILITIES}/{name}"));
            let minor = text.and_then(|text| facts::capability_minor(&text));
            self.others.extend(minor.map(|minor| (minor, name)));
        }
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
        paths.extend(self.others.keys().copied().map(DevicePath::CapFile));
        if display {
            paths.push(DevicePath::Modeset);
            paths.extend(self.gpus.iter().flat_map(|gpu| &gpu.dri).map(|dri| dri.path));
        }
        for path in paths {
            self.nodes.entry(path).or_insert_with(|| DeviceNode::at(look, path));
        }
    }

    /// Adds the cards on the PCI bus that the NVIDIA driver does not have, the
    /// kernel driver of each card, and what NVIDIA's list on this host knows of it.
    pub fn add_other_cards<'a>(&mut self, host: impl Into<View<'a>>) {
        let mut look = Look::new(host.into().root());
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
                    let id = device_id(&mut look, &address);
                    let model =
                        id.map_or("NVIDIA card".to_owned(), |id| format!("NVIDIA card 10de:{id:04x}"));
                    self.gpus.push(Gpu { pci: Some(pci), id, model, bound_to, ..Gpu::unknown() });
                }
            }
        }
        if let Some(driver) = &self.driver {
            let list = Supported::read(&mut look, &driver.version);
            self.judge(&list);
            for gpu in self.gpus.iter_mut().filter(|gpu| gpu.minor.is_none()) {
                let name = gpu.id.and_then(|id| Some(format!("{} 10de:{id:04x}", list.name(id)?)));
                gpu.model = name.unwrap_or_else(|| std::mem::take(&mut gpu.model));
            }
        }
        self.problems.append(&mut look.problems);
        self.sort();
    }

    /// Adds the cards' DRM nodes, which a start reads for display alone.
    pub fn add_drm<'a>(&mut self, host: impl Into<View<'a>>) {
        let mut look = Look::new(host.into().root());
        if self.gpus.iter().all(|gpu| gpu.dri.is_empty()) {
            self.read_display(&mut look);
        }
        self.problems.append(&mut look.problems);
    }

    /// Adds the VMs of this node whose hostpci lines name these cards.
    pub fn add_vms<'a>(&mut self, host: impl Into<View<'a>>) {
        let mut look = Look::new(host.into().root());
        for (vm, slots) in vms::on_this_node(&mut look) {
            for pci in self.gpus.iter().filter_map(|gpu| gpu.pci) {
                if slots.iter().any(|slot| slot.covers(pci)) {
                    self.vms.entry(pci).or_default().push(vm);
                }
            }
        }
        self.problems.append(&mut look.problems);
    }

    /// Adds the devices of the other running containers of this node.
    pub fn add_claims<'a>(&mut self, host: impl Into<View<'a>>, except: Ctid, deadline: &Deadline) {
        let mut look = Look::new(host.into().root());
        self.claims.extend(sharing::claims(&mut look, except, deadline));
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
        id: None,
        model: info.model.unwrap_or_else(|| "NVIDIA card".to_owned()),
        minor: info.minor,
        bound_to: Some("nvidia".to_owned()),
        excluded: info.excluded,
        unfit: None,
        dri: Vec::new(),
    }
}

/// The PCI device id of a card.
fn device_id(look: &mut Look, address: &str) -> Option<u16> {
    let text = look.text(&format!("/sys/bus/pci/devices/{address}/device"))?;
    u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// Whether it is a VGA (0300) or 3D (0302) controller of NVIDIA's, not the
/// audio function of a card.
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
