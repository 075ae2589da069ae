//! pre-start: the device nodes are there, the conf is right for good, and the
//! config that Proxmox generated for this start is right too.

use crate::device::{self, Device};
use crate::exit::{self, Code};
use crate::host::choose::Choice;
use crate::host::masks;
use crate::host::provide::{Provided, provide, provide_named};
use crate::job::chain;
use crate::job::locks;
use crate::plan::{self, Intent};
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::reconcile::{Change, reconcile, without_passed};
use crate::pve::conf::store::Caller;
use crate::pve::conf::store::Conf;
use crate::settings::load;
use crate::settings::{Call, Settings, keys};
use crate::state::Record;
use crate::sys::look::View;
use crate::sys::time::Deadline;
use crate::sys::{signal, text};
use crate::types::{Ctid, Phase};
use std::time::Instant;

/// The phase, under START_POLICY: `continue` turns a fault into warnings,
/// `fail` into the exit code that stops the start.
///
/// # Errors
/// A chained hookscript's failure; with `fail`, the first fault.
pub fn run(ctid: Ctid) -> anyhow::Result<Code> {
    let conf = Conf::of(ctid);
    let document = match conf.read() {
        Ok(document) => document,
        Err(error) => {
            // Node and cluster may have a policy of their own.
            let settings = load::of(ctid, Call::Hook, &conf, &Document::parse(b""));
            if settings.value(keys::START_POLICY).fails() {
                return Err(error);
            }
            log::warn!("{}; the container starts as its conf is", exit::one_line(&error));
            return Ok(Code::Success);
        }
    };
    let settings = load::of(ctid, Call::Hook, &conf, &document);
    chain::run(&settings, ctid, &Phase::PreStart)?;
    tell_problems(&settings);
    let fail = settings.value(keys::START_POLICY).fails();
    let begun = Instant::now();
    let deadline = Deadline::after(settings.value(keys::PRE_START_TIMEOUT));
    let conf = conf.until(&deadline);
    match exit::caught(|| configure(ctid, &conf, &settings, &document, fail, &deadline)) {
        Ok(missing) => {
            Record::of(ctid).note_start((!missing.is_empty()).then(|| missing.join("; ")));
            Ok(Code::Success)
        }
        Err(error) if signal::check().is_err() => Err(error),
        Err(error) if fail => {
            let result = Err(error);
            Record::of(ctid).update(|state| {
                state.ended("pre-start", &result, begun);
                state.start_warning = Some(state.message.clone());
            });
            result.map(|()| Code::Success)
        }
        Err(error) => {
            Record::of(ctid).note_start(Some(text::line(exit::one_line(&error).as_bytes())));
            exit::tell(log::Level::Warn, &error);
            log::warn!("START_POLICY is continue: the container starts with what it has");
            Ok(Code::Success)
        }
    }
}

/// Warns of what cannot be read, once a start: its default counts. What the
/// devices depend on is START_POLICY's, and what is missing post-start's.
fn tell_problems(settings: &Settings) {
    let devices = [keys::GPU_ASSIGNMENT.name, keys::GPU_CAPABILITIES.name, keys::GPU_EXCLUSIVE.name];
    for problem in settings.all_problems() {
        if problem.is_missing() || devices.contains(&problem.key.as_str()) {
            continue;
        }
        match keys::by_name(&problem.key).and_then(|key| key.default) {
            Some(default) => log::warn!("{problem}; the default counts: {default}"),
            None => log::warn!("{problem}"),
        }
    }
}

/// Does it; what the settings say and the container does not get is returned.
fn configure(
    ctid: Ctid,
    conf: &Conf,
    settings: &Settings,
    document: &Document,
    fail: bool,
    deadline: &Deadline,
) -> anyhow::Result<Vec<String>> {
    let (intent, mut problems) = Intent::of(settings);
    let exclusive = settings.get(keys::GPU_EXCLUSIVE);
    problems.extend(exclusive.as_ref().err().cloned());
    if let (true, false) = (fail, problems.is_empty()) {
        return Err(crate::settings::fault(&problems, ctid));
    }
    for problem in &problems {
        match keys::by_name(&problem.key).and_then(|key| key.default) {
            Some(default) => log::warn!("{problem}; the default counts: {default}"),
            None => log::warn!("{problem}; the devices in the conf stay as far as they are right"),
        }
    }
    // Of two that start at once, one would not see the other's claim.
    let _cards = exclusive.unwrap_or_default().then(|| locks::cards(deadline)).transpose()?;
    let provided = devices(ctid, &intent, settings, document, deadline)?;
    let choice = &provided.choice;
    if let (true, Some(fault)) = (fail, plan::fault(choice)) {
        return Err(fault.into());
    }
    for missing in text::few(choice.missing.iter().map(ToString::to_string).collect(), plan::MOST_LINES) {
        log::warn!("{missing}; left out of this start");
    }
    let wanted = choice.devices.clone();
    let mounts = mounts(ctid, &intent, document, &provided);
    let changed = apply(conf, Caller::Hook, &wanted, &mounts)?;
    mirror(conf, &wanted, &mounts)?;
    report(&intent, choice, changed);
    let problems = problems.iter().map(ToString::to_string);
    let all = problems.chain(choice.missing.iter().map(ToString::to_string)).collect();
    Ok(text::few(all, plan::MOST_LINES))
}

/// The devices of this host for the intent, their nodes made where missing.
///
/// # Errors
/// A signal of ours came.
pub fn devices(
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
    for warning in &provided.warnings {
        log::warn!("{warning}");
    }
    if !provided.made.is_empty() {
        log::info!("made the missing device nodes {}", device::joined(&provided.made, ", "));
    }
    for note in &provided.choice.notes {
        log::info!("{note}");
    }
    let closed = plan::closed(document, &provided.inventory, &provided.choice);
    if !closed.is_empty() {
        log::warn!(
            "the container is unprivileged, and the mode of {} keeps it out: `phoenix-nvidia doctor {ctid}` \
             says what mends that",
            device::joined(&closed, ", ")
        );
    }
    Ok(provided)
}

/// The entries of ours beside the devices, with what they bind brought up to
/// date. A copy that cannot be written costs no start anything: its entry is
/// optional.
pub fn mounts(ctid: Ctid, intent: &Intent, document: &Document, provided: &Provided) -> Vec<Mount> {
    let mounts = plan::mounts(ctid, intent, document);
    if mounts.is_empty() {
        return mounts;
    }
    match plan::masks(document, &provided.inventory, &provided.choice).write(View::host(), ctid) {
        // Whoever is new here may have come after another one.
        Ok(true) => masks::sweep(View::host()),
        Ok(false) => {}
        Err(error) => log::warn!(
            "the container may see all GPUs of the host in /proc/driver/nvidia: {error}. Its device rules still \
             keep the others out"
        ),
    }
    mounts
}

/// Writes the pairs and mounts into the conf; tells each change. True if
/// there was one.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn apply(conf: &Conf, who: Caller, wanted: &[Device], mounts: &[Mount]) -> anyhow::Result<bool> {
    let Some(edit) = conf.edit(who, |document| reconcile(document, wanted, mounts, Form::Pve))? else {
        return Ok(false);
    };
    for line in text::few(in_few_lines(&edit.changes), plan::MOST_LINES) {
        log::info!("{}: {line}", conf.path().display());
    }
    Ok(true)
}

/// A task log is short: what was just added stands in one line, up to ten
/// devices. Anything else is worth its own.
fn in_few_lines(changes: &[Change]) -> Vec<String> {
    let is_new = |change: &&Change| matches!(change, Change::Added(..) | Change::Mounted(_));
    let (added, others): (Vec<_>, Vec<_>) = changes.iter().partition(is_new);
    let added: Vec<String> =
        added.iter().map(|c| c.to_string().trim_start_matches("added ").to_owned()).collect();
    let added = added.chunks(10).map(|some| format!("added {}", some.join(", ")));
    added.chain(others.iter().map(ToString::to_string)).collect()
}

/// The same for this start: Proxmox generated its config from the conf
/// before it called us.
fn mirror(conf: &Conf, wanted: &[Device], mounts: &[Mount]) -> anyhow::Result<()> {
    // What a devN: line passes on stands in the conf alone.
    let wanted = without_passed(&conf.read()?, wanted);
    let edit = conf.edit_generated(|document| reconcile(document, &wanted, mounts, Form::Lxc))?;
    for change in edit.iter().flat_map(|e| &e.changes) {
        log::debug!("this start: {change}");
    }
    Ok(())
}

fn report(intent: &Intent, choice: &Choice, changed: bool) {
    let devices = plan::describe(choice);
    match (intent, changed) {
        (Intent::Keep, _) => {}
        (_, true) => log::info!("{devices}: configured"),
        (_, false) => log::info!("{devices}: already configured"),
    }
}
