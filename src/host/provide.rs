//! Gives a container its devices: reads the host, chooses, makes missing nodes,
//! chooses again.

use super::choose::{Capabilities, Choice, PREPARE, choose, keep, only};
use super::diagnose;
use super::gpus::{Gpu, Inventory};
use super::nodes::prepare;
use super::resolve::Missing;
use crate::device::DevicePath;
use crate::device::assignment::{Assignment, GpuName};
use crate::sys::look::View;
use crate::sys::mount;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::collections::BTreeSet;

/// The command that lets nodes be made in /dev, where that is read-only.
pub const DEV_WRITABLE: &str = "mount -o remount,rw /dev";

/// What a container asks of this host.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GPU_ASSIGNMENT`.
    pub assignment: Assignment,
    /// `GPU_CAPABILITIES`.
    pub capabilities: Capabilities,
    /// Set by `GPU_EXCLUSIVE=yes`: no card that another running container has.
    pub exclusive: Option<Ctid>,
}

/// What this host gives it.
#[derive(Clone, Debug, Default)]
pub struct Provided {
    /// The host afterwards.
    pub inventory: Inventory,
    /// The devices, and what is missing; nothing is left to make.
    pub choice: Choice,
    /// The nodes that this call made.
    pub made: Vec<DevicePath>,
    /// What failed, and what could not be read.
    pub warnings: Vec<String>,
}

/// Gives what `request` asks for, as far as this host can. Makes missing nodes,
/// with programs bound by the deadline; runs none if no node is missing. Not an
/// error: what it cannot give is in `choice.missing`, which START_POLICY judges.
pub fn provide<'a>(view: impl Into<View<'a>>, request: &Request, deadline: &Deadline) -> Provided {
    let names = request.assignment.names();
    let provider = Provider {
        view: view.into(),
        display: request.capabilities.wants_display(),
        exclusive: request.exclusive,
        names: &names,
        choose: &|inventory| choose(inventory, &request.assignment, &request.capabilities),
    };
    provider.run(deadline)
}

/// The same for the devices that a conf names already, if its settings are not
/// readable: adds nothing and reports nothing missing.
pub fn provide_named<'a>(view: impl Into<View<'a>>, named: &[DevicePath], deadline: &Deadline) -> Provided {
    let display = named.iter().any(|path| path.is_display());
    let choose = |inventory: &Inventory| keep(inventory, named);
    Provider { view: view.into(), display, exclusive: None, names: &[], choose: &choose }.run(deadline)
}

/// Makes these nodes, whoever passes them to a container.
pub fn provide_nodes<'a>(view: impl Into<View<'a>>, nodes: &[DevicePath], deadline: &Deadline) -> Provided {
    let choose = |inventory: &Inventory| only(inventory, nodes);
    Provider { view: view.into(), display: true, exclusive: None, names: &[], choose: &choose }.run(deadline)
}

/// What [`provide`] would find, without making nodes. Runs nvidia-smi only if a
/// name needs it.
pub fn inspect<'a>(view: impl Into<View<'a>>, request: &Request, deadline: &Deadline) -> (Inventory, Choice) {
    let view = view.into();
    let mut inventory = Inventory::read(view);
    inventory.look_up(view, &request.assignment.names(), deadline);
    inventory.add_vms(view);
    if let Some(ctid) = request.exclusive {
        inventory.add_claims(view, ctid, deadline);
    }
    let choice = choose(&inventory, &request.assignment, &request.capabilities);
    (inventory, choice)
}

/// A request, or the devices that a conf names.
struct Provider<'a> {
    view: View<'a>,
    display: bool,
    exclusive: Option<Ctid>,
    names: &'a [GpuName],
    choose: &'a dyn Fn(&Inventory) -> Choice,
}

impl Provider<'_> {
    fn run(&self, deadline: &Deadline) -> Provided {
        let mut provided = Provided::default();
        self.look(&mut provided, deadline);
        // Two rounds: only a loaded driver shows its cards and majors.
        for _ in 0..2 {
            if provided.choice.to_make.is_empty() {
                break;
            }
            let loaded = provided.inventory.driver.is_some();
            let prepared = prepare(self.view, &provided.inventory, &provided.choice.to_make, deadline);
            provided.made.extend(prepared.made);
            provided.warnings.extend(prepared.problems);
            self.look(&mut provided, deadline);
            if loaded || provided.inventory.driver.is_none() {
                break;
            }
        }
        self.conclude(&mut provided, deadline);
        provided
    }

    /// Reads the host and chooses.
    fn look(&self, provided: &mut Provided, deadline: &Deadline) {
        provided.inventory = Inventory::read_for(self.view, self.display);
        if let Some(ctid) = self.exclusive {
            provided.inventory.add_claims(self.view, ctid, deadline);
        }
        let failed = provided.inventory.add_names(self.view, self.names, deadline);
        provided.warnings.extend(failed);
        provided.choice = (self.choose)(&provided.inventory);
    }

    /// Explains what is still missing.
    fn conclude(&self, provided: &mut Provided, deadline: &Deadline) {
        let inventory = &mut provided.inventory;
        if inventory.driver.is_none() && !inventory.majors.has_nvidia() {
            let diagnosis = diagnose::no_driver(self.view, deadline);
            // One message with the cause, not one for each device.
            let missing = Missing {
                remedy: Some(diagnosis.cause.remedy()),
                ..Missing::new(diagnose::NOT_LOADED, diagnosis.to_string())
            };
            provided.choice = Choice { missing: vec![missing], ..Choice::default() };
            provided.warnings.clear();
        } else {
            let missing = !provided.choice.missing.is_empty();
            if missing {
                // The message lists the other cards on the bus too.
                inventory.add_other_cards(self.view);
            }
            if missing || !provided.choice.gpus.is_empty() {
                inventory.add_vms(self.view);
            }
            if missing {
                provided.choice = (self.choose)(inventory);
            }
            provided
                .choice
                .notes
                .extend(provided.choice.gpus.iter().filter_map(|gpu| claimed_by_vm(inventory, gpu)));
        }
        let remedy = self.remedy(&provided.choice);
        provided.choice = std::mem::take(&mut provided.choice).settled(&remedy);
        provided.warnings.extend(provided.inventory.problems.iter().cloned());
        let mut seen = BTreeSet::new();
        provided.warnings.retain(|warning| seen.insert(warning.clone()));
    }

    /// What makes the nodes that this call could not make.
    fn remedy(&self, choice: &Choice) -> String {
        let in_dev = choice.to_make.iter().any(|node| !node.path.is_drm());
        if in_dev && mount::is_read_only(&self.view.root().join("dev")) {
            return format!("{DEV_WRITABLE} && {PREPARE}");
        }
        PREPARE.to_owned()
    }
}

/// A note on a card that a VM's conf names too: Proxmox takes it from the
/// NVIDIA driver when that VM starts, even if a container uses it.
fn claimed_by_vm(inventory: &Inventory, gpu: &Gpu) -> Option<String> {
    let (pci, minor) = (gpu.pci?, gpu.minor?);
    let vms: Vec<String> = inventory.vms.get(&pci)?.iter().map(u32::to_string).collect();
    Some(format!(
        "GPU {minor} ({pci}) is also in hostpci of VM {}: starting that VM takes the card away",
        vms.join(", ")
    ))
}
