//! The install process: what post-start starts and leaves to go on.
//!
//! It has no task log and no terminal: it writes to syslog and to its own
//! file, and leaves its result in the state.

use crate::exit::{self, Code};
use crate::guest::boot;
use crate::guest::changed::Changed;
use crate::guest::exec::{self, Guest};
use crate::guest::install::steps;
use crate::host::kernel_driver;
use crate::host::nvidia_smi;
use crate::job::desired::{self, Software};
use crate::job::identity::{self, Identity};
use crate::job::install::{Install, Progress, cuda_missing};
use crate::job::nested::{self, When};
use crate::job::{devices, follow, handover, injection, locks, reboot};
use crate::plan::{self, Intent};
use crate::pve::conf::store::Conf;
use crate::pve::{net, pct};
use crate::settings::{Call, Settings, load};
use crate::state::{Outcome, Record, State};
use crate::sys::look::View;
use crate::sys::time::{Deadline, human};
use crate::sys::{file, log as messages, private, signal};
use crate::types::Ctid;
use std::fs::File;
use std::io::IsTerminal as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A log larger than this is put aside when the next install begins, in bytes.
const TURN_OVER: u64 = 1 << 20;
/// How often an install begins anew because the container was rebooted from
/// inside under it.
const ATTEMPTS: u32 = 3;
/// How long a container that goes away may take to be there again.
const COME_BACK: Duration = Duration::from_secs(10);
/// The same where nothing tells that it went away.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where this process's messages go: the container's log file, beside syslog.
///
/// # Errors
/// What keeps it from being written to: a FIFO in its place, say.
fn log_file(ctid: Ctid) -> std::io::Result<File> {
    let path = follow::log_path(ctid);
    private::directory(Path::new(follow::LOGS), 0o750).map_err(std::io::Error::other)?;
    if follow::log_length(ctid) > TURN_OVER {
        let mut old = path.clone().into_os_string();
        old.push(".1");
        #[allow(clippy::disallowed_methods)] // putting a log aside replaces no file that matters
        let _ = std::fs::rename(&path, old);
    }
    Ok(file::append(&path, 0o640)?.0)
}

/// Installs what the container lacks, leaves the result, and reboots the
/// container if the driver changed. It ends, and leaves its result to nobody,
/// when the container is another one or nobody asks for it any more.
///
/// # Errors
/// [`Code::Software`].
pub fn run(ctid: Ctid) -> anyhow::Result<Code> {
    // Alone: a second one finds the first running, and has nothing to add.
    let Some(alive) = locks::worker(ctid).inspect_err(|_| handover::forget(ctid))? else {
        log::info!("another install process is running");
        return Ok(Code::Success);
    };
    let begun = Instant::now();
    let done = install_for_whoever(ctid);
    // Of a hook that found this process at work, or that it refused before it read it.
    handover::forget(ctid);
    let Done { progress, settings, identity, result } = &done;
    if let Some(changed) = result.as_ref().err().and_then(exec::changed) {
        done.leave(ctid, changed);
        return Ok(Code::Success);
    }
    done.record(ctid, begun);
    match result {
        Ok(()) => {
            progress.cuda.iter().for_each(|missing| exit::tell(log::Level::Warn, missing));
            log::info!("done in {}", human(begun.elapsed()));
        }
        Err(error) => exit::tell(log::Level::Error, error),
    }
    done.nested(ctid);
    // The hook that follows us leaves now, and with it the task and its lock.
    drop(alive);
    let stopped = signal::check().is_err();
    if let (Some(settings), Some(identity), Some(_), false) =
        (settings, identity, &progress.driver_changed, stopped)
    {
        reboot::after_install(ctid, identity, settings, progress.version.as_ref())?;
    }
    // What went wrong has been told above.
    done.result.map(|()| Code::Success).or_else(|error| Ok(exit::code_of(&error)))
}

/// What an install came to.
struct Done {
    progress: Progress,
    settings: Option<Settings>,
    identity: Option<Rc<Identity>>,
    result: anyhow::Result<()>,
}

impl Done {
    fn early(settings: Option<Settings>, result: anyhow::Result<()>) -> Done {
        Done { progress: Progress::default(), settings, identity: None, result }
    }

    /// Changes what is recorded of the container that this was for.
    fn update(&self, ctid: Ctid, change: impl FnOnce(&mut State)) {
        match &self.identity {
            Some(identity) => identity.update(change),
            None => Record::of(ctid).update(change),
        }
    }

    /// What engines in the container read. A reboot that follows finds it done.
    fn nested(&self, ctid: Ctid) {
        let (Some(settings), Ok(()), Some(identity)) = (&self.settings, &self.result, &self.identity) else {
            return;
        };
        // Nothing is written into one that is another's by now, or detached.
        let (Ok(conf), Ok(())) = (Conf::of(ctid).read(), identity.still()) else { return };
        let guest = Guest::new(ctid).guarded(identity.guard());
        // One of the same version may have other files.
        let when = if self.progress.driver_changed.is_some() { When::Always } else { When::Changed };
        nested::bring(&guest, settings, &conf, self.progress.version.as_ref(), when);
    }

    fn record(&self, ctid: Ctid, begun: Instant) {
        let gone = exec::ended;
        let unseen = self.progress.unseen && !self.result.as_ref().is_err_and(gone);
        self.update(ctid, |state| {
            state.ended("install", &self.result, begun);
            if unseen {
                // "Could not look" is not "not installed".
                state.outcome = Outcome::Warning;
                state.code = 0;
            }
            state.kernel_driver = kernel_driver::version(View::host()).map(|v| v.to_string());
            if let Some(version) = &self.progress.version {
                state.container_driver = Some(version.to_string());
                state.driver_removal.clone_from(&self.progress.removal);
            }
            if self.result.is_ok() {
                let Progress { beside, cuda, .. } = &self.progress;
                beside.iter().chain(cuda).for_each(|lacking| state.lacks(lacking));
            }
            if self.result.is_ok() && self.progress.driver_changed.is_none() {
                // The reboot helped; a later change of the driver is another one.
                state.rebooted_for = None;
            }
        });
    }

    /// Nobody asks for it any more: that is told, and no result claimed.
    fn leave(&self, ctid: Ctid, changed: &Changed) {
        log::warn!("install stopped: {changed}");
        // What `detach` forgot is not to come back.
        if Record::of(ctid).load().outcome == Outcome::Running {
            let Some(identity) = &self.identity else { return };
            identity.end(|state| {
                state.outcome = Outcome::None;
                state.job = None;
                state.message = format!("install stopped: {changed}");
            });
        }
    }
}

/// A container that was given the number meanwhile, and runs, may have asked
/// while this process had the place: then it is its turn.
fn install_for_whoever(ctid: Ctid) -> Done {
    let mut round = 1;
    loop {
        let done = install_once(ctid);
        let changed = done.result.as_ref().err().and_then(exec::changed);
        let Some(changed @ Changed::Replaced { .. }) = changed else { return done };
        if round == ATTEMPTS || !identity::successor_asks(ctid) {
            return done;
        }
        round += 1;
        log::warn!("{changed}: starting the install that this one needs");
    }
}

fn install_once(ctid: Ctid) -> Done {
    let conf = Conf::of(ctid);
    let document = match conf.read() {
        Ok(document) => document,
        Err(error) => return Done::early(None, Err(error)),
    };
    let identity = net::identity(&document);
    Record::of(ctid).take_over(&identity);
    Record::of(ctid).update_of(&identity, |state| {
        "install".clone_into(&mut state.phase);
        state.outcome = Outcome::Running;
        state.message = String::new();
        state.job = Some(format!("{}@{}", std::process::id(), crate::state::now()));
    });
    let environment = handover::take(ctid, &identity);
    let settings = load::with(ctid, Call::Hook, &conf, &document, environment.clone());
    let (settings, _) = injection::settled(ctid, &document, settings);
    let (intent, _) = Intent::of(&settings, &document);
    let (inventory, choice) = devices::here(&intent, &document, &Deadline::after(nvidia_smi::LIMIT));
    let kernel = inventory.driver.as_ref().map(|d| d.version.clone());
    let desired = match desired::read(&settings, kernel, intent.gpus(&choice)) {
        Ok(Software::Desired(desired)) => desired,
        Ok(Software::Off | Software::NoDriver) => return Done::early(Some(settings), Ok(())),
        Err(problems) => return Done::early(Some(settings), Err(desired::fault(&problems))),
    };
    let nodes = Some(plan::nodes(&choice.devices, choice.monitor));
    let identity = Identity::of(ctid, &document, Call::Hook, environment, &desired.driver);
    let install =
        Install { ctid, settings: &settings, desired: &desired, nodes, insist: false, identity: &identity };
    let (mut progress, result) = again_if_rebooted(&install);
    progress.cuda = progress.cuda.map(|why| cuda_missing(ctid, &desired, why));
    result.as_ref().err().iter().for_each(|error| injection::note_impossible(ctid, error));
    let result = match result {
        // It has its devices, and can take no more.
        Err(error) if steps::is_unfit(&error) => {
            exit::tell(log::Level::Warn, &error);
            Ok(())
        }
        result => result,
    };
    Done { progress, settings: Some(settings), identity: Some(identity), result }
}

/// A container that is rebooted from inside runs no hook: what ran in it is
/// begun again.
fn again_if_rebooted(install: &Install<'_>) -> (Progress, anyhow::Result<()>) {
    let mut attempt = 1;
    loop {
        let before = pct::init(install.ctid).ok().flatten();
        let (progress, result) = install.run();
        let Some(error) = result.as_ref().err().or(progress.cuda.as_ref()) else { return (progress, result) };
        let over = exit::interrupted(error) || exec::changed(error).is_some();
        if over || attempt == ATTEMPTS || !came_back(install, before.as_ref(), error) {
            return (progress, result);
        }
        // What runs there now may be another one.
        if let Err(changed) = install.identity.still() {
            return (progress, Err(changed.into()));
        }
        attempt += 1;
        // The reason last: a line is cut where it is too long.
        log::warn!("container rebooted during the install: starting again ({})", exit::one_line(error));
        // What a reboot ended did not fail.
        install.identity.update(|state| state.cuda_failed = None);
    }
}

/// Whether the container runs again with another first process. A shutdown
/// ends the other processes first: one that was killed may be its beginning.
fn came_back(install: &Install<'_>, before: Option<&pct::Init>, error: &anyhow::Error) -> bool {
    let Some(before) = before else { return false };
    let going = exec::is_gone(error) || boot::shutting_down(&Guest::new(install.ctid));
    let deadline = Deadline::after(if going { COME_BACK } else { LOOK_AGAIN });
    while !deadline.passed() {
        if pct::init(install.ctid).is_ok_and(|now| now.is_some_and(|now| now != *before)) {
            return true;
        }
        // Destroyed or migrated: nothing will come.
        if !Conf::of(install.ctid).path().exists() || signal::sleep(Duration::from_millis(300)).is_err() {
            return false;
        }
    }
    false
}

/// The log's options for this process.
pub fn log_options(ctid: Ctid, verbose: bool) -> messages::Options {
    let (file, trouble) = match log_file(ctid) {
        Ok(file) => (Some(file), None),
        Err(error) => {
            let path = follow::log_path(ctid);
            (None, Some(format!("no install log: cannot write to {}: {error}", path.display())))
        }
    };
    messages::Options {
        subject: Some(ctid.to_string()),
        file,
        trouble,
        verbose,
        // Somebody who calls it himself is told; systemd's journal has it already.
        stderr: (!std::io::stderr().is_terminal()).then_some(log::LevelFilter::Off),
    }
}
