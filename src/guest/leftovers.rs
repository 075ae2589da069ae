//! Processes that a killed install left in the container.
//!
//! A killed process of ours takes its children with it, but not what those
//! started inside: an installer would go on and disturb the next one. Such a
//! process is recognized by three things:
//!
//! 1. It is in the container's control group.
//! 2. Its session began outside of the container: it came from the host, and
//!    the container's init did not start it. A service that an install started
//!    is in a session of its own.
//! 3. Its environment has our mark, unlike a command that an administrator
//!    runs inside.
//!
//! The kernel tells the first two, so a container cannot forge them. The third
//! is read from the process's memory, which may never answer: in a process
//! apart, and only if the first two hold.

mod search;

use crate::sys::look::{Look, Seen, View, Walk as _};
use crate::sys::pidfd::Pidfd;
use crate::sys::time::Deadline;
use crate::types::Ctid;
pub use search::{Entered, Marked, is_of, mark, processes};
use std::path::Path;
use std::time::Duration;

/// The limit for the whole.
const LIMIT: Duration = Duration::from_secs(5);
/// The limit for one search.
const LOOK: Duration = Duration::from_secs(2);

/// The most processes held at once.
const MOST: usize = 500;

/// Kills the processes that a killed install left in the container. The caller
/// holds the lock of installs in it.
pub fn end(ctid: Ctid) {
    let deadline = Deadline::after(LIMIT);
    let mut left = find(ctid, &deadline);
    for why in &left.unseen {
        log::warn!("cannot check for an interrupted install in container {ctid}: {why}; continuing");
    }
    if left.found.is_empty() {
        return;
    }
    log::warn!("killing {} processes of an interrupted install", left.found.len());
    let mut quiet = 0;
    // What they start before the kill is found by the next search. A process in
    // the middle of exec has no environment, so one empty search is not enough.
    while quiet < 3 && !deadline.passed() {
        for process in &left.found {
            process.kill();
        }
        quiet = if left.found.is_empty() { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(20));
        left = find(ctid, &deadline);
    }
}

/// The result of a search.
#[derive(Default)]
struct Left {
    found: Vec<Pidfd>,
    /// Why some of it failed.
    unseen: Vec<String>,
}

fn find(ctid: Ctid, deadline: &Deadline) -> Left {
    let host = View::apart(Path::new("/"), &deadline.at_most(LOOK));
    let entered = Entered { ctid };
    let mut look = Look::of(host, &[entered.asked()]);
    let pids = entered.find(&mut look);
    let mut left = Left { unseen: look.problems, ..Left::default() };
    // Hold them before the search that decides: a number may belong to another
    // process by the time of the kill.
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
    // One line in all: a container can have any number.
    if left.unseen.len() > 1 {
        let more = left.unseen.len() - 1;
        left.unseen.truncate(1);
        left.unseen.iter_mut().for_each(|why| why.push_str(&format!(" (and {more} more)")));
    }
    left
}
