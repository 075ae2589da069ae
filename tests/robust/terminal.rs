//! A container's programs get no terminal of the host's, and no terminal gets
//! their bytes, whatever was called from one.
use crate::robust_support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::{Container, Lab, Output, Rootfs, Spec};
use robust_support::*;
use std::time::{Duration, Instant};

/// Stands in the place of a program of the container: notes what opening
/// /dev/tty came to, prints what a terminal would obey, and goes on as the
/// program. bash is none of the programs that are replaced.
const HOSTILE: &str = r#"#!/bin/bash
said=$( { : 3<>/dev/tty && echo OPENS; } 2>&1 )
echo "${0##*/} ${said##*: }" >>/root/seen
printf '\033[2J\033]0;owned\007\302\2332J\342\200\256\r' >&2
[ ! -e /root/hang ] || sleep 1000
exec "REAL" "$@"
"#;
/// What of that no terminal may get: a control sequence, a title, an 8-bit
/// CSI, and a change of the writing direction.
const HARMFUL: [&str; 4] = ["\u{1b}[2J", "\u{1b}]0;", "\u{9b}", "\u{202e}"];

/// Programs that a check or an install runs inside.
const PROGRAMS: [&str; 5] = ["sh", "apt-get", "dpkg", "sha256sum", "nvidia-smi"];

/// Replaces each of the programs that is there and isn't replaced yet.
fn take_over(ct: &Container<'_>) {
    for name in PROGRAMS {
        let (path, real) = (format!("/usr/bin/{name}"), format!("/usr/bin/real-{name}"));
        let root = ct.files();
        if !root.exists(&path) || root.read(&path).contains("/root/seen") {
            continue;
        }
        // /bin/sh is a link, which busybox and dash would know by its name.
        let target = if name == "sh" { "/bin/dash".to_owned() } else { real.clone() };
        let program = root.bytes(&path);
        root.program(&real, program);
        root.program(&path, HOSTILE.replace("REAL", &target));
    }
}

/// What the container's programs noted since the last time: at least
/// `least` of them ran, and none had a terminal.
#[track_caller]
fn without_a_terminal(ct: &Container<'_>, least: usize, output: &Output) {
    let seen = if ct.exists("/root/seen") { ct.read("/root/seen") } else { String::new() };
    assert!(seen.lines().count() >= least, "{seen}\n{output}");
    for line in seen.lines() {
        assert!(line.ends_with(" No such device or address"), "{line}\n{output}");
    }
    ct.write("/root/seen", "");
    assert!(!HARMFUL.iter().any(|bytes| output.stdout.contains(bytes)), "{output:?}");
}

fn at_a_terminal(lab: &Lab, argv: &[&str]) -> Output {
    lab.command(argv[0]).args(&argv[1..]).on_a_terminal().run()
}

/// A container with hostile programs in it, on a host with a driver for it.
fn hostile(lab: &Lab, id: u32, spec: Spec) -> Container<'_> {
    offers(lab, &Runfile::new(DRIVER));
    attached(lab, id, spec);
    let ct = lab.container(id);
    // The container's own root has to be able to write there.
    lab.run(["pct", "start", &id.to_string()]).ok();
    wait_for_the_end(lab);
    ct.exec(["touch", "/root/seen"]).ok();
    ct.exec(["nvidia-uninstall", "-s"]).ok();
    lab.run(["pct", "stop", &id.to_string()]).ok();
    take_over(&ct);
    ct
}

/// Everything that looks into a container or works in it, called at a
/// terminal.
fn every_call(spec: Spec) {
    let Some(lab) = lab() else { return };
    lab.web().standard(&[DRIVER]);
    let ct = hostile(&lab, 101, spec);
    lab.web().use_distribution(&ct);
    node(&lab, "HOOK_CHAIN=/srv/chained");
    lab.replace_program(
        "/srv/chained",
        "#!/bin/sh\n{ true <>/dev/tty && echo \"$2 opens\"; } >>/srv/chain 2>&1\nexit 0\n",
    );

    // Both phases of a start, and the install process that they leave.
    let start = at_a_terminal(&lab, &["pct", "start", "101"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
    without_a_terminal(&ct, 5, &start);
    // The administrator's own script has what its caller gives it; the reboot's
    // is the install process's, which has no terminal.
    let chain = lab.read("/srv/chain");
    assert!(chain.starts_with("pre-start opens\npost-start opens\n"), "{chain}\n{start}");
    assert_eq!(chain.matches("opens").count(), 2, "{chain}\n{start}");

    take_over(&ct);
    for (argv, least) in [
        (&["phoenix-nvidia", "plan", "101"][..], 1),
        (&["phoenix-nvidia", "doctor", "101"], 1),
        (&["phoenix-nvidia", "doctor", "101", "--json"], 1),
        // It reads files, and asks nobody inside.
        (&["phoenix-nvidia", "status", "101"], 0),
        (&["phoenix-nvidia", "status", "--json"], 0),
        (&["phoenix-nvidia", "101", "post-start"], 1),
        (&["phoenix-nvidia", "install", "101"], 1),
        (&["phoenix-nvidia", "101"], 2),
    ] {
        let output = at_a_terminal(&lab, argv);
        wait_for_the_end(&lab);
        without_a_terminal(&ct, least, &output);
    }

    // By hand, with everything to be done: configure, install, restart, verify.
    ct.exec(["nvidia-uninstall", "-s"]).ok();
    let run = at_a_terminal(&lab, &["phoenix-nvidia", "101"]).ok().says("driver: installed");
    without_a_terminal(&ct, 5, &run);
    lab.run(["pct", "stop", "101"]).ok();
    let run = at_a_terminal(&lab, &["phoenix-nvidia", "101"]).ok();
    without_a_terminal(&ct, 1, &run);
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: CUDA_PACKAGES=cuda-toolkit-13-0\n");
    let run = at_a_terminal(&lab, &["phoenix-nvidia", "101"]).ok().says("cuda: installed");
    assert!(ct.read("/root/seen").contains("apt-get "), "{run}");
    without_a_terminal(&ct, 3, &run);
}

#[test]
fn no_call_gives_a_privileged_container_the_terminal() {
    every_call(Rootfs::Debian12.privileged());
}

#[test]
fn no_call_gives_an_unprivileged_container_the_terminal() {
    every_call(Rootfs::Debian12.unprivileged());
}

/// What a test of all this rests on: a program of the container that is in the
/// caller's session does open the terminal.
#[test]
fn a_lab_s_container_opens_the_terminal_that_it_is_left_with() {
    let Some(lab) = lab() else { return };
    let ct = hostile(&lab, 101, Rootfs::Debian12.unprivileged());
    lab.command("pct").args(["start", "101"]).env("PHOENIX_NVIDIA_CHAIN", "").run().ok();
    wait_for_the_end(&lab);
    ct.write("/root/seen", "");
    let attach = "lxc-attach -n 101 -- /bin/sh -c true </dev/null 2>&1 | cat";
    at_a_terminal(&lab, &["sh", "-c", attach]).ok();
    assert_eq!(ct.read("/root/seen"), "sh OPENS\n");
}

/// The children have no terminal, so a Ctrl-C reaches only us; it ends them.
#[test]
fn ctrl_c_at_the_terminal_ends_what_runs_inside() {
    let Some(lab) = lab() else { return };
    let ct = hostile(&lab, 101, Rootfs::Debian12.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=off\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: INSTALL=on\n");
    ct.write("/root/hang", "");
    let interrupted = |argv: &[&str], key: &str| {
        let mut run = lab.command(argv[0]).args(&argv[1..]).on_a_terminal().spawn();
        wait_until("something inside", || !pids(&lab, "sleep 1000").is_empty());
        run.types(key);
        let pressed = Instant::now();
        let output = run.wait();
        assert!(pressed.elapsed() < Duration::from_secs(3), "{output}");
        assert_ne!(output.exit(), Some(0), "{output}");
        wait_until("the end of what ran inside", || pids(&lab, "sleep 1000").is_empty());
        assert!(ours(&lab).is_empty(), "{output}");
    };
    interrupted(&["phoenix-nvidia", "doctor", "101"], "\u{3}");
    interrupted(&["phoenix-nvidia", "plan", "101"], "\u{3}");
    // Ctrl-\.
    interrupted(&["phoenix-nvidia", "101"], "\u{1c}");
    ct.files().remove("/root/hang");
    let file = Runfile::new(DRIVER).flaw(Flaw::Slow(1000)).build().expect("a runfile");
    lab.write("/srv/driver.run", std::fs::read(file).expect("a runfile"));
    lab.sh("rm -rf /var/cache/phoenix-nvidia").ok();
    interrupted(&["phoenix-nvidia", "101"], "\u{3}");
    for path in ["/tmp/nvidia-driver-installer.run", "/tmp/phoenix-nvidia.unpack"] {
        assert!(!ct.exists(path), "{path}");
    }
}
