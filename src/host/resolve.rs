//! From the names in `GPU_ASSIGNMENT` to the cards and MIG instances of this
//! host. Pure.

use super::gpus::{Gpu, Inventory};
use super::mig::MigInstance;
use crate::device::assignment::{Assignment, GpuName};
use crate::pve::sharing::Claim;
use crate::types::Ctid;
use std::collections::BTreeSet;
use std::fmt;

/// What the names of an assignment mean here: positions in the inventory,
/// each once, however often it was named.
#[derive(Debug, Default)]
pub struct Resolved {
    /// Cards, also those of which only an instance is wanted.
    pub gpus: BTreeSet<usize>,
    /// Cards that were named themselves.
    pub whole: BTreeSet<usize>,
    /// MIG instances.
    pub mig: BTreeSet<usize>,
    /// Names that mean nothing here.
    pub missing: Vec<Missing>,
}

/// What the settings ask for and this host can't give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What was asked for: `GPU 3`, `/dev/nvidia-uvm`.
    pub what: String,
    /// Why it can't be given.
    pub why: String,
    /// What this host has instead.
    pub has: Option<String>,
    /// The command that mends it or shows more.
    pub remedy: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        match &self.has {
            Some(has) => write!(f, "; {has}"),
            None => Ok(()),
        }
    }
}

/// What the assignment names, looked up in the inventory.
pub fn resolve(inventory: &Inventory, assignment: &Assignment) -> Resolved {
    let mut resolved = Resolved::default();
    match assignment {
        Assignment::None => {}
        Assignment::All => everything(inventory, &mut resolved),
        Assignment::List(names) => {
            for name in names {
                if let Err(missing) = one(inventory, name, &mut resolved) {
                    if !resolved.missing.contains(&missing) {
                        resolved.missing.push(missing);
                    }
                }
            }
        }
    }
    refuse_claimed(inventory, &mut resolved);
    resolved
}

fn everything(inventory: &Inventory, resolved: &mut Resolved) {
    let usable = |gpu: &Gpu| gpu.minor.is_some() && !gpu.excluded;
    resolved.gpus =
        inventory.gpus.iter().enumerate().filter(|(_, gpu)| usable(gpu)).map(|(i, _)| i).collect();
    resolved.mig = (0..inventory.mig.len()).collect();
    if resolved.gpus.is_empty() {
        resolved.missing.push(Missing {
            what: "all GPUs".into(),
            why: "the NVIDIA driver has no card".into(),
            has: Some(list_of(inventory, false)),
            remedy: Some("lspci -nnk -d 10de:".into()),
        });
    }
}

fn one(inventory: &Inventory, name: &GpuName, resolved: &mut Resolved) -> Result<(), Missing> {
    match name {
        GpuName::Mig { gpu, gi, ci } => {
            let card = usable(inventory, find_card(inventory, gpu)?, gpu)?;
            let minor = inventory.gpus.get(card).and_then(|g| g.minor);
            let found = inventory.mig.iter().position(|m| Some(m.gpu) == minor && (m.gi, m.ci) == (*gi, *ci));
            let found = found.ok_or_else(|| no_instance(inventory, name, minor))?;
            resolved.mig.insert(found);
            resolved.gpus.insert(card);
        }
        GpuName::MigUuid(uuid) => {
            let found =
                inventory.mig.iter().position(|m| m.uuid.as_deref().is_some_and(|u| u.starts_with(uuid)));
            let found = found.ok_or_else(|| no_instance(inventory, name, None))?;
            resolved.mig.insert(found);
            let minor = inventory.mig.get(found).map(|m| m.gpu);
            resolved.gpus.extend(inventory.gpus.iter().position(|g| g.minor == minor));
        }
        name => {
            let card = usable(inventory, find_card(inventory, name)?, name)?;
            resolved.gpus.insert(card);
            resolved.whole.insert(card);
        }
    }
    Ok(())
}

/// The position of the card; it may be one that the driver doesn't have.
fn find_card(inventory: &Inventory, name: &GpuName) -> Result<usize, Missing> {
    let fits = |gpu: &Gpu| match name {
        GpuName::Index(minor) => gpu.minor == Some(*minor),
        GpuName::Pci(address) => gpu.pci == Some(*address),
        GpuName::Uuid(uuid) => gpu.uuid.as_deref().is_some_and(|u| u.starts_with(uuid.as_str())),
        GpuName::Mig { .. } | GpuName::MigUuid(_) => false,
    };
    let mut found = inventory.gpus.iter().enumerate().filter(|(_, gpu)| fits(gpu));
    match (found.next(), found.next()) {
        (Some((i, _)), None) => Ok(i),
        (Some((_, a)), Some((_, b))) => Err(missing_card(
            inventory,
            name,
            format!("fits more than one card ({} and {}): write more of it", short(a), short(b)),
        )),
        (None, _) => Err(missing_card(inventory, name, no_card(inventory, name))),
    }
}

fn no_card(inventory: &Inventory, name: &GpuName) -> String {
    if let Some(problem) = inventory.problems.first() {
        return format!("not found, and not everything could be looked at: {problem}");
    }
    let unknown: Vec<String> =
        inventory.gpus.iter().filter(|g| g.uuid.is_none() && g.minor.is_some()).map(short).collect();
    match name {
        GpuName::Uuid(_) if !unknown.is_empty() => {
            format!(
                "no card has this UUID, as far as known: the driver doesn't tell that of {} before its first use",
                unknown.join(", ")
            )
        }
        GpuName::Uuid(_) => "no card of this host has this UUID".into(),
        GpuName::Pci(_) => "no NVIDIA card sits at this address".into(),
        _ => "there is no GPU of that number".into(),
    }
}

/// Refuses a card that is there and that the NVIDIA driver can't give.
fn usable(inventory: &Inventory, index: usize, name: &GpuName) -> Result<usize, Missing> {
    let Some(gpu) = inventory.gpus.get(index) else {
        return Err(missing_card(inventory, name, String::new()));
    };
    if gpu.excluded {
        return Err(missing_card(
            inventory,
            name,
            "the NVIDIA driver was told to leave this card alone (excluded)".into(),
        ));
    }
    if gpu.minor.is_none() {
        // Its number is in a file that did not answer, say.
        let why = match (gpu.bound_to.as_deref(), inventory.problems.first()) {
            (Some("nvidia"), Some(problem)) => format!("not everything could be looked at: {problem}"),
            _ => held_by(inventory, gpu),
        };
        return Err(missing_card(inventory, name, why));
    }
    Ok(index)
}

/// Who has the card instead of the NVIDIA driver, and for which VM.
pub fn held_by(inventory: &Inventory, gpu: &Gpu) -> String {
    let vms = gpu.pci.and_then(|pci| inventory.vms.get(&pci)).map(Vec::as_slice).unwrap_or_default();
    let vm = match vms {
        [] => String::new(),
        [one] => format!(", for VM {one} by its hostpci line"),
        many => format!(
            ", for the VMs {} by their hostpci lines",
            many.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    match gpu.bound_to.as_deref() {
        Some("nvidia") => "the NVIDIA driver has the card and shows no node number for it".into(),
        Some(driver) => format!("bound to {driver}{vm}"),
        None => format!("bound to no driver{vm}"),
    }
}

fn no_instance(inventory: &Inventory, name: &GpuName, minor: Option<u32>) -> Missing {
    let there: Vec<String> = inventory
        .mig
        .iter()
        .filter(|m| minor.is_none() || Some(m.gpu) == minor)
        .map(ToString::to_string)
        .collect();
    let of = minor.map_or_else(|| "this host".to_owned(), |m| format!("GPU {m}"));
    let (why, has) = match (&there[..], name) {
        ([], _) => (format!("{of} has no MIG instances"), None),
        (_, GpuName::MigUuid(_)) => {
            ("no instance with this UUID is known".to_owned(), Some(format!("{of} has {}", there.join(", "))))
        }
        _ => ("there is no such MIG instance".to_owned(), Some(format!("{of} has {}", there.join(", ")))),
    };
    Missing { what: format!("MIG instance {name}"), why, has, remedy: Some("nvidia-smi -L".into()) }
}

fn missing_card(inventory: &Inventory, name: &GpuName, why: String) -> Missing {
    let what = match name {
        GpuName::Uuid(uuid) => uuid.clone(),
        name => format!("GPU {name}"),
    };
    let has = list_of(inventory, matches!(name, GpuName::Uuid(_)));
    Missing { what, why, has: Some(has), remedy: None }
}

/// What this host has, in one line.
pub fn list_of(inventory: &Inventory, uuids: bool) -> String {
    if inventory.gpus.is_empty() {
        return "this host has no NVIDIA card that could be found".to_owned();
    }
    let cards: Vec<String> = inventory.gpus.iter().map(|gpu| describe(inventory, gpu, uuids)).collect();
    format!("this host has {}", cards.join(", "))
}

/// One card, as messages name it: `0 (0000:01:00.0 NVIDIA RTX A4000)`.
fn describe(inventory: &Inventory, gpu: &Gpu, with_uuid: bool) -> String {
    let mut facts: Vec<String> = gpu.pci.iter().map(ToString::to_string).collect();
    facts.push(gpu.model.clone());
    if with_uuid {
        facts.push(gpu.uuid.clone().unwrap_or_else(|| "UUID not known yet".to_owned()));
    }
    match gpu.minor {
        Some(minor) if gpu.excluded => format!("{minor} ({}, excluded)", facts.join(" ")),
        Some(minor) => format!("{minor} ({})", facts.join(" ")),
        None => format!("{} ({})", facts.join(" "), held_by(inventory, gpu)),
    }
}

/// The shortest name of a card.
fn short(gpu: &Gpu) -> String {
    match (gpu.minor, gpu.pci) {
        (Some(minor), _) => format!("GPU {minor}"),
        (None, Some(pci)) => format!("the card at {pci}"),
        (None, None) => gpu.model.clone(),
    }
}

/// A note on cards that were named whole and are split by MIG: without an
/// instance nothing can compute on them.
pub fn split_cards(inventory: &Inventory, resolved: &Resolved) -> Vec<String> {
    let minors = resolved.whole.iter().filter_map(|i| inventory.gpus.get(*i)?.minor);
    let mut notes = Vec::new();
    for minor in minors {
        let of_card: Vec<&MigInstance> = inventory.mig.iter().filter(|m| m.gpu == minor).collect();
        let chosen = resolved.mig.iter().filter_map(|i| inventory.mig.get(*i)).any(|m| m.gpu == minor);
        if !of_card.is_empty() && !chosen {
            let names: Vec<String> = of_card.iter().map(ToString::to_string).collect();
            notes.push(format!(
                "GPU {minor} is split by MIG: programs can compute on its instances alone; name those ({})",
                names.join(", ")
            ));
        }
    }
    notes
}

/// Takes out the cards that another running container has. Two that have
/// different MIG instances of one card don't share anything.
fn refuse_claimed(inventory: &Inventory, resolved: &mut Resolved) {
    let refused: Vec<usize> =
        resolved.gpus.iter().copied().filter(|card| holder(inventory, resolved, *card).is_some()).collect();
    for card in refused {
        let Some((ctid, minor)) = holder(inventory, resolved, card) else { continue };
        resolved.gpus.remove(&card);
        resolved.whole.remove(&card);
        resolved.mig.retain(|i| inventory.mig.get(*i).is_some_and(|m| m.gpu != minor));
        resolved.missing.push(Missing {
            what: format!("GPU {minor}"),
            why: format!("container {ctid} runs and has it, and GPU_EXCLUSIVE=yes forbids to share it"),
            has: None,
            remedy: Some(format!("pct shutdown {ctid}, or GPU_EXCLUSIVE=no")),
        });
    }
}

/// The first container that has what is wanted of this card, and its minor.
fn holder(inventory: &Inventory, resolved: &Resolved, card: usize) -> Option<(Ctid, u32)> {
    let minor = inventory.gpus.get(card)?.minor?;
    let instances = inventory.mig.iter().filter(|m| m.gpu == minor);
    let of_card: BTreeSet<u32> = instances.map(|m| m.ci_minor).collect();
    let chosen = resolved.mig.iter().filter_map(|i| inventory.mig.get(*i)).filter(|m| m.gpu == minor);
    let mine: BTreeSet<u32> = chosen.map(|m| m.ci_minor).collect();
    let conflicts = |claim: &Claim| {
        let theirs: BTreeSet<u32> = claim.caps.intersection(&of_card).copied().collect();
        let apart = !mine.is_empty() && !theirs.is_empty() && mine.is_disjoint(&theirs);
        claim.gpus.contains(&minor) && !apart
    };
    inventory.claims.iter().find(|(_, claim)| conflicts(claim)).map(|(ctid, _)| (*ctid, minor))
}
