//! What an install that was killed left at work in the container.
//!
//! A killed process of ours takes its children with it, but not what those
//! started inside: an installer goes on, and would work against the next one.
//! So whatever an install starts inside carries a mark in its environment.
//!
//! A service that an install merely started carries it too, and is left
//! alone: it is in a session that was begun inside. What we start is in the
//! session of the `lxc-attach` on the host.

use crate::sys::time::Deadline;
use crate::types::Ctid;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MARK: &str = "PHOENIX_NVIDIA_INSTALL";
/// An environment is not trusted to be short, in bytes.
const MAX: u64 = 256 * 1024;

/// The variable that marks what an install starts in a container.
pub(super) fn mark(ctid: Ctid) -> (&'static str, String) {
    (MARK, ctid.to_string())
}

/// Ends what a killed install left at work in the container. To be called
/// under the lock that makes installs in it happen one at a time.
pub fn end(ctid: Ctid) {
    let mut found = find(Path::new("/proc"), ctid);
    if found.is_empty() {
        return;
    }
    log::warn!("{} processes of an install that was cut off are still at work: ending them", found.len());
    let deadline = Deadline::secs(5);
    let mut quiet = 0;
    // What they start between a look and its kill is found by the next look;
    // one in the middle of exec has no environment, so one empty look is not
    // enough.
    while quiet < 3 && !deadline.passed() {
        for pid in &found {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(20));
        found = find(Path::new("/proc"), ctid);
    }
}

fn find(proc: &Path, ctid: Ctid) -> Vec<i32> {
    let own = namespace(&proc.join("self"));
    let Ok(entries) = std::fs::read_dir(proc) else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let process = proc.join(pid.to_string());
        is_marked(&process, ctid) && is_of_outside(&process) && namespace(&process) != own
    })
    .collect()
}

/// The namespace of its process numbers; a container has one of its own.
fn namespace(process: &Path) -> Option<PathBuf> {
    std::fs::read_link(process.join("ns/pid")).ok()
}

/// Whether it carries this container's mark.
fn is_marked(process: &Path, ctid: Ctid) -> bool {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(process.join("environ")).and_then(|f| f.take(MAX).read_to_end(&mut bytes));
    read.is_ok() && marked(&bytes, ctid)
}

fn marked(environ: &[u8], ctid: Ctid) -> bool {
    let ours = format!("{MARK}={ctid}");
    environ.split(|b| *b == 0).any(|variable| variable == ours.as_bytes())
}

/// Whether its session was begun outside the container that it is in.
fn is_of_outside(process: &Path) -> bool {
    std::fs::read(process.join("status")).is_ok_and(|text| outside(&String::from_utf8_lossy(&text)))
}

/// `NSsid:` of /proc/PID/status has the session's number in each of its
/// namespaces, from ours to its own; 0 where it has none.
fn outside(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSsid:"));
    numbers.and_then(|numbers| numbers.split_ascii_whitespace().next_back()) == Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_containers_mark_counts() {
        let ctid = "101".parse().unwrap();
        assert!(marked(b"A=1\0PHOENIX_NVIDIA_INSTALL=101\0B=2\0", ctid));
        for other in [&b"PHOENIX_NVIDIA_INSTALL=1011"[..], b"X=PHOENIX_NVIDIA_INSTALL=101\0", b""] {
            assert!(!marked(other, ctid));
        }
    }

    #[test]
    fn a_session_begun_inside_is_told_from_one_of_the_host() {
        assert!(outside("Name:\tx\nNSsid:\t4711\t0\n"));
        assert!(!outside("Name:\tNSsid:\t0\nNSsid:\t4711\t12\n") && !outside(""));
    }

    #[test]
    fn nothing_of_this_namespace_is_ever_found() {
        assert_eq!(find(Path::new("/proc"), "101".parse().unwrap()), Vec::<i32>::new());
    }
}
