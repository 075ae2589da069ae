//! Tasks: a worker process does the work and holds the lock; the caller shows what it prints. Without a terminal the
//! worker has a session of its own; at one it stays in its caller's, as the foreground of that terminal.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::args::Args;
use super::{Die, die, hook, lifecycle, say, warn};
use crate::ns::NODE;

/// What a worker reports at its end, as the only line on its status pipe.
#[derive(Default)]
pub(super) struct Task {
    warnings: u32,
}

impl Task {
    /// Prints a warning that is counted at the end of the task.
    pub(super) fn warn(&mut self, text: &str) {
        say(&format!("WARN: {text}"));
        self.warnings += 1;
    }
}

/// Runs a verb in a worker, shows its output on stdout, and tells how it ended.
pub(super) fn fork(kind: &str, args: &Args) -> Result<u8> {
    let (output_end, output) = nix::unistd::pipe()?;
    // Without CLOEXEC, as the genuine worker's: a hook inherits it.
    let (status_end, status) = nix::unistd::pipe()?;
    for end in [&output_end, &output, &status_end] {
        fcntl(end, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    let log = TaskLog::open(kind, args.id)?;
    let options = args.options.iter().map(|(key, value)| format!("--{key}={value}"));
    // Who holds a lock of Proxmox is known by the name of its task.
    let task = format!("task UPID:{NODE}:00000000:00000000:00000000:{kind}:{}:root@pam:", args.id);
    let mut child = Command::new("/proc/self/exe")
        .arg0(task)
        .args(["__worker", &status.as_raw_fd().to_string(), &args.verb, &args.id.to_string()])
        .args(options)
        .envs(super::ENVIRONMENT)
        .current_dir("/")
        .stdin(Stdio::inherit())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .context("the task's worker")?;
    drop((output, status));
    let mut from = File::from(output_end);
    let mut buffer = [0; 8192];
    let mut out = std::io::stdout();
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let _ = out.write_all(&buffer[..count]).and_then(|()| out.flush());
        log.write(&buffer[..count]);
    }
    let ended = child.wait()?;
    let said = last_word(status_end);
    log.end(&said);
    match said.split_once(' ') {
        Some(("OK", "0")) => Ok(0),
        Some(("OK", count)) => {
            warn(&format!("Task finished with {count} warning(s)!"));
            Ok(0)
        }
        Some(("ERROR", message)) => Err(die(message.replace("\\n", "\n"))),
        _ => Err(die(format!("unexpected status: the worker ended with {ended}"))),
    }
}

/// What is in the status pipe, without waiting for its end: a hook's child may hold it open for ever.
fn last_word(status: OwnedFd) -> String {
    let _ = fcntl(&status, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    let mut bytes = Vec::new();
    let _ = File::from(status).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned()
}

/// The worker: `__worker STATUS_FD VERB ID OPTION…`.
pub(super) fn work(argv: &[String]) -> Result<u8> {
    let (Some(status), Some(verb)) = (argv.first(), argv.get(1)) else { return Err(die("no such task")) };
    let _foreground = Foreground::take()?;
    let args = Args::parse(verb, &argv[2..])?;
    let mut task = Task::default();
    let word = match lifecycle::perform(verb, &args, &mut task) {
        Ok(()) => format!("OK {}", task.warnings),
        Err(error) => format!("ERROR {}", flat(&error)),
    };
    // Opened through /proc: the number stands for a descriptor that the caller left open on purpose.
    let mut to = OpenOptions::new().write(true).open(format!("/proc/self/fd/{status}"))?;
    writeln!(to, "{word}")?;
    Ok(u8::from(word.starts_with("ERROR")))
}

/// The caller's terminal, whose foreground the worker is while it works.
struct Foreground(Option<Pid>);

impl Foreground {
    /// Takes the terminal that is stdin, or else begins a session.
    fn take() -> Result<Foreground> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            nix::unistd::setsid()?;
            return Ok(Foreground(None));
        }
        // The genuine one ignores it; what it starts gets a bare mask from std either way.
        SigSet::from(Signal::SIGTTOU).thread_block()?;
        let before = nix::unistd::getpgrp();
        nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        nix::unistd::tcsetpgrp(&stdin, nix::unistd::getpid())?;
        Ok(Foreground(Some(before)))
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _ = nix::unistd::tcsetpgrp(std::io::stdin(), before);
        }
    }
}

/// A task's error as one line. A message that ends a line of its own leaves a blank.
fn flat(error: &anyhow::Error) -> String {
    if let Some(failed) = error.downcast_ref::<hook::Failed>() {
        return format!("{failed} ");
    }
    match error.downcast_ref::<Die>() {
        Some(Die { message, .. }) => message.replace('\n', "\\n"),
        None => format!("{error:#}").replace('\n', "\\n"),
    }
}

/// A task's log, and its line in the index of tasks.
struct TaskLog {
    name: String,
    file: File,
}

impl TaskLog {
    fn open(kind: &str, id: u32) -> Result<TaskLog> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let pid = std::process::id();
        let started = crate::ns::start_time(pid).unwrap_or_default();
        let name = format!("UPID:{NODE}:{pid:08X}:{started:08X}:{now:08X}:{kind}:{id}:root@pam:");
        let dir = format!("/var/log/pve/tasks/{:X}", now % 16);
        std::fs::create_dir_all(&dir)?;
        Ok(TaskLog { file: File::create(format!("{dir}/{name}"))?, name })
    }

    fn write(&self, bytes: &[u8]) {
        let _ = (&self.file).write_all(bytes);
    }

    fn end(&self, said: &str) {
        let (word, line) = match said.split_once(' ') {
            Some(("OK", "0")) => ("OK".to_owned(), "TASK OK".to_owned()),
            Some(("OK", count)) => (format!("WARNINGS: {count}"), format!("TASK WARNINGS: {count}")),
            Some((_, message)) => (message.to_owned(), format!("\nTASK ERROR: {message}")),
            None => ("unexpected status".to_owned(), "TASK ERROR: unexpected status".to_owned()),
        };
        self.write(format!("{line}\n").as_bytes());
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Ok(mut index) = OpenOptions::new().append(true).create(true).open("/var/log/pve/tasks/index") {
            let _ = writeln!(index, "{} {now:08X} {word}", self.name);
        }
    }
}
