//! Running commands in the container.

use super::changed::{Changed, Guard};
use super::leftovers;
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
#[derive(Clone)]
pub struct Guest {
    ctid: Ctid,
    until: Option<Deadline>,
    guard: Option<Guard>,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}", self.ctid)
    }
}

impl Guest {
    /// The container of this number; nothing is looked at yet.
    pub fn new(ctid: Ctid) -> Self {
        Guest { ctid, until: None, guard: None }
    }

    /// No command in it outlasts this deadline, that of the whole work.
    #[must_use]
    pub fn until(mut self, deadline: Deadline) -> Self {
        self.until = Some(deadline);
        self
    }

    /// Each command in it is preceded by this question, and is not run where
    /// the answer is no. The steps of a work are given such a container, so that
    /// none of them can forget to ask.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// The same question for what is not a command.
    ///
    /// # Errors
    /// [`ExecError::Gone`], [`ExecError::Changed`].
    pub fn still(&self) -> Result<(), ExecError> {
        self.guard.as_ref().map_or(Ok(()), |guard| guard())
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
        Inside { guest: self.clone(), cmd: cmd.arg("--").args(argv) }
    }

    /// A command by `pct exec`, as the requirements ask for every install
    /// step.
    pub fn pct<'a>(&self, argv: impl IntoIterator<Item = &'a str>) -> Inside {
        let (key, value) = leftovers::mark(self.ctid);
        let cmd = Cmd::new(PCT).args(["exec", &self.ctid.to_string(), "--"]).args(argv).env(key, value);
        Inside { guest: self.clone(), cmd }
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
        guest.still()?;
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
    /// It is not the one any more, or does not ask any more for what was begun.
    Changed(Changed),
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
            ExecError::Changed(changed) => changed.fmt(f),
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

/// Whether this error is that there is nothing more to do in the container: it
/// went away, or is not the one any more.
pub fn is_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|e| matches!(e.downcast_ref(), Some(ExecError::Gone(_) | ExecError::Changed(_))))
}

/// What has changed, if this error is that.
pub fn changed(error: &anyhow::Error) -> Option<&Changed> {
    error.chain().find_map(|e| match e.downcast_ref() {
        Some(ExecError::Changed(changed)) => Some(changed),
        _ => None,
    })
}

/// Whether this error is that a command was not over in its time: on a busy
/// node it may be the next time.
pub fn is_late(error: &anyhow::Error) -> bool {
    let late = |e: &ExecError| matches!(e, ExecError::Failed(Failure::TimedOut { .. }));
    error.chain().any(|e| e.downcast_ref().is_some_and(late))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    /// Whatever a step runs, by either way, and also while we are stopped.
    #[test]
    fn no_command_is_run_in_a_container_that_is_another_one() {
        let ctid: Ctid = "101".parse().unwrap();
        let no: Guard = Rc::new(move || Err(ExecError::Changed(Changed::Detached(ctid))));
        let guest = Guest::new(ctid).guarded(no).until(Deadline::secs(5));
        let deadline = Deadline::secs(5);
        let commands = [
            guest.attach(["true"]),
            guest.attach_sh("exit 0", []),
            guest.pct(["true"]),
            guest.pct_sh("exit 0", ["x"]).stdin(std::io::empty()).even_when_stopping(),
        ];
        for command in commands {
            let error = anyhow::Error::from(command.run(&deadline).unwrap_err()).context("a step");
            assert!(is_gone(&error) && changed(&error) == Some(&Changed::Detached(ctid)), "{error:#}");
        }
        assert!(guest.still().is_err() && Guest::new(ctid).still().is_ok());
    }
}
