//! The phases of a start under bad conditions: stopped, chained, unheard,
//! with nobody reading what they print.
use crate::robust_support;

use phoenix_lab::{Errno, Lab, Rootfs, Signal};
use robust_support::*;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

const PHASES: [&str; 4] = ["pre-start", "post-start", "pre-stop", "post-stop"];

/// A container whose devices alone are looked after.
fn quiet() -> Option<Lab> {
    let lab = lab()?;
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    Some(lab)
}

#[test]
fn stop_phases_and_unknown_ones_touch_nothing_and_start_no_program() {
    let Some(lab) = quiet() else { return };
    let before = (lab.leftovers(), lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));
    for phase in ["pre-stop", "post-stop", "pre-migrate"] {
        let trace = lab.trace([PROGRAM, "101", phase]);
        assert_eq!(trace.execs.len(), 1, "only itself: {:?}", trace.execs);
        let output = trace.output.ok();
        assert_eq!(output.stderr.contains("unknown phase 'pre-migrate'"), phase == "pre-migrate", "{output}");
        assert_eq!(output.stderr.lines().count(), usize::from(phase == "pre-migrate"), "{output}");
        // As LXC calls it: with next to no environment.
        lab.command(PROGRAM).args(["101", phase]).env_clear().env("LXC_NAME", "101").run().ok();
    }
    assert!(lab.leftovers().since(&before.0).none());
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), (before.1, before.2));
    // And with the conf gone, or its file system.
    lab.sh("rm /etc/pve/lxc/101.conf").ok();
    lab.run([PROGRAM, "101", "post-stop"]).ok();
    lab.sh("umount -l /etc/pve").ok();
    lab.run([PROGRAM, "101", "post-stop"]).ok();
}

/// The user's own script: what it was called with, and when.
const THEIRS: &str = "#!/bin/sh
echo \"$* $USER_OWN $(grep -c nvidia0 /etc/pve/lxc/101.conf) $#\" >>/tmp/chained
echo \"theirs in $2\"
[ \"$2\" = \"$(cat /tmp/fail 2>/dev/null)\" ] && exit 7
exit 0
";

fn chained() -> Option<Lab> {
    let lab = quiet()?;
    lab.replace_program("/var/lib/vz/snippets/theirs", THEIRS);
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: HOOK_CHAIN=/var/lib/vz/snippets/theirs\n");
    Some(lab)
}

#[test]
fn a_chained_hookscript_runs_in_all_four_phases_with_our_arguments_and_environment() {
    let Some(lab) = chained() else { return };
    lab.command("pct").args(["start", "101"]).env("USER_OWN", "value").run().ok().says("theirs in pre-start");
    lab.command("pct")
        .args(["shutdown", "101"])
        .env("USER_OWN", "value")
        .run()
        .ok()
        .says("theirs in pre-stop");
    wait_until("post-stop", || lab.read("/tmp/chained").lines().count() == 4);
    let calls = lab.read("/tmp/chained");
    let calls: Vec<&str> = calls.lines().collect();
    // Before ours in pre-start: our entry is not there yet; after it otherwise.
    let expected = [
        "101 pre-start value 0 2",
        "101 post-start value 1 2",
        "101 pre-stop value 1 2",
        "101 post-stop  1 2",
    ];
    assert_eq!(calls, expected);
}

#[test]
fn a_chained_hookscript_that_fails_does_what_it_would_do_alone() {
    for phase in PHASES {
        let Some(lab) = chained() else { return };
        lab.write("/tmp/fail", phase);
        let start = lab.run(["pct", "start", "101"]);
        let said = format!("chained hookscript /var/lib/vz/snippets/theirs failed in {phase}: exit code 7");
        if phase == "pre-start" {
            start.code(255).says(&said).says("failed: exit code 1");
            assert!(!lab.container(101).running());
            assert!(!lab.conf(101).contains("nvidia0"), "ours is not begun");
            continue;
        }
        let start = start.ok();
        assert!(lab.container(101).running());
        assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
        if phase == "post-start" {
            start.says(&said).says("hookscript error for 101 on post-start");
        } else {
            let stop = lab.run(["pct", "shutdown", "101"]).ok();
            if phase == "pre-stop" {
                stop.says(&said);
            }
            assert!(!lab.container(101).running());
        }
    }
}

#[test]
fn a_chained_hookscript_has_its_callers_umask_and_what_is_ours_is_nobody_elses() {
    let Some(lab) = chained() else { return };
    lab.replace_program("/var/lib/vz/snippets/theirs", "#!/bin/sh\numask >/tmp/umask\n");
    lab.sh(
        "umask 0002; phoenix-nvidia 101 pre-start; rm -rf /run/phoenix-nvidia; phoenix-nvidia 101 post-start",
    )
    .ok();
    assert_eq!(lab.read("/tmp/umask").trim(), "0002");
    lab.sh("find /run/phoenix-nvidia /run/lock/phoenix-nvidia /var/lib/phoenix-nvidia -perm /022 | grep .")
        .code(1);
}

#[test]
fn a_chained_hookscript_that_is_missing_or_leads_back_to_us_is_told() {
    let Some(lab) = quiet() else { return };
    let chain = |path: &str| {
        lab.append("/etc/pve/lxc/101.conf", format!("lxc.environment: HOOK_CHAIN={path}\n"));
    };
    chain("/nonexistent");
    lab.run(["pct", "start", "101"])
        .code(255)
        .says("cannot run chained hookscript /nonexistent")
        .says("fix: correct the path or remove HOOK_CHAIN from /etc/pve/lxc/101.conf line");
    // What is no path is a bad value, and its default counts: none.
    chain("relative");
    lab.run(["pct", "start", "101"]).ok().says("HOOK_CHAIN=relative").says("must be an absolute path");
    lab.run(["pct", "stop", "101"]).ok();
    for path in ["/var/lib/vz/snippets/phoenix-nvidia", PROGRAM] {
        chain(path);
        lab.run(["pct", "start", "101"]).ok().says("calls phoenix-nvidia again");
        lab.run(["pct", "stop", "101"]).ok();
    }
}

/// Outside our deadlines: it is the user's.
#[test]
fn a_chained_hookscript_has_no_deadline_and_is_told_when_the_task_is_stopped() {
    let Some(lab) = quiet() else { return };
    node(&lab, "PRE_START_TIMEOUT=1\nHOOK_CHAIN=/var/lib/vz/snippets/theirs");
    lab.replace_program("/var/lib/vz/snippets/theirs", "#!/bin/sh\nsleep 2\n");
    lab.run([PROGRAM, "101", "pre-start"]).ok().says("configured");
    let script = "#!/bin/sh\ntrap 'echo they know; exit 1' TERM\necho begun\nwhile :; do sleep 0.05; done\n";
    lab.replace_program("/var/lib/vz/snippets/theirs", script);
    let run = lab.command(PROGRAM).args(["101", "pre-start"]).spawn();
    wait_for_output(&run, "begun");
    run.signal(Signal::SIGTERM);
    run.wait().code(1).says("they know");
}

/// What a stopped task leaves: nothing.
#[track_caller]
fn stopped(lab: &Lab, phase: &str, waits_in: &str, signal: Signal) -> String {
    let before = lab.leftovers();
    let mut run = lab.command(PROGRAM).args(["101", phase]).spawn();
    wait_until(waits_in, || run_has(&mut run) || !pids(lab, waits_in).is_empty());
    let begun = Instant::now();
    run.signal(signal);
    let output = run.wait().code(1);
    // Proxmox sends KILL five seconds after TERM.
    assert!(begun.elapsed() < Duration::from_secs(4), "{output}");
    let left = lab.leftovers().since(&before);
    assert!(left.processes.is_empty() && left.mounts.is_empty(), "{left:?}");
    let temporary = left.files.iter().find(|file| !file.starts_with("/run/lock") && !file.ends_with(".json"));
    assert_eq!(temporary, None);
    for lock in
        ["/etc/pve/lxc/101.conf", "/run/lock/lxc/pve-config-101.lock", "/run/lock/phoenix-nvidia/101.lock"]
    {
        lab.sh(&format!("[ ! -e {lock} ] || flock -n {lock} true")).ok();
    }
    output.stderr
}

fn run_has(run: &mut phoenix_lab::Running) -> bool {
    assert!(!run.ended(), "{}", run.so_far());
    false
}

#[test]
fn a_stopped_task_ends_at_once_with_all_that_it_started() {
    let Some(lab) = quiet() else { return };
    let deaf = "#!/bin/sh\ntrap '' TERM INT\nwhile :; do sleep 777; done\n";
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        lab.sh("rm -f /dev/nvidia0").ok();
        lab.replace_program("/usr/bin/nvidia-modprobe", deaf);
        assert!(
            stopped(&lab, "pre-start", "sleep 777", signal).contains(&format!("interrupted by {signal}"))
        );
    }
    lab.sh("rm /usr/bin/nvidia-modprobe").ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    lab.sh("mv /usr/bin/lxc-attach /run/lab/").ok();
    lab.replace_program("/usr/bin/lxc-attach", deaf);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        assert!(
            stopped(&lab, "post-start", "sleep 777", signal).contains(&format!("interrupted by {signal}"))
        );
    }
    lab.sh("mv /run/lab/lxc-attach /usr/bin/").ok();
}

/// The whole pre-start, with syslog as it is, in time: what a daemon that does
/// not read costs is a quarter of a second, once.
#[track_caller]
fn heard_on_stderr(lab: &Lab, what: &str) {
    lab.sh("sed -i /dev.nvidia/d /etc/pve/lxc/101.conf").ok();
    let output = lab.run([PROGRAM, "101", "pre-start"]).ok().says("configured");
    assert!(output.took < Duration::from_secs(2), "{what}: {output}");
    assert!(lab.conf(101).contains("/dev/nvidia0"), "{what}");
}

#[test]
fn syslog_may_be_missing_full_or_a_directory() {
    let Some(lab) = quiet() else { return };
    heard_on_stderr(&lab, "missing");
    lab.sh("mkdir /dev/log").ok();
    heard_on_stderr(&lab, "a directory");
    lab.sh("rmdir /dev/log; touch /dev/log").ok();
    heard_on_stderr(&lab, "a file");
    lab.sh("rm /dev/log").ok();
    let path = format!("/proc/{}/root/dev/log", lab.init_pid());
    let daemon = UnixDatagram::bind(&path).expect("a socket");
    daemon.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    lab.sh("sed -i /dev.nvidia/d /etc/pve/lxc/101.conf").ok();
    let story = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buffer = [0; 4096];
            let mut heard = Vec::new();
            while let Ok(length) = daemon.recv(&mut buffer) {
                heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            heard
        });
        lab.run(["pct", "start", "101"]).ok();
        reader.join().unwrap_or_default()
    });
    assert!(story.len() > 5, "the full story: {story:#?}");
    assert!(
        story.iter().all(|line| line.contains("phoenix-nvidia[") && line.contains(": 101: ")),
        "{story:#?}"
    );
    assert!(story.iter().any(|line| line.starts_with("<31>")), "debug too: {story:#?}");
    // Nobody reads any more.
    let sender = UnixDatagram::unbound().expect("a socket");
    sender.set_nonblocking(true).expect("a socket");
    while sender.send_to(b"x", &path).is_ok() {}
    heard_on_stderr(&lab, "full");
    drop(daemon);
    heard_on_stderr(&lab, "abandoned");
}

#[test]
fn nobody_has_to_read_what_a_start_prints() {
    let Some(lab) = quiet() else { return };
    let full = "mkfifo /tmp/full; exec 3<>/tmp/full; dd if=/dev/zero of=/tmp/full bs=4096 count=1000 oflag=nonblock 2>/dev/null;";
    for (what, line) in [
        ("stderr closed", format!("{PROGRAM} 101 pre-start 2>&-")),
        ("all closed", format!("{PROGRAM} 101 pre-start <&- >&- 2>&-")),
        ("stdout full", format!("{full} {PROGRAM} 101 pre-start >&3")),
        ("both full", format!("{full} {PROGRAM} 101 pre-start >&3 2>&3")),
        ("no reader", format!("{{ sleep 0.3; exec {PROGRAM} 101 pre-start; }} 2>&1 | true; sleep 1")),
        ("no space", format!("{PROGRAM} 101 pre-start >/dev/full 2>/dev/full")),
    ] {
        lab.sh("rm -f /tmp/full; sed -i /dev.nvidia/d /etc/pve/lxc/101.conf").ok();
        let output = lab.run(["bash", "-c", &line]).ok();
        assert!(output.took < Duration::from_secs(5), "{what}: {output}");
        assert!(lab.conf(101).contains("/dev/nvidia0"), "{what}");
    }
}

/// A task worker's own descriptors are none of a program's business.
#[test]
fn programs_get_three_open_files_and_a_bare_environment() {
    let Some(lab) = quiet() else { return };
    lab.sh("rm -f /dev/nvidia0").ok();
    lab.replace_program(
        "/usr/bin/nvidia-modprobe",
        "#!/bin/bash\nls -l /proc/self/fd >/tmp/fds\nenv >/tmp/env\n",
    );
    lab.sh(&format!("exec 7</etc/hostname 8>/tmp/x; SECRET=1 {PROGRAM} 101 pre-start")).ok();
    let (fds, env) = (lab.read("/tmp/fds"), lab.read("/tmp/env"));
    assert!(!fds.contains("hostname") && !fds.contains("/tmp/x"), "{fds}");
    assert!(fds.contains(" 0 -> /dev/null"), "{fds}");
    assert!(!env.contains("SECRET"), "{env}");
}

#[test]
fn what_pre_start_could_not_give_is_recorded_until_it_can() {
    let Some(lab) = quiet() else { return };
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0,7\n");
    lab.run(["pct", "start", "101"]).ok().says("GPU 7");
    assert_eq!(
        (says(&lab, 101, "phase"), says(&lab, 101, "outcome")),
        ("pre-start".into(), "warning".into())
    );
    assert!(says(&lab, 101, "message").contains("GPU 7"));
    lab.run(["pct", "stop", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: START_POLICY=fail\n");
    lab.run(["pct", "start", "101"]).code(255);
    assert_eq!((says(&lab, 101, "outcome"), says(&lab, 101, "code")), ("failed".into(), "4".into()));
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!((says(&lab, 101, "outcome"), says(&lab, 101, "start_warning")), ("ok".into(), "null".into()));
}
