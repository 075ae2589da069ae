//! The whole of it, as pre-start and a call by hand want it: look, choose,
//! make the nodes that are missing, choose again.

use super::assignment::{Assignment, GpuName};
use super::choose::{Capabilities, Choice, Missing, choose};
use super::diagnose;
use super::gpus::{Gpu, Inventory};
use super::nodes::prepare;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::path::Path;

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
#[derive(Clone, Debug)]
pub struct Provided {
    /// The host as it is now.
    pub inventory: Inventory,
    /// The devices that are there, and what is missing. Nothing is left to make.
    pub choice: Choice,
    /// Nodes that this call made.
    pub made: Vec<String>,
    /// What went wrong on the way, and what could not be looked at.
    pub warnings: Vec<String>,
}

/// Gives what `request` asks for, as far as this host can: nodes that are
/// missing are made, by programs that the deadline binds. When all is there,
/// no program runs. It has no error of its own: what can't be given is in
/// `choice.missing`, and START_POLICY judges.
pub fn provide(root: &Path, request: &Request, deadline: &Deadline) -> Provided {
    let mut provided = Provided {
        inventory: look(root, request),
        choice: Choice::default(),
        made: Vec::new(),
        warnings: Vec::new(),
    };
    provided.resolve_uuids(root, request, deadline);
    provided.choose(request);
    // Two rounds: only a driver that is loaded tells its cards and majors.
    for _ in 0..2 {
        if provided.choice.to_make.is_empty() {
            break;
        }
        let loaded = provided.inventory.driver.is_some();
        let prepared = prepare(root, &provided.inventory, &provided.choice.to_make, deadline);
        provided.made.extend(prepared.made);
        provided.warnings.extend(prepared.problems);
        provided.inventory = look(root, request);
        provided.resolve_uuids(root, request, deadline);
        provided.choose(request);
        if loaded || provided.inventory.driver.is_none() {
            break;
        }
    }
    provided.conclude(root, request);
    provided
}

/// What [`provide`] would find, without making anything and without running
/// a program: for `plan`, `status` and `doctor`.
pub fn inspect(root: &Path, request: &Request) -> (Inventory, Choice) {
    let mut inventory = Inventory::read(root);
    inventory.add_vms(root);
    if let Some(ctid) = request.exclusive {
        inventory.add_claims(root, ctid);
    }
    let choice = choose(&inventory, &request.assignment, &request.capabilities);
    (inventory, choice)
}

fn look(root: &Path, request: &Request) -> Inventory {
    let mut inventory = Inventory::read_for(root, request.capabilities.wants_display());
    if let Some(ctid) = request.exclusive {
        inventory.add_claims(root, ctid);
    }
    inventory
}

impl Provided {
    fn choose(&mut self, request: &Request) {
        self.choice = choose(&self.inventory, &request.assignment, &request.capabilities);
    }

    /// Asks the driver's library where a name can't be resolved without it.
    fn resolve_uuids(&mut self, root: &Path, request: &Request, deadline: &Deadline) {
        let Assignment::List(names) = &request.assignment else { return };
        let untold = |gpu: &Gpu| gpu.minor.is_some() && gpu.uuid.is_none();
        let mut results = Vec::new();
        if self.inventory.gpus.iter().any(untold) && names.iter().any(|name| !self.knows(name)) {
            results.push(self.inventory.add_uuids(root, deadline));
        }
        let by_uuid = names.iter().any(|name| matches!(name, GpuName::MigUuid(_)));
        if by_uuid && self.inventory.mig.iter().any(|m| m.uuid.is_none()) {
            results.push(self.inventory.add_mig_uuids(root, deadline));
        }
        self.warnings
            .extend(results.into_iter().filter_map(Result::err).map(|e| format!("UUIDs not known: {e:#}")));
    }

    /// Whether a UUID is one of those known; other names don't matter here.
    fn knows(&self, name: &GpuName) -> bool {
        match name {
            GpuName::Uuid(uuid) => {
                self.inventory.gpus.iter().flat_map(|g| &g.uuid).any(|u| u.starts_with(uuid.as_str()))
            }
            GpuName::Mig { gpu, .. } => self.knows(gpu),
            _ => true,
        }
    }

    /// Nothing more is made: what is missing is explained.
    fn conclude(&mut self, root: &Path, request: &Request) {
        if self.inventory.driver.is_none() && !self.inventory.majors.has_nvidia() {
            let diagnosis = diagnose::no_driver(root);
            // One message that says why, not one for each device.
            self.choice = Choice::default();
            self.choice.missing.push(Missing {
                what: "the NVIDIA driver".into(),
                why: diagnosis.message,
                has: None,
                remedy: diagnosis.remedy,
            });
            self.warnings.clear();
        } else if !self.choice.missing.is_empty() {
            // Somebody will read this: look at what else is on the bus, and whose it is.
            self.inventory.add_other_cards(root);
            self.inventory.add_vms(root);
            self.choose(request);
        }
        self.choice = std::mem::take(&mut self.choice).settled();
        self.warnings.extend(self.inventory.problems.iter().cloned());
        let mut seen = std::collections::BTreeSet::new();
        self.warnings.retain(|warning| seen.insert(warning.clone()));
    }
}
