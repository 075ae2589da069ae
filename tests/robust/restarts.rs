//! What we take down comes up again, whatever comes between the stop and the
//! start: a lock that is gone at once, a signal, somebody who holds the lock.
#![allow(clippy::unwrap_used)]

use crate::robust_support;

use phoenix_lab::{Container, Errno, Lab};
use robust_support::{
    DRIVER, PROGRAM, calls, installing, log, needs_a_restart, ours, pct_with, says, signal, two_gpus,
    wait_for_the_end, wait_until,
};

/// After the install that runs by itself, the container has been started anew
/// and nothing is due.
fn runs_anew(lab: &Lab, ct: &Container<'_>, before: Option<i32>) {
    wait_for_the_end(lab);
    let logged = log(lab);
    assert!(ct.running() && ct.init_pid() != before, "{logged}");
    ct.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    lab.run([PROGRAM, "status", "101"]).ok().says_not("restart due");
}

/// The lock that refused the start is gone by the time that we look for it.
#[test]
fn a_reboot_that_failed_for_what_is_gone_again_is_followed_by_a_start() {
    let Some(lab) = installing() else { return };
    let first = "/usr/sbin/pct.real set 101 --lock backup; /usr/sbin/pct.real \"$@\"; code=$?\n\
                 /usr/sbin/pct.real unlock 101; exit $code";
    pct_with(&lab, "reboot", first);
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let before = ct.init_pid();
    runs_anew(&lab, &ct, before);
    assert!(log(&lab).contains("unable to get PID for CT 101"), "{}", log(&lab));
    assert_eq!((calls(&lab, "reboot 101"), says(&lab, 101, "outcome").as_str()), (1, "ok"));
}

/// Its task goes on when `pct` is ended: what is still stopping is waited for.
#[test]
fn a_container_that_is_still_between_after_a_failed_reboot_is_waited_for() {
    let Some(lab) = installing() else { return };
    // For three seconds it is neither running nor stopped.
    lab.sh("cp $(readlink -f /usr/bin/lxc-info) /usr/bin/lxc-info.real; rm /usr/bin/lxc-info").ok();
    let info = "#!/bin/sh\nif [ -e /run/between ] && [ \"$3\" = -sH ]; then echo STOPPING; exit 0; fi\n\
                exec /usr/bin/lxc-info.real \"$@\"\n";
    lab.replace_program("/usr/bin/lxc-info", info);
    let first = "/usr/sbin/pct.real shutdown 101 --forceStop 1; touch /run/between\n\
                 setsid sh -c 'sleep 3; rm /run/between' >/dev/null 2>&1 </dev/null &\nsleep 0.3; exit 255";
    pct_with(&lab, "reboot", first);
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let before = ct.init_pid();
    runs_anew(&lab, &ct, before);
}

/// `systemctl stop` of the install, and what a host's shutdown does.
#[test]
fn a_signal_in_the_middle_of_a_reboot_leaves_the_container_running() {
    let Some(lab) = installing() else { return };
    let first = "/usr/sbin/pct.real shutdown 101 --forceStop 1; touch /run/down; sleep 2\n\
                 exec /usr/sbin/pct.real start 101";
    pct_with(&lab, "reboot", first);
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let before = ct.init_pid();
    wait_until("the container is down", || lab.exists("/run/down"));
    signal(&lab, &ours(&lab), "TERM");
    runs_anew(&lab, &ct, before);
}

#[test]
fn a_signal_in_the_middle_of_a_restart_by_hand_counts_once_the_container_runs_again() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    let before = ct.init_pid();
    pct_with(&lab, "shutdown", "/usr/sbin/pct.real \"$@\"; touch /run/down; sleep 2; exit 0");
    let hand = lab.command(PROGRAM).arg("101").spawn();
    wait_until("the container is down", || lab.exists("/run/down"));
    signal(&lab, &ours(&lab), "TERM");
    let hand = hand.wait().code(1);
    assert!(ct.running() && ct.init_pid() != before, "{hand}");
    let hand = hand.says("interrupted by SIGTERM: starting container 101 first").says_not("does not start");
    hand.says("container 101 restarted; remaining steps skipped: interrupted by SIGTERM");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}

/// Somebody holds Proxmox's lock for longer than `pct` waits: what was never
/// asked to shut down is not killed for it.
#[test]
fn a_shutdown_that_did_not_get_the_lock_is_tried_again() {
    let Some(lab) = two_gpus() else { return };
    let ct = needs_a_restart(&lab);
    let held =
        "setsid flock /run/lock/lxc/pve-config-101.lock sleep 11 >/dev/null 2>&1 </dev/null & sleep 0.3";
    pct_with(&lab, "shutdown", held);
    let hand = lab.run([PROGRAM, "101"]).ok().says("is locked by another operation");
    assert_eq!((calls(&lab, "shutdown 101"), calls(&lab, "stop 101")), (2, 0), "{hand}");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
}
