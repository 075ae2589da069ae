//! The install process, seen from the hook that starts it: its log, its end.
//!
//! Under systemd it is `phoenix-nvidia-install@CTID.service`; elsewhere a
//! detached process. Either way it holds a lock for as long as it lives, so
//! that its death is noticed without its help.

use crate::exit::{Code, Fault};
use crate::job::{handover, locks};
use crate::state::{Outcome, Record};
use crate::sys::process::{self, Cmd};
use crate::sys::time::Deadline;
use crate::sys::{file, log as messages, signal, spawn, text};
use crate::types::Ctid;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

/// Where the install processes' logs are.
pub const LOGS: &str = "/var/log/phoenix-nvidia";
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// There while systemd is the host's init.
const SYSTEMD: &str = "/run/systemd/system";
/// It only passes the word on.
const SYSTEMCTL_TIME: Duration = Duration::from_secs(10);
/// Between two looks at log and lock.
const LOOK: Duration = Duration::from_millis(100);
/// Lines that are shown in a task log at the most.
const MOST_LINES: usize = 60;

/// The log of a container's install processes.
pub fn log_path(ctid: Ctid) -> PathBuf {
    PathBuf::from(LOGS).join(format!("{ctid}.log"))
}

/// How long the log is now, in bytes: what comes behind it is the next
/// process's.
pub fn log_length(ctid: Ctid) -> u64 {
    std::fs::metadata(log_path(ctid)).map_or(0, |m| m.len())
}

/// Starts the install process. True if that was left to systemd.
///
/// # Errors
/// [`Code::Software`].
pub fn start(ctid: Ctid, identity: &str, deadline: &Deadline) -> anyhow::Result<bool> {
    handover::leave(ctid, identity);
    if std::path::Path::new(SYSTEMD).is_dir() && process::installed(SYSTEMCTL) {
        match by_systemd(ctid, deadline) {
            Ok(()) => return Ok(true),
            Err(why) => log::warn!("{why}; starting the install without systemd"),
        }
    }
    detach(ctid).map(|()| false).inspect_err(|_| handover::forget(ctid))
}

/// Starts it as a process of its own.
///
/// # Errors
/// [`Code::Software`].
pub fn detach(ctid: Ctid) -> anyhow::Result<()> {
    let fault = |e: std::io::Error| {
        anyhow::Error::from(e).context(Fault::new(Code::Software, "cannot start the install process"))
    };
    // While the package is upgraded, the file that we were started from is gone.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    spawn::detach(&program, &["install".to_owned(), ctid.to_string()]).map_err(fault)
}

fn by_systemd(ctid: Ctid, deadline: &Deadline) -> Result<(), String> {
    let unit = format!("phoenix-nvidia-install@{ctid}.service");
    let out = Cmd::new(SYSTEMCTL)
        .args(["start", "--no-block", "--quiet", unit.as_str()])
        .run(&deadline.at_most(SYSTEMCTL_TIME))
        .map_err(|e| e.to_string())?;
    if out.success() {
        return Ok(());
    }
    let said: String = out.last_lines(2).iter().map(|line| format!(": {line}")).collect();
    Err(format!("{SYSTEMCTL} start {unit}: {}{said}", out.ended))
}

/// How following ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// The process ended.
    Ended,
    /// The time was over first; where it continues was told.
    Continues,
    /// There was none, a good while after it should have begun.
    NotStarted,
}

/// An install process that is being followed.
pub struct Follow {
    ctid: Ctid,
    tail: Tail,
    started: bool,
}

impl Follow {
    /// One whose log begins at `from`, and whose name is not in the state yet.
    pub fn new(ctid: Ctid, from: u64) -> Follow {
        let tail = Tail { path: log_path(ctid), at: from, shown: 0, rest: Vec::new() };
        Follow { ctid, tail, started: false }
    }

    /// It was seen running.
    #[must_use]
    pub fn started(mut self) -> Follow {
        self.started = true;
        self
    }

    /// Shows what the process logs until it ends, or until the time is over.
    ///
    /// # Errors
    /// A signal of ours.
    pub fn until(&mut self, deadline: &Deadline) -> anyhow::Result<Followed> {
        let start = Deadline::after(locks::START);
        let mut worker = locks::watch_worker(self.ctid);
        loop {
            // It takes its lock before it leaves its name: looked at in the
            // other order, one that started in between would seem dead.
            let named = Record::of(self.ctid).load().job.is_some();
            let runs = worker.is_held();
            self.started = self.started || named || runs;
            self.tail.show();
            if !runs && self.started {
                self.tail.end();
                return Ok(Followed::Ended);
            }
            if !runs && start.passed() {
                return Ok(Followed::NotStarted);
            }
            if deadline.passed() {
                tell_continues(self.ctid);
                return Ok(Followed::Continues);
            }
            signal::sleep(LOOK.min(deadline.remaining()))?;
        }
    }
}

/// Tells where an install that nobody waits for can be watched.
pub fn tell_continues(ctid: Ctid) {
    log::info!("install continues in the background: tail -f {}", log_path(ctid).display());
}

/// See [`is_told`].
#[derive(Debug)]
struct Told(String);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Told {}

/// Whether the install process has logged and recorded an error already.
pub fn is_told(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<Told>())
}

/// What the ended process left as its result.
///
/// # Errors
/// [`Code::Software`].
pub fn result(ctid: Ctid) -> anyhow::Result<()> {
    let state = Record::of(ctid).load();
    match state.outcome {
        // None: it ended since nobody asks for it any more.
        Outcome::Ok | Outcome::Warning | Outcome::None => Ok(()),
        Outcome::Failed => {
            // With the driver in place it was something else.
            let there = state.container_driver.is_some() && state.container_driver == state.kernel_driver;
            let what = if there { "check" } else { "install" };
            let message = format!("driver {what} in container {ctid} failed");
            let remedy = format!("tail -n 20 {}; phoenix-nvidia {ctid}", log_path(ctid).display());
            let fault = Fault::new(Code::Software, message.clone()).remedy(remedy);
            Err(anyhow::Error::new(Told(message)).context(fault))
        }
        Outcome::Running => Err(Fault::new(Code::Software, "install process ended without a result")
            .remedy(format!("journalctl -u phoenix-nvidia-install@{ctid} -n 20; phoenix-nvidia {ctid}"))
            .into()),
    }
}

/// The lines that are added to a log.
struct Tail {
    path: PathBuf,
    at: u64,
    shown: usize,
    rest: Vec<u8>,
}

impl Tail {
    fn show(&mut self) {
        let Ok((mut file, meta)) = file::open_itself(&self.path) else { return };
        // A file that is put aside when it is large begins anew.
        if meta.len() < self.at {
            self.at = 0;
        }
        let mut bytes = Vec::new();
        let read =
            file.seek(SeekFrom::Start(self.at)).and_then(|_| file.take(1 << 20).read_to_end(&mut bytes));
        let Ok(read) = read else { return };
        self.at += read as u64;
        self.rest.extend(bytes);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.relay(&line);
        }
    }

    /// What was too much for a task log is at least counted.
    fn end(&self) {
        if let Some(more) = self.shown.checked_sub(MOST_LINES).filter(|more| *more > 0) {
            let path = self.path.display();
            log::info!(target: messages::RELAY, "{more} more lines in {path}");
        }
    }

    /// One line of the log; those of our own get their time and name anew.
    fn relay(&mut self, line: &[u8]) {
        self.shown += 1;
        if self.shown <= MOST_LINES {
            let line = text::line(line);
            let (level, message) = messages::parse(&line);
            log::log!(target: messages::RELAY, level, "{message}");
        }
    }
}
