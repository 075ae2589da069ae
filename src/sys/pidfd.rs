//! A reference to a process. Unlike a pid, it is never reused.

use super::raw;
use nix::sys::signal::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A process.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process with this pid.
    ///
    /// # Errors
    /// ESRCH if there is none, ENOSYS before Linux 5.3.
    pub fn open(pid: i32) -> std::io::Result<Pidfd> {
        raw::pidfd_open(pid).map(Pidfd)
    }

    /// Kills it, unless it has ended.
    pub fn kill(&self) {
        if let Err(error) = raw::pidfd_send_signal(self.0.as_fd(), Signal::SIGKILL) {
            log::debug!("cannot kill a process: {error}");
        }
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn the_process_that_is_held_is_killed_and_no_other() {
        #[allow(clippy::disallowed_methods)] // a process to be killed
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let held = Pidfd::open(child.id() as i32).unwrap();
        held.kill();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        // Reaped: the pid may be reused.
        held.kill();
        assert!(Pidfd::open(i32::MAX).is_err());
    }
}
