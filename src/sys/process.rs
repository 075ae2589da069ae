//! The one function that runs programs.
//!
//! Every child has an absolute path, a cleared environment, a stated stdin,
//! a session of its own, a deadline, and output that is read apart from ours
//! and bounded. When it ends, or the deadline passes, its whole process group
//! goes: a grandchild that kept the pipe open would hold us for as long as it
//! lives, and one that nobody waits for would go on unseen.
//!
//! The session is what keeps a container from the terminal that we were
//! called at: `lxc-attach` makes no terminal where its streams are pipes and
//! leaves the caller's session to the program inside, which could open
//! /dev/tty there, read what root types, and type.

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

/// What a child finds in its environment besides what the call adds.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("LC_ALL", "C"),
    ("LANG", "C.UTF-8"),
    ("HOME", "/root"),
    ("TERM", "dumb"),
];

/// After TERM, a group has this long until KILL.
const GRACE: Duration = Duration::from_millis(700);
/// After KILL, a child in D state is abandoned after this long.
const REAP: Duration = Duration::from_secs(1);
/// How a group is ended.
const IN_TURN: [(Signal, Duration); 2] = [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, REAP)];
/// How one is that [`Cmd::at_once`] is for.
const AT_ONCE: [(Signal, Duration); 1] = [(Signal::SIGKILL, Duration::from_millis(100))];
/// How much of each stream is kept unless the call says otherwise, in bytes.
const KEEP: usize = 256 * 1024;
/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
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

/// What a child left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// Its stdout; of more than the limit, the beginning and the end.
    pub stdout: Vec<u8>,
    /// Its stderr, likewise.
    pub stderr: Vec<u8>,
    /// How long it ran.
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

    /// The last `count` lines of both streams, safe to show; stderr last.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let mut lines = text::last_lines(&self.stdout, count);
        lines.extend(text::last_lines(&self.stderr, count));
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// stdout as text, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Why a program gave no [`Output`].
#[derive(Debug)]
pub enum Failure {
    /// There is no such program.
    Missing(PathBuf),
    /// It could not be started.
    Spawn(PathBuf, std::io::Error),
    /// It did not end in time; its group was killed.
    TimedOut {
        /// The program.
        program: PathBuf,
        /// The time it had.
        after: Duration,
        /// What it last printed, safe to show.
        last: Vec<String>,
        /// What it had printed on stdout.
        stdout: Vec<u8>,
        /// Not even KILL ended it (D state), and it was left behind.
        abandoned: bool,
    },
    /// We were told to stop; its group was killed.
    Interrupted(Interrupted),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Missing(program) => write!(f, "{} is not installed", program.display()),
            Failure::Spawn(program, error) => {
                write!(f, "{} cannot be started: {error}", program.display())
            }
            Failure::TimedOut { program, after, last, abandoned, .. } => {
                write!(f, "{} did not end within {}", program.display(), human(*after))?;
                if *abandoned {
                    f.write_str(", cannot be killed (uninterruptible) and was left behind")?;
                }
                match last.as_slice() {
                    [] => f.write_str("; it printed nothing"),
                    lines => write!(f, "; it last printed: {}", lines.join(" | ")),
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

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more variable in its otherwise bare environment.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// What it reads on stdin, through a pipe; nothing otherwise.
    #[must_use]
    pub fn stdin(mut self, reader: impl Read + 'static) -> Self {
        self.input = Input::Pipe(Box::new(reader));
        self
    }

    /// How much of each stream is kept, in bytes.
    #[must_use]
    pub fn keep(mut self, bytes: usize) -> Self {
        self.keep = bytes;
        self
    }

    /// Has it run also after a signal has asked us to leave: for clean-up,
    /// with a short deadline.
    #[must_use]
    pub fn even_when_stopping(mut self) -> Self {
        self.stopping = true;
        self
    }

    /// What it is called in a list of processes, instead of by its path.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// Has it be killed without TERM, and abandoned at once if that does not
    /// end it: for one that has nothing to clean up.
    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }

    /// Runs it to its end, or to the deadline, or to a signal of ours.
    ///
    /// # Errors
    /// [`Failure`]; an exit code other than 0 is none, the caller judges that.
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
                // One that cannot even be asked is not there to be killed.
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

    /// The command line, safe to log.
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

/// Starts it; a program that somebody is just writing (ETXTBSY) is tried again
/// for a moment.
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

/// A word of a command line; of a whole script its first line.
fn brief(word: &str) -> String {
    match word.trim_start().split_once('\n') {
        Some((first, _)) => format!("'{first} …'"),
        None => word.to_owned(),
    }
}

/// One signal after the other to the whole group, which has the number of the
/// child that began the session, each with some time for its effect. False
/// when the child is still there.
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

/// Whether a program is there to be run.
pub fn installed(program: impl AsRef<Path>) -> bool {
    nix::unistd::access(program.as_ref(), nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
