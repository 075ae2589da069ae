//! An installed 0.1.0 is upgraded: its state, its locks, the conf lines that
//! it wrote, and an install of its own that is still at work.
#![allow(clippy::unwrap_used)] // a helper that fails, fails its test
use crate::robust_support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs, Running};
use robust_support::*;

/// The pairs as 0.1.0 wrote them: it had no mounts over /proc/driver/nvidia.
const PAIRS: &str = "\
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0
lxc.cgroup2.devices.allow: c 195:0 rwm
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file 0 0
lxc.cgroup2.devices.allow: c 195:255 rwm
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file 0 0
lxc.cgroup2.devices.allow: c 511:0 rwm
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file 0 0
lxc.cgroup2.devices.allow: c 511:1 rwm
lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir 0 0
lxc.cgroup2.devices.allow: c 510:2 rwm
";

const DIRECTORY: &str = "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir 0 0";

/// Where 0.1.0 kept what it knew, for everybody to read.
const OLD: &str = "/run/phoenix-nvidia/101.json";
const OLD_KEPT: &str = "/var/lib/phoenix-nvidia/101.json";

/// A running container that has its driver, and all that there would be of us
/// if 0.1.0 had brought it there.
fn of_0_1_0() -> Option<Lab> {
    let lab = lab()?;
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, "AFTER_INSTALL=none");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
    lab.sh("rm -rf /run/phoenix-nvidia/state /var/lib/phoenix-nvidia/state /run/lock/phoenix-nvidia").ok();
    lab.sh("mkdir -m 755 /run/lock/phoenix-nvidia; cd /run/lock/phoenix-nvidia; umask 022; \
         touch 101.lock 101.run.lock 101.worker.lock install-0.lock")
        .ok();
    for directory in ["/run/phoenix-nvidia", "/var/lib/phoenix-nvidia"] {
        lab.sh(&format!("chmod 755 {directory}")).ok();
    }
    Some(lab)
}

/// The form of 0.1.0's state; `more` has the fields that differ.
fn state_of_0_1_0(lab: &Lab, outcome: &str, more: &str) -> String {
    let conf = lab.conf(101);
    let address = conf.split("hwaddr=").nth(1).and_then(|rest| rest.split([',', '\n']).next()).unwrap();
    format!(
        "{{\n  \"schema\": 1,\n  \"ctid\": 101,\n  \"whom\": \"ct101 {address}\",\n  \"phase\": \"install\",\n  \
         \"outcome\": \"{outcome}\",\n  \"code\": 0,\n  \"message\": \"\",\n  \"at\": 1700000000,\n  \
         \"took_ms\": 4711,\n  \"start_warning\": null,\n  \"kernel_driver\": \"{DRIVER}\",\n  \
         \"container_driver\": \"{DRIVER}\",\n  \"last_success\": 1600000000,\n  \"rebooted_for\": null,\n  {more}\n}}\n"
    )
}

fn put(lab: &Lab, path: &str, text: &str) {
    lab.write(path, text);
    lab.sh(&format!("chmod 644 {path}")).ok();
}

/// Its install process: it holds 0.1.0's locks, logs in 0.1.0's words, and
/// once it is told to, leaves its result where 0.1.0 does and ends.
fn old_install(lab: &Lab) -> Running {
    let running = state_of_0_1_0(lab, "running", "\"job\": \"77@1700000000\", \"cuda_failed\": null");
    put(lab, OLD, &running);
    put(lab, OLD_KEPT, &running);
    lab.write("/run/phoenix-nvidia/101.job", "{\"environment\":[[\"CHECK_TIMEOUT\",\"20\"]]}");
    let ended = state_of_0_1_0(lab, "ok", "\"job\": \"77@1700000000\", \"cuda_failed\": null");
    lab.write("/run/lab/ended.json", ended.replace("1700000000,", "NOW,"));
    let script = "echo holds; \
         log() { echo \"2026-11-01T00:00:00Z phoenix-nvidia 101: $1\" >>/var/log/phoenix-nvidia/101.log; }; \
         until [ -e /run/lab/go ]; do sleep 0.1; done; \
         log 'driver: installed 580.95.05 in 9 s (was not installed)'; \
         log 'WARNING: utility: nvtop cannot be had'; log 'done in 9 s'; \
         sed \"s/NOW/$(date +%s)/\" /run/lab/ended.json >/run/phoenix-nvidia/101.new; \
         mv /run/phoenix-nvidia/101.new /run/phoenix-nvidia/101.json";
    // flock(1) holds each as its own process, which /proc/locks names.
    let locks =
        ["101.worker", "101", "install-0"].map(|name| format!("/run/lock/phoenix-nvidia/{name}.lock"));
    let words = locks.iter().flat_map(|lock| ["flock", lock]).chain(["bash", "-c", script]);
    let run = lab.command("env").args(words).spawn();
    wait_for_output(&run, "holds");
    run
}

fn recorded(lab: &Lab) -> serde_json::Value {
    let status = lab.run([PROGRAM, "status", "101", "--json"]).ok().stdout;
    serde_json::from_str::<serde_json::Value>(&status).unwrap()["containers"][0].clone()
}

#[test]
fn an_install_of_0_1_0_that_is_still_at_work_is_seen_followed_and_waited_for() {
    let Some(lab) = of_0_1_0() else { return };
    let old = old_install(&lab);
    let row = recorded(&lab);
    assert_eq!(
        (row["last"]["outcome"].as_str(), row["verdict"].as_str()),
        (Some("running"), Some("ok")),
        "{row:#}"
    );
    assert_eq!(row["container_driver"], DRIVER);
    // A start meanwhile, and a call by hand.
    let start = lab.command(PROGRAM).args(["101", "post-start"]).spawn();
    wait_for_output(&start, "an earlier install is still running");
    let hand = lab.command(PROGRAM).arg("101").spawn();
    wait_for_output(&hand, "another install in container 101 is running");
    lab.write("/run/lab/go", "");
    let start = start.wait().ok();
    let start = start.says("phoenix-nvidia 101: driver: installed 580.95.05 in 9 s");
    start.says("phoenix-nvidia 101: WARNING: utility: nvtop").says("done in 9 s").says("installed and right");
    old.wait().ok();
    hand.wait().ok().says("installed and right");
    let row = recorded(&lab);
    assert_eq!(
        (row["verdict"].as_str(), row["last"]["outcome"].as_str()),
        (Some("ok"), Some("ok")),
        "{row:#}"
    );
    // What is recorded now is root's alone, and so are the locks.
    lab.sh(&format!("test ! -e {OLD} && test ! -e {OLD_KEPT}")).ok();
    let modes =
        "stat -c %a /run/phoenix-nvidia/state /run/phoenix-nvidia/state/101.json /run/lock/phoenix-nvidia";
    assert_eq!(lab.sh(modes).ok().stdout.split_whitespace().collect::<Vec<_>>(), ["700", "600", "700"]);
}

#[test]
fn an_install_of_0_1_0_that_died_is_told_and_completed() {
    let Some(lab) = of_0_1_0() else { return };
    put(&lab, OLD, &state_of_0_1_0(&lab, "running", "\"job\": \"77@1700000000\""));
    lab.run([PROGRAM, "status", "101"]).ok().says("ended without a result");
    lab.run([PROGRAM, "101", "post-start"]).ok().says("installed and right").says_not("still running");
    assert_eq!(recorded(&lab)["verdict"], "ok");
}

#[test]
fn a_restart_that_0_1_0_left_due_is_made_and_its_success_is_not_forgotten() {
    let Some(lab) = of_0_1_0() else { return };
    let ct = lab.container(101);
    let pid = ct.init_pid().unwrap();
    let stat = lab.sh("pid=$(lxc-info -n 101 -pH); echo $pid $(cut -d' ' -f22 /proc/$pid/stat)").ok().stdout;
    let (in_lab, started) = stat.trim().split_once(' ').unwrap();
    // A URL in what failed, password and all, is not believed.
    let more =
        format!("\"restart_due\": \"{in_lab}@{started}\", \"cuda_failed\": \"1 /x https://me:geheim@h/ |a\"");
    put(&lab, OLD, &state_of_0_1_0(&lab, "warning", &more));
    put(&lab, OLD_KEPT, &state_of_0_1_0(&lab, "ok", "\"job\": null"));
    let row = recorded(&lab);
    assert_eq!(
        (row["last_success"].as_u64(), row["restart_due"].as_bool()),
        (Some(1_600_000_000), Some(false)),
        "{row:#}"
    );
    lab.sh("sed -i /AFTER_INSTALL/d /etc/default/phoenix-nvidia").ok();
    assert_eq!(recorded(&lab)["restart_due"], true);
    lab.run([PROGRAM, "plan", "101"]).code(10).says("restart container 101");
    lab.run([PROGRAM, "101"]).ok().says("container 101 started");
    assert_ne!(ct.init_pid(), Some(pid));
    let row = recorded(&lab);
    assert_eq!((row["verdict"].as_str(), row["restart_due"].as_bool()), (Some("ok"), Some(false)), "{row:#}");
    lab.sh("grep -rl geheim /run/phoenix-nvidia /var/lib/phoenix-nvidia").code(1);
}

#[test]
fn a_conf_that_0_1_0_wrote_stays_and_gets_what_is_new_at_its_next_start() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", PAIRS);
    let before = lab.conf(101);
    for verb in ["status", "doctor"] {
        lab.run([PROGRAM, verb, "101"]).ok().says_not("failure ").says_not("out of date");
    }
    assert_eq!(lab.conf(101), before, "nothing is written without need");
    lab.run(["pct", "start", "101"])
        .ok()
        .says("the mount over /proc/driver/nvidia/gpus")
        .says_not("WARNING")
        .says_not("repaired");
    let after = lab.conf(101);
    // The host's directory is no container's any more: the node in it stands in its place.
    assert!(before.contains(DIRECTORY) && !after.contains(DIRECTORY), "{after}");
    for line in before.lines().filter(|line| *line != DIRECTORY) {
        assert!(after.contains(line), "{line}: {after}");
    }
    let node = "/dev/nvidia-caps/nvidia-cap2 dev/nvidia-caps/nvidia-cap2 none bind,optional,create=file 0 0";
    assert!(after.contains(node), "{after}");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says("already configured");
    assert_eq!(lab.conf(101), after);
    lab.run([PROGRAM, "detach", "101"]).ok();
    assert!(
        !lab.conf(101).contains("nvidia") && !lab.conf(101).contains("GPU_ASSIGNMENT"),
        "{}",
        lab.conf(101)
    );
}
