//! Installs run by themselves: beside the hook, one at a time, to their end
//! or to the container's.
use crate::robust_support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::{Errno, Lab, Output, Rootfs};
use robust_support::*;
use std::time::{Duration, Instant};

/// An installer that takes so many seconds, and a hook that follows it for one.
fn slow(seconds: u32) -> Option<Lab> {
    let lab = lab()?;
    offers(&lab, &Runfile::new(DRIVER).flaw(Flaw::Slow(seconds)));
    node(&lab, "INSTALL_WAIT=1");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    Some(lab)
}

/// The container has its GPU and the driver, and nothing is left of the work.
#[track_caller]
fn is_well(lab: &Lab, ctid: u32) {
    let ct = lab.container(ctid);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    ct.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    assert_eq!((says(lab, ctid, "outcome"), says(lab, ctid, "code")), ("ok".into(), "0".into()));
    assert_eq!(says(lab, ctid, "container_driver"), DRIVER);
    nothing_inside(lab, ctid);
}

/// No temporary file of an install in the container, no process of it.
#[track_caller]
fn nothing_inside(lab: &Lab, ctid: u32) {
    let ct = lab.container(ctid);
    for path in ["/tmp/nvidia-driver-installer.run", "/tmp/phoenix-nvidia.unpack"] {
        assert!(!ct.exists(path), "{path}");
    }
    wait_until("the end of the installer", || pids(lab, "nvidia-driver-installer.run").is_empty());
}

fn our_lines(output: &Output) -> Vec<&str> {
    output.stdout.lines().filter(|line| line.starts_with("phoenix-nvidia")).collect()
}

#[test]
fn a_first_start_installs_says_a_dozen_lines_and_reboots_once() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let start = lab.run(["pct", "start", "101"]).ok().says("driver: installed").says_not("WARNING");
    let lines = our_lines(&start);
    let mut different = lines.clone();
    different.dedup();
    assert!(lines.len() <= 12 && different == lines, "{start}");
    assert!(lines.iter().all(|line| line.starts_with("phoenix-nvidia 101: ")), "{start}");
    wait_for_the_end(&lab);
    assert_eq!(calls(&lab, "reboot 101"), 1);
    is_well(&lab, 101);
    let logged = lab.read("/var/log/phoenix-nvidia/101.log");
    assert!(logged.contains("driver: installed") && logged.contains("container rebooted"), "{logged}");
    // And once more: nothing to do.
    lab.run(["pct", "stop", "101"]).ok();
    let start = lab.run(["pct", "start", "101"]).ok().says("installed and right");
    assert!(our_lines(&start).len() <= 2, "{start}");
    assert_eq!(lab.read("/var/log/phoenix-nvidia/101.log"), logged, "no install process was started");
    assert_eq!(calls(&lab, "reboot 101"), 1);
}

#[test]
fn a_slow_install_leaves_the_hook_and_others_at_work_and_ends_well_by_itself() {
    let Some(lab) = slow(4) else { return };
    let start = lab.run(["pct", "start", "101"]).ok();
    let start =
        start.says("install continues in the background").says("tail -f /var/log/phoenix-nvidia/101.log");
    assert!(!start.stdout.contains("driver: installed"), "{start}");
    assert_eq!((says(&lab, 101, "phase"), says(&lab, 101, "outcome")), ("install".into(), "running".into()));
    // Another administrator is not kept from his work.
    lab.run(["pct", "set", "101", "--memory", "300"]).ok();
    assert_eq!(pids(&lab, "install 101").len(), 1, "it is still under way");
    wait_for_the_end(&lab);
    assert_eq!(calls(&lab, "reboot 101"), 1);
    is_well(&lab, 101);
}

#[test]
fn a_container_stopped_under_an_install_leaves_nothing_and_the_next_start_completes_it() {
    let Some(lab) = slow(3) else { return };
    let before = lab.leftovers();
    lab.run(["pct", "start", "101"]).ok().says("install continues in the background");
    lab.run(["pct", "stop", "101"]).ok();
    wait_for_the_end(&lab);
    let logged = lab.read("/var/log/phoenix-nvidia/101.log");
    assert!(logged.contains("container 101 is no longer running"), "{logged}");
    assert_eq!((says(&lab, 101, "outcome"), says(&lab, 101, "code")), ("failed".into(), "5".into()));
    assert_eq!(calls(&lab, "reboot 101"), 0);
    let mut left = lab.leftovers().since(&before);
    // What the container is shown, from its first start on.
    left.mounts.retain(|mount| mount != "/run/phoenix-nvidia/proc/101");
    assert!(left.processes.is_empty() && left.mounts.is_empty(), "{left:?}");
    // What is to stay: locks, the state, what LXC keeps of the container.
    let stays = |file: &String| {
        ["/run/lock/", "/run/phoenix-nvidia/", "/run/lxc/"].iter().any(|p| file.starts_with(p))
    };
    assert!(left.files.iter().all(stays), "{left:?}");
    node(&lab, "INSTALL_WAIT=60");
    lab.run(["pct", "start", "101"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
    is_well(&lab, 101);
}

#[test]
fn a_container_destroyed_under_an_install_is_one_sentence() {
    let Some(lab) = slow(3) else { return };
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh("rm /etc/pve/lxc/101.conf").ok();
    let begun = Instant::now();
    wait_for_the_end(&lab);
    assert!(begun.elapsed() < Duration::from_secs(8), "it does not wait for what will not come");
    let logged = lab.read("/var/log/phoenix-nvidia/101.log");
    assert_eq!(logged.matches("ERROR").count() - logged.matches("ERROR: fix: ").count(), 1, "{logged}");
}

#[test]
fn a_container_rebooted_from_inside_under_an_install_gets_it_all_the_same() {
    let Some(lab) = slow(2) else { return };
    lab.run(["pct", "start", "101"]).ok().says("install continues in the background");
    lab.container(101).exec(["reboot"]);
    wait_for_the_end(&lab);
    let logged = lab.read("/var/log/phoenix-nvidia/101.log");
    assert!(logged.contains("container rebooted during the install: starting again"), "{logged}");
    assert_eq!(calls(&lab, "reboot 101"), 1, "{logged}");
    is_well(&lab, 101);
}

#[test]
fn installs_wait_for_a_place_and_for_each_other() {
    let Some(lab) = slow(2) else { return };
    node(&lab, "MAX_INSTALLS=1\nAFTER_INSTALL=none");
    attached(&lab, 102, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "start", "102"]).ok();
    // By hand everything waits for what is under way; its work is done once.
    let hand = lab.command(PROGRAM).arg("101").spawn();
    lab.run([PROGRAM, "install", "101"]).ok();
    hand.wait().ok().says("another install in container 101 is running").says("installed and right");
    wait_for_the_end(&lab);
    let logged = lab.read("/var/log/phoenix-nvidia/102.log");
    assert!(logged.contains("waiting for a place"), "{logged}");
    for ctid in [101, 102] {
        is_well(&lab, ctid);
        let logged = lab.read(format!("/var/log/phoenix-nvidia/{ctid}.log"));
        assert_eq!(logged.matches("driver: installed").count(), 1, "{logged}");
    }
    assert_eq!(calls(&lab, "reboot"), 0);
}

/// An install process and a call by hand want the same restart: there is one.
#[test]
fn a_call_by_hand_beside_an_install_process_restarts_once() {
    let Some(lab) = slow(2) else { return };
    lab.run(["pct", "start", "101"]).ok().says("install continues in the background");
    let hand = lab.run([PROGRAM, "101"]).ok().says("another install in container 101 is running");
    wait_for_the_end(&lab);
    let restarts = calls(&lab, "reboot 101") + calls(&lab, "shutdown 101");
    assert_eq!(restarts, 1, "{hand}\n{}", lab.read("/var/log/phoenix-nvidia/101.log"));
    is_well(&lab, 101);
}

/// A container whose driver is gone again after every boot is not rebooted
/// for ever.
#[test]
fn a_driver_that_does_not_outlive_the_reboot_is_not_rebooted_for_again() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let ct = lab.container(101);
    let init = ct.read("/usr/sbin/init").replace("trap", "rm -f /usr/lib/*/libcuda.so*\ntrap");
    ct.write("/usr/sbin/init", init);
    lab.run(["pct", "start", "101"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
    let logged = lab.read("/var/log/phoenix-nvidia/101.log");
    assert_eq!(calls(&lab, "reboot 101"), 1, "{logged}");
    assert!(logged.contains("already rebooted for driver 580.95.05: not rebooting again"), "{logged}");
    ct.exec(["nvidia-smi", "--version"]).ok();
}

/// A container whose first start installs, with a `pct reboot` that does this.
fn rebooted_by(script: &str) -> Option<Lab> {
    let lab = lab()?;
    offers(&lab, &Runfile::new(DRIVER));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.sh("cp $(readlink -f /usr/sbin/pct) /usr/sbin/pct.real; rm /usr/sbin/pct").ok();
    let others = "[ \"$1\" = reboot ] || exec /usr/sbin/pct.real \"$@\"";
    lab.replace_program("/usr/sbin/pct", format!("#!/bin/sh\n{others}\n{script}\n"));
    lab.run(["pct", "start", "101"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
    Some(lab)
}

/// The reboot has to wait for the lock of another task, and that one was a
/// stop.
#[test]
fn a_container_that_was_stopped_before_its_reboot_stays_stopped() {
    let stopped = "/usr/sbin/pct.real stop 101\n\
                   echo \"can't lock file '/run/lock/lxc/pve-config-101.lock' - got timeout\" >&2\nexit 4";
    let Some(lab) = rebooted_by(stopped) else { return };
    let logged = lab.read("/var/log/phoenix-nvidia/101.log");
    assert!(logged.contains("no reboot needed: container stopped or restarted meanwhile"), "{logged}");
    assert!(!lab.container(101).running());
    assert_eq!(says(&lab, 101, "outcome"), "ok");
}

#[test]
fn a_reboot_that_fails_is_a_warning_with_its_reason() {
    let Some(lab) = rebooted_by("echo 'CT is locked (backup)' >&2; exit 255") else { return };
    assert_eq!(says(&lab, 101, "outcome"), "warning");
    assert!(says(&lab, 101, "message").contains("the reboot for it failed"), "{}", state(&lab, 101));
    let logged = lab.read("/var/log/phoenix-nvidia/101.log");
    assert!(logged.contains("CT is locked (backup)") && logged.contains("pct reboot 101"), "{logged}");
    lab.container(101).exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
}

#[test]
fn a_container_that_waits_for_a_place_and_is_stopped_waits_no_longer() {
    let Some(lab) = slow(30) else { return };
    node(&lab, "MAX_INSTALLS=1");
    attached(&lab, 102, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "start", "102"]).ok().says("waiting for a place");
    lab.run(["pct", "stop", "102"]).ok();
    wait_until("the end of the one that waits", || pids(&lab, "install 102").is_empty());
    assert!(says(&lab, 102, "message").contains("no longer running"), "{}", state(&lab, 102));
    assert_eq!(pids(&lab, "install 101").len(), 1);
}

#[test]
fn a_failed_install_is_exit_5_the_container_runs_and_nothing_is_left_in_it() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER).flaw(Flaw::Fails));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let start = lab.run(["pct", "start", "101"]).ok();
    let start = start.says("failed: exit code 5").says("ERROR: driver: the installer of 580.95.05 failed");
    let lines = our_lines(&start);
    let mut different = lines.clone();
    different.dedup();
    assert_eq!(different, lines, "no line twice");
    assert!(lab.container(101).running());
    wait_for_the_end(&lab);
    nothing_inside(&lab, 101);
    assert_eq!(calls(&lab, "reboot"), 0);
    assert_eq!(says(&lab, 101, "code"), "5");
    assert!(says(&lab, 101, "message").contains("the installer of 580.95.05 failed"));
}

/// A URL may hold a password; the task log is the cluster's to read.
#[test]
fn a_password_in_a_url_is_written_nowhere() {
    let Some(lab) = lab() else { return };
    node(&lab, "NVIDIA_RUNFILE_URL=http://me:geheim@127.0.0.1:9/driver.run\nCUDA_PACKAGES=none");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"])
        .ok()
        .says("failed: exit code 5")
        .says("…@127.0.0.1:9")
        .says_not("geheim");
    wait_for_the_end(&lab);
    let readable = lab.sh("grep -rl geheim /run/phoenix-nvidia /var/log /var/lib/phoenix-nvidia").stdout;
    assert_eq!(readable.trim(), "", "the environment that is passed on is root's alone");
}

/// In the environment of whoever starts the container; the install is another process.
#[test]
fn a_password_in_the_environment_of_a_start_is_kept_nowhere() {
    let Some(lab) = lab() else { return };
    lab.web().runfile(&Runfile::new(DRIVER));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let url =
        "http://me:kennwort-7f3a@127.0.0.1/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run";
    let start = || lab.command("pct").args(["start", "101"]).env("NVIDIA_RUNFILE_URL", url).run();
    let kept = || {
        lab.sh("grep -rls kennwort-7f3a /run /var/cache /var/log /var/tmp /var/lib/phoenix-nvidia --exclude-dir=lab").stdout
    };
    start().ok().says("driver: installed").says_not("kennwort-7f3a");
    wait_for_the_end(&lab);
    is_well(&lab, 101);
    assert_eq!(kept(), "");
    // The install process is refused its lock, ends before it reads, and cannot be started.
    let own = "/run/phoenix-nvidia/state/101.job";
    let left = |at: &str, age: &str| {
        lab.write(at, format!("{{\"environment\":[[\"NVIDIA_RUNFILE_URL\",\"{url}\"]]}}"));
        lab.sh(&format!("touch -d '{age} ago' {at}")).ok();
    };
    lab.run(["pct", "stop", "101"]).ok();
    left(own, "1 second");
    lab.sh("mv /etc/pve/lxc/101.conf /root; phoenix-nvidia install 101; mv /root/101.conf /etc/pve/lxc/")
        .ok();
    assert_eq!(kept(), "");
    left(own, "1 second");
    lab.sh("chmod 777 /run/lock/phoenix-nvidia; ! phoenix-nvidia install 101 && chmod 700 /run/lock/phoenix-nvidia")
        .ok();
    assert_eq!(kept(), "");
    // It never ran: the next start removes what was left for it, and so does the next boot's preparation.
    for at in [own, "/run/phoenix-nvidia/101.job", "/run/phoenix-nvidia/state/101.job.77.tmp"] {
        left(at, "2 minutes");
        lab.run(["phoenix-nvidia", "prepare"]).ok();
        assert_eq!(kept(), "", "{at}");
    }
    left(own, "2 minutes");
    lab.sh(&format!(
        "flock -x /run/lock/phoenix-nvidia/101.worker.lock sh -c 'phoenix-nvidia prepare; test -e {own}'"
    ))
    .ok();
    start().ok().says("installed and right");
    assert_eq!(kept(), "");
    left(own, "1 second");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["phoenix-nvidia", "detach", "101"]).ok();
    assert_eq!(kept(), "");
}

#[test]
fn a_stopped_install_process_ends_at_once_with_all_that_it_started() {
    let Some(lab) = slow(30) else { return };
    lab.run(["pct", "start", "101"]).ok();
    wait_until("the installer", || !pids(&lab, "phoenix-nvidia.unpack").is_empty());
    let begun = Instant::now();
    signal(&lab, &pids(&lab, "install 101"), "TERM");
    wait_for_the_end(&lab);
    assert!(begun.elapsed() < Duration::from_secs(5), "KILL would have come: {:?}", begun.elapsed());
    nothing_inside(&lab, 101);
    assert_eq!(says(&lab, 101, "outcome"), "failed");
    assert!(says(&lab, 101, "message").contains("interrupted by SIGTERM"), "{}", state(&lab, 101));
    lab.sh("flock -n /run/lock/phoenix-nvidia/101.lock true").ok();
}

#[test]
fn what_a_killed_install_left_at_work_is_ended_by_the_next() {
    let Some(lab) = slow(600) else { return };
    // A restart would end everything inside.
    node(&lab, "AFTER_INSTALL=none");
    lab.run(["pct", "start", "101"]).ok();
    // Killed before, it would end by itself: what it prints goes nowhere.
    wait_until("the installer", || !pids(&lab, "sleep 600").is_empty());
    // A service that the install merely started is none of that.
    let service =
        lab.container(101).command("setsid").args(["env", "PHOENIX_NVIDIA_INSTALL=101", "sleep", "601"]);
    let service = service.spawn();
    wait_until("the service", || !pids(&lab, "sleep 601").is_empty());
    // Nor is what an administrator runs inside.
    let theirs = lab.container(101).command("sleep").arg("602").spawn();
    wait_until("the other one", || pids(&lab, "sleep 602").len() > 1);
    signal(&lab, &pids(&lab, "install 101"), "KILL");
    wait_for_the_end(&lab);
    wait_until("it goes on inside", || !pids(&lab, "sleep 600").is_empty());
    lab.write("/srv/driver.run", std::fs::read(Runfile::new(DRIVER).build().unwrap()).unwrap());
    lab.sh("rm -r /var/cache/phoenix-nvidia").ok();
    lab.run([PROGRAM, "101"]).ok().says("of an interrupted install").says("driver: installed");
    assert!(pids(&lab, "sleep 600").is_empty());
    // The program itself, beside what brings it into the container.
    for other in ["sleep 601", "sleep 602"] {
        assert!(pids(&lab, other).len() > 1, "{other}");
    }
    drop((service, theirs));
    is_well(&lab, 101);
}

/// Its interface gets an address only after post-start: waiting would be for
/// nothing.
#[test]
fn a_host_managed_interface_is_not_waited_for() {
    let Some(lab) = slow(2) else { return };
    node(&lab, "INSTALL_WAIT=60");
    let conf = lab.conf(101).replace("type=veth", "type=veth,host-managed=1");
    assert!(conf.contains("host-managed"), "{conf}");
    lab.write("/etc/pve/lxc/101.conf", conf);
    let start = lab
        .run(["pct", "start", "101"])
        .ok()
        .says("not waiting for the install")
        .says("install continues in the background");
    assert!(!start.stdout.contains("driver: installed"), "{start}");
    wait_for_the_end(&lab);
    is_well(&lab, 101);
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says("installed and right").says_not("not waiting");
}

#[test]
fn an_install_process_that_dies_early_is_told_and_not_waited_for() {
    let Some(lab) = slow(2) else { return };
    node(&lab, "INSTALL_WAIT=60");
    let start = lab.command("pct").args(["start", "101"]).spawn();
    wait_until("the install process", || !pids(&lab, "install 101").is_empty());
    signal(&lab, &pids(&lab, "install 101"), "KILL");
    start.wait().ok().says("ended without a result").says("failed: exit code 5");
    lab.run([PROGRAM, "status", "101"]).says("ended without a result").says_not("install running");
}
