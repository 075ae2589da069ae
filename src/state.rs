//! What was done to a container, for `status` and for the next start.
//!
//! `/run/phoenix-nvidia/state/CTID.json` is of this boot,
//! `/var/lib/phoenix-nvidia/state/CTID.json` is what outlives a boot; both are
//! root's alone. They are hints: a missing, old or broken file is as good as
//! none, since CTIDs are reused and `pct destroy` knows nothing of these files.
//!
//! Version 0.1.0 had them one directory above: an install of that version that
//! still runs leaves its result there, so it is read there too, and the
//! file goes with the next change.

pub mod beside;
mod detached;
mod ended;
pub mod injected;
pub mod nested;
pub mod recorded;
mod rules;

use self::injected::Injected;
use self::nested::Nested;
use crate::sys::lock::{self, Lock};
use crate::sys::replace::replace_own;
use crate::sys::time::Deadline;
use crate::sys::{private, text};
use crate::types::Ctid;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of the files' form.
pub const SCHEMA: u32 = 1;
/// A state file larger than this is not ours, in bytes.
const MAX: u64 = 64 * 1024;
/// How long a change waits for another one: a start waits for nobody's report.
const LOCK_TIME: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(3);

/// How something ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing was done yet.
    #[default]
    None,
    /// It runs.
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
    #[serde(rename = "whom")]
    pub identity: Option<String>,
    /// What was done last: `pre-start`, `check`, `install`, `by hand`.
    pub phase: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The exit code that goes with it.
    pub code: u8,
    /// One line about it.
    pub message: String,
    /// What repairs it, if it said so.
    pub fix: Option<String>,
    /// When that was, in seconds since 1970 UTC.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// The fingerprint of the software that was asked for then.
    pub asked: Option<String>,
    /// What pre-start could not give the container in its present start.
    pub start_warning: Option<String>,
    /// The kernel driver then.
    pub kernel_driver: Option<String>,
    /// The driver in the container then.
    pub container_driver: Option<String>,
    /// What removes it, where packages hold it.
    pub driver_removal: Option<String>,
    /// When the container last was as its settings say, in seconds since 1970 UTC.
    pub last_success: Option<u64>,
    /// Who does or did the last install.
    pub job: Option<String>,
    /// The start of the container whose services still run with the driver
    /// from before an install: its restart is due. See [`crate::pve::pct::Init`].
    pub restart_due: Option<String>,
    /// The driver version for which it was rebooted after an install.
    pub rebooted_for: Option<String>,
    /// The fingerprint for which CUDA failed in this boot; no start tries it again.
    pub cuda_failed: Option<String>,
    /// How often in this boot the uninstaller of a runfile's driver failed.
    pub uninstall_failed: u8,
    /// What is known of it with the host's driver mounted.
    pub injected: Injected,
    /// What is known of the description for engines in it.
    pub nested: Nested,
}

/// The directory of this boot's files. Everybody may pass through it.
const RUN: &str = "/run/phoenix-nvidia";
/// The directory of what outlives a boot.
const LIB: &str = "/var/lib/phoenix-nvidia";
const OWN: &str = "state";
/// The suffix of what is handed over to the install process.
pub const HANDED_OVER: &str = "job";
/// Where the locks between runs of ours are.
pub const LOCKS: &str = "/run/lock/phoenix-nvidia";

/// Now, in seconds since 1970 UTC.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl State {
    /// This one, with what it does not say from an older one.
    fn over(self, older: State) -> State {
        State {
            identity: self.identity.or(older.identity),
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

    fn is_of(&self, identity: &str) -> bool {
        self.identity.as_deref().is_none_or(|w| w == identity)
    }
}

/// The files about one container.
#[derive(Clone, Debug)]
pub struct Record {
    ctid: Ctid,
    run: PathBuf,
    lib: PathBuf,
    lock: PathBuf,
}

impl Record {
    /// Those of this host.
    pub fn of(ctid: Ctid) -> Record {
        Record::at(ctid, Path::new(RUN), Path::new(LIB), Path::new(LOCKS))
    }

    fn at(ctid: Ctid, run: &Path, lib: &Path, locks: &Path) -> Record {
        let lock = locks.join(format!("{ctid}.state.lock"));
        Record { ctid, run: run.to_owned(), lib: lib.to_owned(), lock }
    }

    /// This boot's state; the last boot's success where this one has none yet.
    pub fn load(&self) -> State {
        let kept = || self.read(&self.lib);
        match self.read(&self.run) {
            Some(state) => {
                let last_success = state.last_success.or_else(|| kept()?.last_success);
                State { last_success, ..state }
            }
            None => {
                let State { identity, last_success, injected, nested, .. } = kept().unwrap_or_default();
                State { identity, last_success, injected, nested, ..self.fresh() }
            }
        }
    }

    fn fresh(&self) -> State {
        State { schema: SCHEMA, ctid: self.ctid.get(), ..State::default() }
    }

    /// The same for the container that is known by `identity`: what is recorded of
    /// another one that had its number is not its own.
    pub fn load_of(&self, identity: &str) -> State {
        let state = self.load();
        if state.is_of(identity) { state } else { self.fresh() }
    }

    /// What is recorded of that container, of this boot and before.
    fn states(&self, identity: &str) -> impl Iterator<Item = State> {
        let states = [&self.run, &self.lib].into_iter().filter_map(|directory| self.read(directory));
        states.filter(move |state| state.is_of(identity))
    }

    /// The driver that was last seen in that container, in this boot or before, and
    /// what removes it where packages hold it.
    pub fn last_driver(&self, identity: &str) -> Option<(String, Option<String>)> {
        self.states(identity).find_map(|state| Some((state.container_driver?, state.driver_removal)))
    }

    /// Has the state on disk be that of this container. What pre-start noted
    /// is of its present start already.
    pub fn take_over(&self, identity: &str) {
        if self.load().identity.as_deref() == Some(identity) {
            return;
        }
        let _lock = self.lock();
        let state = self.load();
        let kept = if state.is_of(identity) {
            state
        } else {
            State { start_warning: state.start_warning, ..self.fresh() }
        };
        let state = State { identity: Some(identity.to_owned()), ..kept };
        for directory in [&self.run, &self.lib] {
            self.write(directory, &state);
        }
    }

    /// Changes the state on disk, one after another: nobody's change is lost. A
    /// failure is told as a warning and no more: no start fails for a report.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        let _lock = self.lock();
        self.change(self.load(), change);
    }

    /// The same while the state on disk is that of the container which is
    /// known by `identity`: another one's is left alone.
    pub fn update_of(&self, identity: &str, change: impl FnOnce(&mut State)) {
        let _lock = self.lock();
        let state = self.load();
        if state.is_of(identity) {
            self.change(state, change);
        }
    }

    /// The change itself, under the lock.
    fn change(&self, mut state: State, change: impl FnOnce(&mut State)) {
        let kept = |s: &State| (s.container_driver.clone(), s.outcome, s.injected.clone(), s.nested.clone());
        let before = kept(&state);
        change(&mut state);
        state.at = now();
        state.message = text::without_secrets(&state.message);
        state.start_warning = state.start_warning.map(|warning| text::without_secrets(&warning));
        if state.outcome == Outcome::Ok {
            state.last_success = Some(state.at);
        }
        // The disk is written only when something worth keeping changed, or
        // stands where 0.1.0 had it.
        let news = before != kept(&state) || self.old_file(&self.lib).exists();
        if self.write(&self.run, &state) && news {
            self.write(&self.lib, &state);
        }
    }

    /// Notes what pre-start could not give, `None` for nothing. Nothing is
    /// written while that is as it was.
    pub fn note_start(&self, warning: Option<String>) {
        let state = self.load();
        // A start that failed is not what this one came to.
        let failed = state.phase == "pre-start" && state.outcome == Outcome::Failed;
        if state.start_warning == warning && !failed {
            return;
        }
        self.update(|state| {
            if warning.is_some() {
                "pre-start".clone_into(&mut state.phase);
                state.outcome = Outcome::Warning;
                state.message = warning.clone().unwrap_or_default();
            } else {
                // Not a success yet: the driver is looked at later.
                state.outcome = Outcome::None;
                state.message = String::new();
            }
            state.fix = None;
            state.start_warning = warning;
        });
    }

    /// Forgets what is known, for `detach`.
    ///
    /// # Errors
    /// The file system's.
    pub fn forget(&self) -> std::io::Result<()> {
        let _lock = self.lock();
        for directory in [&self.run, &self.lib] {
            let states = [self.file(directory), self.old_file(directory)];
            for path in &states {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        // What a hook left for an install, with the settings of its environment.
        self.remove_beside(HANDED_OVER)
    }

    /// The lock around reading, changing and writing. If it is not free in time,
    /// that is told and the change made without it: one of the two may be lost
    /// then, otherwise this one would be. Taken also when we are being stopped.
    fn lock(&self) -> Option<Lock> {
        let (path, ctid, deadline) = (&self.lock, self.ctid, Deadline::after(LOCK_TIME));
        loop {
            match lock::try_take(path) {
                Ok(Some(lock)) => return Some(lock),
                Ok(None) if !deadline.passed() => std::thread::sleep(PAUSE),
                Ok(None) => {
                    let who = lock::holder_at(path).map(|h| format!(" by {h}")).unwrap_or_default();
                    log::warn!("state of container {ctid} is locked{who}: its changes may be lost");
                    return None;
                }
                Err(error) => {
                    log::warn!("cannot lock the state of container {ctid}: {error}");
                    return None;
                }
            }
        }
    }

    fn file(&self, directory: &Path) -> PathBuf {
        directory.join(OWN).join(format!("{}.json", self.ctid))
    }

    /// Where version 0.1.0 had it.
    fn old_file(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.json", self.ctid))
    }

    /// The newer one of the present place and 0.1.0's.
    fn read(&self, directory: &Path) -> Option<State> {
        let at = |path: &Path| State::parse(&private::read(path, MAX)?);
        match (at(&self.file(directory)), at(&self.old_file(directory))) {
            (Some(new), Some(old)) if old.at > new.at => Some(old.over(new)),
            (new, old) => new.or(old),
        }
    }

    /// Writes it; false, and a warning, when that failed.
    fn write(&self, directory: &Path, state: &State) -> bool {
        let written = (|| {
            own_directory(directory)?;
            let path = self.file(directory);
            let mut text = serde_json::to_vec_pretty(state)?;
            text.push(b'\n');
            replace_own(&path, &text, 0o600).with_context(|| path.display().to_string())
        })();
        match written {
            Ok(()) => {
                let _ = std::fs::remove_file(self.old_file(directory));
                true
            }
            Err(error) => {
                log::warn!("cannot write the state of container {}: {error:#}", self.ctid);
                false
            }
        }
    }
}

/// Makes the part of `directory` that is root's alone.
fn own_directory(directory: &Path) -> Result<(), private::Refused> {
    private::directory(directory, 0o755)?;
    private::directory(&directory.join(OWN), 0o700)
}

#[cfg(test)]
mod tests;
