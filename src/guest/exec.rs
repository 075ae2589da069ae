//! Running commands in the container.

use super::leftover;
use crate::sys::process::{Cmd, Ended, Failure, Output};
use crate::sys::time::Deadline;
use crate::sys::{signal, text};
use crate::types::Ctid;
use std::fmt;
use std::io::Read;
use std::time::Duration;

const LXC_ATTACH: &str = "/usr/bin/lxc-attach";
const LXC_INFO: &str = "/usr/bin/lxc-info";
const PCT: &str = "/usr/sbin/pct";
/// How long a killed command's container may take to be seen as stopped.
const GOING_DOWN: Duration = Duration::from_secs(1);
const SH: &str = "/bin/sh";

/// What a command in the container finds in its environment when it comes by
/// lxc-attach; by pct it is what [`Cmd`] gives, since pct keeps it.
const ENVIRONMENT: [&str; 3] = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"];

/// A running container.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    ctid: Ctid,
    until: Option<Deadline>,
}

impl Guest {
    /// The container of this number; nothing is looked at yet.
    pub fn new(ctid: Ctid) -> Self {
        Guest { ctid, until: None }
    }

    /// No command in it outlasts this deadline, that of the whole work.
    #[must_use]
    pub fn until(mut self, deadline: Deadline) -> Self {
        self.until = Some(deadline);
        self
    }

    /// Its number.
    pub fn ctid(&self) -> Ctid {
        self.ctid
    }

    /// A command by `lxc-attach`, 10 ms: for the check at every start.
    pub fn attach<'a>(&self, argv: impl IntoIterator<Item = &'a str>) -> Inside {
        let mut cmd = Cmd::new(LXC_ATTACH).args(["-n", &self.ctid.to_string(), "--clear-env"]);
        for variable in ENVIRONMENT {
            cmd = cmd.args(["--set-var", variable]);
        }
        Inside { guest: *self, cmd: cmd.arg("--").args(argv) }
    }

    /// A command by `pct exec`, as the requirements ask for every install
    /// step.
    pub fn pct<'a>(&self, argv: impl IntoIterator<Item = &'a str>) -> Inside {
        let (key, value) = leftover::mark(self.ctid);
        let cmd = Cmd::new(PCT).args(["exec", &self.ctid.to_string(), "--"]).args(argv).env(key, value);
        Inside { guest: *self, cmd }
    }

    /// A fixed shell script by `lxc-attach`. Values are arguments (`"$1"`),
    /// never part of the script.
    pub fn attach_sh<'a>(&self, script: &'a str, args: impl IntoIterator<Item = &'a str>) -> Inside {
        self.attach([SH, "-c", script, "phoenix-nvidia"].into_iter().chain(args))
    }

    /// A fixed shell script by `pct exec`, likewise.
    pub fn pct_sh<'a>(&self, script: &'a str, args: impl IntoIterator<Item = &'a str>) -> Inside {
        self.pct([SH, "-c", script, "phoenix-nvidia"].into_iter().chain(args))
    }

    /// Whether it runs, as LXC says; `None` when LXC could not be asked.
    pub fn runs(&self) -> Option<bool> {
        self.runs_now(&Deadline::secs(5))
    }

    fn runs_now(&self, deadline: &Deadline) -> Option<bool> {
        let cmd = Cmd::new(LXC_INFO).args(["-n", &self.ctid.to_string(), "-s", "-H"]);
        let output = cmd.run(deadline).ok()?;
        match output.text().trim() {
            "RUNNING" | "FROZEN" => Some(true),
            // lxc-info of a container that LXC has never heard of: exit 1.
            "STOPPED" | "STOPPING" | "ABORTING" | "STARTING" => Some(false),
            _ => None,
        }
    }
}

/// A command that is going to run in the container.
pub struct Inside {
    guest: Guest,
    cmd: Cmd,
}

impl Inside {
    /// What it reads on stdin; nothing otherwise.
    #[must_use]
    pub fn stdin(mut self, reader: impl Read + 'static) -> Self {
        self.cmd = self.cmd.stdin(reader);
        self
    }

    /// How much of each stream is kept, in bytes.
    #[must_use]
    pub fn keep(mut self, bytes: usize) -> Self {
        self.cmd = self.cmd.keep(bytes);
        self
    }

    /// One more variable (by pct; lxc-attach clears them).
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.cmd = self.cmd.env(key, value);
        self
    }

    /// Runs it also after a signal has asked us to leave, or the time of the
    /// whole is over: for clean-up, with a short deadline.
    #[must_use]
    pub fn even_when_stopping(mut self) -> Self {
        self.cmd = self.cmd.even_when_stopping();
        self.guest.until = None;
        self
    }

    /// Runs it. A failing command is looked into: if the container is not
    /// there any more, that is the reason, whatever the exit code was.
    ///
    /// # Errors
    /// [`ExecError`]; an exit code other than 0 is none.
    pub fn run(self, deadline: &Deadline) -> Result<Output, ExecError> {
        let Inside { guest, cmd } = self;
        let deadline =
            &guest.until.filter(|until| until.remaining() < deadline.remaining()).unwrap_or(*deadline);
        let output = cmd.run(deadline).map_err(ExecError::Failed)?;
        if output.success() {
            return Ok(output);
        }
        // What is killed in a container that is going down may end before LXC
        // says so.
        let killed = matches!(output.ended, Ended::Signal(_) | Ended::Code(129 | 137 | 143));
        let patience = Deadline::after(if killed { GOING_DOWN } else { Duration::ZERO });
        loop {
            // lxc-info takes 4 ms; it may not outstay what the whole was given.
            if guest.runs_now(&deadline.at_most(Duration::from_secs(5))) == Some(false) {
                return Err(ExecError::Gone(guest.ctid));
            }
            if patience.passed() || deadline.passed() || signal::check().is_err() {
                return Ok(output);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs it and wants exit code 0.
    ///
    /// # Errors
    /// [`ExecError`]; another exit code is [`ExecError::Exit`], with the last
    /// lines that were printed.
    pub fn must(self, deadline: &Deadline) -> Result<Output, ExecError> {
        let output = self.run(deadline)?;
        match output.ended {
            Ended::Code(0) => Ok(output),
            ended => Err(ExecError::Exit { ended, last: output.last_lines(6) }),
        }
    }
}

/// Why a command in the container gave no result.
#[derive(Debug)]
pub enum ExecError {
    /// The container stopped, was destroyed or migrated in the meantime.
    Gone(Ctid),
    /// The command's own failure.
    Exit {
        /// How it ended.
        ended: Ended,
        /// What it last printed, safe to show.
        last: Vec<String>,
    },
    /// It could not be run to its end.
    Failed(Failure),
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecError::Gone(ctid) => write!(f, "container {ctid} is not running any more"),
            ExecError::Exit { ended, last } if last.is_empty() => write!(f, "{ended}, nothing printed"),
            ExecError::Exit { ended, last } => write!(f, "{ended}: {}", last.join(" | ")),
            ExecError::Failed(failure) => failure.fmt(f),
        }
    }
}

impl std::error::Error for ExecError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ExecError::Failed(Failure::Interrupted(signal)) => Some(signal),
            _ => None,
        }
    }
}

/// Whether this error is that the container went away.
pub fn is_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|e| matches!(e.downcast_ref(), Some(ExecError::Gone(_))))
}

/// Whether this error is that we were told to stop.
pub fn is_interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<crate::sys::signal::Interrupted>())
}

/// `key value` lines that a script of ours printed; what else is there is
/// skipped, since the container may print anything.
pub(super) fn fields(bytes: &[u8]) -> impl Iterator<Item = (String, String)> + '_ {
    bytes.split(|b| *b == b'\n').take(2000).filter_map(|raw| {
        let line = text::line(raw);
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().to_owned()))
    })
}
