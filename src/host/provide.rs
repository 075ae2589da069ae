//! The whole of it, as pre-start and a call by hand want it: look, choose,
//! make the nodes that are missing, choose again.

use super::choose::{Capabilities, Choice, choose, keep};
use super::diagnose;
use super::gpus::{Gpu, Inventory};
use super::nodes::prepare;
use super::resolve::Missing;
use crate::device::DevicePath;
use crate::device::assignment::{Assignment, GpuName};
use crate::sys::look::View;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::collections::BTreeSet;

/// What a container is to have of this host.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GPU_ASSIGNMENT`.
    pub assignment: Assignment,
    /// `GPU_CAPABILITIES`.
    pub capabilities: Capabilities,
    /// `GPU_EXCLUSIVE=yes`, for this container: cards that another running one has are refused.
    pub exclusive: Option<Ctid>,
}

/// What this host gives.
#[derive(Clone, Debug, Default)]
pub struct Provided {
    /// The host as it is now.
    pub inventory: Inventory,
    /// The devices that are there, and what is missing. Nothing is left to make.
    pub choice: Choice,
    /// Nodes that this call made.
    pub made: Vec<DevicePath>,
    /// What went wrong on the way, and what could not be looked at.
    pub warnings: Vec<String>,
}

/// Gives what `request` asks for, as far as this host can: nodes that are
/// missing are made, by programs that the deadline binds. When all is there,
/// no program runs. It has no error of its own: what can't be given is in
/// `choice.missing`, and START_POLICY judges.
pub fn provide<'a>(view: impl Into<View<'a>>, request: &Request, deadline: &Deadline) -> Provided {
    let names = match &request.assignment {
        Assignment::List(names) => names.as_slice(),
        _ => &[],
    };
    let wish = Wish {
        view: view.into(),
        display: request.capabilities.wants_display(),
        exclusive: request.exclusive,
        names,
        choose: &|inventory| choose(inventory, &request.assignment, &request.capabilities),
    };
    wish.grant(deadline)
}

/// The same for what a conf names already, by the paths of the devices, where
/// its settings can't be read: nothing is added, and nothing is missing.
pub fn provide_named<'a>(view: impl Into<View<'a>>, named: &[DevicePath], deadline: &Deadline) -> Provided {
    let display = named.iter().any(|path| path.is_display());
    let choose = |inventory: &Inventory| keep(inventory, named);
    Wish { view: view.into(), display, exclusive: None, names: &[], choose: &choose }.grant(deadline)
}

/// What [`provide`] would find, without making anything and without running
/// a program: for `plan`, `status` and `doctor`.
pub fn inspect<'a>(view: impl Into<View<'a>>, request: &Request) -> (Inventory, Choice) {
    let view = view.into();
    let mut inventory = Inventory::read(view);
    inventory.add_vms(view.root());
    if let Some(ctid) = request.exclusive {
        inventory.add_claims(view.root(), ctid);
    }
    let choice = choose(&inventory, &request.assignment, &request.capabilities);
    (inventory, choice)
}

/// What is asked of the host, however it was put.
struct Wish<'a> {
    view: View<'a>,
    display: bool,
    exclusive: Option<Ctid>,
    names: &'a [GpuName],
    choose: &'a dyn Fn(&Inventory) -> Choice,
}

impl Wish<'_> {
    fn grant(&self, deadline: &Deadline) -> Provided {
        let mut provided = Provided::default();
        self.look(&mut provided, deadline);
        // Two rounds: only a driver that is loaded tells its cards and majors.
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
        self.conclude(&mut provided);
        provided
    }

    /// Looks at the host and chooses.
    fn look(&self, provided: &mut Provided, deadline: &Deadline) {
        provided.inventory = Inventory::read_for(self.view, self.display);
        if let Some(ctid) = self.exclusive {
            provided.inventory.add_claims(self.view.root(), ctid);
        }
        self.resolve_uuids(provided, deadline);
        provided.choice = (self.choose)(&provided.inventory);
    }

    /// Asks the driver's library where a name can't be resolved without it.
    fn resolve_uuids(&self, provided: &mut Provided, deadline: &Deadline) {
        let inventory = &mut provided.inventory;
        let untold = |gpu: &Gpu| gpu.minor.is_some() && gpu.uuid.is_none();
        let mut results = Vec::new();
        if inventory.gpus.iter().any(untold) && self.names.iter().any(|name| !knows(inventory, name)) {
            results.push(inventory.add_uuids(self.view.root(), deadline));
        }
        let by_uuid = self.names.iter().any(|name| matches!(name, GpuName::MigUuid(_)));
        if by_uuid && inventory.mig.iter().any(|m| m.uuid.is_none()) {
            results.push(inventory.add_mig_uuids(self.view.root(), deadline));
        }
        let failed = results.into_iter().filter_map(Result::err);
        provided.warnings.extend(failed.map(|e| format!("UUIDs not known: {e:#}")));
    }

    /// Nothing more is made: what is missing is explained.
    fn conclude(&self, provided: &mut Provided) {
        let inventory = &mut provided.inventory;
        if inventory.driver.is_none() && !inventory.majors.has_nvidia() {
            let diagnosis = diagnose::no_driver(self.view);
            // One message that says why, not one for each device.
            provided.choice = Choice::default();
            provided.choice.missing.push(Missing {
                what: diagnose::NOT_LOADED.into(),
                why: diagnosis.to_string(),
                has: None,
                remedy: Some(diagnosis.cause.remedy()),
            });
            provided.warnings.clear();
        } else {
            let missing = !provided.choice.missing.is_empty();
            if missing {
                // Somebody will read this: look at what else is on the bus.
                inventory.add_other_cards(self.view.root());
            }
            if missing || !provided.choice.gpus.is_empty() {
                inventory.add_vms(self.view.root());
            }
            if missing {
                provided.choice = (self.choose)(inventory);
            }
            provided
                .choice
                .notes
                .extend(provided.choice.gpus.iter().filter_map(|gpu| claimed_by_vm(inventory, gpu)));
        }
        provided.choice = std::mem::take(&mut provided.choice).settled();
        provided.warnings.extend(provided.inventory.problems.iter().cloned());
        let mut seen = BTreeSet::new();
        provided.warnings.retain(|warning| seen.insert(warning.clone()));
    }
}

/// Whether a UUID is one of those known; other names don't matter here.
fn knows(inventory: &Inventory, name: &GpuName) -> bool {
    match name {
        GpuName::Uuid(uuid) => {
            inventory.gpus.iter().flat_map(|g| &g.uuid).any(|u| u.starts_with(uuid.as_str()))
        }
        GpuName::Mig { gpu, .. } => knows(inventory, gpu),
        _ => true,
    }
}

/// A card that a VM's conf names too: Proxmox takes it from the NVIDIA driver
/// when that VM starts, whoever uses it then.
fn claimed_by_vm(inventory: &Inventory, gpu: &Gpu) -> Option<String> {
    let (pci, minor) = (gpu.pci?, gpu.minor?);
    let vms: Vec<String> = inventory.vms.get(&pci)?.iter().map(u32::to_string).collect();
    Some(format!(
        "GPU {minor} ({pci}) is in the hostpci line of VM {} too: a start of that VM takes the card away from here",
        vms.join(", ")
    ))
}
