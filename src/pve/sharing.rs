//! The GPUs of other running containers, by their confs and the notes of their rules.

use crate::device::DevicePath;
use crate::pve::cluster;
use crate::pve::conf::devices::passed_by_entries;
use crate::pve::conf::document::Document;
use crate::pve::conf::rules::opens_every_card;
use crate::pve::in_force::{self, InForce};
use crate::pve::passthrough::{self, DevLine};
use crate::sys::lock;
use crate::sys::look::Look;
use crate::sys::signal;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a change of a stopped container is waited for: `pct set` takes half a second.
const LOCKED: Duration = Duration::from_secs(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The GPU devices that one container's conf passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// Minors of the cards.
    pub gpus: BTreeSet<u32>,
    /// Minors of MIG capability nodes.
    pub caps: BTreeSet<u32>,
    /// The line of a device rule with which it may open every card.
    pub every: Option<usize>,
    /// Those of `gpus` that its conf does not pass any more: the rules of its start are
    /// in force until it is restarted.
    pub kept: BTreeSet<u32>,
    /// It does not run: somebody starts or changes it.
    pub locked: bool,
}

/// The GPUs that a running container's conf passes, by mount entries, `devN:`
/// lines and wide device rules, whoever wrote them. Pending lines do not count.
pub fn claim(conf: &Document) -> Claim {
    let lines = passthrough::now(conf);
    let by_lines = lines.iter().filter_map(DevLine::device);
    let mut claim = Claim { every: opens_every_card(conf), ..Claim::default() };
    for device in by_lines.chain(passed_by_entries(conf)) {
        match device {
            DevicePath::Gpu(minor) => claim.gpus.insert(minor),
            DevicePath::CapFile(minor) => claim.caps.insert(minor),
            _ => false,
        };
    }
    claim
}

impl Claim {
    /// Adds what it runs with, by the note of its rules.
    fn add(&mut self, noted: &InForce) {
        for device in &noted.devices {
            match device.path {
                DevicePath::Gpu(minor) if self.gpus.insert(minor) => drop(self.kept.insert(minor)),
                DevicePath::CapFile(minor) => drop(self.caps.insert(minor)),
                _ => {}
            }
        }
    }

    fn is_none(&self) -> bool {
        self.gpus.is_empty() && self.caps.is_empty() && self.every.is_none()
    }
}

/// The GPUs of the other containers of this node that run or start now. A lock that no
/// start holds is waited for, 3 seconds at most and until the deadline.
pub fn claims(look: &mut Look, except: Ctid, deadline: &Deadline) -> Vec<(Ctid, Claim)> {
    let table = look.at("/proc/locks");
    let locks = LazyCell::new(|| lock::Table::of(&table));
    let deadline = deadline.at_most(LOCKED);
    let mut claims = Vec::new();
    for ctid in cluster::containers(look).unwrap_or_default() {
        if ctid == except {
            continue;
        }
        let mut running = is_running(look, ctid);
        let locked = !running && is_being_started(look, ctid, || &*locks, &deadline);
        // What was waited for may have been its start.
        running |= !locked && is_running(look, ctid);
        if !running && !locked {
            continue;
        }
        let conf = look.bytes(&format!("/etc/pve/lxc/{ctid}.conf")).unwrap_or_default();
        let mut claim = Claim { locked, ..claim(&Document::from(conf)) };
        if let Some(noted) = in_force::seen(look, ctid).filter(|_| running) {
            claim.add(&noted);
        }
        if !claim.is_none() {
            claims.push((ctid, claim));
        }
    }
    claims
}

/// Whether a container runs: its cgroup has processes. Runs no program, which
/// would take a minute for a hundred containers.
pub fn is_running(look: &mut Look, ctid: Ctid) -> bool {
    let cgroup = format!("/sys/fs/cgroup/lxc/{ctid}");
    match look.text(&format!("{cgroup}/cgroup.events")) {
        Some(events) => events.lines().any(|line| line == "populated 1"),
        None => look.exists(&format!("/sys/fs/cgroup/devices/lxc/{ctid}")),
    }
}

/// Whether a task holds Proxmox's lock on its conf, as a start does from before
/// the hookscript until the container runs. Any change holds it too, and is soon over:
/// only one that is not counts, since nobody knows what it is.
fn is_being_started<'a>(
    look: &mut Look,
    ctid: Ctid,
    locks: impl FnOnce() -> &'a lock::Table,
    deadline: &Deadline,
) -> bool {
    let path = look.at(&format!("/run/lock/lxc/pve-config-{ctid}.lock"));
    if !path.exists() || !locks().is_held(&path) {
        return false;
    }
    loop {
        // Read anew: the first table may be old by now.
        let table = lock::Table::of(&look.at("/proc/locks"));
        if !table.is_held(&path) {
            return false;
        }
        let starts = table.taker_of(&path).is_some_and(|pid| is_start(look, ctid, pid));
        if starts || deadline.passed() || signal::sleep(PAUSE).is_err() {
            return true;
        }
    }
}

/// Whether a process is a start of this container, by the name of its task: `task
/// UPID:NODE:PID:PSTART:TIME:vzstart:101:root@pam:` (PVE::RESTEnvironment, `fork_worker`).
fn is_start(look: &mut Look, ctid: Ctid, pid: i32) -> bool {
    let name = look.text(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let task = name.starts_with("task UPID:");
    task && ["vzstart", "vzreboot"].iter().any(|kind| name.contains(&format!(":{kind}:{ctid}:")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_what_the_main_section_passes() {
        let conf = "arch: amd64\ndev0: /dev/nvidia3,mode=0666\ndev1: gid=44,path=/dev//nvidia4\n\
                    dev2: /dev/nvidia-caps/nvidia-cap13\n\
                    lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
                    lxc.mount.entry = //dev/nvidia1 /dev/nvidia1 none bind 0 0\n\
                    lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind 0 0\n\
                    lxc.mount.entry: /dev/nvidia-caps/nvidia-cap12 dev/nvidia-caps/nvidia-cap12 none bind 0 0\n\
                    # lxc.mount.entry: /dev/nvidia7 dev/nvidia7\ndescription: dev9: /dev/nvidia9\n\
                    [pve:pending]\ndelete: dev0\ndev6: /dev/nvidia6\n[snap]\nlxc.mount.entry: /dev/nvidia5 dev/nvidia5 none bind 0 0\n";
        let claim = claim(&Document::parse(conf.as_bytes()));
        assert_eq!(claim.gpus, BTreeSet::from([0, 1, 3, 4]));
        assert_eq!((claim.caps, claim.every), (BTreeSet::from([12, 13]), None));
    }

    #[test]
    fn a_privileged_container_claims_every_card_by_a_wide_rule() {
        for rule in ["c 195:* rwm", "a", "c *:* rwm"] {
            let conf = format!("memory: 5\nlxc.cgroup2.devices.allow: {rule}\n");
            assert_eq!(claim(&Document::parse(conf.as_bytes())).every, Some(2), "{rule}");
            let conf = format!("unprivileged: 1\n{conf}");
            assert_eq!(claim(&Document::parse(conf.as_bytes())), Claim::default(), "{rule}");
        }
    }

    #[test]
    fn a_start_is_seen_by_the_locks_of_the_same_root() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for directory in ["etc/pve/lxc", "run/lock/lxc", "proc"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        let put = |path: &str, text: &str| {
            crate::sys::replace::replace_own(&at(path), text.as_bytes(), 0o644).unwrap();
        };
        let claims_until =
            |deadline: &Deadline| super::claims(&mut Look::new(dir.path()), "101".parse().unwrap(), deadline);
        put("etc/pve/lxc/102.conf", "dev0: /dev/nvidia3\n");
        put("run/lock/lxc/pve-config-102.lock", "");
        let found = || claims(&mut Look::new(dir.path()), "101".parse().unwrap(), &Deadline::secs(0));
        let claims = || found().len();
        assert_eq!(claims(), 0, "no table of locks");
        let meta = std::fs::metadata(at("run/lock/lxc/pve-config-102.lock")).unwrap();
        let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
        let line =
            |inode: u64| format!("1: FLOCK  ADVISORY  WRITE 7 {major:02x}:{minor:02x}:{inode} 0 EOF\n");
        put("proc/locks", &line(meta.ino() + 1));
        assert_eq!(claims(), 0, "another file's");
        put("proc/locks", &line(meta.ino()));
        assert_eq!(claims(), 1);
        assert!(found()[0].1.locked, "it does not run");
        // A start is known by its task, and not waited for.
        std::fs::create_dir_all(at("proc/7")).unwrap();
        let begun = std::time::Instant::now();
        let until = |name: &str| {
            put("proc/7/cmdline", name);
            claims_until(&Deadline::after(Duration::from_millis(400)));
            begun.elapsed()
        };
        assert!(until("task UPID:pve1:0000A:0:0:vzstart:102:root@pam:\0") < Duration::from_millis(300));
        assert!(until("task UPID:pve1:0000A:0:0:vzstart:1021:root@pam:\0") > Duration::from_millis(300));
    }
}
