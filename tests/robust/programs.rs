//! Every program that a start calls, replaced by one that misbehaves: the
//! phase ends in time, says which program and why, and leaves nothing.
use crate::robust_support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::{Lab, Output, Rootfs};
use robust_support::*;
use std::time::Duration;

/// The time limit that the tests set, and what a phase may take beside it.
const LIMIT: u64 = 1;
/// Two seconds for ending what does not end by itself, and one because two
/// cores run four labs.
const BESIDE: u64 = 3;

/// How a program misbehaves: its name, its script, and what is said of it.
const MISBEHAVES: [(&str, &str, &str); 6] = [
    ("hangs", "exec sleep 1000", "timed out after"),
    ("ignores TERM", "trap '' TERM; echo busy; while :; do sleep 1000; done", "last output: busy"),
    ("prints without end", "exec yes 'and so on'", "last output: and so on"),
    ("dies", "kill -SEGV $$", "killed by SIGSEGV"),
    ("leaves a child with the pipe", "sleep 1000 & exit 3", "exit code 3"),
    ("is missing", "", ""),
];

fn replace(lab: &Lab, program: &str, script: &str) {
    lab.sh(&format!("rm -f {program}")).ok();
    if !script.is_empty() {
        lab.replace_program(program, format!("#!/bin/sh\n{script}\n"));
    }
}

/// Ended in time, with this exit code.
#[track_caller]
fn in_time(output: Output, seconds: u64, code: i32) -> Output {
    assert!(output.took < Duration::from_secs(seconds + BESIDE), "{output}");
    output.code(code)
}

#[test]
fn pre_start_ends_in_time_whatever_the_programs_do_that_make_the_nodes() {
    let Some(lab) = lab() else { return };
    node(&lab, &format!("INSTALL=off\nPRE_START_TIMEOUT={LIMIT}"));
    attached(&lab, 101, Rootfs::Busybox.privileged());
    let ours = "/usr/bin/nvidia-modprobe";
    for (name, script, said) in MISBEHAVES {
        // Without the module's major only modprobe helps, and that fails too.
        lab.sh("sed -i /nvidia-uvm/d /run/lab/nvidia/devices; rm -f /dev/nvidia0 /dev/nvidia-uvm").ok();
        replace(&lab, ours, script);
        replace(&lab, "/usr/sbin/modprobe", script);
        let before = lab.leftovers();
        let output = in_time(lab.run([PROGRAM, "101", "pre-start"]), LIMIT, 0);
        let mut left = lab.leftovers().since(&before);
        // What the container is shown, from its first start on.
        left.mounts.retain(|mount| mount != "/run/phoenix-nvidia/proc/101");
        assert!(left.processes.is_empty() && left.mounts.is_empty(), "{name}: {left:?}");
        if !said.is_empty() {
            output.says(ours).says(said).says("WARNING");
        }
        assert!(lab.exists("/dev/nvidia0"), "{name}: made by hand all the same");
        assert!(lab.conf(101).contains("/dev/nvidia0"), "{name}");
    }
}

/// Each of its steps is within its own limit; what counts is the whole.
#[test]
fn the_limit_is_the_whole_phases_not_each_programs() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off\nPRE_START_TIMEOUT=2\nSTART_POLICY=fail");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.sh("sed -i /nvidia-uvm/d /run/lab/nvidia/devices; rm -f /dev/nvidia0 /dev/nvidia-uvm").ok();
    // Another one holds Proxmox's lock: that wait of 10 s is part of the whole too.
    let holder = lab.command("flock").args(["/run/lock/lxc/pve-config-101.lock", "sleep", "60"]).spawn();
    wait_until("the lock", || lab.sh("flock -n /run/lock/lxc/pve-config-101.lock true").exit() == Some(1));
    replace(&lab, "/usr/bin/nvidia-modprobe", "sleep 1.2");
    replace(&lab, "/usr/sbin/modprobe", "sleep 1.2");
    in_time(lab.run([PROGRAM, "101", "pre-start"]), 2, 4);
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: START_POLICY=continue\n");
    lab.sh("rm -f /dev/nvidia0 /dev/nvidia-uvm").ok();
    in_time(lab.run([PROGRAM, "101", "pre-start"]), 2, 0).says("is locked by").says("START_POLICY=continue");
    drop(holder);
}

#[test]
fn a_check_that_cannot_look_is_a_warning_in_time() {
    let Some(lab) = lab() else { return };
    node(&lab, &format!("CHECK_TIMEOUT={LIMIT}\nREADY_TIMEOUT={LIMIT}"));
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=off\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    lab.sh("cp /usr/bin/lxc-attach /usr/bin/lxc-info /run/lab/").ok();
    for (name, script, said) in MISBEHAVES {
        for info in [script, ""] {
            replace(&lab, "/usr/bin/lxc-attach", script);
            replace(&lab, "/usr/bin/lxc-info", info);
            let before = lab.leftovers();
            let output = in_time(lab.run([PROGRAM, "101", "post-start"]), LIMIT, 0);
            output.says("cannot probe container 101").says(said).says("WARNING");
            // What was not over in time is looked at again in the background.
            // With an lxc-info that hangs as well, that takes its own time.
            if !info.is_empty() {
                signal(&lab, &pids(&lab, "install 101"), "TERM");
            }
            wait_for_the_end(&lab);
            let left = lab.leftovers().since(&before);
            assert!(left.processes.is_empty(), "{name}: {left:?}");
            if info.is_empty() {
                assert_eq!(says(&lab, 101, "outcome"), "warning", "{name}: {}", state(&lab, 101));
            }
        }
    }
    lab.sh("mv /run/lab/lxc-attach /run/lab/lxc-info /usr/bin/").ok();
}

/// The install goes on without systemd. There is no runfile, so that is what the
/// install process says.
#[test]
fn a_systemctl_that_misbehaves_keeps_no_install_from_running() {
    let Some(lab) = lab() else { return };
    node(&lab, &format!("CHECK_TIMEOUT={LIMIT}\nINSTALL_WAIT=20\nNVIDIA_RUNFILE_URL=/srv/none.run"));
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=off\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    // As far as a look goes, a driver can be in it.
    lab.container(101).write("/lib64/ld-linux-x86-64.so.2", "");
    lab.files().mkdir("/run/systemd/system");
    let believed = ("says yes and starts nothing", "exit 0", "systemd did not start the install");
    for (name, script, said) in MISBEHAVES.into_iter().chain([believed]) {
        replace(&lab, "/usr/bin/systemctl", script);
        let output = lab.run([PROGRAM, "101", "post-start"]).code(5);
        output.says(said).says("/srv/none.run");
        wait_for_the_end(&lab);
        assert!(pids(&lab, "sleep 1000").is_empty(), "{name}");
        assert_eq!(says(&lab, 101, "outcome"), "failed", "{name}");
    }
}

/// An install whose pct misbehaves from its first step on.
#[test]
fn an_install_ends_in_time_whatever_pct_does() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, &format!("INSTALL=off\nINSTALL_TIMEOUT={LIMIT}"));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    let pct = lab.sh("readlink -f /usr/sbin/pct").ok().stdout.trim().to_owned();
    for (name, script, said) in MISBEHAVES {
        replace(&lab, "/usr/sbin/pct", script);
        let before = lab.leftovers();
        let output = in_time(lab.run([PROGRAM, "101", "post-start"]), LIMIT + 2, 5);
        output.says("cannot copy the runfile into container 101").says(said);
        wait_for_the_end(&lab);
        let left = lab.leftovers().since(&before);
        assert!(left.processes.is_empty(), "{name}: {left:?}");
    }
    lab.sh(&format!("ln -sf {pct} /usr/sbin/pct")).ok();
    node(&lab, "INSTALL_TIMEOUT=60");
    lab.run([PROGRAM, "101", "post-start"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
}

/// The same from inside: the installer, and then nvidia-smi.
#[test]
fn an_install_ends_in_time_whatever_runs_inside() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, "INSTALL=off\nINSTALL_TIMEOUT=2\nAFTER_INSTALL=none");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    let ct = lab.container(101);
    let flaws = [
        (Flaw::Slow(1000), "timed out after 2 s"),
        (Flaw::Deaf, "timed out after 2 s"),
        (Flaw::LeavesChild, "exit code 3"),
        (Flaw::Endless, "last output: "),
        (Flaw::HalfInstalled, "(SIGBUS: the container's disk is full)"),
        (Flaw::NothingInstalled, "ended with exit code 0, but the driver in the container is"),
    ];
    for (flaw, said) in flaws {
        let file = Runfile::new(DRIVER).flaw(flaw.clone()).build().expect("a runfile");
        lab.write("/srv/driver.run", std::fs::read(file).expect("a runfile"));
        lab.sh("rm -rf /var/cache/phoenix-nvidia").ok();
        let output = in_time(lab.run([PROGRAM, "101", "post-start"]), 2 + 2, 5);
        output.says("the installer of 580.95.05").says(said);
        wait_for_the_end(&lab);
        for part in ["sleep 1000", "phoenix-nvidia.unpack"] {
            wait_until("the end of what ran inside", || pids(&lab, part).is_empty());
        }
        for path in ["/tmp/nvidia-driver-installer.run", "/tmp/phoenix-nvidia.unpack"] {
            assert!(!ct.exists(path), "{flaw:?}: {path}");
        }
    }
    let file = Runfile::new(DRIVER).build().expect("a runfile");
    lab.write("/srv/driver.run", std::fs::read(file).expect("a runfile"));
    lab.sh("rm -rf /var/cache/phoenix-nvidia").ok();
    lab.run([PROGRAM, "101", "post-start"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
    ct.sh("mv /usr/bin/nvidia-smi /usr/bin/real-smi").ok();
    node(&lab, "INSTALL_TIMEOUT=1");
    for (name, script, said) in MISBEHAVES.into_iter().filter(|(name, ..)| *name != "is missing") {
        ct.write("/usr/bin/nvidia-smi", format!("#!/bin/sh\n{script}\n"));
        ct.sh("chmod 755 /usr/bin/nvidia-smi").ok();
        // By hand it verifies, whatever was there before.
        let output = in_time(lab.run([PROGRAM, "101"]), 1 + 2, 5);
        // Between it and us is a shell, which tells a signal as 128 + its number.
        let said = said.trim_start_matches("last output: ").replace("killed by SIGSEGV", "exit code 139");
        output.says("nvidia-smi").says(&said);
        wait_until(name, || pids(&lab, "sleep 1000").is_empty() && pids(&lab, "and so on").is_empty());
    }
}

/// The driver is there and works, whatever becomes of the CUDA step.
#[test]
fn the_cuda_step_ends_in_time_whatever_apt_get_does() {
    let Some(lab) = lab() else { return };
    lab.web().standard(&[DRIVER]);
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, "INSTALL=off\nINSTALL_TIMEOUT=2\nAFTER_INSTALL=none\nCUDA_PACKAGES=cuda-toolkit-13-0");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let ct = lab.container(101);
    lab.web().use_distribution(&ct);
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    ct.sh("mv /usr/bin/apt-get /usr/bin/real-apt-get").ok();
    for (name, script, said) in MISBEHAVES.into_iter().filter(|(name, ..)| *name != "is missing") {
        ct.write("/usr/bin/apt-get", format!("#!/bin/sh\n{script}\n"));
        ct.sh("chmod 755 /usr/bin/apt-get").ok();
        // By hand: at a start the same failed step is not tried again.
        let output = in_time(lab.run([PROGRAM, "101"]), 2 + 3, 5);
        // One that does not end, and does not close its pipe, is told where it was first asked.
        if matches!(name, "hangs" | "ignores TERM" | "leaves a child with the pipe") {
            let output =
                output.says("cannot prepare apt in container 101: /usr/sbin/pct timed out after 2 s");
            output.says("last output: apt-get reads /etc/apt/sources").says("pct exec 101 -- apt-get check");
        } else {
            let said = said.trim_start_matches("last output: ").replace("killed by SIGSEGV", "apt-get");
            output.says("repository: ").says(&said);
        }
        wait_until(name, || pids(&lab, "sleep 1000").is_empty() && pids(&lab, "and so on").is_empty());
        ct.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
        assert!(!ct.exists("/etc/apt/sources.list.d/phoenix-nvidia.sources"), "{name}");
    }
    ct.sh("mv /usr/bin/real-apt-get /usr/bin/apt-get").ok();
    node(&lab, "INSTALL_TIMEOUT=60");
    lab.run([PROGRAM, "101"]).ok().says("cuda: installed");
}

/// As a program that asks a lost GPU something: not even KILL ends it.
#[test]
fn a_program_that_cannot_be_killed_is_left_behind_and_told() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off\nPRE_START_TIMEOUT=1");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.write("/srv/lost/gpu", "x\n");
    lab.write("/run/lab/control/stuck", "");
    let server =
        lab.command("/run/lab/bin/lab-pmxcfs").args(["/srv/lost", "pve1", "/run/lab/control"]).spawn();
    wait_for_output(&server, "serving");
    replace(&lab, "/usr/bin/nvidia-modprobe", "exec cat /srv/lost/gpu");
    lab.sh("rm -f /dev/nvidia0").ok();
    let start = lab.run(["pct", "start", "101"]).ok();
    assert!(start.took < Duration::from_secs(1 + 2 + BESIDE), "{start}");
    start.says("/usr/bin/nvidia-modprobe").says("cannot be killed (uninterruptible sleep)");
    assert!(lab.container(101).running());
    let stuck = || lab.sh("grep -l '^[0-9]* (cat) D' /run/lab/proc/[0-9]*/stat").exit() == Some(0);
    assert!(stuck(), "it is that");
    lab.files().remove("/run/lab/control/stuck");
    wait_until("its end", || !stuck());
}
