//! What was done to a container, for `status` and for the next start.
//!
//! `/run/phoenix-nvidia/CTID.json` is of this boot, world-readable and holds
//! no secret; `/var/lib/phoenix-nvidia/CTID.json` is what outlives a boot.
//! Both are hints: a missing, old or broken file is as good as none, since
//! CTIDs are reused and `pct destroy` knows nothing of these files.

use crate::sys::replace::replace_own;
use crate::sys::text;
use crate::types::Ctid;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The version of the files' form.
pub const SCHEMA: u32 = 1;
/// A state file larger than this is not ours, in bytes.
const MAX: u64 = 64 * 1024;

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
    /// from before an install: its restart is due. See [`crate::guest::lifecycle::Init`].
    pub restart_due: Option<String>,
    /// The driver version for which it was rebooted after an install.
    pub rebooted_for: Option<String>,
    /// What the CUDA step that failed in this boot was asked for: the same is
    /// not tried again at every start.
    pub cuda_failed: Option<String>,
}

/// The directory of this boot's state.
pub const RUN: &str = "run/phoenix-nvidia";
/// The directory of what outlives a boot.
pub const LIB: &str = "var/lib/phoenix-nvidia";

/// Now, in seconds since 1970 UTC.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn file(root: &Path, directory: &str, ctid: Ctid) -> PathBuf {
    root.join(directory).join(format!("{ctid}.json"))
}

impl State {
    /// This boot's state; the last boot's success where this one has none yet.
    pub fn load(root: &Path, ctid: Ctid) -> State {
        let kept = read(&file(root, LIB, ctid));
        match read(&file(root, RUN, ctid)) {
            Some(state) => {
                State { last_success: state.last_success.or(kept.and_then(|k| k.last_success)), ..state }
            }
            None => State {
                whom: kept.as_ref().and_then(|k| k.whom.clone()),
                last_success: kept.and_then(|k| k.last_success),
                ..State::fresh(ctid)
            },
        }
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

    fn is_of(&self, whom: &str) -> bool {
        self.whom.as_deref().is_none_or(|w| w == whom)
    }

    /// Has the state on disk be that of this container. What pre-start noted
    /// is of its present start already.
    pub fn take_over(root: &Path, ctid: Ctid, whom: &str) {
        let state = State::load(root, ctid);
        if state.whom.as_deref() == Some(whom) {
            return;
        }
        let kept = if state.is_of(whom) {
            state
        } else {
            State { start_warning: state.start_warning, ..State::fresh(ctid) }
        };
        let state = State { whom: Some(whom.to_owned()), ..kept };
        for directory in [RUN, LIB] {
            if let Err(error) = write(&file(root, directory, ctid), &state) {
                log::warn!("the state of container {ctid} is not recorded: {error:#}");
            }
        }
    }

    /// Changes the state on disk. A failure is told as a warning and no more:
    /// no start fails for a report.
    pub fn update(root: &Path, ctid: Ctid, change: impl FnOnce(&mut State)) {
        let mut state = State::load(root, ctid);
        let before = state.clone();
        change(&mut state);
        state.at = now();
        state.message = text::without_secrets(&state.message);
        state.start_warning = state.start_warning.map(|warning| text::without_secrets(&warning));
        if state.outcome == Outcome::Ok {
            state.last_success = Some(state.at);
        }
        let result = write(&file(root, RUN, ctid), &state).and_then(|()| {
            // The disk is written only when something worth keeping changed.
            let news = (&before.container_driver, before.outcome) != (&state.container_driver, state.outcome);
            if news { write(&file(root, LIB, ctid), &state) } else { Ok(()) }
        });
        if let Err(error) = result {
            log::warn!("the state of container {ctid} is not recorded: {error:#}");
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
        for directory in [RUN, LIB] {
            match std::fs::remove_file(file(root, directory, ctid)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Option<State> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.len() > MAX {
        return None;
    }
    let state: State = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (state.schema == SCHEMA).then_some(state)
}

fn write(path: &Path, state: &State) -> anyhow::Result<()> {
    let directory = path.parent().context("no directory")?;
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut text = serde_json::to_vec_pretty(state)?;
    text.push(b'\n');
    replace_own(path, &text, 0o644).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctid() -> Ctid {
        "101".parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_again_and_success_outlives_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        State::update(dir.path(), ctid(), |s| {
            s.outcome = Outcome::Ok;
            s.container_driver = Some("580.95.05".into());
        });
        let state = State::load(dir.path(), ctid());
        assert_eq!((state.outcome, state.ctid, state.schema), (Outcome::Ok, 101, SCHEMA));
        std::fs::remove_dir_all(dir.path().join(RUN)).unwrap(); // a boot
        let after = State::load(dir.path(), ctid());
        assert_eq!((after.outcome, after.last_success), (Outcome::None, state.last_success));
        assert!(after.last_success.is_some());
    }

    #[test]
    fn a_number_that_is_given_again_brings_nothing_of_its_former_owner() {
        let dir = tempfile::tempdir().unwrap();
        State::take_over(dir.path(), ctid(), "old BC:24:11:00:00:01");
        State::update(dir.path(), ctid(), |s| {
            s.outcome = Outcome::Ok;
            s.cuda_failed = Some("x".into());
        });
        let new = "new BC:24:11:00:00:02";
        assert_eq!(State::load_of(dir.path(), ctid(), "old BC:24:11:00:00:01").outcome, Outcome::Ok);
        assert_eq!(State::load_of(dir.path(), ctid(), new), State::fresh(ctid()));
        State::note_start(dir.path(), ctid(), Some("GPU 7 is missing".into()));
        State::take_over(dir.path(), ctid(), new);
        let state = State::load(dir.path(), ctid());
        assert_eq!((state.cuda_failed, state.last_success), (None, None));
        assert_eq!(state.start_warning.as_deref(), Some("GPU 7 is missing"));
        std::fs::remove_dir_all(dir.path().join(RUN)).unwrap(); // a boot
        assert_eq!(State::load_of(dir.path(), ctid(), new).last_success, None);
    }

    #[test]
    fn a_start_that_only_warned_is_not_shown_as_the_one_that_failed_before() {
        let dir = tempfile::tempdir().unwrap();
        State::update(dir.path(), ctid(), |s| {
            "pre-start".clone_into(&mut s.phase);
            s.outcome = Outcome::Failed;
            s.start_warning = Some("GPU 7 is missing".into());
        });
        State::note_start(dir.path(), ctid(), Some("GPU 7 is missing".into()));
        assert_eq!(State::load(dir.path(), ctid()).outcome, Outcome::Warning);
    }

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(RUN)).unwrap();
        for text in ["", "{", "[]", "{\"schema\":99}", "null"] {
            replace_own(&dir.path().join(RUN).join("101.json"), text.as_bytes(), 0o644).unwrap();
            assert_eq!(State::load(dir.path(), ctid()).outcome, Outcome::None, "{text}");
        }
    }

    #[test]
    fn forgetting_what_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        State::forget(dir.path(), ctid()).unwrap();
        State::update(dir.path(), ctid(), |s| s.outcome = Outcome::Ok);
        State::forget(dir.path(), ctid()).unwrap();
        assert_eq!(State::load(dir.path(), ctid()).last_success, None);
    }
}
