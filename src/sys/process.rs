//! The one function that runs programs.
//!
//! Every child has an absolute path, a cleared environment, a stated stdin, its
//! own session, a deadline, and bounded output, separate from ours. When it
//! ends, or at the deadline, its whole process group is killed: a grandchild
//! with the pipe open would block us, or continue unnoticed.
//!
//! The session keeps a container away from our terminal: with pipes as streams,
//! `lxc-attach` makes no terminal and leaves the caller's session to the program
//! inside, which could open /dev/tty, read what root types, and type.

mod pump;

use super::signal::{self, Interrupted};
use super::text;
use super::time::{Deadline, human};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pump::{Input, Pump, Why, ended};
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The environment of a child, besides what the call adds.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LC_ALL", "C"),
    ("LANG", "C.UTF-8"),
    ("HOME", "/root"),
    ("TERM", "dumb"),
];

/// The time between TERM and KILL.
const GRACE: Duration = Duration::from_millis(700);
/// The time between KILL and abandoning a child in D state.
const REAP: Duration = Duration::from_secs(1);
/// The steps that end a group.
const IN_TURN: [(Signal, Duration); 2] = [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, REAP)];
/// The steps for [`Cmd::at_once`].
const AT_ONCE: [(Signal, Duration); 1] = [(Signal::SIGKILL, Duration::from_millis(100))];
/// The default of [`Cmd::keep`], in bytes.
const KEEP: usize = 256 * 1024;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its exit code.
    Code(i32),
    /// The signal that killed it.
    Signal(i32),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Code(code) => write!(f, "exit code {code}"),
            Ended::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
        }
    }
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Ended::Code(code),
            (None, signal) => Ended::Signal(signal.unwrap_or_default()),
        }
    }
}

/// The result of a child.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// Its stdout; beyond the limit, the beginning and the end.
    pub stdout: Vec<u8>,
    /// Its stderr, likewise.
    pub stderr: Vec<u8>,
    /// Its run time.
    pub took: Duration,
}

impl Output {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.ended == Ended::Code(0)
    }

    /// Its exit code, or `None` for a signal.
    pub fn code(&self) -> Option<i32> {
        match self.ended {
            Ended::Code(code) => Some(code),
            Ended::Signal(_) => None,
        }
    }

    /// The last `count` lines of both streams, escaped; stderr last.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut lines = text::last_lines(&self.stdout, count);
        lines.extend(text::last_lines(&self.stderr, count));
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// Its stdout as text, with invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Why a program has no [`Output`].
#[derive(Debug)]
pub enum Failure {
    /// No such program.
    Missing(PathBuf),
    /// It did not start.
    Spawn(PathBuf, std::io::Error),
    /// It exceeded its deadline; its group was killed.
    TimedOut {
        /// The program.
        program: PathBuf,
        /// The timeout.
        after: Duration,
        /// Its last lines of output, escaped.
        last: Vec<String>,
        /// Its stdout.
        stdout: Vec<u8>,
        /// KILL did not end it (D state).
        abandoned: bool,
    },
    /// A signal came; its group was killed.
    Interrupted(Interrupted),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Missing(program) => write!(f, "{} is not installed", program.display()),
            Failure::Spawn(program, error) => {
                write!(f, "cannot start {}: {error}", program.display())
            }
            Failure::TimedOut { program, after, last, abandoned, .. } => {
                write!(f, "{} timed out after {}", program.display(), human(*after))?;
                if *abandoned {
                    f.write_str(", cannot be killed (uninterruptible sleep)")?;
                }
                match last.as_slice() {
                    [] => f.write_str("; no output"),
                    lines => write!(f, "; last output: {}", lines.join(" | ")),
                }
            }
            Failure::Interrupted(signal) => signal.fmt(f),
        }
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Failure::Interrupted(signal) => Some(signal),
            Failure::Missing(_) | Failure::Spawn(..) | Failure::TimedOut { .. } => None,
        }
    }
}

/// A program to run. `Cmd::new("/usr/sbin/pct").args(["status", "101"]).run(&deadline)`.
pub struct Cmd {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Input,
    keep: usize,
    stopping: bool,
    name: Option<&'static str>,
    at_once: bool,
}

impl Cmd {
    /// A program by its absolute path.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        debug_assert!(program.is_absolute(), "{program:?}");
        Cmd {
            program,
            args: Vec::new(),
            env: Vec::new(),
            input: Input::Null,
            keep: KEEP,
            stopping: false,
            name: None,
            at_once: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Its stdin, through a pipe; /dev/null by default.
    #[must_use]
    pub fn stdin(mut self, reader: impl Read + 'static) -> Self {
        self.input = Input::Pipe(Box::new(reader));
        self
    }

    /// The limit of each output stream, in bytes.
    #[must_use]
    pub fn keep(mut self, bytes: usize) -> Self {
        self.keep = bytes;
        self
    }

    /// Runs it even after a signal came: for clean-up, with a short deadline.
    #[must_use]
    pub fn even_when_stopping(mut self) -> Self {
        self.stopping = true;
        self
    }

    /// Its name in the process list, instead of its path.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Kills it without TERM, and abandons it at once if it does not end: for a
    /// program that has nothing to clean up.
    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }

    /// Runs it until it ends, or the deadline, or a signal.
    ///
    /// # Errors
    /// [`Failure`]; an exit code other than 0 is not an error.
    pub fn run(self, deadline: &Deadline) -> Result<Output, Failure> {
        if !self.stopping {
            signal::check().map_err(Failure::Interrupted)?;
        }
        let program = self.program.clone();
        let started = Instant::now();
        let line = self.shown();
        let steps = if self.at_once { &AT_ONCE[..] } else { &IN_TURN[..] };
        let mut child = self.spawn()?;
        let mut pump = Pump::new(&mut child, self.input, self.keep, self.stopping);
        let verdict = pump.wait(&mut child, deadline);
        let took = started.elapsed();
        let ended = match verdict {
            Ok(status) => Ended::from(status),
            Err(why) => {
                // If waiting failed, there is no such child.
                let abandoned = !matches!(why, Why::Wait(_)) && !end_group(&mut child, steps);
                pump.drain();
                let last = pump.last_lines();
                let (stdout, _) = pump.finish();
                log::debug!("{line}: {why:?} after {}", human(took));
                return Err(match why {
                    Why::Deadline => {
                        Failure::TimedOut { program, after: deadline.span(), last, stdout, abandoned }
                    }
                    Why::Signal(signal) => Failure::Interrupted(signal),
                    Why::Wait(error) => Failure::Spawn(program, error),
                });
            }
        };
        log::debug!("{line}: {ended}, {}", human(took));
        let (stdout, stderr) = pump.finish();
        Ok(Output { ended, stdout, stderr, took })
    }

    /// The command line, escaped.
    fn shown(&self) -> String {
        let words = std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(|a| a.as_os_str()));
        let line: Vec<_> = words.map(|w| brief(&w.to_string_lossy())).collect();
        text::line(line.join(" ").as_bytes())
    }

    fn spawn(&self) -> Result<Child, Failure> {
        #[allow(clippy::disallowed_methods)] // this is the one room
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(ENVIRONMENT)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir("/")
            .stdin(if matches!(self.input, Input::Null) { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(name) = self.name {
            command.arg0(name);
        }
        super::raw::own_session(&mut command);
        super::raw::die_with_parent(&mut command);
        super::raw::default_signals(&mut command);
        spawn_when_written(&mut command).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::Missing(self.program.clone()),
            _ => Failure::Spawn(self.program.clone(), error),
        })
    }
}

/// Starts it; retries for a moment while the program is being written (ETXTBSY).
fn spawn_when_written(command: &mut Command) -> std::io::Result<Child> {
    let deadline = Deadline::after(GRACE);
    loop {
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(nix::libc::ETXTBSY) && !deadline.passed() => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// A word of a command line; only the first line of a script.
fn brief(word: &str) -> String {
    match word.trim_start().split_once('\n') {
        Some((first, _)) => format!("'{first} …'"),
        None => word.to_owned(),
    }
}

/// Sends each signal to the whole group, whose id is that of the child, and
/// waits. False if the child has not ended.
fn end_group(child: &mut Child, steps: &[(Signal, Duration)]) -> bool {
    let group = Pid::from_raw(child.id() as i32);
    for (signal, time) in steps {
        match killpg(group, *signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => log::debug!("killpg {group} {signal}: {error}"),
        }
        let until = Deadline::after(*time);
        while !until.passed() {
            if !matches!(ended(child), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    false
}

/// Whether two threads have the same table of descriptors. False where the kernel
/// does not say.
pub fn same_files(one: i32, other: i32) -> bool {
    super::raw::same_files(one, other)
}

/// Whether a program is installed.
pub fn installed(program: impl AsRef<Path>) -> bool {
    nix::unistd::access(program.as_ref(), nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
