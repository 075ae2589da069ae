//! What is in use, locked, or being installed.
use crate::common::{PROGRAM, agrees, apply, assign, running, wait};
use crate::support::setting;

use phoenix_lab::{Errno, Lab, Rootfs, Running, Spec};
use std::time::{Duration, Instant};

/// A process inside that holds a node, under a name of its own choice. No driver is behind the nodes of a lab, so they
/// cannot be opened: a descriptor of the path alone shows the same number.
fn holder(lab: &Lab, node: &str) -> Running {
    let script = format!(
        "use Fcntl; $0 = \"x\\e[1m\"; open my $c, '>', '/proc/self/comm'; syswrite $c, \"cuda\\e[1m\"; \
         sysopen(my $f, '{node}', 010000000) or die $!; $| = 1; print \"held $$\\n\"; sleep 600"
    );
    let running = lab.container(101).command("perl").args(["-e", &script]).spawn();
    wait(|| running.so_far().contains("held"), || running.so_far());
    running
}

fn a_card_in_use(spec: Spec) {
    let Some(lab) = running(2, spec, "0,1") else { return };
    let ct = lab.container(101);
    let process = holder(&lab, "/dev/nvidia1");
    // Nodes of all cards prove nothing, and neither does another card.
    let _others =
        [holder(&lab, "/dev/nvidiactl"), holder(&lab, "/dev/nvidia-uvm"), holder(&lab, "/dev/nvidia0")];
    let pids = lab.sh("grep -l '^cuda' /run/lab/proc/[0-9]*/comm | wc -l").ok().stdout;
    assert_eq!(pids.trim(), "4");
    assign(&lab, "0");
    let before = (lab.conf(101), lab.generated(101), lab.inode("/etc/pve/lxc/101.conf"));
    let refused = apply(&lab, &[]).code(4).says("GPU 1 is in use in container 101: process ");
    let refused = refused
        .says("(cuda")
        .says("fix: end what uses them")
        .says("phoenix-nvidia apply 101 --force")
        .says_not("\u{1b}");
    assert_eq!(refused.stderr.matches("process ").count(), 1, "{refused}");
    let pid = refused
        .stderr
        .split("process ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or_default()
        .to_owned();
    lab.sh(&format!("readlink /proc/{pid}/fd/* | grep -q nvidia1")).ok();
    assert_eq!((lab.conf(101), lab.generated(101), lab.inode("/etc/pve/lxc/101.conf")), before);
    agrees(&lab, &[0, 1], 2);
    lab.run([PROGRAM, "plan", "101"])
        .code(10)
        .says("apply would refuse: GPU 1 is in use in container 101: process");

    apply(&lab, &["--force"]).ok().says("taken away all the same").says("take away /dev/nvidia1");
    agrees(&lab, &[0], 2);
    // Its descriptor stays, and nothing new opens by it.
    ct.sh("stat -L -c %t:%T /proc/[0-9]*/fd/* 2>/dev/null | grep -qx c3:1").ok();
    let again = "for f in /proc/[0-9]*/fd/*; do [ \"$(stat -L -c %t:%T $f 2>/dev/null)\" != c3:1 ] || exec 3<$f; done";
    let opened = ct.sh(again);
    assert_ne!(opened.exit(), Some(0), "{opened}");
    opened.says("not permitted");
    drop(process);
}

#[test]
fn a_card_in_use_stays_unless_forced_in_a_privileged_container() {
    a_card_in_use(Rootfs::Debian12.privileged());
}

#[test]
fn a_card_in_use_stays_unless_forced_in_an_unprivileged_container() {
    a_card_in_use(Rootfs::Debian12.unprivileged());
}

/// What computes through another process has no descriptor of the card: an MPS server's clients.
#[test]
fn a_process_that_nvidia_smi_lists_uses_the_card() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0,1") else { return };
    let ct = lab.container(101);
    let _process = ct.command("sleep").arg("600").spawn();
    wait(|| ct.sh("pidof sleep").exit() == Some(0), String::new);
    let uuid = lab.nvidia().uuid(1);
    // Every process of the node, with the card.
    let list = format!(
        "#!/bin/sh\nfor p in /proc/[0-9]*; do grep -q sleep $p/comm && echo \"${{p#/proc/}}, {uuid}\"; done\nexit 0\n"
    );
    lab.replace_program("/usr/bin/nvidia-smi", list);
    assign(&lab, "0");
    apply(&lab, &[]).code(4).says("GPU 1 is in use in container 101: process").says("(sleep)");
    // One that hangs holds nobody.
    lab.replace_program("/usr/bin/nvidia-smi", "#!/bin/sh\nexec sleep 600\n");
    let begun = Instant::now();
    apply(&lab, &[]).ok().says("take away /dev/nvidia1");
    assert!(begun.elapsed() < Duration::from_secs(20));
    agrees(&lab, &[0], 2);
}

/// Between the first look and the moment in which nobody can open the card any more somebody may.
#[test]
fn a_card_that_is_opened_just_before_its_rule_goes_stays() {
    let Some(lab) = running(2, Rootfs::Debian12.privileged(), "0,1") else { return };
    lab.sh("mv /usr/bin/lxc-cgroup /root/lxc-cgroup").ok();
    let script = "#!/bin/sh\ncase \"$*\" in *'deny c 195:1 '*) : >/run/denies; until [ -e /run/held ]; do sleep 0.02; done;; esac\n\
        exec /root/lxc-cgroup \"$@\"\n";
    lab.replace_program("/usr/bin/lxc-cgroup", script);
    assign(&lab, "0");
    let conf = lab.conf(101);
    let applied = lab.command(PROGRAM).args(["apply", "101"]).spawn();
    wait(|| lab.exists("/run/denies"), || applied.so_far());
    let process = holder(&lab, "/dev/nvidia1");
    lab.write("/run/held", "");
    let out = applied.wait().code(4).says("GPU 1 is in use in container 101: process").says("(cuda");
    out.says("rolled back: the device rule of /dev/nvidia1").says_not("rolled back: take away");
    assert_eq!(lab.conf(101), conf);
    agrees(&lab, &[0, 1], 2);
    drop(process);
    let free = "readlink /proc/[0-9]*/fd/* 2>/dev/null | grep -q nvidia1";
    wait(|| lab.container(101).sh(free).exit() != Some(0), String::new);
    apply(&lab, &[]).ok().says("take away /dev/nvidia1");
    agrees(&lab, &[0], 2);
}

#[test]
fn a_locked_container_is_left_alone() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
    assign(&lab, "0,1");
    let conf = lab.conf(101).replacen("memory:", "lock: backup\nmemory:", 1);
    lab.write("/etc/pve/lxc/101.conf", &conf);
    apply(&lab, &[]).code(4).says("locked by another operation (backup)").says("pct unlock 101");
    assert_eq!(lab.conf(101), conf);
    assert_eq!(lab.container(101).open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    lab.run(["pct", "unlock", "101"]).ok();
    apply(&lab, &[]).ok();
    agrees(&lab, &[0, 1], 2);
}

/// An install that ends soon is waited for.
#[test]
fn an_install_under_way_is_waited_for() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
    assign(&lab, "0,1");
    let lock = "/run/lock/phoenix-nvidia/101.lock";
    let held = lab.command("flock").args([lock, "sleep", "600"]).spawn();
    wait(|| lab.sh(&format!("! flock -n {lock} true")).exit() == Some(0), String::new);
    let waiting = lab.command(PROGRAM).args(["apply", "101"]).spawn();
    wait(|| waiting.so_far().contains("another install in container 101 is running"), || waiting.so_far());
    assert_eq!(lab.container(101).open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    held.signal_group(phoenix_lab::Signal::SIGKILL);
    waiting.wait().ok().says("add /dev/nvidia1");
    agrees(&lab, &[0, 1], 2);
}

/// One that does not is named, and nothing has changed.
#[test]
fn an_install_that_goes_on_is_not_disturbed() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
    assign(&lab, "0,1");
    let lock = "/run/lock/phoenix-nvidia/101.lock";
    let _held = lab.command("flock").args([lock, "sleep", "600"]).spawn();
    wait(|| lab.sh(&format!("! flock -n {lock} true")).exit() == Some(0), String::new);
    let conf = lab.conf(101);
    let out = apply(&lab, &[]).code(5).says("another install in container 101 is running");
    out.says("fix: wait until it ends; lslocks shows the holder");
    assert_eq!(lab.conf(101), conf);
    assert_eq!(lab.container(101).open_node("/dev/nvidia1"), Err(Errno::ENOENT));
}

/// attach and detach by the same way.
fn attached_and_detached(spec: Spec) {
    let Some(lab) = running(2, spec, "0") else { return };
    let ct = lab.container(101);
    let before = ct.init_pid();
    lab.run([PROGRAM, "attach", "101", "--gpus", "0,1", "--live"])
        .ok()
        .says("add /dev/nvidia1")
        .says_not("to restart it");
    agrees(&lab, &[0, 1], 2);
    lab.run([PROGRAM, "attach", "101", "--live", "--now"]).code(2);
    lab.run([PROGRAM, "detach", "101", "--force"]).code(2);
    let process = holder_if_perl(&lab);
    if process.is_some() {
        let conf = lab.conf(101);
        let refused =
            lab.run([PROGRAM, "detach", "101", "--live"]).code(4).says("GPU 1 is in use in container 101");
        refused.says("phoenix-nvidia detach 101 --live --force");
        assert_eq!(lab.conf(101), conf);
        agrees(&lab, &[0, 1], 2);
    }
    drop(process);
    wait(|| ct.sh("readlink /proc/[0-9]*/fd/* 2>/dev/null | grep -q nvidia").exit() != Some(0), String::new);
    let out = lab.run([PROGRAM, "detach", "101", "--live"]).ok();
    let out = out.says("take away /dev/nvidia0, take away /dev/nvidia1").says_not("until it is restarted");
    out.says("take away /dev/nvidia-caps/nvidia-cap2").says_not("next start").says_not("WARNING");
    assert!(!lab.conf(101).contains("nvidia") && !lab.conf(101).contains("GPU_"), "{}", lab.conf(101));
    for node in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"] {
        assert_eq!(ct.open_node(&format!("/dev/{node}")), Err(Errno::ENOENT), "{node}");
    }
    let config = lab.generated(101);
    assert!(
        !config.contains("lxc.mount.entry = /dev/nvidia") && !config.contains("allow = c 510:"),
        "{config}"
    );
    let table = crate::common::table(&lab, &ct);
    assert!(!table.contains("/proc/driver/nvidia/") && !table.contains("nvidiactl"), "{table}");
    assert!(!lab.exists("/run/phoenix-nvidia/proc/101"));
    assert_eq!(lab.files().list("/run/phoenix-nvidia/masks"), ["empty"]);
    assert_eq!(ct.init_pid(), before);
    lab.run([PROGRAM, "detach", "101", "--live"]).ok().says("nothing to remove");
    // And again.
    let again = lab.run([PROGRAM, "attach", "101", "--gpus", "1", "--live"]).ok().says("add /dev/nvidia1");
    again.says("add /dev/nvidia-caps/nvidia-cap2").says_not("next start");
    agrees(&lab, &[1], 2);
    assert_eq!(ct.sh("ls /dev/nvidia-caps").ok().stdout, "nvidia-cap2\n");
    assert!(lab.generated(101).contains("allow = c 510:2 rwm"), "{}", lab.generated(101));
    assert_eq!(ct.init_pid(), before);
}

fn holder_if_perl(lab: &Lab) -> Option<Running> {
    let has = lab.container(101).sh("command -v perl").exit() == Some(0);
    has.then(|| holder(lab, "/dev/nvidia1"))
}

#[test]
fn attach_and_detach_change_a_running_privileged_container() {
    attached_and_detached(Rootfs::Debian12.privileged());
}

#[test]
fn attach_and_detach_change_a_running_unprivileged_container() {
    attached_and_detached(Rootfs::Busybox.unprivileged());
}

/// A start gets what it gets: no hook changes what runs.
#[test]
fn hook_phases_change_nothing_that_runs() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
    assign(&lab, "0,1");
    setting(&lab, 101, "CHECK_TIMEOUT=5");
    let before = lab.container(101).init_pid();
    for phase in ["pre-start", "post-start", "pre-stop", "post-stop"] {
        lab.run([PROGRAM, "101", phase]).ok();
        assert_eq!(lab.container(101).open_node("/dev/nvidia1"), Err(Errno::ENOENT), "{phase}");
    }
    assert_eq!(lab.container(101).init_pid(), before);
}
