//! `GPU_EXCLUSIVE` while a running container changes: nobody waits for what is done in it, and no card has two.
use crate::common::{PROGRAM, agrees, assign, running, wait};
use crate::support::{node, setting};

use phoenix_lab::{Errno, Lab, Output, Rootfs, Running};

/// Container 101 runs with GPU 0 of three, and another one is to have that card.
fn two(other: u32) -> Option<Lab> {
    let lab = running(3, Rootfs::Busybox.privileged(), "0")?;
    node(&lab, "GPU_EXCLUSIVE=yes");
    create(&lab, 102, other);
    Some(lab)
}

fn create(lab: &Lab, ctid: u32, gpu: u32) {
    lab.create(ctid, Rootfs::Busybox.privileged());
    setting(lab, ctid, &format!("GPU_ASSIGNMENT={gpu}"));
    lab.run(["pct", "set", &ctid.to_string(), "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
}

/// A program of the host, which may not be there, waits once it is asked for what matches until `/run/go` is there.
fn waits(lab: &Lab, program: &str, matches: &str, then: &str) {
    lab.sh(&format!("[ ! -e {program} ] || mv {program} {program}.real")).ok();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in {matches}) : >/run/waits; until [ -e /run/go ]; do sleep 0.02; done; {then};; esac\n\
         [ ! -e {program}.real ] || exec {program}.real \"$@\"\n"
    );
    lab.replace_program(program, script);
}

/// `apply`, which has come so far that it waits.
fn applied(lab: &Lab) -> Running {
    let applied = lab.command(PROGRAM).args(["apply", "101"]).spawn();
    wait(|| lab.exists("/run/waits"), || applied.so_far());
    applied
}

/// A start of another container, which waits for nobody; `mut applied` still works meanwhile.
#[track_caller]
fn starts(lab: &Lab, ctid: u32, applied: &mut Running) -> Output {
    let start = lab.run(["pct", "start", &ctid.to_string()]).ok().says_not("is getting its GPUs");
    assert!(!applied.ended(), "{}", applied.so_far());
    start
}

fn has(lab: &Lab, ctid: u32, gpu: u32) -> bool {
    lab.container(ctid).open_node(&format!("/dev/nvidia{gpu}")) == Err(Errno::ENXIO)
}

const RULES: &str = "/usr/bin/lxc-cgroup";

#[test]
fn a_start_waits_for_no_step_in_another_container_and_gets_no_card_that_comes_there() {
    let Some(lab) = two(2) else { return };
    create(&lab, 103, 1);
    waits(&lab, RULES, "*'allow c 195:1 '*", "true");
    assign(&lab, "0,1");
    let mut applied = applied(&lab);
    starts(&lab, 102, &mut applied).says_not("in use by");
    assert!(has(&lab, 102, 2));
    starts(&lab, 103, &mut applied).says("GPU 1: in use by running container 101, and GPU_EXCLUSIVE=yes");
    lab.write("/run/go", "");
    applied.wait().ok().says("add /dev/nvidia1");
    agrees(&lab, &[0, 1], 3);
    assert!(!has(&lab, 103, 1));
}

/// What was to come and did not is free again, and what was to go is not before it has gone.
#[test]
fn a_step_that_fails_gives_back_the_card_that_was_to_come() {
    let Some(lab) = two(1) else { return };
    create(&lab, 103, 0);
    waits(&lab, RULES, "*'allow c 195:1 '*", "exit 1");
    assign(&lab, "1");
    let mut applied = applied(&lab);
    starts(&lab, 102, &mut applied).says("GPU 1: in use by running container 101");
    starts(&lab, 103, &mut applied).says("GPU 0: in use by running container 101");
    lab.write("/run/go", "");
    applied.wait().code(4).says("rolled back: /etc/pve/lxc/101.conf");
    assign(&lab, "0");
    agrees(&lab, &[0], 3);
    lab.run(["pct", "stop", "102"]).ok();
    lab.run(["pct", "start", "102"]).ok().says_not("in use by");
    assert!(has(&lab, 102, 1));
}

/// Between the look at the container and the claim another one may have come.
#[test]
fn a_card_that_another_container_got_meanwhile_is_refused_and_nothing_changes() {
    let Some(lab) = two(1) else { return };
    // It is asked for the processes on a card that goes: before anything is changed.
    waits(&lab, "/usr/bin/nvidia-smi", "*compute-apps*", "true");
    assign(&lab, "1");
    let before = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));
    let mut applied = applied(&lab);
    starts(&lab, 102, &mut applied).says_not("in use by");
    assert!(has(&lab, 102, 1));
    lab.write("/run/go", "");
    let out = applied.wait().code(4).says("GPU 1: in use by running container 102, and GPU_EXCLUSIVE=yes");
    out.says("pct shutdown 102").says_not("rolled back");
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), before);
    assign(&lab, "0");
    agrees(&lab, &[0], 3);
}

#[test]
fn of_two_that_want_a_card_while_they_run_one_gets_it() {
    let Some(lab) = two(2) else { return };
    lab.run(["pct", "start", "102"]).ok();
    lab.container(102).wait_ready();
    waits(&lab, RULES, "*'allow c 195:1 '*", "true");
    assign(&lab, "0,1");
    setting(&lab, 102, "GPU_ASSIGNMENT=1");
    let first = applied(&lab);
    let second = lab.run([PROGRAM, "apply", "102"]).code(4);
    second.says("GPU 1: in use by running container 101").says_not("is getting its GPUs");
    lab.write("/run/go", "");
    first.wait().ok().says("add /dev/nvidia1");
    assert!(has(&lab, 101, 1) && !has(&lab, 102, 1) && has(&lab, 102, 2));
}

/// Its conf has nothing of that card any more, and its rule is in force.
#[test]
fn a_card_that_a_running_container_keeps_until_its_restart_is_refused() {
    let Some(lab) = two(0) else { return };
    let refused = |lab: &Lab| {
        let said = "GPU 0: in use by running container 101, which keeps it until it is restarted, and GPU_EXCLUSIVE=yes";
        lab.run([PROGRAM, "plan", "102"]).code(4).says(said).says("or: pct reboot 101");
        lab.run(["pct", "start", "102"]).ok().says(said);
        assert!(!lab.conf(102).contains("/dev/nvidia0") && !has(lab, 102, 0));
        lab.run(["pct", "stop", "102"]).ok();
    };
    // Other settings, whose restart is refused.
    assign(&lab, "1");
    lab.sh("mv /var/lib/vz/snippets/phoenix-nvidia /root").ok();
    lab.run([PROGRAM, "101"]).code(6);
    lab.sh("mv /root/phoenix-nvidia /var/lib/vz/snippets").ok();
    assert!(!lab.conf(101).contains("lxc.mount.entry: /dev/nvidia0") && has(&lab, 101, 0));
    refused(&lab);
    lab.run([PROGRAM, "detach", "101"]).ok().says("keeps its GPUs until it is restarted");
    assert!(has(&lab, 101, 0));
    refused(&lab);
    lab.run(["pct", "reboot", "101"]).ok();
    lab.run(["pct", "start", "102"]).ok().says_not("in use by");
    assert!(has(&lab, 102, 0) && !has(&lab, 101, 0));
}

/// As the other one, and then it goes while it runs.
#[test]
fn a_card_that_was_taken_away_while_its_container_runs_is_anybodys() {
    let Some(lab) = two(0) else { return };
    assign(&lab, "1");
    lab.run([PROGRAM, "apply", "101"]).ok().says("take away /dev/nvidia0");
    lab.run(["pct", "start", "102"]).ok().says_not("in use by");
    assert!(has(&lab, 102, 0) && !has(&lab, 101, 0));
}

/// Any change of a container holds its lock for a moment.
#[test]
fn a_card_of_a_stopped_container_that_somebody_changes_is_given() {
    let Some(lab) = two(0) else { return };
    lab.run(["pct", "stop", "101"]).ok();
    let held = |seconds: &str| {
        let script = format!("flock 9; echo held; exec sleep {seconds}");
        let line = format!("({script}) 9>>/run/lock/lxc/pve-config-101.lock");
        let task = lab.command("sh").args(["-c", &line]).spawn();
        wait(|| task.so_far().contains("held"), || task.so_far());
        task
    };
    let _short = held("1");
    lab.run(["pct", "start", "102"]).ok().says_not("GPU_EXCLUSIVE");
    assert!(has(&lab, 102, 0));
    lab.run(["pct", "stop", "102"]).ok();
    let _long = held("20");
    let start = lab.run(["pct", "start", "102"]).ok();
    assert!(start.took < std::time::Duration::from_secs(15), "{start}");
    let said = "GPU 0: container 101, which has it, is being started or changed, and GPU_EXCLUSIVE=yes";
    start.says(said);
    let plan = lab.run([PROGRAM, "plan", "102"]).code(4).says(said);
    plan.says("fix: pct status 101, and once that is over the same again");
    assert!(!has(&lab, 102, 0));
}
