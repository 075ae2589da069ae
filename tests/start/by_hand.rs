//! `phoenix-nvidia CTID`: the requirements' main(), devices and restart.
use crate::support;

use phoenix_lab::{Errno, Lab, Rootfs, Signal};
use std::time::{Duration, Instant};
use support::{lab, node, setting};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";

/// A busybox container without hookscript, INSTALL=off.
fn plain(gpus: u32) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(gpus))?;
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.privileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    Some(lab)
}

fn starts(lab: &Lab) -> usize {
    lab.calls().iter().filter(|call| call.contains("start 101")).count()
}

#[test]
fn a_stopped_container_is_configured_and_started_once() {
    let Some(lab) = plain(1) else { return };
    lab.run([PROGRAM, "101"]).ok().says("added /dev/nvidia0").says("completed");
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    assert_eq!(starts(&lab), 1, "{:?}", lab.calls());
}

#[test]
fn a_running_container_is_restarted_once_and_the_second_call_does_nothing() {
    let Some(lab) = plain(1) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    lab.run([PROGRAM, "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    let (init, inode) = (ct.init_pid(), lab.inode("/etc/pve/lxc/101.conf"));
    lab.run([PROGRAM, "101"]).ok().says("already configured").says_not("restart");
    assert_eq!((ct.init_pid(), lab.inode("/etc/pve/lxc/101.conf")), (init, inode));
}

#[test]
fn a_gpu_taken_away_is_a_change_too() {
    let Some(lab) = plain(2) else { return };
    setting(&lab, 101, "GPU_ASSIGNMENT=0,1"); // the later line wins
    lab.run([PROGRAM, "101"]).ok();
    let ct = lab.container(101);
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
    lab.command(PROGRAM).arg("101").env("GPU_ASSIGNMENT", "0").run().ok().says("the next start uses 0,1");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
}

/// It compares with the running container, not with what it wrote itself.
#[test]
fn a_run_killed_between_the_conf_and_the_restart_is_completed_by_the_next() {
    let Some(lab) = plain(1) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let pct = lab.sh("readlink -f /usr/sbin/pct").ok().stdout.trim().to_owned();
    lab.sh(&format!("cp {pct} /usr/sbin/pct.real")).ok();
    // Its restart begins with pct shutdown: this one kills who calls it.
    lab.replace_program(
        "/usr/sbin/pct",
        "#!/bin/sh\n[ \"$1\" = shutdown ] && { kill -9 $PPID; exit 1; }\nexec /usr/sbin/pct.real \"$@\"\n",
    );
    let killed = lab.run([PROGRAM, "101"]);
    assert_eq!(killed.signal(), Some(9));
    assert!(lab.conf(101).contains("/dev/nvidia0"));
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    lab.sh("cp /usr/sbin/pct.real /usr/sbin/pct.new && mv /usr/sbin/pct.new /usr/sbin/pct").ok();
    lab.run([PROGRAM, "101"]).ok().says("already configured");
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn a_template_is_configured_and_not_started() {
    let Some(lab) = plain(1) else { return };
    node(&lab, "INSTALL=on");
    lab.run(["pct", "template", "101"]).ok();
    lab.run([PROGRAM, "101"]).ok().says("is a template");
    assert!(lab.conf(101).contains("/dev/nvidia0"));
    assert_eq!(starts(&lab), 0);
    // What nobody has looked at is not known.
    assert!(lab.read("/run/phoenix-nvidia/state/101.json").contains("\"container_driver\": null"));
}

#[test]
fn two_calls_at_once_do_the_work_once() {
    let Some(lab) = plain(1) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let first = lab.command(PROGRAM).arg("101").spawn();
    let second = lab.command(PROGRAM).arg("101").spawn();
    first.wait().ok();
    second.wait().ok();
    assert_eq!(starts(&lab), 2, "one restart beside the first start: {:?}", lab.calls());
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn a_call_beside_a_start_with_the_hook_attached_ends_well() {
    let Some(lab) = plain(1) else { return };
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    let start = lab.command("pct").args(["start", "101"]).spawn();
    let hand = lab.command(PROGRAM).arg("101").spawn();
    hand.wait().ok();
    // A start that fails because the container already runs is no failure
    // of ours; the other way round it is Proxmox' own message.
    let start = start.wait();
    assert!(start.exit() == Some(0) || start.stderr.contains("already running"), "{start:?}");
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn exit_1_without_root() {
    let Some(lab) = plain(1) else { return };
    let script = format!("setpriv --reuid 65534 --clear-groups {PROGRAM} 101");
    lab.sh(&script).code(1).says("root required");
}

#[test]
fn exit_2_names_what_is_missing_or_bad_and_where_it_may_be_set() {
    let Some(lab) = plain(1) else { return };
    for words in [&[][..], &["abc"], &["101", "pre-start", "more"], &["0"]] {
        lab.command(PROGRAM).args(words).run().code(2);
    }
    lab.command(PROGRAM)
        .arg("101")
        .env("GPU_ASSIGNMENT", "0,x")
        .run()
        .code(2)
        .says("GPU_ASSIGNMENT=0,x (the environment)");
    lab.create(102, Rootfs::Busybox.privileged());
    lab.run([PROGRAM, "102"])
        .code(2)
        .says("GPU_ASSIGNMENT is not set")
        .says("fix: phoenix-nvidia attach 102 --gpus 0");
    node(&lab, "GPU_ASIGNMENT=0");
    lab.run([PROGRAM, "101"]).code(2).says("line").says("did you mean GPU_ASSIGNMENT?");
    assert!(!lab.conf(101).contains("nvidia0"), "nothing was changed");
}

#[test]
fn exit_3_for_a_container_that_does_not_exist() {
    let Some(lab) = plain(1) else { return };
    lab.command(PROGRAM).arg("999").env("GPU_ASSIGNMENT", "0").run().code(3).says("999");
}

#[test]
fn exit_4_for_a_gpu_that_the_host_lacks_whatever_the_policy() {
    let Some(lab) = plain(1) else { return };
    lab.command(PROGRAM).arg("101").env("GPU_ASSIGNMENT", "3").run().code(4).says("GPU 3");
    assert!(!lab.conf(101).contains("nvidia"));
}

#[test]
fn exit_6_for_a_container_that_does_not_start() {
    let Some(lab) = plain(1) else { return };
    node(&lab, "RESTART_TIMEOUT=3");
    lab.append("/etc/pve/lxc/101.conf", "lxc.mount.entry: /nonexistent nonexistent none bind 0 0\n");
    lab.run([PROGRAM, "101"]).code(6).says("does not start").says("pct start 101");
}

#[test]
fn a_stop_by_signal_ends_the_call_at_once_and_leaves_nothing() {
    let Some(lab) = plain(1) else { return };
    lab.replace_program("/usr/sbin/pct", "#!/bin/sh\n: >/tmp/pct-called\nsleep 600\n");
    let before = lab.leftovers();
    let run = lab.command(PROGRAM).arg("101").spawn();
    // It has called pct, so it catches signals.
    lab.sh("until [ -e /tmp/pct-called ]; do sleep 0.02; done; rm /tmp/pct-called").ok();
    let begun = Instant::now();
    run.signal(Signal::SIGTERM);
    run.wait().code(1).says("interrupted by SIGTERM");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let left = lab.leftovers().since(&before);
    assert!(left.none(), "{left:?}");
}

/// Whoever could write there would choose what is run as root in containers.
#[test]
fn nothing_is_open_to_other_users_whatever_the_umask_of_the_shell() {
    let Some(lab) = plain(1) else { return };
    lab.sh("umask 0; phoenix-nvidia 101 && phoenix-nvidia prepare").ok();
    let open = "find /run/phoenix-nvidia /run/lock/phoenix-nvidia /var/lib/phoenix-nvidia -perm /022";
    assert_eq!(lab.sh(open).ok().stdout, "");
}

/// /run/lock is everybody's: somebody may have made our directory there.
#[test]
fn a_lock_directory_of_another_user_is_refused_with_the_command_that_mends_it() {
    let Some(lab) = plain(1) else { return };
    let evil = "mkdir -p /run/lock/phoenix-nvidia && chown 65534 /run/lock/phoenix-nvidia && \
                ln -s /etc/nologin /run/lock/phoenix-nvidia/101.run.lock";
    lab.sh(evil).ok();
    lab.run([PROGRAM, "101"]).code(1).says("|| rm -r /run/lock/phoenix-nvidia");
    assert!(!lab.exists("/etc/nologin"));
    lab.sh("rm -r /run/lock/phoenix-nvidia").ok();
    lab.run([PROGRAM, "101"]).ok();
}

#[test]
fn a_call_under_nohup_outlives_its_terminal() {
    let Some(lab) = plain(1) else { return };
    let script = "umask 077; mkdir -p /run/lock/phoenix-nvidia; (flock 9; sleep 1.5) 9>/run/lock/phoenix-nvidia/101.run.lock & \
                  sleep 0.3; nohup phoenix-nvidia 101 2>&1 & p=$!; sleep 0.7; kill -HUP $p; wait $p";
    lab.sh(script).ok().says("waiting for it").says("completed");
}

/// Docker makes one in the place of a node that it does not find; somebody may have mounted something there.
#[test]
fn a_directory_in_the_place_of_a_node_is_told_with_a_command_that_removes_nothing_in_it() {
    let Some(lab) = plain(1) else { return };
    lab.nvidia().remove_node("/dev/nvidia0");
    lab.sh("mkdir -p /dev/nvidia0 && : >/dev/nvidia0/theirs").ok();
    lab.run([PROGRAM, "101"])
        .code(4)
        .says("is a directory, not a device")
        .says("fix: rmdir /dev/nvidia0 && ");
}
