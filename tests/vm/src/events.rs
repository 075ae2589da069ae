//! A host whose process 1 is systemd and whose events udev gets, with what the package installs: the module is loaded, and
//! the kernel's own event leads to nodes and driver files. No container is there.
#![allow(clippy::disallowed_methods)] // the machine ends with this program, and a limit is set to it from outside

use crate::version;
use phoenix_lab::cases::{Outcome, Run};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const UNIT: &str = "phoenix-nvidia-prepare.service";
const NODES: [&str; 5] =
    ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
/// How long the unit may take from the event on.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether this machine is that host.
pub fn here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// All of its cases, each after what the one before did.
pub fn all(run: &Run) {
    let cases: [(&str, fn()); 3] = [
        ("before the module is loaded nothing is made", before),
        ("udev's event of the loaded module has nodes made and the driver copied", loaded),
        ("a reload does it again", reloaded),
    ];
    for (name, act) in cases {
        let held = run.case(&format!("systemd: {name}"), || {
            act();
            Outcome::Passed
        });
        if !held {
            return;
        }
    }
}

/// What a line of shell prints.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("a shell");
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What systemd calls the last run of the unit.
fn last() -> String {
    sh(&format!("systemctl show -P InvocationID {UNIT}"))
}

fn before() {
    sh("systemctl is-active systemd-udevd.service && udevadm settle");
    assert_eq!(last(), "");
    assert!(NODES.iter().all(|node| !Path::new(node).exists()));
}

/// Loads the module, and waits for a run of the unit.
fn load() {
    let before = last();
    sh("modprobe nvidia");
    let deadline = Instant::now() + LIMIT;
    let ended = || last() != before && sh(&format!("systemctl show -P SubState {UNIT}")) == "dead";
    while !ended() {
        let all = || sh(&format!("systemctl status {UNIT}; udevadm info /sys/bus/pci/drivers/nvidia; true"));
        assert!(Instant::now() < deadline, "{}", all());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(sh(&format!("systemctl show -P Result {UNIT}")), "success");
    for node in NODES {
        sh(&format!("exec 3<>{node}"));
    }
}

fn loaded() {
    load();
    // Where containers get it from: in the mount namespace of the host, which udev's own children do not share.
    let mounts = std::fs::read_to_string("/proc/1/mountinfo").expect("the mounts of the host");
    assert!(mounts.contains(&format!(" /run/phoenix-nvidia/driver/{} ", version())), "{mounts}");
}

fn reloaded() {
    sh(&format!("modprobe -r nvidia && rm {}", NODES.join(" ")));
    load();
}
