//! Commands run inside a lab: bounded, with their output apart, and told whole when they surprise.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::starting;

/// A command to run in a lab. Its environment is root's after a login, not the test's.
#[must_use = "nothing runs before run() or spawn()"]
pub struct Command {
    init: i32,
    enter: std::path::PathBuf,
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    terminal: bool,
    timeout: Duration,
}

impl Command {
    pub(crate) fn new(init: i32, enter: std::path::PathBuf, program: impl AsRef<OsStr>) -> Command {
        let login = [
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("LOGNAME", "root"),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("SHELL", "/bin/bash"),
            ("TERM", "xterm"),
            ("USER", "root"),
        ];
        Command {
            init,
            enter,
            argv: vec![program.as_ref().to_owned()],
            env: login.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            stdin: None,
            terminal: false,
            timeout: Duration::from_secs(60),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Command {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Command {
        self.argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable beside (or instead of) those of a login.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Command {
        self.env.retain(|(known, _)| known != key.as_ref());
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts from an empty environment.
    pub fn env_clear(mut self) -> Command {
        self.env.clear();
        self
    }

    /// What the command reads; nothing otherwise.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Command {
        self.stdin = Some(bytes.into());
        self
    }

    /// Has it lead a session at a terminal of the lab, as from a person's shell: stdin, stdout and stderr are that
    /// terminal, what it shows is the output's stdout, and what it reads is typed there.
    pub fn on_a_terminal(mut self) -> Command {
        self.terminal = true;
        self
    }

    /// How long `run` waits before it kills the command's process group and panics; 60 s otherwise.
    pub fn timeout(mut self, limit: Duration) -> Command {
        self.timeout = limit;
        self
    }

    /// Starts it and lets it run.
    pub fn spawn(self) -> Running {
        let shown = self.shown();
        let scratch =
            || tempfile::tempfile().unwrap_or_else(|e| panic!("a file for the output of `{shown}`: {e}"));
        let (stdout, stderr) = (scratch(), scratch());
        let stdin = match &self.stdin {
            _ if self.terminal => Stdio::piped(),
            None => Stdio::null(),
            Some(bytes) => {
                let mut file = scratch();
                let written = file.write_all(bytes).and_then(|()| file.seek(SeekFrom::Start(0)));
                written.unwrap_or_else(|e| panic!("the input of `{shown}`: {e}"));
                file.into()
            }
        };
        let mut command = std::process::Command::new(&self.enter);
        command
            .args(self.terminal.then_some("--terminal"))
            .arg(self.init.to_string())
            .args(&self.argv)
            .env_clear()
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(stdin)
            .stdout(dup(&stdout))
            .stderr(dup(&stderr));
        let mut child = starting::start(&mut command)
            .unwrap_or_else(|e| panic!("{} for `{shown}`: {e}", self.enter.display()));
        let keyboard = child.stdin.take();
        let mut running =
            Running { child, shown, keyboard, stdout, stderr, started: Instant::now(), limit: self.timeout };
        if let Some(bytes) = self.stdin.filter(|_| self.terminal) {
            running.types(bytes);
        }
        running
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        self.spawn().wait()
    }

    fn shown(&self) -> String {
        let quoted = self.argv.iter().map(|arg| {
            let text = arg.to_string_lossy().into_owned();
            if text.is_empty() || text.contains(char::is_whitespace) { format!("'{text}'") } else { text }
        });
        quoted.collect::<Vec<_>>().join(" ")
    }
}

fn dup(file: &File) -> Stdio {
    file.try_clone().map_or_else(|e| panic!("duplicating a descriptor: {e}"), Stdio::from)
}

/// A command that runs in a lab. Dropped, it is killed with its process group.
pub struct Running {
    child: Child,
    shown: String,
    keyboard: Option<ChildStdin>,
    stdout: File,
    stderr: File,
    started: Instant,
    limit: Duration,
}

impl Running {
    /// The command's own process id, as seen from the test.
    pub fn pid(&self) -> Option<i32> {
        let enter = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{enter}/task/{enter}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Types at its terminal: `b"\x03"` is Ctrl-C.
    #[track_caller]
    pub fn types(&mut self, keys: impl AsRef<[u8]>) {
        let keyboard = self.keyboard.as_mut().unwrap_or_else(|| panic!("`{}` has no terminal", self.shown));
        keyboard.write_all(keys.as_ref()).unwrap_or_else(|e| panic!("typing to `{}`: {e}", self.shown));
    }

    /// Sends a signal to the command itself, not to what it started.
    pub fn signal(&self, signal: Signal) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(pid) = self.pid() {
                let _ = kill(Pid::from_raw(pid), signal);
                return;
            }
            assert!(Instant::now() < deadline, "`{}` has no process to send {signal} to", self.shown);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal to the command's process group.
    pub fn signal_group(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    /// Has it ended?
    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// What it has printed so far, first stdout, then stderr.
    pub fn so_far(&self) -> String {
        let both = [whole(&self.stdout), whole(&self.stderr)].concat();
        String::from_utf8_lossy(&both).into_owned()
    }

    /// Waits for its end. Panics when the time limit passes, with what it has printed.
    pub fn wait(mut self) -> Output {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return self.output(status),
                Ok(None) if self.started.elapsed() > self.limit => {
                    self.signal_group(Signal::SIGKILL);
                    let _ = self.child.kill();
                    let status = self.child.wait().unwrap_or_default();
                    let limit = self.limit;
                    panic!("not done within {limit:?}:\n{}", self.output(status));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Err(e) => panic!("waiting for `{}`: {e}", self.shown),
            }
        }
    }

    fn output(&self, status: ExitStatus) -> Output {
        Output {
            command: self.shown.clone(),
            status,
            stdout: String::from_utf8_lossy(&whole(&self.stdout)).into_owned(),
            stderr: String::from_utf8_lossy(&whole(&self.stderr)).into_owned(),
            took: self.started.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended() {
            self.signal_group(Signal::SIGKILL);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn whole(file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    // The descriptor shares its offset with the command's; opened anew through /proc it has one of its own.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    if let Ok(mut own) = File::open(path) {
        let _ = own.read_to_end(&mut bytes);
    }
    bytes
}

/// How a command in a lab ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, as one line.
    pub command: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Output {
    /// The exit code; `None` if a signal ended it.
    pub fn exit(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Panics, showing everything, unless the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.code(0)
    }

    /// Panics, showing everything, unless the command ended with this exit code.
    #[track_caller]
    pub fn code(self, wanted: i32) -> Output {
        assert!(self.exit() == Some(wanted), "expected exit code {wanted}:\n{self}");
        self
    }

    /// Panics, showing everything, unless stdout or stderr contains `text`.
    #[track_caller]
    pub fn says(self, text: &str) -> Output {
        assert!(
            self.stdout.contains(text) || self.stderr.contains(text),
            "expected to read {text:?}:\n{self}"
        );
        self
    }

    /// Panics, showing everything, if stdout or stderr contains `text`.
    #[track_caller]
    pub fn says_not(self, text: &str) -> Output {
        assert!(
            !self.stdout.contains(text) && !self.stderr.contains(text),
            "expected not to read {text:?}:\n{self}"
        );
        self
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}", self.command)?;
        writeln!(f, "{} after {:.3} s", self.status, self.took.as_secs_f64())?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            writeln!(f, "--- {name}{}", if text.is_empty() { " (empty)" } else { "" })?;
            for line in text.lines() {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}
