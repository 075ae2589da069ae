//! The locks between runs of ours. None of them is ever held across a `pct`
//! command whose hook wants it.

use crate::exit::{Code, Fault};
use crate::state::{self, Outcome, Record, State};
use crate::sys::lock::{self, Lock, LockError};
use crate::sys::signal;
use crate::sys::time::{Deadline, human};
use crate::types::Ctid;
use std::path::PathBuf;
use std::time::Duration;

/// Until a process that was started has its lock.
pub const START: Duration = Duration::from_secs(5);
/// While waiting for a place: between two looks at the container.
const ASK: Duration = Duration::from_secs(2);

fn path(name: String) -> PathBuf {
    PathBuf::from(state::LOCKS).join(name)
}

/// Around check, install and verify, whoever does them.
///
/// # Errors
/// [`Code::Software`] when another one holds it until the deadline.
pub fn work(ctid: Ctid, limit: Duration) -> anyhow::Result<Lock> {
    let message = format!("another install in container {ctid} is running");
    take(path(format!("{ctid}.lock")), limit, Code::Software, message)
}

/// Whether somebody does that now.
pub fn work_runs(ctid: Ctid) -> bool {
    lock::is_held(&path(format!("{ctid}.lock")))
}

/// Around a whole call by hand, restarts included; hooks don't take it.
///
/// # Errors
/// [`Code::General`] when another one holds it until the deadline.
pub fn by_hand(ctid: Ctid, limit: Duration) -> anyhow::Result<Lock> {
    let message = format!("another phoenix-nvidia {ctid} is running");
    take(path(format!("{ctid}.run.lock")), limit, Code::General, message)
}

/// The lock of [`by_hand`] if nobody has it.
pub fn try_by_hand(ctid: Ctid) -> Option<Lock> {
    lock::try_take(&path(format!("{ctid}.run.lock"))).ok().flatten()
}

/// Around choosing cards that nobody else may have and writing them into the
/// conf, where the next one sees them.
///
/// # Errors
/// [`Code::Passthrough`] when another one holds it until the deadline.
pub fn cards(deadline: &Deadline) -> anyhow::Result<Lock> {
    let message = "another container is getting its GPUs (GPU_EXCLUSIVE)".to_owned();
    take(path("cards.lock".to_owned()), deadline.remaining(), Code::Passthrough, message)
}

/// What an install process holds for as long as it lives; `None` when another
/// one runs.
///
/// # Errors
/// [`Code::Software`] if the lock cannot be taken for another reason.
pub fn worker(ctid: Ctid) -> anyhow::Result<Option<Lock>> {
    lock::try_take(&worker_path(ctid)).map_err(|error| refused(error, Code::Software, "install not started"))
}

/// Whether an install process runs, to be asked again and again.
pub fn watch_worker(ctid: Ctid) -> lock::Watch {
    lock::Watch::new(worker_path(ctid))
}

/// Whether an install process runs.
pub fn worker_lives(ctid: Ctid) -> bool {
    lock::is_held(&worker_path(ctid))
}

/// The state as shown: an install that runs by the state and has no process
/// was cut off.
pub fn settled(mut state: State, ctid: Ctid) -> State {
    // One that was just asked for has no process yet.
    let started = state.job.is_some() || state::now().saturating_sub(state.at) > START.as_secs();
    if state.outcome == Outcome::Running && started && !worker_lives(ctid) {
        // It may have ended well between the two looks.
        let now = Record::of(ctid).load();
        if now.outcome != Outcome::Running {
            return now;
        }
        state.outcome = Outcome::Failed;
        "install process ended without a result; the next start completes it".clone_into(&mut state.message);
    }
    state
}

fn worker_path(ctid: Ctid) -> PathBuf {
    path(format!("{ctid}.worker.lock"))
}

fn take(path: PathBuf, limit: Duration, code: Code, message: String) -> anyhow::Result<Lock> {
    let taken = lock::take(&path, &Deadline::after(limit), |holder| {
        let who = holder.map(|h| format!(" ({h})")).unwrap_or_default();
        log::info!("{message}{who}; waiting for it");
    });
    taken.map_err(|error| match error {
        LockError::Refused(_) | LockError::Io(..) => refused(error, code, "cannot take a lock"),
        _ => refused(error, code, &message),
    })
}

/// Why a lock was not taken, with what fixes that.
fn refused(error: LockError, code: Code, message: &str) -> anyhow::Error {
    let remedy = match &error {
        LockError::Refused(refused) => refused.fix(),
        _ => Some("wait until it ends; lslocks shows the holder".to_owned()),
    };
    let fault = Fault::new(code, message);
    let fault = match remedy {
        Some(remedy) => fault.remedy(remedy),
        None => fault,
    };
    anyhow::Error::from(error).context(fault)
}

/// One of the node's `count` places for installs that run at once. `wanted`
/// is asked from time to time whether there is still a container to install in.
///
/// # Errors
/// [`Code::Software`] when none is free until the deadline; what `wanted` says.
pub fn place(count: u32, limit: Duration, wanted: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Lock> {
    let deadline = Deadline::after(limit);
    let mut ask = Deadline::after(ASK);
    let mut told = false;
    let places: Vec<PathBuf> = (0..count.max(1)).map(|n| path(format!("install-{n}.lock"))).collect();
    loop {
        for place in &places {
            match lock::try_take(place) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                // That is no place that somebody else has.
                Err(error) => {
                    return Err(refused(error, Code::Software, "cannot take a place for the install"));
                }
            }
        }
        if deadline.passed() {
            let message = format!("{count} other installs still running on this node after {}", human(limit));
            return Err(Fault::new(Code::Software, message)
                .remedy("raise MAX_INSTALLS, or start the install later")
                .into());
        }
        if !std::mem::replace(&mut told, true) {
            let who: Vec<String> =
                places.iter().filter_map(|place| lock::holder_at(place)).map(|h| h.to_string()).collect();
            log::info!(
                "{count} other installs running on this node (MAX_INSTALLS): {}; waiting for a place",
                who.join(", ")
            );
        }
        if ask.passed() {
            wanted()?;
            ask = Deadline::after(ASK);
        }
        signal::sleep(Duration::from_millis(200))?;
    }
}
