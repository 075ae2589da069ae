//! Resolves the names in `GPU_ASSIGNMENT` to cards and MIG instances of this
//! host. Pure.

use super::cards::Unfit;
use super::gpus::{Gpu, Inventory};
use super::mig::MigInstance;
use crate::device::assignment::{Assignment, GpuName};
use crate::pve::sharing::Claim;
use crate::types::Ctid;
use std::collections::BTreeSet;
use std::fmt;

/// The cards and instances that an assignment names: positions in the
/// inventory, each once.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// Cards, also those of which only an instance is named.
    pub gpus: BTreeSet<usize>,
    /// Cards that are named themselves.
    pub whole: BTreeSet<usize>,
    /// MIG instances.
    pub mig: BTreeSet<usize>,
    /// Names that resolve to nothing.
    pub missing: Vec<Missing>,
    /// The list that was to narrow it names none of its cards. One of indices
    /// narrows nothing then, any other leaves none.
    pub unmatched: bool,
}

/// A GPU or device that the settings ask for and this host cannot give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// What it is: `GPU 3`, `/dev/nvidia-uvm`.
    pub what: String,
    /// The reason.
    pub why: String,
    /// What this host has instead.
    pub has: Option<String>,
    /// The command that repairs it or shows more.
    pub remedy: Option<String>,
}

impl Missing {
    /// Without a remedy.
    pub(super) fn new(what: impl ToString, why: impl Into<String>) -> Missing {
        Missing { what: what.to_string(), why: why.into(), ..Missing::default() }
    }
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

/// Resolves an assignment.
pub fn resolve(inventory: &Inventory, assignment: &Assignment) -> Resolved {
    let mut resolved = named(inventory, assignment);
    refuse_claimed(inventory, &mut resolved);
    resolved
}

fn named(inventory: &Inventory, assignment: &Assignment) -> Resolved {
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
        Assignment::Narrowed { of, to } => {
            let left = to.iter().filter_map(|name| {
                let mut left = Resolved::default();
                one(inventory, name, &mut left).ok().map(|()| left)
            });
            let left: Vec<Resolved> = left.collect();
            let all = named(inventory, of);
            resolved = all.clone();
            resolved.keep(inventory, &left);
            if resolved.gpus.is_empty() && !all.gpus.is_empty() {
                // Whoever wrote indices counts as nvidia-smi in the container does:
                // the container's only card is 0 to him. All other names are the
                // same everywhere, and mean another card.
                if to.iter().all(|name| matches!(name, GpuName::Index(_))) {
                    resolved = all;
                }
                resolved.unmatched = true;
            }
        }
    }
    resolved
}

impl Resolved {
    /// Leaves what is among these too. Nothing comes in addition: of a card that
    /// was given as a whole no single instance can be left.
    fn keep(&mut self, inventory: &Inventory, left: &[Resolved]) {
        let whole = |card: &usize| left.iter().any(|l| l.whole.contains(card));
        let card_of = |instance: &usize| {
            let minor = inventory.mig.get(*instance).map(|mig| mig.gpu);
            inventory.gpus.iter().position(|gpu| gpu.minor.is_some() && gpu.minor == minor)
        };
        let kept = |instance: &usize| {
            left.iter().any(|l| l.mig.contains(instance))
                || card_of(instance).is_some_and(|card| whole(&card))
        };
        self.mig.retain(kept);
        let cards: BTreeSet<usize> = self.mig.iter().filter_map(card_of).collect();
        self.gpus.retain(|card| whole(card) || cards.contains(card));
        self.whole.retain(whole);
    }
}

fn everything(inventory: &Inventory, resolved: &mut Resolved) {
    let usable = |gpu: &Gpu| gpu.minor.is_some() && !gpu.excluded;
    resolved.gpus =
        inventory.gpus.iter().enumerate().filter(|(_, gpu)| usable(gpu)).map(|(i, _)| i).collect();
    resolved.mig = (0..inventory.mig.len()).collect();
    if resolved.gpus.is_empty() {
        let unfit = inventory.gpus.iter().find_map(|gpu| gpu.unfit.as_ref());
        resolved.missing.push(Missing {
            has: Some(list_of(inventory, false)),
            remedy: Some(unfit.map_or_else(|| "lspci -nnk -d 10de:".into(), Unfit::remedy)),
            ..Missing::new("all GPUs", "the NVIDIA driver has no card")
        });
    }
}

fn one(inventory: &Inventory, name: &GpuName, resolved: &mut Resolved) -> Result<(), Missing> {
    match name {
        GpuName::Mig { gpu, gi, ci } => {
            let (card, gpu) = card(inventory, gpu)?;
            let is = |m: &MigInstance| Some(m.gpu) == gpu.minor && (m.gi, m.ci) == (*gi, *ci);
            let found = inventory.mig.iter().position(is);
            resolved.mig.insert(found.ok_or_else(|| no_instance(inventory, name, gpu.minor))?);
            resolved.gpus.insert(card);
        }
        GpuName::MigUuid(uuid) => {
            let is = |m: &&MigInstance| m.uuid.as_deref().is_some_and(|u| u.starts_with(uuid));
            let mut found = inventory.mig.iter().enumerate().filter(|(_, m)| is(m));
            let (index, instance) = found.next().ok_or_else(|| no_instance(inventory, name, None))?;
            resolved.mig.insert(index);
            resolved.gpus.extend(inventory.gpus.iter().position(|g| g.minor == Some(instance.gpu)));
        }
        name => {
            let (card, _) = card(inventory, name)?;
            resolved.gpus.insert(card);
            resolved.whole.insert(card);
        }
    }
    Ok(())
}

/// The card of this name and its position, if the NVIDIA driver can give it.
fn card<'a>(inventory: &'a Inventory, name: &GpuName) -> Result<(usize, &'a Gpu), Missing> {
    let fits = |gpu: &Gpu| match name {
        GpuName::Index(minor) => gpu.minor == Some(*minor),
        GpuName::Pci(address) => gpu.pci == Some(*address),
        GpuName::Uuid(uuid) => gpu.uuid.as_deref().is_some_and(|u| u.starts_with(uuid.as_str())),
        GpuName::Mig { .. } | GpuName::MigUuid(_) => false,
    };
    let mut found = inventory.gpus.iter().enumerate().filter(|(_, gpu)| fits(gpu));
    let why = match (found.next(), found.next()) {
        (None, _) => no_card(inventory, name),
        (Some((_, a)), Some((_, b))) => {
            format!("ambiguous: matches {} and {}, use more digits", short(a), short(b))
        }
        (Some((_, gpu)), None) if gpu.excluded => "excluded from the NVIDIA driver".to_owned(),
        (Some((_, gpu)), None) if gpu.minor.is_none() => {
            // Its information, with the minor, may be what was not readable.
            match (gpu.bound_to.as_deref(), inventory.problems.first()) {
                (Some("nvidia"), Some(problem)) => format!("host only partly readable: {problem}"),
                _ => held_by(inventory, gpu),
            }
        }
        (Some(card), None) => return Ok(card),
    };
    let by_uuid = matches!(name, GpuName::Uuid(_));
    let what = if by_uuid { name.to_string() } else { format!("GPU {name}") };
    let unfit = inventory.gpus.iter().find(|gpu| fits(gpu)).and_then(|gpu| gpu.unfit.as_ref());
    let remedy = unfit.map(Unfit::remedy);
    Err(Missing { has: Some(list_of(inventory, by_uuid)), remedy, ..Missing::new(what, why) })
}

fn no_card(inventory: &Inventory, name: &GpuName) -> String {
    if let Some(problem) = inventory.problems.first() {
        return format!("not found, host only partly readable: {problem}");
    }
    let unknown: Vec<String> =
        inventory.gpus.iter().filter(|g| g.uuid.is_none() && g.minor.is_some()).map(short).collect();
    match name {
        GpuName::Uuid(_) if !unknown.is_empty() => {
            format!("no known UUID matches; that of {} is unknown until first use", unknown.join(", "))
        }
        GpuName::Uuid(_) => "no card of this host has this UUID".into(),
        GpuName::Pci(_) => "no NVIDIA card at this address".into(),
        _ => "no such GPU".into(),
    }
}

/// The kernel driver that has the card, and the VMs that its hostpci lines name.
pub fn held_by(inventory: &Inventory, gpu: &Gpu) -> String {
    let vms = gpu.pci.and_then(|pci| inventory.vms.get(&pci)).map(Vec::as_slice).unwrap_or_default();
    let vm = if vms.is_empty() { String::new() } else { format!(", in hostpci of VM {}", list(vms)) };
    let unfit = gpu.unfit.as_ref().map(|unfit| format!(": {}", unfit.why)).unwrap_or_default();
    match gpu.bound_to.as_deref() {
        Some("nvidia") => format!("bound to nvidia, which shows no device minor{unfit}"),
        Some(driver) => format!("bound to {driver}{vm}"),
        None => format!("bound to no driver{vm}{unfit}"),
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn no_instance(inventory: &Inventory, name: &GpuName, minor: Option<u32>) -> Missing {
    let here = list(inventory.mig.iter().filter(|m| minor.is_none_or(|minor| m.gpu == minor)));
    let owner = minor.map_or_else(|| "this host".to_owned(), |m| format!("GPU {m}"));
    let (why, has) = match name {
        _ if here.is_empty() => (format!("{owner} has no MIG instances"), None),
        GpuName::MigUuid(_) => match inventory.problems.first() {
            Some(problem) => (format!("no known instance has this UUID: {problem}"), Some(here)),
            None => ("no known instance has this UUID".to_owned(), Some(here)),
        },
        _ => ("no such MIG instance".to_owned(), Some(here)),
    };
    Missing {
        has: has.map(|here| format!("{owner} has {here}")),
        remedy: Some("nvidia-smi -L".into()),
        ..Missing::new(format!("MIG instance {name}"), why)
    }
}

/// The cards of this host, in one line.
pub fn list_of(inventory: &Inventory, uuids: bool) -> String {
    if inventory.gpus.is_empty() {
        // What was not read may be there.
        let read = if inventory.problems.is_empty() { "" } else { " that could be read" };
        return format!("this host has no NVIDIA card{read}");
    }
    format!("this host has {}", list(inventory.gpus.iter().map(|gpu| describe(inventory, gpu, uuids))))
}

/// Whether the driver ought to number a card, and does not: one that nobody else
/// has, as far as the host was read.
pub fn is_unnumbered(inventory: &Inventory, gpu: &Gpu) -> bool {
    let free = match (gpu.bound_to.as_deref(), gpu.pci) {
        (Some(driver), _) => driver == "nvidia",
        (None, pci) => pci.is_some_and(|pci| !inventory.vms.contains_key(&pci)),
    };
    // A driver that hides its cards has them all by their nodes.
    inventory.listed && inventory.problems.is_empty() && gpu.minor.is_none() && !gpu.excluded && free
}

/// The cards that `all` is without, though nobody else has them.
pub fn unnumbered(inventory: &Inventory) -> Vec<String> {
    let gpus = inventory.gpus.iter().filter(|gpu| is_unnumbered(inventory, gpu));
    gpus.map(|gpu| format!("not among all GPUs: {}", describe(inventory, gpu, false))).collect()
}

/// One card in a message: `0 (0000:01:00.0 NVIDIA RTX A4000)`.
fn describe(inventory: &Inventory, gpu: &Gpu, with_uuid: bool) -> String {
    let mut facts: Vec<String> = gpu.pci.iter().map(ToString::to_string).collect();
    facts.push(gpu.model.clone());
    if with_uuid {
        facts.push(gpu.uuid.clone().unwrap_or_else(|| "UUID unknown".to_owned()));
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

/// Notes on cards in MIG mode that are named whole: compute works only on
/// instances.
pub fn split_cards(inventory: &Inventory, resolved: &Resolved) -> Vec<String> {
    let chosen = |minor| resolved.mig.iter().filter_map(|i| inventory.mig.get(*i)).any(|m| m.gpu == minor);
    let whole = resolved.whole.iter().filter_map(|i| inventory.gpus.get(*i)?.minor);
    let note = |minor| {
        let instances = list(inventory.mig.iter().filter(|m| m.gpu == minor));
        let note =
            format!("GPU {minor} is in MIG mode, compute needs an instance: assign one of {instances}");
        (!instances.is_empty()).then_some(note)
    };
    whole.filter(|minor| !chosen(*minor)).filter_map(note).collect()
}

/// Removes the cards that another running container has. Different MIG
/// instances of one card are not shared.
fn refuse_claimed(inventory: &Inventory, resolved: &mut Resolved) {
    let refused: Vec<usize> =
        resolved.gpus.iter().copied().filter(|card| holder(inventory, resolved, *card).is_some()).collect();
    for card in refused {
        let Some((ctid, claim, minor, line)) = holder(inventory, resolved, card) else { continue };
        resolved.gpus.remove(&card);
        resolved.whole.remove(&card);
        resolved.mig.retain(|i| inventory.mig.get(*i).is_some_and(|m| m.gpu != minor));
        let (why, remedy) = claimed(ctid, claim, minor, line);
        let remedy = Some(remedy);
        resolved.missing.push(Missing { remedy, ..Missing::new(format!("GPU {minor}"), why) });
    }
}

/// Why a card is refused, and the remedy.
fn claimed(ctid: Ctid, claim: &Claim, minor: u32, line: Option<usize>) -> (String, String) {
    if claim.locked {
        let why =
            format!("container {ctid}, which has it, is being started or changed, and GPU_EXCLUSIVE=yes");
        return (why, format!("pct status {ctid}, and once that is over the same again"));
    }
    let kept = line.is_none() && claim.kept.contains(&minor);
    let by = match line {
        Some(line) => format!(", whose line {line} allows every NVIDIA card"),
        None if kept => ", which keeps it until it is restarted".to_owned(),
        None => String::new(),
    };
    let frees = if kept { "reboot" } else { "shutdown" };
    // That one is somebody's too: it is stopped by whoever knows what it does.
    let remedy = format!(
        "other GPUs for this container (attach --gpus), GPU_EXCLUSIVE=no for both to have it, or: pct {frees} {ctid}"
    );
    (format!("in use by running container {ctid}{by}, and GPU_EXCLUSIVE=yes"), remedy)
}

/// The first container that uses what is asked of this card, and its minor; the
/// line of the rule where only that gives it the card.
fn holder<'a>(
    inventory: &'a Inventory,
    resolved: &Resolved,
    card: usize,
) -> Option<(Ctid, &'a Claim, u32, Option<usize>)> {
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
    let holds = |(ctid, claim): &'a (Ctid, Claim)| {
        let by = if conflicts(claim) { None } else { Some(claim.every?) };
        Some((*ctid, claim, minor, by))
    };
    inventory.claims.iter().find_map(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_could_not_be_read_is_not_said_to_have_no_card() {
        let mut inventory = Inventory::default();
        assert_eq!(list_of(&inventory, false), "this host has no NVIDIA card");
        inventory.problems.push("/proc/driver/nvidia/gpus does not answer".to_owned());
        assert_eq!(list_of(&inventory, false), "this host has no NVIDIA card that could be read");
    }
}
