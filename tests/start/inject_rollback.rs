//! A container with the host's driver whose conf and disk go back to what they were.
use crate::inject::{
    HWCAPS, OLD, OLDER, PROGRAM, create, finds, finds_now, host, injecting, older_driver, start, worker_says,
};
use crate::support::{lab, node};

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};

fn pct(lab: &Lab, verb: &str, name: &str) {
    lab.run(["pct", verb, "101", name]).ok();
}

fn stop(lab: &Lab) {
    lab.run(["pct", "stop", "101"]).ok();
}

/// The driver of an installer, and none that is mounted.
#[track_caller]
fn has_its_own(lab: &Lab) {
    let ct = lab.container(101);
    assert!(
        !lab.conf(101).split("\n[").next().unwrap_or_default().contains("driver/current"),
        "{}",
        lab.conf(101)
    );
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));
    ct.sh(&format!("test -f /usr/lib/x86_64-linux-gnu/libcuda.so.{OLD}")).ok();
    assert_eq!(ct.sh(&format!("ls -A {HWCAPS}; true")).ok().stdout, "");
    ct.sh("find /usr /etc -lname '*x86-64-v2*' | grep .").code(1);
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
}

#[track_caller]
fn has_the_hosts(lab: &Lab) {
    let ct = lab.container(101);
    finds(&ct, OLD);
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));
    ct.exec(["/sbin/ldconfig", "-p"]).ok().says("libcuda.so.1");
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
}

#[test]
fn a_rollback_from_inject_to_install_and_back_is_right_at_the_next_start() {
    for spec in [Rootfs::Debian12.unprivileged(), Rootfs::Debian12.privileged()] {
        let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
        lab.nvidia().user_space(OLD);
        lab.web().runfile(&Runfile::new(OLD));
        node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
        create(&lab, 101, spec);
        // Bare, with the host's, and with one of its own: each from the other.
        let ct = lab.container(101);
        pct(&lab, "snapshot", "bare");
        lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
        start(&lab).ok().says("the host's, mounted");
        has_the_hosts(&lab);
        stop(&lab);
        pct(&lab, "snapshot", "mounted");
        pct(&lab, "rollback", "bare");
        start(&lab).ok().says("driver: installed 580.95.05");
        has_its_own(&lab);
        stop(&lab);
        pct(&lab, "snapshot", "installed");
        for _ in 0..2 {
            pct(&lab, "rollback", "mounted");
            ct.write("/at-boot", "");
            start(&lab).ok().says("the host's, mounted").says_not("WARNING");
            has_the_hosts(&lab);
            // While it runs, too.
            pct(&lab, "rollback", "installed");
            start(&lab).ok().says("installed and right").says_not("WARNING");
            has_its_own(&lab);
            stop(&lab);
        }
    }
}

/// With the same conf, and nothing of what was done inside.
#[test]
fn a_rollback_to_before_the_first_start_is_completed_again() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    pct(&lab, "snapshot", "new");
    start(&lab).ok();
    has_the_hosts(&lab);
    stop(&lab);
    start(&lab).ok();
    stop(&lab);
    pct(&lab, "rollback", "new");
    start(&lab).ok().says_not("WARNING");
    has_the_hosts(&lab);
}

/// Before the first step inside an older driver is what programs find.
#[test]
fn a_rollback_to_an_older_driver_inside_is_told_and_mended_once() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    let ct = lab.container(101);
    older_driver(&lab, 101, "");
    pct(&lab, "snapshot", "older");
    for _ in 0..2 {
        lab.sh("rm -f /var/log/phoenix-nvidia/101.log").ok();
        start(&lab).ok().says(&format!("found driver {OLDER}"));
        worker_says(&lab, 101, "container rebooted");
        finds(&ct, OLD);
        stop(&lab);
        ct.write("/at-boot", "");
        start(&lab).ok().says_not("WARNING");
        finds(&ct, OLD);
        stop(&lab);
        pct(&lab, "rollback", "older");
    }
}

/// The snapshot of a clone, made before anybody asked for the host's driver there.
#[test]
fn a_clone_is_another_container_to_the_record() {
    let Some(lab) = host() else { return };
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    pct(&lab, "snapshot", "new");
    start(&lab).ok();
    stop(&lab);
    // The number is used again, for a copy without anything of ours inside.
    pct(&lab, "rollback", "new");
    lab.run(["pct", "clone", "101", "102"]).ok();
    lab.run(["pct", "start", "102"]).ok().says_not("WARNING");
    let ct = lab.container(102);
    finds_now(&ct, OLD);
    ct.exec(["nvidia-smi", "-L"]).ok();
    lab.run(["pct", "destroy", "102", "--force"]).ok();
    lab.run(["pct", "clone", "101", "102"]).ok();
    lab.run(["pct", "start", "102"]).ok().says_not("WARNING");
    ct.exec(["nvidia-smi", "-L"]).ok();
}
