//! Starts that are refused after a stop that was not: `lock:`, the quorum, and what is missing on the host.

use phoenix_lab::{Lab, Output, Rootfs};

use crate::recording::{self, Step};
use crate::{compare, recorded};

/// The recorded step, without what LXC's own program says or not, depending on how far the container has ended.
fn settled(mut step: Step) -> Step {
    step.out = quiet(&step.out);
    step
}

fn quiet(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("lxc-info: ")).map(|line| format!("{line}\n")).collect()
}

/// Runs the recorded command and compares, its own process's number left out.
#[track_caller]
fn replay(lab: &Lab, step: Step) {
    let step = settled(step);
    let mut output = lab.run(step.title.split(' '));
    output.stdout = quiet(&output.stdout);
    let step = Step { err: unnumbered(&step.err), ..step };
    output.stderr = unnumbered(&output.stderr);
    compare(&step, &output);
}

/// `…conf.tmp.915'` as `…conf.tmp.PID'`
fn unnumbered(text: &str) -> String {
    let Some((before, after)) = text.split_once(".conf.tmp.") else { return text.to_owned() };
    format!("{before}.conf.tmp.PID{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
}

#[test]
fn a_locked_container_is_stopped_by_a_reboot_and_refused_by_the_rest_as_recorded() {
    let Some(lab) = Lab::builder().start() else { return };
    recorded(&lab, 101, Rootfs::Busybox.unprivileged());
    recorded(&lab, 102, Rootfs::Busybox.privileged());
    let mut reboots = 0;
    let steps = recording::calls("lock-and-reboot.txt");
    assert_eq!(steps.len(), 15);
    for step in steps {
        // What the recording leaves out: the lock was taken away for the second start, and set again after it.
        let second_start = step.title == "pct start 102" && step.rc == 0 && reboots > 0;
        reboots += usize::from(step.title.starts_with("pct reboot 102"));
        if second_start {
            lab.run(["pct", "unlock", "102"]).ok();
        }
        replay(&lab, step);
        if second_start {
            lab.run(["pct", "set", "102", "--lock", "backup"]).ok();
        }
    }
    assert_eq!(reboots, 2);
    lab.run(["pct", "set", "102", "--description", "x"]).code(255).says("CT is locked (backup)");
    // Another `pct mount` does not keep it from ending, only from being asked to.
    lab.run(["pct", "unlock", "102"]).ok();
    lab.run(["pct", "set", "102", "--lock", "mounted"]).ok();
    lab.run(["pct", "shutdown", "102"]).code(255).says("CT is locked (mounted)");
    lab.run(["pct", "stop", "102"]).ok();
    lab.run(["pct", "start", "102"]).ok();
}

#[test]
fn without_quorum_a_container_is_stopped_and_not_started_as_recorded() {
    let Some(lab) = Lab::builder().start() else { return };
    recorded(&lab, 101, Rootfs::Busybox.unprivileged());
    let ct = recorded(&lab, 102, Rootfs::Busybox.privileged());
    let pmxcfs = lab.pmxcfs();
    lab.run(["pct", "start", "102"]).ok();
    pmxcfs.lose_quorum(&lab);
    let steps = recording::calls("no-quorum.txt");
    assert_eq!(steps.len(), 6);
    for step in steps {
        replay(&lab, step);
    }
    assert_eq!(lab.read("/run/lab/ct/102.refused"), "cluster not ready - no quorum?\n");
    pmxcfs.find_quorum(&lab);
    lab.run(["pct", "start", "102"]).ok();
    ct.wait_ready();
    pmxcfs.lose_quorum(&lab);
    lab.run(["pct", "shutdown", "102"]).ok();
    assert!(!ct.running());
}

/// pct's own words for a start that cannot be: `Device … does not exist` before any hook, the others after pre-start.
#[test]
fn what_is_missing_on_the_host_refuses_the_start_and_not_the_stop_before_it() {
    let missing = [
        ("dev0: /dev/gone", "Device /dev/gone does not exist\n", ""),
        (
            "hookscript: local:snippets/gone",
            "hookscript error for 101 on pre-start: script 'local:snippets/gone' does not exist \n",
            "",
        ),
        (
            "hookscript: gone:snippets/x",
            "hookscript error for 101 on pre-start: storage 'gone' does not exist \n",
            "",
        ),
        (
            "mp0: /srv/gone,mp=/srv",
            "unable to get PID for CT 101 (not running?)\n",
            "directory '/srv/gone' does not exist\n",
        ),
    ];
    for (line, said, journal) in missing {
        let Some(lab) = Lab::builder().start() else { return };
        let ct = lab.create(101, Rootfs::Busybox.unprivileged());
        lab.run(["pct", "start", "101"]).ok();
        ct.wait_ready();
        lab.append("/etc/pve/lxc/101.conf", format!("{line}\n"));
        let reboot: Output = lab.run(["pct", "reboot", "101"]).code(255);
        assert_eq!(reboot.stderr, said, "{line}: {reboot}");
        assert!(!ct.running(), "{line}");
        let path = "/run/lab/ct/101.refused";
        assert_eq!(if lab.exists(path) { lab.read(path) } else { String::new() }, journal, "{line}");
    }
}

/// The hookscript's last phase runs all the same, with nothing to look into.
#[test]
fn a_start_that_lxc_refuses_runs_post_start_and_post_stop() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.unprivileged());
    lab.snippet("p.sh", "#!/bin/sh\necho \"$2\" >>/run/lab/phases\n");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/p.sh"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    ct.wait_ready();
    lab.run(["pct", "set", "101", "--lock", "backup"]).ok();
    lab.write("/run/lab/phases", "");
    lab.run(["pct", "reboot", "101"]).code(255);
    assert_eq!(lab.read("/run/lab/phases"), "pre-stop\npost-stop\npre-start\npost-stop\npost-start\n");
}

#[test]
fn a_container_is_unprivileged_unless_it_is_told_otherwise() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.create(102, Rootfs::Busybox.privileged());
    lab.sh("pct create 103 local:vztmpl/busybox.tar --ostype unmanaged").ok();
    assert!(lab.conf(101).contains("\nunprivileged: 1\n") && lab.conf(103).contains("\nunprivileged: 1\n"));
    assert!(!lab.conf(102).contains("unprivileged"));
}

/// A reboot from inside runs no hook, and the deletion comes true in it.
#[test]
fn a_device_that_is_to_go_goes_at_the_next_reboot_from_inside() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/101.conf", "dev0: /dev/full,mode=0666\n");
    lab.run(["pct", "start", "101"]).ok();
    ct.wait_ready();
    lab.run(["pct", "set", "101", "--delete", "dev0"]).ok();
    assert!(lab.conf(101).contains("dev0: ") && lab.conf(101).contains("\n[pve:pending]\ndelete: dev0\n"));
    let before = ct.init_pid();
    // It may be ended by what it asked for.
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    assert!(!lab.conf(101).contains("dev0"), "{}", lab.conf(101));
}
