//! The two searches for processes of a killed install: which came into the
//! container from the host, and which of them have the mark.

use crate::sys::look::{Look, Seen, Walk};
use crate::types::Ctid;
use serde::{Deserialize, Serialize};

/// The variable that marks the processes of an install.
const MARK: &str = "PHOENIX_NVIDIA_INSTALL";
/// The containers' control groups, in the unified and in the hybrid hierarchy.
const GROUPS: [&str; 4] = [
    "/sys/fs/cgroup/lxc",
    "/sys/fs/cgroup/unified/lxc",
    "/sys/fs/cgroup/systemd/lxc",
    "/sys/fs/cgroup/devices/lxc",
];
/// A container can create any number of control groups.
const MOST_GROUPS: usize = 2_000;
/// And of processes.
const MOST_PROCESSES: usize = 20_000;

/// The variable that marks what an install starts in a container.
pub fn mark(ctid: Ctid) -> (&'static str, String) {
    (MARK, ctid.to_string())
}

/// The processes that came into a container from outside.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entered {
    /// The container.
    pub ctid: Ctid,
}

impl Walk for Entered {
    const NAME: &'static str = "entered";

    fn walk(&self, look: &mut Look<'_>) {
        self.find(look);
    }
}

impl Entered {
    /// Their numbers on the host.
    pub fn find(&self, look: &mut Look<'_>) -> Vec<i32> {
        let mut pids = processes(look, self.ctid);
        pids.retain(|pid| {
            let status = look.head(&format!("/proc/{pid}/status")).value();
            status.is_some_and(|status| entered(&String::from_utf8_lossy(&status)))
        });
        pids
    }
}

/// All processes in a container's control group and below, by their numbers on
/// the host: LXC puts the container's own into `ns`, and those from outside into
/// `.lxc` there.
pub fn processes(look: &mut Look<'_>, ctid: Ctid) -> Vec<i32> {
    let own = GROUPS.iter().map(|group| format!("{group}/{ctid}"));
    let Some(own) = own.into_iter().find(|group| look.exists(group)) else {
        if look.problems.is_empty() {
            look.problems.push("no control group below /sys/fs/cgroup/lxc".to_owned());
        }
        return Vec::new();
    };
    let (mut pids, mut waiting, mut seen) = (Vec::new(), vec![own], 0);
    while let Some(group) = waiting.pop() {
        seen += 1;
        if seen > MOST_GROUPS || pids.len() > MOST_PROCESSES {
            look.problems.push("too many control groups or processes".to_owned());
            break;
        }
        // A group that is being removed has none.
        let procs = look.head(&format!("{group}/cgroup.procs")).value().unwrap_or_default();
        let numbers = String::from_utf8_lossy(&procs);
        pids.extend(numbers.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        let below = look.directories(&group).unwrap_or_default();
        waiting.extend(below.into_iter().map(|name| format!("{group}/{name}")));
    }
    pids
}

/// Whether a process's session began outside of its container, from
/// /proc/PID/status (proc(5)): `NSsid` is the session's number on the host, then
/// in the container, where 0 stands for one outside.
fn entered(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("NSsid:"));
    line.and_then(|line| line.split_ascii_whitespace().nth(1)) == Some("0")
}

/// Which of these processes an install in a container has started.
#[derive(Debug, Serialize, Deserialize)]
pub struct Marked {
    /// The container.
    pub ctid: Ctid,
    /// The processes, by their numbers on the host.
    pub pids: Vec<i32>,
}

impl Walk for Marked {
    const NAME: &'static str = "marked";

    fn walk(&self, look: &mut Look<'_>) {
        for pid in &self.pids {
            self.of(look, *pid);
        }
    }
}

impl Marked {
    /// Whether this process is: still in the container, and with the mark.
    pub fn of(&self, look: &Look<'_>, pid: i32) -> Seen<bool> {
        let text = |name: &str| {
            let bytes = look.head(&format!("/proc/{pid}/{name}"));
            bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        };
        match (text("cgroup"), text("status")) {
            (Seen::Is(group), Seen::Is(status)) if is_of(&group, self.ctid) && entered(&status) => {}
            (Seen::Unseen(why), _) | (_, Seen::Unseen(why)) => return Seen::Unseen(why),
            _ => return Seen::Is(false),
        }
        look.head(&format!("/proc/{pid}/environ")).map(|environ| marked(&environ, self.ctid))
    }
}

/// Whether a process is in the container's control group, from
/// /proc/PID/cgroup: `0::/lxc/101/ns/.lxc`.
pub fn is_of(groups: &str, ctid: Ctid) -> bool {
    let own = format!("/lxc/{ctid}");
    groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
        path.strip_prefix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn marked(environ: &[u8], ctid: Ctid) -> bool {
    let mut values = environ.split(|b| *b == 0).filter_map(|variable| {
        let value = variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"=")?;
        // Earlier versions append a session.
        value.split(|b| *b == b':').next()
    });
    values.any(|value| value == ctid.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctid() -> Ctid {
        "101".parse().unwrap()
    }

    #[test]
    fn only_this_containers_mark_counts() {
        for ours in [&b"A=1\0PHOENIX_NVIDIA_INSTALL=101\0B=2\0"[..], b"PHOENIX_NVIDIA_INSTALL=101:77\0"] {
            assert!(marked(ours, ctid()));
        }
        for other in [
            &b"PHOENIX_NVIDIA_INSTALL=1011\0"[..],
            b"X=PHOENIX_NVIDIA_INSTALL=101\0",
            b"",
            b"PHOENIX_NVIDIA_INSTALL",
        ] {
            assert!(!marked(other, ctid()));
        }
    }

    #[test]
    fn only_a_session_from_outside_of_the_container_counts() {
        assert!(entered("Name:\tNSsid:\t1\t1\nNSpid:\t70\t7\nNSsid:\t4711\t0\n"));
        // Docker inside: what counts is what the container itself sees.
        assert!(entered("NSsid:\t4711\t0\t0\n") && !entered("NSsid:\t4711\t12\t0\n"));
        assert!(!entered("NSsid:\t4711\t12\n") && !entered("NSsid:\t4711\n") && !entered(""));
    }

    #[test]
    fn only_the_containers_own_control_group_counts() {
        for own in ["0::/lxc/101\n", "0::/lxc/101/ns/.lxc\n", "9:devices:/lxc/101/ns\n8:x:/\n"] {
            assert!(is_of(own, ctid()), "{own}");
        }
        for other in ["0::/lxc/1011/ns\n", "0::/lxc.monitor/101\n", "0::/\n", "0::/x/lxc/101\n", ""] {
            assert!(!is_of(other, ctid()), "{other}");
        }
    }

    #[test]
    fn the_whole_of_the_control_group_is_found_and_nothing_else_is_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::sys::replace::replace_own(&path, text.as_bytes(), 0o644).unwrap();
        };
        let group = "sys/fs/cgroup/lxc/101";
        write(&format!("{group}/cgroup.procs"), "");
        write(&format!("{group}/ns/init.scope/cgroup.procs"), "7\n");
        write(&format!("{group}/ns/.lxc/cgroup.procs"), "8\n0\n9\n");
        write("sys/fs/cgroup/lxc/102/ns/cgroup.procs", "10\n");
        write("proc/7/status", "NSsid:\t7\t1\n");
        for pid in [8, 9, 10] {
            write(&format!("proc/{pid}/status"), "NSsid:\t4711\t0\n");
        }
        let mut look = Look::new(root.path());
        assert_eq!(Entered { ctid: ctid() }.find(&mut look), [8, 9]);
        assert_eq!(Entered { ctid: "103".parse().unwrap() }.find(&mut look), [0; 0]);
        assert_eq!(look.problems, ["no control group below /sys/fs/cgroup/lxc"]);
    }
}
