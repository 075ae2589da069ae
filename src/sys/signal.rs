//! SIGTERM and what a terminal sends (INT, HUP, QUIT) as something that waits
//! can ask about. Children have no terminal: of a Ctrl-C only we hear, and we
//! end them.
//!
//! A task that is stopped in Proxmox gets TERM, and KILL 5 s later: every
//! wait of ours looks here at least ten times a second.

use super::time::Deadline;
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

static CAUGHT: AtomicI32 = AtomicI32::new(0);

thread_local! {
    /// Until when this thread puts a signal off.
    static PUT_OFF: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// A signal told us to end; the process cleans up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted(pub i32);

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(signal) => write!(f, "interrupted by {signal}"),
            Err(_) => write!(f, "interrupted by signal {}", self.0),
        }
    }
}

impl std::error::Error for Interrupted {}

/// Fails once SIGTERM, SIGINT, SIGHUP or SIGQUIT has come, unless that is put
/// off.
///
/// # Errors
/// [`Interrupted`], with the signal's number.
pub fn check() -> Result<(), Interrupted> {
    match CAUGHT.load(Ordering::Relaxed) {
        0 => Ok(()),
        _ if PUT_OFF.get().is_some_and(|until| !until.passed()) => Ok(()),
        number => Err(Interrupted(number)),
    }
}

/// The signal that has come, also while it is put off.
pub fn pending() -> Option<Interrupted> {
    Some(CAUGHT.load(Ordering::Relaxed)).filter(|number| *number != 0).map(Interrupted)
}

/// While it lives, and for its span at most, [`check`] finds no signal in this
/// thread: what was begun is undone first, with the same locks and programs
/// as it was done with.
#[must_use = "signals count again when it is dropped"]
pub struct PutOff {
    before: Option<Deadline>,
}

/// Puts signals off for `span` at most.
pub fn put_off(span: Duration) -> PutOff {
    PutOff { before: PUT_OFF.replace(Some(Deadline::after(span))) }
}

impl Drop for PutOff {
    fn drop(&mut self) {
        PUT_OFF.set(self.before);
    }
}

/// From here on TERM, INT, HUP and QUIT are noted instead of ending the
/// process, a closed pipe or a size limit is an error instead of a death, how
/// a child ended can be asked, and files that were open before us are not
/// passed on. Nothing of that depends on what the caller ignored or blocked.
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
pub fn sleep(span: Duration) -> Result<(), Interrupted> {
    let deadline = Deadline::after(span);
    loop {
        check()?;
        let left = deadline.remaining();
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own, so that no other test sees the signal put off;
    /// none is sent, since all tests share one process.
    #[test]
    fn a_signal_is_put_off_for_its_span_and_no_longer() {
        let put_off = || PUT_OFF.get().is_some_and(|until| !until.passed());
        let outer = put_off_for(60_000);
        assert!(put_off());
        drop(put_off_for(0));
        assert!(put_off(), "the outer one still counts");
        drop(outer);
        assert!(!put_off());
        let _short = put_off_for(20);
        std::thread::sleep(Duration::from_millis(30));
        assert!(!put_off());
    }

    fn put_off_for(ms: u64) -> PutOff {
        put_off(Duration::from_millis(ms))
    }
}
