//! SIGTERM and the signals of a terminal (INT, HUP, QUIT), noted for waits to
//! check. Children have no terminal: only we get a Ctrl-C, and we end them.
//!
//! Proxmox stops a task with TERM, and KILL 5 s later: every wait checks at
//! least ten times a second.

use super::time::Deadline;
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

static CAUGHT: AtomicI32 = AtomicI32::new(0);

thread_local! {
    /// The end of this thread's [`PutOff`].
    static PUT_OFF: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// A signal came: the process cleans up and exits.
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

/// Fails once SIGTERM, SIGINT, SIGHUP or SIGQUIT came, unless put off.
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

/// The signal that came, even if put off.
pub fn pending() -> Option<Interrupted> {
    Some(CAUGHT.load(Ordering::Relaxed)).filter(|number| *number != 0).map(Interrupted)
}

/// While it exists, for its span at most, [`check`] succeeds in this thread: a
/// rollback needs the same locks and programs as the change.
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

/// From now on TERM, INT, HUP and QUIT are noted, a closed pipe and a size limit
/// are errors, children can be waited for, and inherited files are closed in
/// children, whatever signals the caller ignored or blocked.
pub fn catch() {
    extern "C" fn note(signal: i32) {
        CAUGHT.store(signal, Ordering::Relaxed);
    }
    super::raw::on_signals(note);
    super::raw::keep_inherited_files_from_children();
}

/// Sleeps; a signal ends it.
///
/// # Errors
/// [`Interrupted`].
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
