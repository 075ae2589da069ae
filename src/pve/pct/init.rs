//! The first process of a running container, known again by when it started.

use crate::sys::file;
use crate::types::Ctid;
use anyhow::Context as _;
use std::path::Path;

/// The first process of a running container; identifies one start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Its pid on the host.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of /proc/PID/stat).
    pub started: u64,
}

impl std::fmt::Display for Init {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.pid, self.started)
    }
}

impl std::str::FromStr for Init {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (pid, started) = text.split_once('@').context("no start time")?;
        Ok(Init { pid: pid.parse()?, started: started.parse()? })
    }
}

/// Below the control group of a container: where its first process is, as LXC
/// starts it, and where systemd moves itself.
pub const GROUPS: [&str; 2] = ["ns/cgroup.procs", "ns/init.scope/cgroup.procs"];
/// So much of a list of processes is read, in bytes.
const MOST: u64 = 4096;

impl Init {
    /// That of a container, by its control group: a start that has nothing to do runs
    /// no program. `None` where that does not show it.
    pub fn of(ctid: Ctid) -> Option<Init> {
        let group = Path::new("/sys/fs/cgroup/lxc").join(ctid.to_string());
        let lists = GROUPS.iter().filter_map(|list| file::beginning(&group.join(list), MOST).ok());
        let pids: Vec<i32> = lists.flat_map(|list| pids(&String::from_utf8_lossy(&list))).collect();
        pids.into_iter().find_map(|pid| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
            let started = start_time(&read("stat")?)?;
            is_first(&read("status")?).then_some(Init { pid, started })
        })
    }

    /// Whether this process lives, so the container has run since then. Runs no
    /// program.
    pub fn lives(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        start_time(&stat) == Some(self.started) && !has_ended(&stat)
    }
}

/// The processes of a list; the last line may be cut, and 0 is one of another PID
/// namespace.
fn pids(list: &str) -> Vec<i32> {
    let whole = list.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Whether a process is the first one of a PID namespace directly below ours, by
/// `NSpid` in its /proc/PID/status: one of a namespace that the container made is
/// deeper.
fn is_first(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    ids.split_ascii_whitespace().skip(1).eq(["1"])
}

/// Field 22 of /proc/PID/stat; the name in field 2 may contain blanks.
pub fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether it is a zombie, by field 3: the container has ended, and its monitor
/// has not looked yet. While it has other threads, field 20, it lives on without
/// its first one.
fn has_ended(stat: &str) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_ascii_whitespace();
    matches!(fields.next(), Some("Z" | "X")) && matches!(fields.nth(16), Some("0" | "1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_start_time_is_field_22_whatever_the_name() {
        let stat = "7 (a ) (b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn the_first_process_is_that_of_the_namespace_below_ours() {
        for (ids, first) in
            [("77\t1", true), ("77", false), ("1", false), ("77\t2", false), ("77\t9\t1", false)]
        {
            assert_eq!(is_first(&format!("Name:\tinit\nNSpid:\t{ids}\nNSpgid:\t1\n")), first, "{ids}");
        }
        assert_eq!(pids("0\n77\n78\n7"), [77, 78]);
    }

    #[test]
    fn a_first_process_is_known_again_while_it_lives() {
        let pid = std::process::id() as i32;
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let own = Init { pid, started: start_time(&stat).unwrap() };
        let read: Init = own.to_string().parse().unwrap();
        assert!(read == own && own.lives());
        assert!(!Init { started: own.started + 1, ..own }.lives());
        let stat = |state: &str, threads: u32| format!("7 (Z) Z) {state}{} {threads} 0 9", " 1".repeat(16));
        assert!(has_ended(&stat("Z", 1)) && !has_ended(&stat("Z", 2)) && !has_ended(&stat("S", 1)));
        #[allow(clippy::disallowed_methods)] // a process that has ended
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let path = format!("/proc/{}/stat", child.id());
        while !has_ended(&std::fs::read_to_string(&path).unwrap()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!("7".parse::<Init>().is_err() && "7@x".parse::<Init>().is_err());
    }
}
