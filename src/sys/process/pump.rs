//! Pumps the pipes of a running child until it ends.

use crate::sys::signal::{self, Interrupted};
use crate::sys::text;
use crate::sys::time::Deadline;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{Read, Write as _};
use std::ops::Range;
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ExitStatus};
use std::time::Duration;

/// The size of the stdin pipe, in bytes: fewer wake-ups on 400 MB.
const PIPE: i32 = 1 << 20;
/// The time limit for the rest of a killed group to disappear.
const SETTLE: Duration = Duration::from_millis(200);

/// The stdin of a child.
pub(super) enum Input {
    Null,
    /// Pumped through a pipe, never passed as a file: a privileged container
    /// could reopen it for writing.
    Pipe(Box<dyn Read>),
}

/// Why waiting ended early.
#[derive(Debug)]
pub(super) enum Why {
    Deadline,
    Signal(Interrupted),
    Wait(std::io::Error),
}

/// The pipes of a running child.
pub(super) struct Pump {
    input: Option<(Box<dyn Read>, ChildStdin)>,
    /// What was read of the input: memory that is untouched until it is needed.
    buffer: Box<[u8]>,
    /// The part of it that is not written yet.
    pending: Range<usize>,
    stdout: Capture,
    stderr: Capture,
    stopping: bool,
}

impl Pump {
    pub(super) fn new(child: &mut Child, input: Input, keep: usize, stopping: bool) -> Self {
        let input = match (input, child.stdin.take()) {
            (Input::Pipe(reader), Some(pipe)) => {
                nonblocking(&pipe);
                // Failing to enlarge it only costs wake-ups.
                let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
                Some((reader, pipe))
            }
            _ => None,
        };
        let stdout = Capture::new(child.stdout.take().map(|p| Box::new(p) as Box<dyn ReadFd>), keep);
        let stderr = Capture::new(child.stderr.take().map(|p| Box::new(p) as Box<dyn ReadFd>), keep);
        let buffer = vec![0; if input.is_some() { PIPE as usize } else { 0 }].into();
        Pump { input, buffer, pending: 0..0, stdout, stderr, stopping }
    }

    /// Moves data until the child ends, even if a grandchild has the pipes open.
    pub(super) fn wait(&mut self, child: &mut Child, deadline: &Deadline) -> Result<ExitStatus, Why> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = ended(child).map_err(Why::Wait)? {
                self.drain();
                return Ok(status);
            }
            if !self.stopping {
                signal::check().map_err(Why::Signal)?;
            }
            if deadline.passed() {
                return Err(Why::Deadline);
            }
            if self.stdout.closed() && self.stderr.closed() && self.input.is_none() {
                // Nothing to poll: it is exiting, or it closed its output.
                std::thread::sleep(pause.min(deadline.remaining()));
                pause = (pause * 2).min(Duration::from_millis(50));
            } else {
                self.turn(deadline.remaining().min(Duration::from_millis(50)));
            }
        }
    }

    /// Polls once, and reads and writes what is ready.
    fn turn(&mut self, timeout: Duration) {
        let mut fds: Vec<PollFd> = Vec::with_capacity(3);
        for capture in [&self.stdout, &self.stderr] {
            if let Some(pipe) = &capture.pipe {
                fds.push(PollFd::new(pipe.fd(), PollFlags::POLLIN));
            }
        }
        if let Some((_, pipe)) = &self.input {
            fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT));
        }
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        if matches!(poll(&mut fds, timeout), Ok(n) if n > 0) {
            drop(fds);
            self.stdout.read_some();
            self.stderr.read_some();
            self.feed();
        }
    }

    /// Writes what the pipe takes now, a few megabytes at most: a fast reader must
    /// not delay the check of the deadline.
    fn feed(&mut self) {
        let Some((reader, pipe)) = &mut self.input else { return };
        let mut ended = false;
        for _ in 0..8 {
            if self.pending.is_empty() {
                self.pending = 0..reader.read(&mut self.buffer).unwrap_or(0);
            }
            ended = self.pending.is_empty();
            if ended {
                break;
            }
            match pipe.write(&self.buffer[self.pending.clone()]) {
                Ok(n) => self.pending.start += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    ended = true; // closed; the exit code tells why
                    break;
                }
            }
        }
        if ended {
            self.input = None; // closes the pipe
        }
    }

    /// Reads what is in the pipes now, without waiting.
    pub(super) fn drain(&mut self) {
        self.stdout.read_some();
        self.stderr.read_some();
    }

    pub(super) fn last_lines(&self) -> Vec<String> {
        let mut lines = text::last_lines(&self.stdout.kept, 3);
        lines.extend(text::last_lines(&self.stderr.kept, 3));
        lines
    }

    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<u8>) {
        (self.stdout.take(), self.stderr.take())
    }
}

/// A pipe that can be read and polled.
trait ReadFd: Read {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_>;
}

impl<T: Read + AsFd> ReadFd for T {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.as_fd()
    }
}

/// One output stream: its beginning and its end.
struct Capture {
    pipe: Option<Box<dyn ReadFd>>,
    kept: Vec<u8>,
    keep: usize,
    cut: bool,
}

impl Capture {
    fn new(pipe: Option<Box<dyn ReadFd>>, keep: usize) -> Self {
        if let Some(pipe) = &pipe {
            nonblocking(&pipe.fd());
        }
        Capture { pipe, kept: Vec::new(), keep, cut: false }
    }

    fn closed(&self) -> bool {
        self.pipe.is_none()
    }

    /// Reads what is ready, a few hundred kilobytes at most: endless output must
    /// not delay the check of the deadline.
    fn read_some(&mut self) {
        let mut buffer = [0u8; 64 * 1024];
        for _ in 0..8 {
            let Some(pipe) = &mut self.pipe else { return };
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => self.push(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > self.keep * 2 {
            self.cut_middle();
        }
    }

    fn cut_middle(&mut self) {
        let half = self.keep / 2;
        let end = self.kept.len() - half;
        self.kept.drain(half..end);
        self.cut = true;
    }

    fn take(&mut self) -> Vec<u8> {
        if self.kept.len() > self.keep {
            self.cut_middle();
        }
        if self.cut {
            let half = self.keep / 2;
            self.kept.splice(half..half, *b"\n[... cut ...]\n");
        }
        std::mem::take(&mut self.kept)
    }
}

fn nonblocking(fd: &impl AsFd) {
    // Fails only for a closed descriptor.
    let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
}

/// How the child ended, if it has. Kills the rest of its group before the child
/// is reaped: until then the group id is not reused.
pub(super) fn ended(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let pid = Pid::from_raw(child.id() as i32);
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // After an error (ECHILD) the pid may be reused.
    if waitid(Id::Pid(pid), look)? == WaitStatus::StillAlive {
        return Ok(None);
    }
    let _ = killpg(pid, Signal::SIGKILL);
    let status = child.try_wait();
    settle(pid);
    status
}

/// Waits a moment until a killed group has disappeared: on a busy machine its
/// processes end later.
fn settle(group: Pid) {
    let deadline = Deadline::after(SETTLE);
    // Sends no signal, only checks. A reused id costs only this moment.
    while killpg(group, None).is_ok() && !deadline.passed() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
