//! The conf's care seen from outside: the program itself, in a lab.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use crate::conf_support;
use crate::lab;

use conf_support::pairs;
use lab::{CONF, CONTROL, Host, PVE_LOCK, Served};
use phoenix_lab::{Command, Output};
use phoenix_nvidia::pve::conf::document::{Document, Form};
use std::time::Duration;

fn pre_start(host: &Host, assignment: &str) -> Command {
    let command = host.lab.command("phoenix-nvidia").args(["101", "pre-start"]);
    command.env("GPU_ASSIGNMENT", assignment).env("START_POLICY", "fail")
}

fn found(host: &Host) -> Vec<String> {
    pairs(&Document::parse(host.lab.read(CONF).as_bytes()))
}

/// A lock that a `sleep` holds, in the background.
fn hold(host: &Host, path: &str) -> phoenix_lab::Running {
    let holder = host.lab.command("flock").args(["--no-fork", path, "sleep", "120"]);
    let holder = holder.timeout(Duration::from_secs(180)).spawn();
    let taken = format!("while flock --nonblock {path} true; do sleep 0.01; done");
    host.lab.sh(&taken).ok();
    holder
}

/// That a call ended at its deadline of 10 s and told who holds the file.
fn busy(output: Output, file: &str, code: i32) {
    let output = output.code(code).says(&format!("{file} is locked by process")).says("(sleep)");
    assert!((9..40).contains(&output.took.as_secs()), "{output}");
}

#[test]
fn a_held_lock_of_proxmox_names_its_holder_and_the_call_ends_at_its_deadline() {
    let Some(host) = Host::start(1, Served::Plainly) else { return };
    let before = host.lab.read(CONF);
    let _held = hold(&host, PVE_LOCK);
    // Both at once: each waits for itself.
    let strict = pre_start(&host, "0").spawn();
    let lenient = pre_start(&host, "0").env("START_POLICY", "continue").spawn();
    busy(strict.wait(), PVE_LOCK, 4);
    busy(lenient.wait(), PVE_LOCK, 0);
    assert_eq!(host.lab.read(CONF), before);
}

#[test]
fn a_held_lock_on_the_conf_names_its_holder_and_the_call_ends_at_its_deadline() {
    let Some(host) = Host::start(1, Served::AsPmxcfs) else { return };
    let before = host.lab.read(CONF);
    let _held = hold(&host, CONF);
    busy(pre_start(&host, "0").run(), CONF, 4);
    assert_eq!(host.lab.read(CONF), before);
}

#[test]
fn what_needs_no_write_needs_no_lock() {
    let Some(host) = Host::start(1, Served::Plainly) else { return };
    pre_start(&host, "0").run().ok();
    let _proxmox = hold(&host, PVE_LOCK);
    let _ours = hold(&host, CONF);
    let output = pre_start(&host, "0").run().ok();
    assert!(output.took < Duration::from_secs(9), "{output}");
}

#[test]
fn under_a_lock_that_an_ancestor_holds_the_work_is_done() {
    let Some(host) = Host::start(1, Served::AsPmxcfs) else { return };
    // As in a task: the holder is the caller's caller.
    let line = format!("flock {PVE_LOCK} sh -c 'phoenix-nvidia 101 pre-start; exit $?'");
    let output = host.lab.command("sh").args(["-c", &line]).env("GPU_ASSIGNMENT", "0").run().ok();
    assert!(output.took < Duration::from_secs(9), "{output}");
    assert_eq!(found(&host).len(), 5);
}

#[test]
fn without_quorum_a_start_that_needs_nothing_succeeds_and_another_says_why() {
    let Some(host) = Host::start(2, Served::AsPmxcfs) else { return };
    pre_start(&host, "0").run().ok();
    let before = host.lab.read(CONF);
    host.lab.write(format!("{CONTROL}/no-quorum"), "");
    pre_start(&host, "0").run().ok();
    pre_start(&host, "0,1").run().code(4).says("no quorum").says("pvecm status");
    assert_eq!(host.lab.read(CONF), before);
    host.lab.sh(&format!("mv {CONTROL}/no-quorum {CONTROL}/full")).ok();
    pre_start(&host, "0,1").run().code(4).says("no space left");
    assert_eq!((host.lab.read(CONF), host.temp_files()), (before, String::new()));
    host.lab.sh(&format!("rm {CONTROL}/full")).ok();
    pre_start(&host, "0,1").run().ok();
    assert_eq!(found(&host).len(), 6);
}

#[test]
fn what_pct_set_rewrites_is_recognised_as_complete() {
    for served in [Served::Plainly, Served::AsPmxcfs] {
        let Some(host) = Host::start(2, served) else { return };
        let conf = format!("#note\n\n{}\n# more\n\n[snap]\nmemory: 1\n", host.lab.read(CONF).trim_end());
        host.lab.write(CONF, conf.replace("memory:", "lxc.cap.drop = sys_time\nmemory:"));
        pre_start(&host, "0,1").run().ok();
        host.lab.run(["pct", "set", "101", "--memory", "300"]).ok();
        let (text, inode) = (host.lab.read(CONF), host.lab.inode(CONF));
        assert!(text.contains("lxc.cap.drop: sys_time") && text.contains("[snap]"), "{text}");
        pre_start(&host, "0,1").run().ok();
        assert_eq!((host.lab.read(CONF), host.lab.inode(CONF)), (text, inode));
        assert_eq!(found(&host).len(), 6);
    }
}

#[test]
fn a_conf_that_belongs_to_another_operation_is_not_edited_by_hand() {
    let Some(host) = Host::start(1, Served::Plainly) else { return };
    let conf = format!("lock: backup\n{}", host.lab.read(CONF));
    host.lab.write(CONF, &conf);
    let by_hand = host.lab.command("phoenix-nvidia").arg("101").env("GPU_ASSIGNMENT", "0");
    by_hand.run().code(4).says("(backup)").says("pct unlock 101");
    assert_eq!(host.lab.read(CONF), conf);
}

#[test]
fn a_container_on_another_node_is_named_with_its_node() {
    let Some(host) = Host::start(1, Served::AsPmxcfs) else { return };
    host.lab.write("/etc/pve/nodes/pve2/lxc/102.conf", host.lab.read(CONF));
    let by_hand = host.lab.command("phoenix-nvidia").arg("102").env("GPU_ASSIGNMENT", "0");
    by_hand.run().code(3).says("on node pve2");
}

#[test]
fn a_drm_node_of_ours_comes_in_under_the_kernels_path() {
    let Some(host) = Host::start(1, Served::Plainly) else { return };
    host.lab
        .sh("d=/run/phoenix-nvidia/dev; mkdir -p $d; mount -t tmpfs x $d; mkdir $d/dri; mknod -m 666 $d/dri/card7 c 226 7")
        .ok();
    let wanted = [conf_support::wanted("/dev/dri/card7", 226, 7)];
    let conf = Document::parse(host.lab.read(CONF).as_bytes());
    let edit = phoenix_nvidia::pve::conf::reconcile::reconcile(&conf, &wanted, &[], Form::Pve).unwrap();
    host.lab.write(CONF, edit.document.as_bytes());
    host.lab.run(["pct", "start", "101"]).ok();
    let ct = host.lab.container(101);
    let opened = ct.open_node("/dev/dri/card7");
    for not in [phoenix_lab::Errno::ENOENT, phoenix_lab::Errno::EPERM, phoenix_lab::Errno::EACCES] {
        assert_ne!(opened, Err(not));
    }
    ct.exec(["ls", "-l", "/dev/dri/card7"]).ok().says("226,");
}

#[test]
fn a_clone_of_a_template_inherits_what_was_configured() {
    let Some(host) = Host::start(1, Served::Plainly) else { return };
    let conf = format!("{}template: 1\nlxc.environment: GPU_ASSIGNMENT=0\n", host.lab.read(CONF));
    host.lab.write(CONF, &conf);
    host.lab.run(["phoenix-nvidia", "101", "pre-start"]).ok();
    assert_eq!(found(&host).len(), 5);
    host.lab.run(["pct", "clone", "101", "102", "--full"]).ok();
    let clone = host.lab.read("/etc/pve/lxc/102.conf");
    assert_eq!(pairs(&Document::parse(clone.as_bytes())).len(), 5, "{clone}");
    // Only what it is shown of /proc is its own; from then on nothing is written.
    host.lab.run(["phoenix-nvidia", "102", "pre-start"]).ok();
    assert_eq!(host.lab.read("/etc/pve/lxc/102.conf"), clone.replace("/proc/101/", "/proc/102/"));
    let inode = host.lab.inode("/etc/pve/lxc/102.conf");
    host.lab.run(["phoenix-nvidia", "102", "pre-start"]).ok();
    assert_eq!(host.lab.inode("/etc/pve/lxc/102.conf"), inode);
}

#[test]
fn pre_start_with_nothing_to_change_is_a_few_looks() {
    for served in [Served::Plainly, Served::AsPmxcfs] {
        let Some(host) = Host::start(1, served) else { return };
        let conf = format!("{}lxc.environment: GPU_ASSIGNMENT=0\n", host.lab.read(CONF));
        host.lab.write(CONF, conf);
        host.lab.write("/var/lib/lxc/101/config", "lxc.arch = amd64\n");
        host.lab.run(["phoenix-nvidia", "101", "pre-start"]).ok();
        let inodes = || [CONF, "/var/lib/lxc/101/config"].map(|path| host.lab.inode(path));
        let before = inodes();
        host.lab.sh("strace -f -o /tmp/file -e trace=%file phoenix-nvidia 101 pre-start").ok();
        host.lab.sh("strace -f -o /tmp/all phoenix-nvidia 101 pre-start").ok();
        assert_eq!(inodes(), before);

        let trace = host.lab.read("/tmp/file");
        let calls: Vec<&str> = trace.lines().filter(|call| call.contains('(')).collect();
        // Of each process those after its loader's.
        let pid = |call: &str| call.split(' ').next().unwrap_or_default().to_owned();
        let loader = |of: &str| calls.iter().rposition(|call| pid(call) == of && call.contains(".so."));
        let own = |(n, call): &(usize, &&str)| loader(&pid(call)).is_none_or(|loader| *n > loader);
        let calls: Vec<&str> = calls.iter().enumerate().filter(own).map(|(_, call)| *call).collect();
        println!("{served:?}: {} file system calls after the loader", calls.len());
        assert!(calls.len() <= 50, "{} calls:\n{}", calls.len(), calls.join("\n"));

        // One child, which looks at what may never answer; no lock, nothing opened for writing, nothing renamed.
        let all = host.lab.read("/tmp/all");
        for bad in ["fork(", "flock(", "O_WRONLY", "O_RDWR", "O_CREAT", "rename", "unlink", "chmod"] {
            assert!(!all.contains(bad), "{bad}:\n{all}");
        }
        let children = all.lines().filter(|call| call.contains("clone") && call.contains("SIGCHLD"));
        assert_eq!(children.count(), 1, "{all}");
        let started: Vec<&str> = all.lines().filter(|call| call.contains("execve(")).collect();
        assert_eq!(started.len(), 2, "{started:?}");
        assert!(started[1].contains("\"/proc/self/exe\", [\"phoenix-nvidia\", \"look\"]"), "{started:?}");
    }
}
