//! attach and detach that a signal, or a `pct` that fails, cuts off at each of
//! their steps: what was done is rolled back, and every container starts.

use phoenix_lab::{Lab, Output, Rootfs, Signal};
use std::time::{Duration, Instant};

const SNIPPET: &str = "/var/lib/vz/snippets/phoenix-nvidia";
const NODE: &str = "NVIDIA_DRIVER_VERSION=host\nNVIDIA_REPO_URL=http://mirror.lab/\nNVIDIA_RUNFILE_URL=http://mirror.lab/x.run\nINSTALL=off\n";
const IDS: [u32; 2] = [101, 102];

/// Acts on the call whose number is in `at`: tells its caller to stop, and
///
/// * `before`: does nothing more,
/// * `after`: has done its work then, and does not end,
/// * `through`: does its work,
/// * `broken`: does nothing more, and every call after it fails.
const PCT: &str = "#!/bin/sh
cd /run/wrap
n=$(($(cat n) + 1)); echo $n > n
if [ $n = $(cat at) ]; then
    case $(cat how) in
    before) kill -TERM $PPID; exec sleep 600 ;;
    after) /usr/local/bin/real-pct \"$@\"; kill -TERM $PPID; exec sleep 600 ;;
    through) kill -TERM $PPID ;;
    broken) kill -TERM $PPID; exec sleep 600 ;;
    esac
fi
if [ $(cat how) = broken ] && [ $n -ge $(cat at) ]; then
    echo 'cluster not ready - no quorum?' >&2; exit 255
fi
exec /usr/local/bin/real-pct \"$@\"
";

/// Two containers with nothing of ours, and no snippet.
fn lab() -> Option<Lab> {
    let lab = Lab::builder().gpus(2).start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.write("/etc/default/phoenix-nvidia", NODE);
    lab.files().remove(SNIPPET);
    let real = lab.sh("command -v pct").ok().stdout.trim().to_owned();
    lab.sh(&format!("cp {real} /usr/local/bin/real-pct && mkdir -p /run/wrap")).ok();
    lab.sh("echo 0 > /run/wrap/n; echo 0 > /run/wrap/at; echo none > /run/wrap/how").ok();
    lab.replace_program("/usr/sbin/pct", PCT);
    for id in IDS {
        lab.create(id, Rootfs::Busybox.privileged());
        // As Proxmox itself writes it, so that the bytes can be compared.
        lab.run(["pct", "set", &id.to_string(), "--description", "mine"]).ok();
    }
    Some(lab)
}

/// The call, with that step going wrong in that way.
fn cut(lab: &Lab, how: &str, at: usize, call: &[&str]) -> Output {
    lab.sh(&format!("cd /run/wrap; echo 0 > n; echo {at} > at; echo {how} > how")).ok();
    let begun = Instant::now();
    let out = lab.run([&["phoenix-nvidia"], call].concat());
    assert!(begun.elapsed() < Duration::from_secs(15), "{how} at {at}: {out}");
    lab.sh("echo none > /run/wrap/how; echo 0 > /run/wrap/at").ok();
    out
}

#[track_caller]
fn all_start(lab: &Lab, what: &str) {
    for id in IDS {
        let start = lab.run(["pct", "start", &id.to_string()]);
        assert_eq!(start.exit(), Some(0), "{what}: container {id} does not start: {start}\n{}", lab.conf(id));
        lab.run(["pct", "stop", &id.to_string()]).ok();
    }
}

fn confs(lab: &Lab) -> [String; 2] {
    IDS.map(|id| lab.conf(id))
}

#[test]
fn an_attach_that_is_told_to_stop_at_any_step_rolls_all_back() {
    let Some(lab) = lab() else { return };
    let before = confs(&lab);
    for how in ["before", "after", "through"] {
        for at in [1, 2] {
            let what = format!("{how} at {at}");
            let out = cut(&lab, how, at, &["attach", "101", "102", "--gpus", "0"]);
            let done = out.exit() == Some(0);
            // The signal may come when the last step is done.
            assert!(done && how == "through" && at == 2 || out.exit() == Some(1), "{what}: {out}");
            if done {
                lab.run(["phoenix-nvidia", "detach", "101", "102"]).ok();
                lab.files().remove(SNIPPET);
            }
            assert_eq!(confs(&lab), before, "{what}: {out}");
            assert!(!lab.exists(SNIPPET), "{what}: {out}");
        }
    }
    all_start(&lab, "attach");
}

#[test]
fn a_snippet_that_a_conf_still_names_stays_and_so_do_its_settings() {
    let Some(lab) = lab() else { return };
    let out = cut(&lab, "broken", 2, &["attach", "101", "102", "--gpus", "0"]);
    out.code(1)
        .says("not rolled back: the settings and the hookscript of container 101")
        .says("fix: pct set 101 --delete hookscript")
        .says(&format!("{SNIPPET} stays"));
    assert!(lab.conf(101).contains("GPU_ASSIGNMENT=0\n") && lab.conf(101).contains("hookscript: "));
    assert!(!lab.conf(102).contains("GPU_ASSIGNMENT") && lab.exists(SNIPPET));
    all_start(&lab, "broken");
}

#[test]
fn an_attach_that_is_told_to_stop_while_it_waits_for_a_lock_rolls_all_back() {
    let Some(lab) = lab() else { return };
    let before = confs(&lab);
    let hold = "exec 9>/run/lock/lxc/pve-config-102.lock; flock 9; echo $$ > /run/wrap/pid; exec sleep 600";
    lab.sh(&format!("mkdir -p /run/lock/lxc; sh -c '{hold}' </dev/null >/dev/null 2>&1 & sleep 0.3")).ok();
    let attach = lab.command("phoenix-nvidia").args(["attach", "101", "102", "--gpus", "0"]).spawn();
    let begun = Instant::now();
    while !lab.conf(101).contains("hookscript") && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    attach.signal(Signal::SIGTERM);
    attach.wait().code(1).says("rolled back: the settings and the hookscript of container 101");
    assert_eq!(confs(&lab), before);
    assert!(!lab.exists(SNIPPET));
    lab.sh("kill $(cat /run/wrap/pid)").ok();
    all_start(&lab, "lock");
}

#[test]
fn a_detach_that_is_told_to_stop_at_any_step_leaves_containers_that_start() {
    let Some(lab) = lab() else { return };
    lab.snippet("mine", "#!/bin/sh\n");
    lab.run(["pct", "set", "102", "--hookscript", "local:snippets/mine"]).ok();
    let bare = confs(&lab);
    let attach = ["phoenix-nvidia", "attach", "101", "102", "--gpus", "0", "--chain"];
    lab.run(attach).ok();
    all_start(&lab, "attached");
    let attached = confs(&lab);
    for how in ["before", "after", "through"] {
        for at in [1, 2] {
            let what = format!("{how} at {at}");
            let out = cut(&lab, how, at, &["detach", "101", "102"]);
            if out.exit() == Some(0) {
                assert_eq!(confs(&lab), bare, "{what}: {out}");
                lab.run(attach).ok();
                all_start(&lab, &what);
            } else {
                assert_eq!(out.exit(), Some(1), "{what}: {out}");
            }
            assert_eq!(confs(&lab), attached, "{what}: {out}");
        }
    }
    // The first is done, the second fails, and nothing can be rolled back.
    cut(&lab, "broken", 2, &["detach", "101", "102"]).code(1).says("not rolled back");
    assert!(!lab.conf(101).contains("hookscript"), "{}", lab.conf(101));
    assert!(lab.exists(SNIPPET));
    all_start(&lab, "broken");
}
