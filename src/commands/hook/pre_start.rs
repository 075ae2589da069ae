//! pre-start: the device nodes are there, the conf is right for good, and the
//! config that Proxmox generated for this start is right too.

use crate::device::Device;
use crate::driver::injection::Injection;
use crate::exit::{self, Code};
use crate::host::choose::Choice;
use crate::host::provide::Provided;
use crate::job::{chain, desired, devices, handover, injection, locks, nested};
use crate::plan::{self, Intent};
use crate::pve::conf::document::{Document, Form};
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::reconcile::{reconcile, without_passed};
use crate::pve::conf::store::{Caller, Conf};
use crate::settings::{self, Call, Problem, Settings, keys, load};
use crate::state::Record;
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
    handover::forget_old(ctid);
    let conf = Conf::of(ctid);
    let document = match conf.read() {
        Ok(document) => document,
        Err(error) => return without_conf(ctid, &conf, error),
    };
    let settings = load::of(ctid, Call::Hook, &conf, &document);
    let (settings, why) = injection::settled(ctid, &document, settings);
    why.iter().for_each(|why| log::info!("DRIVER_MODE=auto: the host's driver is mounted: {why}"));
    chain::run(&settings, ctid, &Phase::PreStart)?;
    tell_problems(&settings);
    let begun = Instant::now();
    let deadline = Deadline::after(settings.value(keys::PRE_START_TIMEOUT));
    let fails = settings.value(keys::START_POLICY).fails();
    let start = Start { ctid, conf: conf.until(&deadline), document, settings, fails, deadline };
    start.conclude(exit::caught(|| start.configure()), begun)
}

/// A conf that cannot be read; node and cluster may have a policy of their own.
fn without_conf(ctid: Ctid, conf: &Conf, error: anyhow::Error) -> anyhow::Result<Code> {
    let settings = load::of(ctid, Call::Hook, conf, &Document::parse(b""));
    if settings.value(keys::START_POLICY).fails() {
        return Err(error);
    }
    log::warn!("{}; container starts without GPU setup", exit::one_line(&error));
    Ok(Code::Success)
}

/// Warns of what cannot be read, once a start: its default counts. What the
/// devices depend on is START_POLICY's, and what is missing post-start's.
fn tell_problems(settings: &Settings) {
    let devices = [keys::GPU_ASSIGNMENT.name, keys::GPU_CAPABILITIES.name, keys::GPU_EXCLUSIVE.name];
    let entries = |key: &str| devices.contains(&key) || key == keys::DRIVER_MODE.name;
    let all = settings.all_problems();
    all.iter().filter(|p| !p.is_missing() && !entries(&p.key)).for_each(tell);
}

fn tell(problem: &Problem) {
    match keys::by_name(&problem.key).map(|key| key.default) {
        Some(_) if problem.key == keys::DRIVER_MODE.name => {
            log::warn!("{problem}; keeping the driver mounts of the conf");
        }
        Some(Some(default)) => log::warn!("{problem}; using the default: {default}"),
        Some(None) if problem.key == keys::GPU_ASSIGNMENT.name => {
            log::warn!("{problem}; keeping the valid devices of the conf");
        }
        _ => log::warn!("{problem}"),
    }
}

/// A start that is to get its devices.
struct Start {
    ctid: Ctid,
    conf: Conf,
    document: Document,
    settings: Settings,
    /// What START_POLICY says.
    fails: bool,
    deadline: Deadline,
}

impl Start {
    /// Does it; what the settings say and the container does not get is
    /// returned.
    fn configure(&self) -> anyhow::Result<Vec<String>> {
        let (intent, mut problems) = Intent::of(&self.settings, &self.document);
        problems.extend(self.settings.get(keys::GPU_EXCLUSIVE).err());
        problems.extend(self.settings.get(keys::DRIVER_MODE).err());
        if self.fails && !problems.is_empty() {
            return Err(settings::fault(&problems, self.ctid));
        }
        problems.iter().for_each(tell);
        // Of two that start at once, one would not see the other's claim.
        let exclusive = self.settings.value(keys::GPU_EXCLUSIVE);
        let _cards = exclusive.then(|| locks::cards(&self.deadline)).transpose()?;
        let provided = devices::give(self.ctid, &intent, &self.settings, &self.document, &self.deadline)?;
        let choice = &provided.choice;
        if let (true, Some(fault)) = (self.fails, plan::fault(choice)) {
            return Err(fault.into());
        }
        let mut missing: Vec<String> = choice.missing.iter().map(ToString::to_string).collect();
        for missing in text::few(missing.clone(), plan::MOST_LINES) {
            log::warn!("{missing}; left out of this start");
        }
        let injection = self.driver(&intent, &provided, &mut missing)?;
        let mounts = devices::mounts(self.ctid, &intent, &self.document, &provided, &injection);
        let changed = devices::write(&self.conf, Caller::Hook, &intent, choice, &mounts)?;
        self.mirror(&choice.devices, &mounts)?;
        nested::note(self.ctid, &self.settings, &self.document, &provided);
        report(&intent, choice, changed);
        let all = problems.iter().map(ToString::to_string).chain(missing).collect();
        Ok(text::few(all, plan::MOST_LINES))
    }

    /// The host's driver, if the container has that: its tree is there then.
    fn driver(
        &self,
        intent: &Intent,
        provided: &Provided,
        missing: &mut Vec<String>,
    ) -> anyhow::Result<Injection> {
        let kernel = provided.inventory.driver.as_ref().map(|driver| &driver.version);
        let (settings, conf) = (&self.settings, &self.document);
        let supply = desired::supply(settings, None);
        let given = injection::give(self.ctid, intent, settings, conf, kernel, supply, &self.deadline);
        match given.fault {
            Some(fault) if signal::check().is_err() => return Err(fault),
            Some(fault) if self.fails && !is_found_inside(&given.injection) => return Err(fault),
            Some(fault) => {
                exit::tell(log::Level::Warn, &fault);
                missing.push(exit::one_line(&fault));
                if self.fails {
                    log::info!(
                        "only a running container can be looked into: START_POLICY=fail lets it start"
                    );
                }
            }
            None => {}
        }
        Ok(given.injection)
    }

    /// The same for this start: Proxmox generated its config from the conf
    /// before it called us.
    fn mirror(&self, wanted: &[Device], mounts: &[Mount]) -> anyhow::Result<()> {
        // What a devN: line passes on stands in the conf alone.
        let wanted = without_passed(&self.conf.read()?, wanted);
        let edit = self.conf.edit_generated(|document| reconcile(document, &wanted, mounts, Form::Lxc))?;
        for change in edit.iter().flat_map(|e| &e.changes) {
            log::debug!("this start: {change}");
        }
        Ok(())
    }

    /// Records and tells how that ended, as START_POLICY has it.
    fn conclude(&self, result: anyhow::Result<Vec<String>>, begun: Instant) -> anyhow::Result<Code> {
        let record = Record::of(self.ctid);
        match result {
            Ok(missing) => record.note_start((!missing.is_empty()).then(|| missing.join("; "))),
            Err(error) if signal::check().is_err() => return Err(error),
            Err(error) if self.fails => {
                let result = Err(error);
                record.update(|state| {
                    state.ended("pre-start", &result, begun);
                    state.start_warning = Some(state.message.clone());
                });
                return result.map(|()| Code::Success);
            }
            Err(error) => {
                record.note_start(Some(text::line(exit::one_line(&error).as_bytes())));
                exit::tell(log::Level::Warn, &error);
                log::warn!("START_POLICY=continue: container starts with what it has");
            }
        }
        Ok(Code::Success)
    }
}

/// Whether what keeps it from the host's driver is what a look inside found.
fn is_found_inside(injection: &Injection) -> bool {
    matches!(injection, Injection::Refused(refusal) if refusal.is_found_inside())
}

fn report(intent: &Intent, choice: &Choice, changed: bool) {
    let devices = plan::describe(choice);
    match (intent, changed) {
        (Intent::Keep, _) => {}
        (_, true) => log::info!("{devices}: configured"),
        (_, false) => log::info!("{devices}: already configured"),
    }
}
