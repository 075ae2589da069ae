//! However a lab ends, nothing of it stays; and labs don't see each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)] // helpers of tests may panic, and run programs
#![allow(clippy::explicit_write, clippy::zombie_processes)] // past the harness' capture; waited for in a loop
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use phoenix_lab::{Lab, Rootfs, Signal};

const CHILD: &str = "PHOENIX_LAB_TEST_CHILD";

/// Where this machine shows the unified control groups.
fn cgroups() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let found = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    PathBuf::from(found.and_then(|line| line.split(' ').nth(1)).unwrap_or("/sys/fs/cgroup"))
}

/// The control groups of the lab of one holder.
fn of_holder(pid: i32) -> Vec<String> {
    let prefix = format!("phoenix-lab.{pid}.");
    let entries = std::fs::read_dir(cgroups()).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

fn alive(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[track_caller]
fn soon(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not so after 20 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

fn holder(lab: &Lab) -> i32 {
    parent(lab.init_pid()).expect("the lab's holder")
}

/// A running container in a lab, and the pid of its process 1 as seen from here.
fn running(lab: &Lab) -> i32 {
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["pct", "start", "101"]).ok();
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        // This lab's, not another's: LXC's monitor above it shares the lab's own namespace.
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/uts")).ok();
        (line.contains("/sbin/init") && namespace(parent(pid)?) == namespace(lab.init_pid())).then_some(pid)
    });
    processes.max().expect("the container's process 1")
}

#[test]
fn a_dropped_lab_leaves_no_process_and_no_control_group() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let (init, holder) = (lab.init_pid(), holder(&lab));
    let inside = running(&lab);
    assert_eq!(of_holder(holder).len(), 1);
    drop(lab);
    assert!(!alive(init) && !alive(inside));
    assert!(of_holder(holder).is_empty());
}

#[test]
fn a_panicking_test_leaves_nothing() {
    let Some(lab) = Lab::builder().start() else { return };
    let (init, holder) = (lab.init_pid(), holder(&lab));
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        lab.run(["pct", "status", "101"]).ok();
    }));
    let told = *failed.unwrap_err().downcast::<String>().unwrap();
    for part in ["expected exit code 0", "$ pct status 101", "exit status: 2", "101.conf' does not exist"] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert!(!alive(init));
    assert!(of_holder(holder).is_empty());
}

/// The holder is the one that cleans up: killed, it leaves its control group to the next lab.
#[test]
fn a_lab_whose_holder_was_killed_ends_and_is_cleaned_up_by_the_next() {
    let Some(lab) = Lab::builder().start() else { return };
    let inside = running(&lab);
    let holder = holder(&lab);
    Command::new("kill").args(["-9", &holder.to_string()]).status().unwrap();
    soon("the lab's processes are gone", || !alive(lab.init_pid()) && !alive(inside));
    drop(lab);
    soon("the next lab has removed the control group", || {
        drop(Lab::builder().start());
        of_holder(holder).is_empty()
    });
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_that_holds_a_lab() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let Some(lab) = Lab::builder().start() else { return };
    let inside = running(&lab);
    let holder = holder(&lab);
    writeln!(std::io::stderr(), "child {} {holder} {inside}", lab.init_pid()).unwrap();
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
fn a_killed_test_takes_its_lab_along() {
    let Some(lab) = Lab::builder().start() else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ends::child_that_holds_a_lab", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line =
        lines.find_map(|line| Some(line.ok()?.strip_prefix("child ")?.to_owned())).expect("the child's lab");
    let pids: Vec<i32> = line.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    soon("the lab of a killed test is gone", || !pids.iter().any(|pid| alive(*pid)));
    assert!(of_holder(pids[1]).is_empty());
    drop(lab);
}

#[test]
fn labs_of_the_same_numbers_don_t_meet() {
    let labs: Vec<Lab> = (0..3).map_while(|_| Lab::builder().gpus(1).start()).collect();
    for (number, lab) in (0..).zip(&labs) {
        let ct = lab.create(101, Rootfs::Busybox.unprivileged().network());
        lab.run(["pct", "start", "101"]).ok();
        ct.write("/root/number", format!("{number}"));
        lab.write("/etc/pve/number", format!("{number}"));
    }
    for (number, lab) in (0..).zip(&labs) {
        let ct = lab.container(101);
        assert_eq!(ct.exec(["cat", "/root/number"]).ok().stdout, format!("{number}"));
        assert_eq!(lab.read("/etc/pve/number"), format!("{number}"));
        ct.exec(["ping", "-c", "1", "-W", "2", "mirror.lab"]).ok();
    }
    if let [first, second, ..] = labs.as_slice() {
        first.run(["pct", "stop", "101"]).ok();
        assert!(second.container(101).running());
    }
}

#[test]
fn a_command_over_its_time_is_killed_with_its_group_and_told() {
    let Some(lab) = Lab::builder().start() else { return };
    let endless = lab
        .command("sh")
        .args(["-c", "echo begun; sleep 301 & sleep 301"])
        .timeout(Duration::from_millis(500));
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| endless.run()));
    let told = *failed.unwrap_err().downcast::<String>().unwrap();
    assert!(told.contains("not done within 500ms") && told.contains("begun"), "{told}");
    soon("its processes are gone", || {
        !lab.leftovers().processes.iter().any(|process| process == "sleep 301")
    });
}

#[test]
fn what_a_command_leaves_is_counted() {
    let Some(lab) = Lab::builder().start() else { return };
    let before = lab.leftovers();
    assert!(lab.leftovers().since(&before).none());
    let sleeper = lab.command("sleep").arg("77").spawn();
    lab.sh("mkdir -p /tmp/at && mount -t tmpfs none /tmp/at && touch /var/tmp/left").ok();
    soon("the sleeper runs", || sleeper.pid().is_some());
    soon("it is counted", || !lab.leftovers().since(&before).processes.is_empty());
    let left = lab.leftovers().since(&before);
    assert_eq!(left.processes, ["sleep 77"]);
    assert_eq!(left.mounts, ["/tmp/at"]);
    assert_eq!(left.files, ["/var/tmp/left"]);
    sleeper.signal(Signal::SIGKILL);
}
