//! What was done to a container, for `status` and for the next start.
//!
//! `/run/phoenix-nvidia/state/CTID.json` is of this boot,
//! `/var/lib/phoenix-nvidia/state/CTID.json` is what outlives a boot; both are
//! root's alone. They are hints: a missing, old or broken file is as good as
//! none, since CTIDs are reused and `pct destroy` knows nothing of these files.
//!
//! Version 0.1.0 had them one directory above: an install of that version that
//! is still at work leaves its result there, so it is read there too, and the
//! file goes with the next change.

use crate::sys::lock::{self, Lock};
use crate::sys::private;
use crate::sys::replace::replace_own;
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of the files' form.
pub const SCHEMA: u32 = 1;
/// A state file larger than this is not ours, in bytes.
const MAX: u64 = 64 * 1024;
/// How long a change waits for another one. What holds it longer than two
/// small files take is stuck, and a start waits for nobody's report.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(3);

/// How something ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing was done yet.
    #[default]
    None,
    /// It is under way.
    Running,
    /// As the settings say.
    Ok,
    /// It runs, but something could not be given.
    Warning,
    /// It failed; the message says why.
    Failed,
}

/// What is known of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The container.
    pub ctid: u32,
    /// The container's name and hardware addresses: its number may have been
    /// another one's before.
    pub whom: Option<String>,
    /// What was done last: `pre-start`, `check`, `install`, `by hand`.
    pub phase: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The exit code that goes with it.
    pub code: u8,
    /// One line about it.
    pub message: String,
    /// When that was, in seconds since 1970 UTC.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The fingerprint of the software that was asked for: what failed may not
    /// be what is wanted now.
    pub asked: Option<String>,
    /// What pre-start could not give the container in its present start.
    pub start_warning: Option<String>,
    /// The kernel driver then.
    pub kernel_driver: Option<String>,
    /// The driver in the container then.
    pub container_driver: Option<String>,
    /// When the container last was as its settings say, in seconds since 1970 UTC.
    pub last_success: Option<u64>,
    /// Who does or did the last install.
    pub job: Option<String>,
    /// The start of the container whose services still run with the driver
    /// from before an install: its restart is due. See [`crate::pve::pct::Init`].
    pub restart_due: Option<String>,
    /// The driver version for which it was rebooted after an install.
    pub rebooted_for: Option<String>,
    /// What the CUDA step that failed in this boot was asked for: the same is
    /// not tried again at every start.
    pub cuda_failed: Option<String>,
}

/// The directory of this boot's files. What is injected into containers lies
/// here too, so everybody may pass through it.
const RUN: &str = "run/phoenix-nvidia";
/// The directory of what outlives a boot.
const LIB: &str = "var/lib/phoenix-nvidia";
/// The part of each that is root's alone.
const OWN: &str = "state";
/// Where the locks between runs of ours are.
const LOCKS: &str = "run/lock/phoenix-nvidia";

/// Now, in seconds since 1970 UTC.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn file(root: &Path, directory: &str, ctid: Ctid) -> PathBuf {
    root.join(directory).join(OWN).join(format!("{ctid}.json"))
}

/// Where version 0.1.0 had it.
fn old_file(root: &Path, directory: &str, ctid: Ctid) -> PathBuf {
    root.join(directory).join(format!("{ctid}.json"))
}

/// The path of a further file of this boot about a container, root's alone.
///
/// # Errors
/// The directory is not ours, or cannot be made.
pub fn beside(root: &Path, name: &str) -> anyhow::Result<PathBuf> {
    Ok(own_directory(root, RUN)?.join(name))
}

/// The same file where it may be read: here, or where 0.1.0 had it.
pub fn read_beside(root: &Path, name: &str) -> Option<Vec<u8>> {
    let above = root.join(RUN);
    private::read(&above.join(OWN).join(name), MAX).or_else(|| private::read(&above.join(name), MAX))
}

fn own_directory(root: &Path, directory: &str) -> Result<PathBuf, private::Refused> {
    let above = root.join(directory);
    private::directory(&above, 0o755)?;
    let own = above.join(OWN);
    private::directory(&own, 0o700)?;
    Ok(own)
}

impl State {
    /// This boot's state; the last boot's success where this one has none yet.
    pub fn load(root: &Path, ctid: Ctid) -> State {
        // At each start: the second file is read where it has something to say.
        let kept = || read(root, LIB, ctid);
        match read(root, RUN, ctid) {
            Some(state) => {
                let last_success = state.last_success.or_else(|| kept()?.last_success);
                State { last_success, ..state }
            }
            None => {
                let (whom, last_success) = kept().map_or((None, None), |k| (k.whom, k.last_success));
                State { whom, last_success, ..State::fresh(ctid) }
            }
        }
    }

    /// This one, with what it does not say from an older one.
    fn over(self, older: State) -> State {
        State {
            whom: self.whom.or(older.whom),
            start_warning: self.start_warning.or(older.start_warning),
            last_success: self.last_success.or(older.last_success),
            restart_due: self.restart_due.or(older.restart_due),
            rebooted_for: self.rebooted_for.or(older.rebooted_for),
            ..self
        }
    }

    /// What stands in a state file; `None` for one of another form.
    pub fn parse(bytes: &[u8]) -> Option<State> {
        let mut state: State = serde_json::from_slice(bytes).ok()?;
        // Version 0.1.0 had the URLs themselves there, with passwords.
        state.cuda_failed = state.cuda_failed.filter(|failed| !failed.contains("://"));
        (state.schema == SCHEMA).then_some(state)
    }

    fn fresh(ctid: Ctid) -> State {
        State { schema: SCHEMA, ctid: ctid.get(), ..State::default() }
    }

    /// The same for the container that is known by `whom`: what is recorded of
    /// another one that had its number is not its own.
    pub fn load_of(root: &Path, ctid: Ctid, whom: &str) -> State {
        let state = State::load(root, ctid);
        if state.is_of(whom) { state } else { State::fresh(ctid) }
    }

    /// The driver that was last seen in that container, in this boot or before.
    pub fn last_driver(root: &Path, ctid: Ctid, whom: &str) -> Option<String> {
        let of_this = |state: &State| state.is_of(whom);
        let states = [RUN, LIB].into_iter().filter_map(|directory| read(root, directory, ctid));
        states.filter(of_this).find_map(|state| state.container_driver)
    }

    fn is_of(&self, whom: &str) -> bool {
        self.whom.as_deref().is_none_or(|w| w == whom)
    }

    /// Has the state on disk be that of this container. What pre-start noted
    /// is of its present start already.
    pub fn take_over(root: &Path, ctid: Ctid, whom: &str) {
        if State::load(root, ctid).whom.as_deref() == Some(whom) {
            return;
        }
        let _lock = locked(root, ctid);
        let state = State::load(root, ctid);
        let kept = if state.is_of(whom) {
            state
        } else {
            State { start_warning: state.start_warning, ..State::fresh(ctid) }
        };
        let state = State { whom: Some(whom.to_owned()), ..kept };
        for directory in [RUN, LIB] {
            write(root, directory, ctid, &state);
        }
    }

    /// Changes the state on disk, one after another: nobody's change is lost. A
    /// failure is told as a warning and no more: no start fails for a report.
    pub fn update(root: &Path, ctid: Ctid, change: impl FnOnce(&mut State)) {
        let _lock = locked(root, ctid);
        State::load(root, ctid).changed(root, ctid, change);
    }

    /// The same while the state on disk is that of the container which is
    /// known by `whom`: another one's is left alone.
    pub fn update_of(root: &Path, ctid: Ctid, whom: &str, change: impl FnOnce(&mut State)) {
        let _lock = locked(root, ctid);
        let state = State::load(root, ctid);
        if state.is_of(whom) {
            state.changed(root, ctid, change);
        }
    }

    /// The change itself, under the lock.
    fn changed(mut self, root: &Path, ctid: Ctid, change: impl FnOnce(&mut State)) {
        let before = (self.container_driver.clone(), self.outcome);
        change(&mut self);
        self.at = now();
        self.message = text::without_secrets(&self.message);
        self.start_warning = self.start_warning.map(|warning| text::without_secrets(&warning));
        if self.outcome == Outcome::Ok {
            self.last_success = Some(self.at);
        }
        // The disk is written only when something worth keeping changed.
        let news = (&before.0, before.1) != (&self.container_driver, self.outcome);
        if write(root, RUN, ctid, &self) && news {
            write(root, LIB, ctid, &self);
        }
    }

    /// Notes what pre-start could not give, `None` for nothing. Nothing is
    /// written while that is as it was.
    pub fn note_start(root: &Path, ctid: Ctid, warning: Option<String>) {
        let state = State::load(root, ctid);
        // A start that failed is not what this one came to.
        let failed = state.phase == "pre-start" && state.outcome == Outcome::Failed;
        if state.start_warning == warning && !failed {
            return;
        }
        State::update(root, ctid, |state| {
            if warning.is_some() {
                "pre-start".clone_into(&mut state.phase);
                state.outcome = Outcome::Warning;
                state.message = warning.clone().unwrap_or_default();
            } else {
                // Not a success yet: the driver is looked at later.
                state.outcome = Outcome::None;
                state.message = String::new();
            }
            state.start_warning = warning;
        });
    }

    /// Forgets what is known, for `detach`.
    ///
    /// # Errors
    /// The file system's.
    pub fn forget(root: &Path, ctid: Ctid) -> std::io::Result<()> {
        let _lock = locked(root, ctid);
        for directory in [RUN, LIB] {
            for path in [file(root, directory, ctid), old_file(root, directory, ctid)] {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The lock around reading, changing and writing. Where it cannot be had in
/// time, that is said and the change made all the same: then one of the two may
/// be lost, without it this one would be. Taken also when we are being stopped.
fn locked(root: &Path, ctid: Ctid) -> Option<Lock> {
    let path = root.join(LOCKS).join(format!("{ctid}.state.lock"));
    let deadline = Deadline::after(PATIENCE);
    loop {
        match lock::try_take(&path) {
            Ok(Some(lock)) => return Some(lock),
            Ok(None) if !deadline.passed() => std::thread::sleep(PAUSE),
            Ok(None) => {
                let who = lock::holder_at(&path).map(|h| format!(" by {h}")).unwrap_or_default();
                log::warn!("the state of container {ctid} is locked{who}: what that records may be lost");
                return None;
            }
            Err(error) => {
                log::warn!("the state of container {ctid} is not locked: {error}");
                return None;
            }
        }
    }
}

/// The newer one of the present place and 0.1.0's.
fn read(root: &Path, directory: &str, ctid: Ctid) -> Option<State> {
    let at = |path: &Path| State::parse(&private::read(path, MAX)?);
    match (at(&file(root, directory, ctid)), at(&old_file(root, directory, ctid))) {
        (Some(new), Some(old)) if old.at > new.at => Some(old.over(new)),
        (new, old) => new.or(old),
    }
}

/// Writes it; false, and a warning, when that failed.
fn write(root: &Path, directory: &str, ctid: Ctid, state: &State) -> bool {
    let written = (|| {
        let path = own_directory(root, directory)?.join(format!("{ctid}.json"));
        let mut text = serde_json::to_vec_pretty(state)?;
        text.push(b'\n');
        replace_own(&path, &text, 0o600).with_context(|| path.display().to_string())
    })();
    match written {
        Ok(()) => {
            let _ = std::fs::remove_file(old_file(root, directory, ctid));
            true
        }
        Err(error) => {
            log::warn!("the state of container {ctid} is not recorded: {error:#}");
            false
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
