//! Whether a container would start again, as all verbs look at it: what
//! Proxmox would refuse, and what our own pre-start would.

use crate::exit::{self, Code, Fault};
use crate::host::choose::{Choice, only};
use crate::host::gpus::Inventory;
use crate::job::{chain, mode};
use crate::plan;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::hookscript::Hookscript;
use crate::pve::pct::{self, Init, RestartTimeouts, Status};
use crate::pve::startable::{self, Obstacle, Startable};
use crate::pve::storage::{self, Storage};
use crate::settings::values::{AfterInstall, StartPolicy};
use crate::settings::{Settings, keys};
use crate::state::State;
use crate::sys::look::{Look, Question, View};
use crate::types::Ctid;

/// Everything that keeps it from starting. `choice` is what the host has for
/// it, where that is known; `files` a look at what [`questions`] ask.
pub fn obstacles(
    look: &mut Look<'_>,
    files: &Look<'_>,
    conf: &Document,
    settings: &Settings,
    choice: Option<&Choice>,
) -> Vec<Obstacle> {
    let mut found = startable::obstacles(look, files, conf);
    only_what_prepare_makes(&mut found);
    let storages = storage::read(look);
    // Only a container whose hookscript is ours meets what ours refuses.
    if !matches!(Hookscript::of(files, &storages, conf), Hookscript::Ours(_)) {
        return found;
    }
    found.extend(chain::obstacle(files, settings));
    let fails = settings.value(keys::START_POLICY) == StartPolicy::Fail;
    if let Some(fault) = choice.filter(|_| fails).and_then(plan::fault) {
        found.push(Obstacle::Policy { missing: fault.message });
    }
    if let Some(refusal) = Some(conf).filter(|_| fails).and_then(|conf| mode::stops_a_start(settings, conf)) {
        found.push(Obstacle::Policy { missing: refusal.what() });
    }
    found
}

/// Whether `prepare` would make the missing nodes: not those of a card or a
/// capability that the driver does not have.
fn only_what_prepare_makes(found: &mut [Obstacle]) {
    let mut inventory = None;
    for obstacle in found {
        let Obstacle::Device { path, made, .. } = obstacle else { continue };
        if let (true, Ok(path)) = (*made, path.parse()) {
            let inventory = inventory.get_or_insert_with(|| Inventory::read_for(View::host(), true));
            *made = only(inventory, &[path]).missing.is_empty();
        }
    }
}

/// The questions about files on storages, which may never answer.
pub fn questions(storages: &[Storage], conf: &Document, settings: &Settings) -> Vec<Question> {
    let ours = [Hookscript::questions(storages, conf), chain::questions(settings)].concat();
    [ours, startable::questions(storages, conf)].concat()
}

/// The same for one container alone.
pub fn obstacles_of(conf: &Document, settings: &Settings, choice: Option<&Choice>) -> Vec<Obstacle> {
    let mut look = Look::host();
    let storages = storage::read(&mut look);
    let files = Look::at_files(View::host(), questions(&storages, conf, settings));
    obstacles(&mut look, &files, conf, settings, choice)
}

/// Looks now, right before a stop.
///
/// # Errors
/// The conf cannot be read.
pub fn look(
    conf: &Conf,
    ctid: Ctid,
    settings: &Settings,
    choice: Option<&Choice>,
) -> anyhow::Result<Result<Startable, Vec<Obstacle>>> {
    let document = conf.read()?;
    let found = obstacles_of(&document, settings, choice);
    Ok(startable::judge(ctid, found))
}

/// What a call by hand ends with before it stops anything.
pub fn refusal(ctid: Ctid, obstacles: &[Obstacle]) -> anyhow::Error {
    let message = format!("container {ctid} not stopped: it would not start again");
    refused(ctid, &message, obstacles, "phoenix-nvidia")
}

/// The same for a container that is stopped already.
pub fn refused_start(ctid: Ctid, obstacles: &[Obstacle]) -> anyhow::Error {
    refused(ctid, &format!("container {ctid} cannot start"), obstacles, "pct start")
}

fn refused(ctid: Ctid, message: &str, obstacles: &[Obstacle], then: &str) -> anyhow::Error {
    let fault = Fault::new(Code::Restart, format!("{message}: {}", startable::list(obstacles)));
    match obstacles.first() {
        Some(first) => fault.remedy(first.remedy_then(ctid, &format!("{then} {ctid}"))).into(),
        None => fault.into(),
    }
}

/// A restart or reboot that failed and left the container down, with the
/// reason if one can be seen; pct often knows none. Others pass unchanged.
pub fn explained(ctid: Ctid, conf: &Conf, settings: &Settings, error: anyhow::Error) -> anyhow::Error {
    if !pct::status(ctid).is_ok_and(|status| status == Status::Stopped) {
        return error;
    }
    let found = look(conf, ctid, settings, None).ok().and_then(Result::err).unwrap_or_default();
    let why = if found.is_empty() { String::new() } else { format!(": {}", startable::list(&found)) };
    let start = format!("pct start {ctid}");
    let remedy = match found.first() {
        Some(first) => first.remedy_then(ctid, &start),
        None => format!("journalctl -u pve-container@{ctid} -n 20; {start}"),
    };
    let message = format!("container {ctid} is stopped and cannot start{why}");
    let code = exit::code_of(&error);
    let code = if code == Code::General { Code::Restart } else { code };
    error.context(Fault::new(code, message).remedy(remedy))
}

/// The time limits of a restart, from the settings.
pub fn restart_timeouts(settings: &Settings) -> RestartTimeouts {
    RestartTimeouts {
        timeout: settings.value(keys::RESTART_TIMEOUT),
        interval: settings.value(keys::RESTART_INTERVAL),
        start: settings.value(keys::PRE_START_TIMEOUT) + settings.value(keys::INSTALL_WAIT),
    }
}

/// Whether a restart for a new driver is wanted and due in the start that runs
/// now.
pub fn restart_is_due(state: &State, settings: &Settings) -> bool {
    restarts_after_install(settings) && runs_with_old_driver(state)
}

/// Whether a new driver is followed by a restart.
pub fn restarts_after_install(settings: &Settings) -> bool {
    settings.value(keys::AFTER_INSTALL) == AfterInstall::Reboot
}

/// Whether the start is that in which the driver was changed.
pub fn runs_with_old_driver(state: &State) -> bool {
    state.restart_due.as_deref().and_then(|due| due.parse::<Init>().ok()).is_some_and(|init| init.lives())
}
