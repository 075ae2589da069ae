//! Running commands in the container.

use super::changed::Changed;
use super::leftovers;
use crate::exit;
use crate::sys::process::{Cmd, Ended, Failure, Output};
use crate::sys::time::Deadline;
use crate::sys::{signal, text};
use crate::types::Ctid;
use std::fmt;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

const LXC_ATTACH: &str = "/usr/bin/lxc-attach";
const LXC_INFO: &str = "/usr/bin/lxc-info";
const PCT: &str = "/usr/sbin/pct";
/// How long LXC may need to notice that the container of a killed command stops.
const STOPPING: Duration = Duration::from_secs(1);
const SH: &str = "/bin/sh";

/// The environment of a command by lxc-attach; pct keeps that of [`Cmd`].
const ENVIRONMENT: [&str; 3] = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"];

/// Asked before each command: whether the container is still the same one and
/// still asks for this work.
pub type Guard = Rc<dyn Fn() -> Result<(), ExecError>>;

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
    /// The container of this number; nothing is checked yet.
    pub fn new(ctid: Ctid) -> Self {
        Guest { ctid, until: None, guard: None }
    }

    /// No command in it outlasts this deadline.
    #[must_use]
    pub fn until(mut self, deadline: Deadline) -> Self {
        self.until = Some(deadline);
        self
    }

    /// Each command in it asks the guard first, and does not run if the answer
    /// is no.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Asks the guard.
    ///
    /// # Errors
    /// [`ExecError::Gone`], [`ExecError::Changed`].
    pub fn check_guard(&self) -> Result<(), ExecError> {
        self.guard.as_ref().map_or(Ok(()), |guard| guard())
    }

    /// Its number.
    pub fn ctid(&self) -> Ctid {
        self.ctid
    }

    /// A command by `lxc-attach`, which takes 10 ms: for every start.
    pub fn attach<'a>(&self, argv: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        let mut cmd = Cmd::new(LXC_ATTACH).args(["-n", &self.ctid.to_string(), "--clear-env"]);
        for variable in ENVIRONMENT {
            cmd = cmd.args(["--set-var", variable]);
        }
        GuestCommand { guest: self.clone(), cmd: cmd.arg("--").args(argv) }
    }

    /// A command by `pct exec`: for the steps of an install, as the requirements
    /// ask.
    pub fn pct<'a>(&self, argv: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        let (key, value) = leftovers::mark(self.ctid);
        let cmd = Cmd::new(PCT).args(["exec", &self.ctid.to_string(), "--"]).args(argv).env(key, value);
        GuestCommand { guest: self.clone(), cmd }
    }

    /// A fixed shell script by `lxc-attach`. Values are arguments (`"$1"`),
    /// never part of the script.
    pub fn attach_sh<'a>(&self, script: &'a str, args: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.attach([SH, "-c", script, "phoenix-nvidia"].into_iter().chain(args))
    }

    /// A fixed shell script by `pct exec`; values as above.
    pub fn pct_sh<'a>(&self, script: &'a str, args: impl IntoIterator<Item = &'a str>) -> GuestCommand {
        self.pct([SH, "-c", script, "phoenix-nvidia"].into_iter().chain(args))
    }

    /// Whether it runs, according to LXC; `None` if LXC gave no answer.
    pub fn runs(&self) -> Option<bool> {
        self.runs_now(&Deadline::secs(5))
    }

    fn runs_now(&self, deadline: &Deadline) -> Option<bool> {
        let cmd = Cmd::new(LXC_INFO).args(["-n", &self.ctid.to_string(), "-s", "-H"]);
        let output = cmd.run(deadline).ok()?;
        match output.text().trim() {
            "RUNNING" | "FROZEN" => Some(true),
            // For an unknown container lxc-info exits with 1.
            "STOPPED" | "STOPPING" | "ABORTING" | "STARTING" => Some(false),
            _ => None,
        }
    }
}

/// A command for the container.
pub struct GuestCommand {
    guest: Guest,
    cmd: Cmd,
}

impl GuestCommand {
    /// Its stdin; empty without.
    #[must_use]
    pub fn stdin(mut self, reader: impl Read + 'static) -> Self {
        self.cmd = self.cmd.stdin(reader);
        self
    }

    /// How many bytes of each stream are kept.
    #[must_use]
    pub fn keep(mut self, bytes: usize) -> Self {
        self.cmd = self.cmd.keep(bytes);
        self
    }

    /// Runs it even after a signal or the guest's deadline: for clean-up, with a
    /// short deadline.
    #[must_use]
    pub fn even_when_stopping(mut self) -> Self {
        self.cmd = self.cmd.even_when_stopping();
        self.guest.until = None;
        self
    }

    /// Runs it. If it fails and the container no longer runs, that is the
    /// error, whatever the exit code.
    ///
    /// # Errors
    /// [`ExecError`]; an exit code other than 0 is not an error.
    pub fn run(self, deadline: &Deadline) -> Result<Output, ExecError> {
        let GuestCommand { guest, cmd } = self;
        guest.check_guard()?;
        let deadline =
            &guest.until.filter(|until| until.remaining() < deadline.remaining()).unwrap_or(*deadline);
        let output = cmd.run(deadline).map_err(ExecError::Failed)?;
        if output.success() {
            return Ok(output);
        }
        // A command in a stopping container may be killed before LXC notices.
        let killed = matches!(output.ended, Ended::Signal(_) | Ended::Code(129 | 137 | 143));
        let grace = Deadline::after(if killed { STOPPING } else { Duration::ZERO });
        loop {
            // lxc-info takes 4 ms.
            if guest.runs_now(&deadline.at_most(Duration::from_secs(5))) == Some(false) {
                return Err(ExecError::Gone(guest.ctid));
            }
            if grace.passed() || deadline.passed() || signal::check().is_err() {
                return Ok(output);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs it; an exit code other than 0 is an error.
    ///
    /// # Errors
    /// [`ExecError`]; for an exit code [`ExecError::Exit`], with the last lines
    /// of output.
    pub fn must(self, deadline: &Deadline) -> Result<Output, ExecError> {
        let output = self.run(deadline)?;
        match output.ended {
            Ended::Code(0) => Ok(output),
            ended => Err(ExecError::Exit { ended, last: output.last_lines(6) }),
        }
    }
}

/// Why a command in the container failed.
#[derive(Debug)]
pub enum ExecError {
    /// The container stopped, was destroyed or migrated.
    Gone(Ctid),
    /// It is another container, or no longer asks for this work.
    Changed(Changed),
    /// The command's own failure.
    Exit {
        /// How it ended.
        ended: Ended,
        /// Its last lines of output, safe to show.
        last: Vec<String>,
    },
    /// It could not be run, or did not end.
    Failed(Failure),
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecError::Gone(ctid) => write!(f, "container {ctid} is no longer running"),
            ExecError::Changed(changed) => changed.fmt(f),
            ExecError::Exit { ended, last } if last.is_empty() => write!(f, "{ended}, no output"),
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

/// Whether a step failed only since the container went away or we are stopped.
pub fn ended(error: &anyhow::Error) -> bool {
    is_gone(error) || exit::interrupted(error)
}

/// Whether the error is that the container is gone, or no longer the same one.
pub fn is_gone(error: &anyhow::Error) -> bool {
    error.chain().any(|e| matches!(e.downcast_ref(), Some(ExecError::Gone(_) | ExecError::Changed(_))))
}

/// What has changed, if the error is that.
pub fn changed(error: &anyhow::Error) -> Option<&Changed> {
    error.chain().find_map(|e| match e.downcast_ref() {
        Some(ExecError::Changed(changed)) => Some(changed),
        _ => None,
    })
}

/// Whether the error is that a command did not end in time: on a busy node it
/// may the next time.
pub fn timed_out(error: &anyhow::Error) -> bool {
    let late = |e: &ExecError| matches!(e, ExecError::Failed(Failure::TimedOut { .. }));
    error.chain().any(|e| e.downcast_ref().is_some_and(late))
}

/// The `key value` lines that one of our scripts printed; other lines are
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

    #[test]
    fn no_command_runs_in_a_container_that_was_replaced() {
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
        assert!(guest.check_guard().is_err() && Guest::new(ctid).check_guard().is_ok());
    }
}
