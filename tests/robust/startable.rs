//! What runs is never stopped unless it would start again: by hand, after an
//! install, and as doctor, plan, status and attach tell it.
#![allow(clippy::unwrap_used)]

use crate::robust_support;

use phoenix_lab::{Container, Errno, Lab, Output, Pmxcfs, Rootfs};
use robust_support::{
    DRIVER, PROGRAM, attached, calls, installing, log, needs_a_restart, node, ours, pct_with, says, two_gpus,
    wait_for_log, wait_for_the_end,
};

/// A call by hand ends in 6 with the reason, and the very same container runs.
#[track_caller]
fn refused(lab: &Lab, ct: &Container<'_>, reason: &str, remedy: &str) -> Output {
    let (init, before) = (ct.init_pid(), lab.calls().len());
    let hand = lab.run([PROGRAM, "101"]).code(6).says(reason).says("101 not stopped").says(remedy);
    assert_eq!(ct.init_pid(), init, "{hand}");
    let verbs = ["stop ", "shutdown ", "reboot ", "start "];
    let touched = |call: &String| verbs.iter().any(|verb| call.starts_with(verb));
    assert!(!lab.calls()[before..].iter().any(touched), "{hand}");
    hand
}

/// The remedy of doctor's finding of that name and level.
fn remedy(lab: &Lab, check: &str) -> String {
    let (check, level) = check.split_once(' ').unwrap();
    let report = lab.run([PROGRAM, "doctor", "101", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|f| f["check"] == check && f["level"] == level);
    let finding = finding.unwrap_or_else(|| panic!("no finding {check}: {report:#}"));
    finding["fix"].as_str().unwrap().to_owned()
}

/// The obstacles that status shows, as their kinds.
fn obstacles(lab: &Lab) -> Vec<String> {
    let report = lab.run([PROGRAM, "status", "101", "--json"]).ok().stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let list = report["containers"][0]["obstacles"].as_array().unwrap();
    list.iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect()
}

/// What all verbs say while `line` is in the conf, and that doctor's remedy is
/// one.
fn each_verb_tells(line: &str, kind: &str, reason: &str, fix: &str) {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    lab.sh(&format!("sed -i '1i {line}' /etc/pve/lxc/101.conf")).ok();
    refused(&lab, &ct, reason, fix);
    lab.run([PROGRAM, "plan", "101"]).code(6).says("restart container 101").says(reason);
    assert_eq!(obstacles(&lab), [kind]);
    lab.run([PROGRAM, "status", "101"]).ok().says(reason);
    let attach = lab.run([PROGRAM, "attach", "101", "--gpus", "0,1"]).ok();
    attach.says("would not start again").says(reason);
    let remedy = remedy(&lab, "start failure");
    assert!(remedy.contains(fix), "{remedy}");
    lab.run([PROGRAM, "doctor", "101"]).code(1).says(reason);
    // A stopped one is told before anything is tried. Behind a command that ends
    // the obstacle, the start is a part of the line to paste.
    let then = if kind == "device" { "--delete dev3 && pct start 101" } else { "; then: pct start 101" };
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "101"]).code(6).says("cannot start").says(reason).says(then);
    lab.run([PROGRAM, "plan", "101"]).code(6).says("start container 101").says(reason);
    let command = remedy.rsplit(": ").next().unwrap();
    lab.sh(command).ok();
    lab.run([PROGRAM, "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
    assert!(obstacles(&lab).is_empty());
}

#[test]
fn a_device_line_without_its_node_stops_nothing_and_each_verb_tells() {
    each_verb_tells(
        "dev3: /dev/gone,mode=0666",
        "device",
        "dev3 passes /dev/gone, which does not exist",
        "pct set 101 --delete dev3",
    );
}

#[test]
fn a_mount_point_without_its_source_stops_nothing_and_each_verb_tells() {
    each_verb_tells(
        "mp0: /srv/gone,mp=/srv",
        "mount-point",
        "mp0 mounts /srv/gone, which does not exist",
        "pct set 101 --delete mp0",
    );
}

#[test]
fn a_volume_of_no_storage_stops_nothing_and_each_verb_tells() {
    each_verb_tells(
        "mp1: gone:vm-101-disk-1,mp=/x",
        "storage",
        "mp1 is on storage gone, which does not exist",
        "pct set 101 --delete mp1",
    );
}

/// What is waiting to go is no obstacle: a start takes it out first.
#[test]
fn a_device_line_that_is_to_go_does_not_keep_a_running_container_from_its_restart() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    lab.sh("sed -i '1i dev3: /dev/gone' /etc/pve/lxc/101.conf").ok();
    // Proxmox writes the conf first, then the config of a conf that has the line until the next start.
    lab.run(["pct", "set", "101", "--delete", "dev3"]).code(255).says("Device /dev/gone does not exist");
    assert!(lab.conf(101).contains("delete: dev3"));
    lab.run([PROGRAM, "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}

#[test]
fn a_lock_stops_nothing_and_is_told() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    lab.run(["pct", "set", "101", "--lock", "backup"]).ok();
    let hand = refused(&lab, &ct, "its conf is locked (backup)", "pct unlock 101");
    hand.says_not("within");
    lab.run([PROGRAM, "plan", "101"]).code(6).says("its conf is locked (backup)");
    lab.run([PROGRAM, "status", "101"]).ok().says("would not start again: its conf is locked (backup)");
    assert!(remedy(&lab, "lock warning").contains("pct unlock 101"));
    lab.run(["pct", "unlock", "101"]).ok();
    lab.run([PROGRAM, "101"]).ok();
    // `pct mount` keeps it from being shut down, not from being started.
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.run([PROGRAM, "101", "pre-start"]).ok();
    lab.run(["pct", "set", "101", "--lock", "mounted"]).ok();
    refused(&lab, &ct, "its conf is locked (mounted)", "pct unmount 101");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "101"]).ok();
}

#[test]
fn a_hookscript_that_is_gone_stops_nothing_and_is_told() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    lab.files().remove("/var/lib/vz/snippets/phoenix-nvidia");
    refused(
        &lab,
        &ct,
        "its hookscript local:snippets/phoenix-nvidia does not exist",
        "phoenix-nvidia attach 101",
    );
    lab.run([PROGRAM, "plan", "101"]).code(6).says("does not exist");
    assert_eq!(obstacles(&lab), ["hookscript"]);
    lab.sh(&remedy(&lab, "hookscript failure")).ok();
    lab.files().chmod("/var/lib/vz/snippets/phoenix-nvidia", 0o644);
    refused(&lab, &ct, "cannot be executed", "attach 101");
    lab.run([PROGRAM, "attach", "101", "--now"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}

/// Our own pre-start refuses too: the reboot after an install is not made.
#[test]
fn what_our_own_pre_start_would_refuse_stops_nothing() {
    let Some(lab) = installing() else { return };
    lab.run(["pct", "start", "101"]).ok();
    let init = lab.container(101).init_pid();
    node(&lab, "HOOK_CHAIN=/srv/mine.sh");
    wait_for_the_end(&lab);
    let logged = log(&lab);
    assert!(logged.contains("reboot still due") && logged.contains("/srv/mine.sh"), "{logged}");
    assert_eq!((lab.container(101).init_pid(), calls(&lab, "reboot 101")), (init, 0));
    assert_eq!(obstacles(&lab), ["chain"]);
}

/// Nor for the host's driver, where a start that cannot have it fails.
#[test]
fn an_injection_that_our_own_pre_start_would_refuse_stops_nothing() {
    let Some(lab) = installing() else { return };
    lab.run(["pct", "start", "101"]).ok();
    // What comes now changes what follows the install, and not whether there is one.
    wait_for_log(&lab, "to do: ");
    let ct = lab.container(101);
    let init = ct.init_pid();
    let at = "usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2";
    lab.append(
        "/etc/pve/lxc/101.conf",
        format!(
            "lxc.mount.entry: /srv {at} none bind,optional,create=dir 0 0\n\
             lxc.environment: DRIVER_MODE=inject\nlxc.environment: START_POLICY=fail\n"
        ),
    );
    wait_for_the_end(&lab);
    let (logged, reason) = (log(&lab), format!("of the conf mounts something at /{at}"));
    assert!(logged.contains("reboot still due") && logged.contains(&reason), "{logged}");
    assert_eq!(obstacles(&lab), ["policy"]);
    lab.run([PROGRAM, "plan", "101"]).code(5).says(&reason);
    lab.run([PROGRAM, "101"]).code(5).says(&reason);
    assert_eq!((ct.init_pid(), calls(&lab, "reboot 101")), (init, 0));
    // Which it would have been.
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).code(255).says(&reason);
}

#[test]
fn without_quorum_nothing_is_stopped_and_each_verb_tells() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    let pmxcfs = lab.pmxcfs();
    pmxcfs.lose_quorum(&lab);
    refused(&lab, &ct, "this node has no quorum", "pvecm status");
    lab.run([PROGRAM, "plan", "101"]).code(6).says("this node has no quorum");
    assert_eq!(obstacles(&lab), ["no-quorum"]);
    assert!(remedy(&lab, "quorum failure").contains("pvecm status"));
    lab.run([PROGRAM, "attach", "101", "--now"]).code(4).says("this node has no quorum");
    assert!(ct.running());
    pmxcfs.find_quorum(&lab);
    lab.run([PROGRAM, "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}

/// While `blocked`, the install runs to its end and the container with it;
/// after `freed` it is rebooted.
fn the_reboot_waits(lab: &Lab, reason: &str, blocked: impl FnOnce(), freed: impl FnOnce()) {
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let init = ct.init_pid();
    blocked();
    wait_for_log(lab, "reboot waits");
    assert!(log(lab).contains(reason), "{}", log(lab));
    assert_eq!((ct.init_pid(), calls(lab, "reboot 101")), (init, 0));
    lab.run([PROGRAM, "status", "101"]).ok().says("restart due");
    let report = lab.run([PROGRAM, "status", "101", "--json"]).ok().stdout;
    assert!(report.contains("\"restart_due\": true"), "{report}");
    assert_eq!(remedy(lab, "restart-due warning"), "phoenix-nvidia 101");
    freed();
    wait_for_log(lab, "container rebooted");
    wait_for_the_end(lab);
    assert!(ct.init_pid().is_some() && ct.init_pid() != init);
    assert_eq!(calls(lab, "reboot 101"), 1);
    ct.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    lab.run([PROGRAM, "status", "101"]).ok().says_not("restart due");
}

#[test]
fn a_reboot_that_meets_a_backup_waits_for_its_end() {
    let Some(lab) = installing() else { return };
    let lock = || drop(lab.run(["pct", "set", "101", "--lock", "backup"]).ok());
    let unlock = || drop(lab.run(["pct", "unlock", "101"]).ok());
    the_reboot_waits(&lab, "its conf is locked (backup)", lock, unlock);
}

#[test]
fn a_reboot_that_meets_no_quorum_waits_for_it() {
    let Some(lab) = installing() else { return };
    let pmxcfs: Pmxcfs = lab.pmxcfs();
    the_reboot_waits(
        &lab,
        "this node has no quorum",
        || pmxcfs.lose_quorum(&lab),
        || pmxcfs.find_quorum(&lab),
    );
}

/// A stop ends the wait at once, and the next start is the restart.
#[test]
fn a_reboot_that_waits_ends_with_the_start_of_somebody_else() {
    let Some(lab) = installing() else { return };
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "set", "101", "--lock", "backup"]).ok();
    wait_for_log(&lab, "reboot waits");
    lab.run(["pct", "stop", "101", "--skiplock", "1"]).ok();
    wait_for_the_end(&lab);
    assert!(log(&lab).contains("no reboot needed"), "{}", log(&lab));
    lab.run(["pct", "unlock", "101"]).ok();
    let start = lab.run(["pct", "start", "101"]).ok();
    start.says("the restart that the driver install needed").says("installed and right");
    lab.run([PROGRAM, "status", "101"]).ok().says_not("restart due");
    assert_eq!(calls(&lab, "reboot 101"), 0);
}

/// What does not pass by itself is not waited for: the reboot stays due.
#[test]
fn a_reboot_that_cannot_be_stays_due_and_a_call_by_hand_makes_it() {
    let Some(lab) = installing() else { return };
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let init = ct.init_pid();
    lab.sh("sed -i '1i mp0: /srv/gone,mp=/srv' /etc/pve/lxc/101.conf").ok();
    wait_for_the_end(&lab);
    assert!(log(&lab).contains("reboot still due"), "{}", log(&lab));
    assert_eq!((ct.init_pid(), says(&lab, 101, "outcome").as_str()), (init, "ok"));
    lab.run([PROGRAM, "status", "101"]).ok().says("restart due");
    lab.run([PROGRAM, "plan", "101"]).code(6).says("restart container 101").says("/srv/gone");
    refused(&lab, &ct, "mp0 mounts /srv/gone", "pct set 101 --delete mp0");
    lab.run([PROGRAM, "status", "101"]).ok().says("restart due");
    lab.sh("mkdir /srv/gone").ok();
    lab.run([PROGRAM, "101"]).ok();
    assert!(ct.init_pid().is_some() && ct.init_pid() != init);
    lab.run([PROGRAM, "status", "101"]).ok().says_not("restart due");
}

/// A node says how long a lock is waited for.
#[test]
fn a_reboot_that_meets_a_backup_stays_due_after_reboot_wait() {
    let Some(lab) = installing() else { return };
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: REBOOT_WAIT=2\n");
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let init = ct.init_pid();
    lab.run(["pct", "set", "101", "--lock", "backup"]).ok();
    wait_for_the_end(&lab);
    let logged = log(&lab);
    assert!(logged.contains("reboot waits") && logged.contains("reboot still due"), "{logged}");
    assert_eq!((ct.init_pid(), calls(&lab, "reboot 101")), (init, 0));
    lab.run(["pct", "unlock", "101"]).ok();
    lab.run([PROGRAM, "status", "101"]).ok().says("restart due");
}

/// A `pct` that sets a lock before it does what it is asked for: what comes
/// between our look and Proxmox's own.
fn raced(lab: &Lab, verb: &str) {
    pct_with(lab, verb, "/usr/sbin/pct.real set 101 --lock backup");
}

#[test]
fn a_container_that_a_lock_in_between_took_down_is_started_once_it_has_gone() {
    let Some(lab) = installing() else { return };
    raced(&lab, "reboot");
    lab.run(["pct", "start", "101"]).ok();
    wait_for_log(&lab, "as soon as this has passed");
    let ct = lab.container(101);
    assert!(!ct.running());
    let logged = log(&lab);
    assert!(logged.contains("is stopped and cannot start: its conf is locked (backup)"), "{logged}");
    assert!(logged.contains("unable to get PID for CT 101"), "{logged}");
    lab.run([PROGRAM, "status", "101"]).ok().says("cannot start: its conf is locked (backup)");
    lab.sh("/usr/sbin/pct.real unlock 101").ok();
    wait_for_the_end(&lab);
    assert!(ct.running());
    ct.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
}

/// pct's own reason, no time that nobody waited, and the container runs.
#[test]
fn a_shutdown_that_a_lock_in_between_refuses_is_told_as_it_was() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    let init = ct.init_pid();
    raced(&lab, "shutdown");
    let hand = lab.run([PROGRAM, "101"]).code(6).says("CT is locked (backup)");
    hand.says("does not stop").says_not("did not shut down within");
    assert_eq!(ct.init_pid(), init);
    assert!(ours(&lab).is_empty());
}

#[test]
fn a_start_that_a_lock_in_between_refuses_names_it_and_what_starts_the_container() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    raced(&lab, "start");
    let hand = lab.run([PROGRAM, "101"]).code(6);
    let hand =
        hand.says("is stopped and cannot start: its conf is locked (backup)").says("CT is locked (backup)");
    hand.says("pct unlock 101; then: pct start 101");
    assert!(!ct.running());
    lab.sh("pct unlock 101; pct start 101").ok();
}

/// A container that does not hear the shutdown is stopped when its time is
/// over, in one task, and the message says so.
#[test]
fn a_shutdown_that_is_not_heard_ends_in_time() {
    let Some(lab) = two_gpus() else { return };
    node(&lab, "RESTART_TIMEOUT=2\nINSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    let ct = lab.container(101);
    ct.files().program("/sbin/init", "#!/bin/sh\ntrap : PWR\nwhile :; do sleep 1; done\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0,1\n");
    let hand = lab.run([PROGRAM, "101"]).ok().says("did not shut down within 2 s and was stopped");
    assert!(hand.took < std::time::Duration::from_secs(20), "{hand}");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}
