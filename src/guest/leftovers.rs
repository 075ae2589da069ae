//! What an install that was killed left at work in the container.
//!
//! A killed process of ours takes its children with it, but not what those
//! started inside: an installer goes on, and would work against the next one.
//! Such a process is known by three things:
//!
//! 1. It is in the container's control group. Nobody else's is looked at.
//! 2. Its session began outside of the container: it came in from the host,
//!    and the container's init did not start it. A service that an install
//!    merely started is in a session of its own.
//! 3. Its environment has our mark, by which it is told from a command that
//!    an administrator runs inside.
//!
//! The first two are the kernel's word, which a container cannot forge. The
//! third is read from the process's memory, which may never answer: by another
//! process, and not at all where the first two don't hold.

mod search;

use crate::sys::look::{Look, Seen, View, Walk as _};
use crate::sys::pidfd::Pidfd;
use crate::sys::time::Deadline;
use crate::types::Ctid;
pub use search::{Entered, Marked};
use std::path::Path;
use std::time::Duration;

const MARK: &str = "PHOENIX_NVIDIA_INSTALL";
/// The time for all of it.
const LIMIT: Duration = Duration::from_secs(5);
/// A process that does not answer in this time is left out.
const LOOK: Duration = Duration::from_secs(2);

/// So many processes at most are held at once.
const MOST: usize = 500;

/// The variable that marks what an install starts in a container.
pub(super) fn mark(ctid: Ctid) -> (&'static str, String) {
    (MARK, ctid.to_string())
}

/// Ends what a killed install left at work in the container. To be called
/// under the lock that makes installs in it happen one at a time.
pub fn end(ctid: Ctid) {
    let deadline = Deadline::after(LIMIT);
    let mut left = find(ctid, &deadline);
    for why in &left.unseen {
        log::warn!("cannot check for an interrupted install in container {ctid}: {why}; continuing");
    }
    if left.found.is_empty() {
        return;
    }
    log::warn!(
        "{} processes of an install that was cut off are still at work: ending them",
        left.found.len()
    );
    let mut quiet = 0;
    // What they start between a look and its kill is found by the next look;
    // one in the middle of exec has no environment, so one empty look is not
    // enough.
    while quiet < 3 && !deadline.passed() {
        for process in &left.found {
            process.kill();
        }
        quiet = if left.found.is_empty() { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(20));
        left = find(ctid, &deadline);
    }
}

/// What a search came to.
#[derive(Default)]
struct Left {
    found: Vec<Pidfd>,
    /// What could not be looked at.
    unseen: Vec<String>,
}

fn find(ctid: Ctid, deadline: &Deadline) -> Left {
    let host = View::apart(Path::new("/"), &deadline.at_most(LOOK));
    let entered = Entered { ctid };
    let mut look = Look::of(host, &[entered.asked()]);
    let pids = entered.find(&mut look);
    let mut left = Left { unseen: look.problems, ..Left::default() };
    // They are held before the look that decides: a number alone may be
    // another process's by the time of the kill.
    let mut held: Vec<(i32, Pidfd)> = Vec::new();
    for pid in pids.into_iter().take(MOST) {
        match Pidfd::open(pid) {
            Ok(process) => held.push((pid, process)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
            Err(error) => left.unseen.push(format!("process {pid}: {error}")),
        }
    }
    if held.is_empty() {
        return left;
    }
    let marked = Marked { ctid, pids: held.iter().map(|(pid, _)| *pid).collect() };
    let look = Look::of(host, &[marked.asked()]);
    for (pid, process) in held {
        match marked.of(&look, pid) {
            Seen::Is(true) => left.found.push(process),
            Seen::Unseen(why) => left.unseen.push(format!("process {pid}: {why}")),
            Seen::Is(false) | Seen::Absent => {}
        }
    }
    // One line for the lot: a container can have as many as it likes.
    if left.unseen.len() > 1 {
        let more = left.unseen.len() - 1;
        left.unseen.truncate(1);
        left.unseen.iter_mut().for_each(|why| why.push_str(&format!(" (and {more} more)")));
    }
    left
}
