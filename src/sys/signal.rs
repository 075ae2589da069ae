//! SIGTERM and SIGINT as something that waits can ask about.
//!
//! A task that is stopped in Proxmox gets TERM, and KILL 5 s later: every
//! wait of ours looks here at least ten times a second.

use std::sync::atomic::{AtomicI32, Ordering};

static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// A signal asked us to leave; the process cleans up and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted(pub i32);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(signal) => write!(f, "stopped by {signal}"),
            Err(_) => write!(f, "stopped by signal {}", self.0),
        }
    }
}

impl std::error::Error for Interrupted {}

/// Fails once SIGTERM, SIGINT or SIGHUP has come.
///
/// # Errors
/// [`Interrupted`], with the signal's number.
pub fn check() -> Result<(), Interrupted> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => Ok(()),
        number => Err(Interrupted(number)),
    }
}

/// From here on TERM, INT and HUP are noted instead of ending the process,
/// a closed pipe or a size limit is an error instead of a death, and files
/// that were open before us are not passed on.
pub fn catch() {
    extern "C" fn note(signal: i32) {
        CAUGHT.store(signal, Ordering::Relaxed);
    }
    super::raw::on_signals(note);
    super::raw::keep_inherited_files_from_children();
}

/// Sleeps, but no longer than until a signal.
///
/// # Errors
/// [`Interrupted`] when one came.
pub fn sleep(span: std::time::Duration) -> Result<(), Interrupted> {
    let deadline = super::time::Deadline::after(span);
    loop {
        check()?;
        let left = deadline.remaining();
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(std::time::Duration::from_millis(50)));
    }
}
