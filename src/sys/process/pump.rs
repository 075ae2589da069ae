//! The pipes of a running child, and its end.

use super::super::signal::{self, Interrupted};
use super::super::text;
use super::super::time::Deadline;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{Read, Write as _};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ExitStatus};
use std::time::Duration;

/// What a pipe to a child is enlarged to, in bytes: fewer wake-ups on 400 MB.
const PIPE: i32 = 1 << 20;
/// How long what a child leaves of its group may take to be gone.
const SETTLE: Duration = Duration::from_millis(200);

/// What a child reads.
pub(super) enum Input {
    Null,
    /// Pumped through a pipe, never handed over as a file: a privileged
    /// container could open a file on its stdin again for writing.
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
    pending: Vec<u8>,
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
        Pump { input, pending: Vec::new(), stdout, stderr, stopping }
    }

    /// Moves data until the child has ended. A grandchild that still holds
    /// the pipes is not waited for.
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
                // Nothing left to poll: it is about to exit, or it closed
                // its output and goes on.
                std::thread::sleep(pause.min(deadline.remaining()));
                pause = (pause * 2).min(Duration::from_millis(50));
            } else {
                self.turn(deadline.remaining().min(Duration::from_millis(50)));
            }
        }
    }

    /// One poll, and what it allows.
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

    /// Writes what the pipe takes now, a few megabytes at most: a child that
    /// reads as fast as we write must not keep us from looking at the clock.
    fn feed(&mut self) {
        let Some((reader, pipe)) = &mut self.input else { return };
        let mut ended = false;
        for _ in 0..8 {
            if self.pending.is_empty() {
                self.pending.resize(PIPE as usize, 0);
                let read = reader.read(&mut self.pending).unwrap_or(0);
                self.pending.truncate(read);
            }
            ended = self.pending.is_empty();
            if ended {
                break;
            }
            match pipe.write(&self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    ended = true; // nobody reads any more; its exit code tells why
                    break;
                }
            }
        }
        if ended {
            self.input = None; // closes the pipe
        }
    }

    /// Takes what is in the pipes now, without waiting for their end.
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

/// One output stream: its beginning and its end, however long it was.
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

    /// Reads what is there, at most a few hundred kilobytes, so that a child
    /// that prints without end cannot keep us from looking at the clock.
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
    // Only fails for a closed descriptor, which this is not.
    let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
}

/// How the child ended, if it has. What it left of its group ends with it:
/// while the child is not reaped, the group's number is nobody else's.
pub(super) fn ended(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let pid = Pid::from_raw(child.id() as i32);
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // Without an answer (ECHILD, say) the number may be another's by now.
    if waitid(Id::Pid(pid), look)? == WaitStatus::StillAlive {
        return Ok(None);
    }
    let _ = killpg(pid, Signal::SIGKILL);
    let status = child.try_wait();
    settle(pid);
    status
}

/// Waits a moment until nothing of a killed group is left: on a busy machine
/// its processes get their turn to die only after we have gone on.
fn settle(group: Pid) {
    let deadline = Deadline::after(SETTLE);
    // No signal, only whether there is somebody. The number is free by now;
    // whoever got it anew costs that moment and no more.
    while killpg(group, None).is_ok() && !deadline.passed() {
        std::thread::sleep(Duration::from_millis(1));
    }
}
