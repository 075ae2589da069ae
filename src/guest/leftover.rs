//! What an install that was killed left at work in the container.
//!
//! A killed process of ours takes its children with it, but not what those
//! started inside: an installer goes on, and would work against the next one.
//! So whatever an install starts inside carries a mark in its environment.

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

/// The variable that marks what an install starts in a container: which one,
/// and the session, by which a service that an install merely started (and
/// which is in a session of its own) is told from the install.
pub(super) fn mark(ctid: Ctid) -> (&'static str, String) {
    let session = nix::unistd::getsid(None).map_or(0, Pid::as_raw);
    (MARK, format!("{ctid}:{session}"))
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
        session_marked(&process, ctid).is_some_and(|marked| session_of(&process) == Some(marked))
            && namespace(&process) != own
    })
    .collect()
}

/// The namespace of its process numbers; a container has one of its own.
fn namespace(process: &Path) -> Option<PathBuf> {
    std::fs::read_link(process.join("ns/pid")).ok()
}

/// The session in its mark, if it carries this container's.
fn session_marked(process: &Path, ctid: Ctid) -> Option<i32> {
    let mut bytes = Vec::new();
    std::fs::File::open(process.join("environ")).ok()?.take(MAX).read_to_end(&mut bytes).ok()?;
    marked(&bytes, ctid)
}

fn marked(environ: &[u8], ctid: Ctid) -> Option<i32> {
    let start = format!("{MARK}={ctid}:");
    let value = environ.split(|b| *b == 0).find_map(|variable| variable.strip_prefix(start.as_bytes()))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Field 6 of /proc/PID/stat; the name in field 2 may hold anything.
fn session_of(process: &Path) -> Option<i32> {
    let stat = std::fs::read(process.join("stat")).ok()?;
    let text = String::from_utf8_lossy(&stat);
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_containers_mark_counts() {
        let ctid = "101".parse().unwrap();
        assert_eq!(marked(b"A=1\0PHOENIX_NVIDIA_INSTALL=101:77\0B=2\0", ctid), Some(77));
        for other in [&b"PHOENIX_NVIDIA_INSTALL=1011:77\0"[..], b"X=PHOENIX_NVIDIA_INSTALL=101:7\0", b""] {
            assert_eq!(marked(other, ctid), None);
        }
    }

    #[test]
    fn nothing_of_this_namespace_is_ever_found() {
        assert_eq!(find(Path::new("/proc"), "101".parse().unwrap()), Vec::<i32>::new());
        assert!(session_of(Path::new("/proc/self")).is_some());
    }
}
