//! The devices of a container, as a start and a call by hand give them: nodes
//! on the host, entries in the conf, and what it runs with now.

use crate::device::{self, DevicePath};
use crate::driver::injection::Injection;
use crate::exit;
use crate::guest::attached;
use crate::guest::exec::Guest;
use crate::guest::verify::{Opened, open_nodes};
use crate::host::choose::Choice;
use crate::host::gpus::Inventory;
use crate::host::masks;
use crate::host::provide::{Provided, inspect, provide, provide_named};
use crate::job::in_force;
use crate::plan::narrow::Narrowing;
use crate::plan::{self, Intent, dropped};
use crate::pve::conf::document::{Document, Form};
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::reconcile::{Change, reconcile};
use crate::pve::conf::store::{Caller, Conf};
use crate::pve::pct;
use crate::settings::{Settings, keys};
use crate::sys::look::View;
use crate::sys::time::Deadline;
use crate::sys::{signal, text};
use crate::types::Ctid;
use std::time::Duration;

/// The devices of this host for the intent, their nodes made where missing.
///
/// # Errors
/// A signal of ours came.
pub fn give(
    ctid: Ctid,
    intent: &Intent,
    settings: &Settings,
    document: &Document,
    deadline: &Deadline,
) -> anyhow::Result<Provided> {
    let exclusive = settings.value(keys::GPU_EXCLUSIVE).then_some(ctid);
    let host = View::host_until(deadline);
    let provided = match (intent.request(exclusive), plan::named(document)) {
        (Some(request), _) => provide(host, &request, deadline),
        (None, named) if named.is_empty() => return Ok(Provided::default()),
        (None, named) => provide_named(host, &named, deadline),
    };
    // Programs that a signal of ours ended are no finding.
    signal::check()?;
    provided.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if !provided.made.is_empty() {
        log::info!("made device nodes {}", device::nodes_on_host(&provided.made));
    }
    provided.choice.notes.iter().for_each(|note| log::info!("{note}"));
    provided.choice.left_out.iter().for_each(|card| log::warn!("{card}"));
    for told in Narrowing::of(document).told(settings, &provided.choice) {
        log::log!(told.level, "{}", told.line);
        told.fix(ctid).iter().for_each(|fix| log::warn!("{}", exit::fix(fix)));
    }
    for gpu in &provided.choice.gpus {
        gpu.undriven().iter().for_each(|why| log::warn!("{why}"));
        gpu.unfit.iter().for_each(|unfit| log::warn!("{}", exit::fix(&unfit.remedy())));
    }
    let closed = plan::closed(document, &provided.inventory, &provided.choice);
    if !closed.is_empty() {
        log::warn!("the mode of {} keeps the unprivileged container out", device::joined(&closed, ", "));
        log::warn!("{}", exit::fix(&format!("phoenix-nvidia doctor {ctid}")));
    }
    Ok(provided)
}

/// The same as they are now: what [`give`] would find, and make.
pub fn look(
    ctid: Ctid,
    intent: &Intent,
    settings: &Settings,
    document: &Document,
    deadline: &Deadline,
) -> (Inventory, Choice) {
    let exclusive = settings.value(keys::GPU_EXCLUSIVE).then_some(ctid);
    match intent.request(exclusive) {
        Some(request) => inspect(View::host(), &request, deadline),
        None => here(intent, document, deadline),
    }
}

/// The devices that a container has, whoever else has its cards; without the cards
/// of other drivers.
pub fn here(intent: &Intent, document: &Document, deadline: &Deadline) -> (Inventory, Choice) {
    let mut inventory = Inventory::read_for(View::host(), intent.display(document));
    inventory.look_up(View::host(), &intent.names(), deadline);
    let choice = intent.on(&inventory, document);
    (inventory, choice)
}

/// The entries of ours beside the devices, with what they bind brought up to
/// date. A copy that cannot be written costs no start anything: its entry is
/// optional.
pub fn mounts(
    ctid: Ctid,
    intent: &Intent,
    document: &Document,
    provided: &Provided,
    injection: &Injection,
) -> Vec<Mount> {
    let mounts = plan::mounts(ctid, intent, document, injection);
    if mounts.is_empty() {
        return mounts;
    }
    match plan::masks(document, &provided.inventory, &provided.choice).write(View::host(), ctid) {
        // Whoever is new here may have come after another one.
        Ok(true) => masks::sweep(View::host()),
        Ok(false) => {}
        Err(error) => log::warn!(
            "/proc/driver/nvidia in the container may show all GPUs of the host (the device rules still keep it \
             out of the others): {error}"
        ),
    }
    mounts
}

/// Writes the pairs and mounts into the conf; tells each change. True if
/// there was one.
///
/// # Errors
/// [`exit::Code::Passthrough`].
pub fn write(
    conf: &Conf,
    who: Caller,
    intent: &Intent,
    choice: &Choice,
    mounts: &[Mount],
) -> anyhow::Result<bool> {
    if who == Caller::ByHand {
        in_force::note_before_edit(conf);
    }
    let Some(edit) = conf.edit(who, |document| reconcile(document, &choice.devices, mounts, Form::Pve))?
    else {
        return Ok(false);
    };
    let explained = |change: &Change| dropped::explained(change, intent, choice, &edit.document);
    for line in text::few(in_few_lines(&edit.changes, explained), plan::MOST_LINES) {
        log::info!("{}: {line}", conf.path().display());
    }
    Ok(true)
}

/// A task log is short: what was just added stands in one line, up to ten
/// devices. Anything else is worth its own.
fn in_few_lines(changes: &[Change], explained: impl Fn(&Change) -> String) -> Vec<String> {
    let added: Vec<String> = changes.iter().filter_map(Change::added).collect();
    let added = added.chunks(10).map(|some| format!("added {}", some.join(", ")));
    let others = changes.iter().filter(|change| change.added().is_none());
    added.chain(others.map(explained)).collect()
}

/// A running container compared with what it is to have.
#[derive(Debug, Default)]
pub struct Compared {
    /// One sentence for each difference; none: no restart is needed for devices.
    pub differences: Vec<String>,
    /// What could not be looked at.
    pub unseen: Vec<String>,
}

/// Compares what the running container has with what is wanted, not what this
/// run wrote: also a run that was killed after its edit of the conf leads to
/// the restart.
///
/// # Errors
/// Whether it runs could not be asked.
pub fn compare(ctid: Ctid, conf: &Document, wanted: &Choice, limit: Duration) -> anyhow::Result<Compared> {
    let Some(init) = pct::init(ctid)? else { return Ok(Compared::default()) };
    let has = match attached::read(ctid, &init, &Deadline::after(limit / 2)) {
        Ok(has) => has,
        Err(error) => {
            let unknown = format!("cannot read which devices container {ctid} has: {error}");
            return Ok(Compared { differences: vec![unknown], unseen: Vec::new() });
        }
    };
    let devices = plan::wanted_once_made(wanted);
    let mut differences = plan::differences(conf, &has, &devices, wanted.monitor);
    if differences.is_empty() {
        differences = refused(ctid, &plan::nodes(&devices, wanted.monitor), limit);
    }
    Ok(Compared { differences, unseen: has.unseen() })
}

/// The nodes that the running container has and may not open: its device rules
/// are those of its start, and the conf's may be right only since. A sentence
/// each; none where they could not be tried.
fn refused(ctid: Ctid, nodes: &[DevicePath], limit: Duration) -> Vec<String> {
    if nodes.is_empty() {
        return Vec::new();
    }
    let opened = open_nodes(&Guest::new(ctid), nodes, &Deadline::after(limit));
    let shut = opened.into_iter().filter(|(_, opened)| *opened == Opened::NoRule);
    shut.map(|(node, _)| format!("the running container has no device rule for {node}")).collect()
}
