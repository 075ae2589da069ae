//! Start, reboot, stop and shutdown with a hook that prints on both streams; reboots and ends from inside.

use std::time::Duration;

use phoenix_lab::{Container, Lab, Rootfs};

use crate::{recorded, recording, replay};

const HOOK: &str = "#!/bin/sh
echo \"$2\" >>/run/lab/phases
echo \"hook-stdout $2\"
echo \"hook-stderr $2\" >&2
";

#[test]
fn phases_come_in_the_recorded_order_with_the_recorded_output() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = recorded(&lab, 103, Rootfs::Debian12Systemd.unprivileged());
    lab.snippet("a.sh", HOOK);
    lab.run(["pct", "set", "103", "--hookscript", "local:snippets/a.sh"]).ok();
    let steps = recording::steps("phases.txt");
    let commands: Vec<_> = steps.iter().filter(|step| step.title.starts_with("pct ")).collect();
    assert_eq!(commands.len(), 7);
    for step in commands {
        replay(&lab, step);
        settle(&ct);
    }
    lab.write("/run/lab/phases", "");
    let before = ct.init_pid();
    ct.exec(["systemctl", "reboot"]);
    ct.wait_rebooted(before);
    settle(&ct);
    ct.exec(["systemctl", "poweroff"]);
    ct.wait_running(false, Duration::from_secs(30));
    lab.sh("flock /run/lab/ct/103.lock true").ok();
    // A reboot from inside runs no phase at all, an end from inside only post-stop.
    assert_eq!(lab.read("/run/lab/phases"), "post-stop\n");
}

/// A systemd that is still booting is not asked to end: it may answer a signal with its default.
fn settle(ct: &Container<'_>) {
    if ct.running() {
        ct.sh("until [ -S /run/systemd/private ]; do sleep 0.05; done; systemctl is-system-running --wait");
    }
}

#[test]
fn a_container_whose_monitor_was_killed_is_stopped() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = lab.create(103, Rootfs::Busybox.unprivileged());
    lab.run(["pct", "start", "103"]).ok();
    lab.sh("pkill -9 -f '^.lxc monitor. /var/lib/lxc 103'").ok();
    ct.wait_running(false, Duration::from_secs(10));
    let stop = lab.run(["pct", "stop", "103"]).code(255);
    assert_eq!((stop.stdout.as_str(), stop.stderr.as_str()), ("", "CT 103 not running\n"));
}

#[test]
fn the_lock_is_held_by_the_hook_s_parent_and_the_environment_is_the_recorded_one() {
    let Some(lab) = Lab::builder().start() else { return };
    recorded(&lab, 101, Rootfs::Busybox.unprivileged());
    lab.snippet("e.sh", ENVIRONMENT);
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/e.sh"]).ok();
    lab.command("pct").args(["start", "101"]).env("FROM_THE_CALLER", "yes").run().ok();
    lab.run(["pct", "stop", "101"]).ok();
    for phase in ["pre-start", "post-start", "pre-stop"] {
        let seen = variables(&lab.read(format!("/run/lab/env.{phase}")));
        for wanted in recorded_variables("HOME=") {
            assert!(seen.contains(&wanted), "{phase}: {wanted} is not in {seen:#?}");
        }
        assert_eq!(seen.contains(&"FROM_THE_CALLER=yes".to_owned()), phase != "pre-stop", "{phase}");
        let facts = lab.read(format!("/run/lab/facts.{phase}"));
        assert_eq!(facts, "cwd=/\nstdin=pipe:0\nholder=parent\n", "{phase}");
    }
    let names = |list: &[String]| -> Vec<String> {
        list.iter().filter_map(|variable| variable.split_once('=').map(|(name, _)| name.to_owned())).collect()
    };
    // The interpreter adds these by itself.
    let mut seen = variables(&lab.read("/run/lab/env.post-stop"));
    seen.retain(|variable| !["PWD=", "SHLVL=", "_=", "OLDPWD="].iter().any(|own| variable.starts_with(own)));
    assert_eq!(names(&seen), names(&recorded_variables("INVOCATION_ID=")));
    assert!(seen.contains(&"LXC_TARGET=stop".to_owned()), "{seen:#?}");
    // post-stop sees LXC's monitor's mounts, not the host's.
    assert_ne!(lab.read("/run/lab/mnt.post-stop"), lab.read("/run/lab/mnt.pre-stop"));
}

const ENVIRONMENT: &str = r#"#!/bin/sh
env | sort >/run/lab/env.$2
readlink /proc/self/ns/mnt >/run/lab/mnt.$2
inode=$(stat -c %i /run/lock/lxc/pve-config-$1.lock)
holder=$(awk -v inode="$inode" '$2 == "FLOCK" && $6 ~ ":" inode "$" { print $5 }' /proc/locks)
{
    echo "cwd=$(readlink /proc/$$/cwd)"
    echo "stdin=$(readlink /proc/$$/fd/0 | cut -d: -f1):$(cat | wc -c)"
    [ "$holder" = "$PPID" ] && echo holder=parent || echo "holder=$holder, parent=$PPID"
} >/run/lab/facts.$2
"#;

fn variables(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// The recorded variables, from the line that begins with `first`.
fn recorded_variables(first: &str) -> Vec<String> {
    let text = recording::text("hook-environment.txt");
    let line = text.lines().find(|line| line.starts_with(first)).unwrap_or_else(|| panic!("no line {first}"));
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn the_generated_config_is_the_recorded_one() {
    let Some(lab) = Lab::builder().start() else { return };
    crate::all_recorded(&lab);
    for id in 101..=104 {
        lab.run(["pct", "start", &id.to_string()]).ok();
        assert_eq!(lab.generated(id), recording::text(&format!("{id}.generated")), "container {id}");
    }
}
