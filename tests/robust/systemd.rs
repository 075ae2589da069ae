//! The units, under a real systemd: a container of the lab plays the host
//! whose init it is.
#![allow(clippy::expect_used)] // a failing helper fails its test

use crate::robust_support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Container, Lab, Rootfs};
use robust_support::*;
use std::time::{Duration, Instant};

const UNITS: [&str; 3] =
    ["phoenix-nvidia-install@.service", "phoenix-nvidia-nodes.service", "phoenix-nvidia-prepare.service"];

/// What stands in there for LXC and for Proxmox's own programs: container
/// 101 runs, answers every look with "no driver", and an install in it hangs.
const ATTACH: &str = "#!/bin/sh
printf 'begin 1\\nos ID=debian\\nos VERSION_ID=12\\nloader /lib64/ld-linux-x86-64.so.2\\n'
printf 'init /sbin/init\\napt-get /usr/bin/apt-get\\nmodprobe yes\\nend 1\\n'
";
const INFO: &str = "#!/bin/sh\ncase $* in *-p*) echo 1 ;; *) echo RUNNING ;; esac\n";
const PCT: &str = "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 888; done\n";

fn put(ct: &Container, path: &str, content: impl AsRef<[u8]>, mode: &str) {
    ct.sh(&format!("mkdir -p $(dirname {path})")).ok();
    ct.write(path, content);
    ct.exec(["chmod", mode, path]).ok();
}

fn host(lab: &Lab) -> Container<'_> {
    let ct = lab.create(200, Rootfs::Debian13Systemd.privileged().option("--memory", "1024"));
    lab.run(["pct", "start", "200"]).ok();
    ct.sh("until [ -S /run/systemd/private ]; do sleep 0.05; done; systemctl is-system-running --wait");
    put(&ct, PROGRAM, std::fs::read(env!("CARGO_BIN_EXE_phoenix-nvidia")).expect("the program"), "755");
    for unit in UNITS {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/").to_owned() + unit;
        put(&ct, &format!("/etc/systemd/system/{unit}"), std::fs::read(path).expect("the unit"), "644");
    }
    ct.exec(["systemctl", "daemon-reload"]).ok();
    ct
}

#[test]
fn the_units_verify_and_a_real_systemd_runs_an_install_and_stops_it() {
    let Some(lab) = lab() else { return };
    let ct = host(&lab);
    for unit in [
        "phoenix-nvidia-install@101.service",
        "phoenix-nvidia-nodes.service",
        "phoenix-nvidia-prepare.service",
    ] {
        let verified = ct.exec(["systemd-analyze", "verify", "--man=no", unit]).ok();
        let said: Vec<&str> = verified.stderr.lines().filter(|line| line.contains("phoenix")).collect();
        assert!(said.is_empty(), "{verified}");
    }
    for (path, script) in
        [("/usr/bin/lxc-attach", ATTACH), ("/usr/bin/lxc-info", INFO), ("/usr/sbin/pct", PCT)]
    {
        put(&ct, path, script, "755");
    }
    let file = Runfile::new(DRIVER).build().expect("a runfile");
    put(&ct, "/srv/driver.run", std::fs::read(file).expect("a runfile"), "644");
    put(&ct, "/etc/pve/lxc/101.conf", "hostname: ct101\nlxc.environment: GPU_ASSIGNMENT=none\n", "640");
    let settings = "NVIDIA_DRIVER_VERSION=host\nNVIDIA_REPO_URL=/nonexistent\nNVIDIA_RUNFILE_URL=/srv/driver.run\n\
                    CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nINSTALL_WAIT=1\n";
    put(&ct, "/etc/default/phoenix-nvidia", settings, "644");

    // The hook hands over to systemd and leaves; systemd's process goes on.
    ct.exec([PROGRAM, "101", "post-start"])
        .ok()
        .says("copy: /srv/driver.run")
        .says("install continues in the background");
    let unit = "phoenix-nvidia-install@101.service";
    ct.exec(["systemctl", "is-active", unit]).ok();
    let main = ct.exec(["systemctl", "show", "-P", "MainPID", unit]).ok().stdout;
    assert_ne!(main.trim(), "0");
    // A second start asks for it again: it is there already.
    ct.exec([PROGRAM, "101", "post-start"]).ok().says("an earlier install is still running");
    assert_eq!(ct.exec(["systemctl", "show", "-P", "MainPID", unit]).ok().stdout, main);

    let begun = Instant::now();
    ct.exec(["systemctl", "stop", unit]).ok();
    assert!(begun.elapsed() < Duration::from_secs(5), "KILL would have come");
    ct.sh("cat /run/phoenix-nvidia/state/101.json").ok().says("interrupted by SIGTERM");
    assert!(pids(&lab, "sleep 888").is_empty(), "its children are gone");
    let journal = ct.exec(["journalctl", "-t", "phoenix-nvidia", "-o", "cat"]).ok();
    let journal = journal.says("101: copy: /srv/driver.run").says("interrupted by SIGTERM");
    assert_eq!(journal.stdout.matches("101: copy: /srv/driver.run").count(), 1, "{journal}");

    // One that fails is a failed unit, and that is no obstacle to the next.
    put(&ct, "/usr/sbin/pct", "#!/bin/sh\necho no; exit 9\n", "755");
    ct.sh("echo INSTALL_WAIT=60 >>/etc/default/phoenix-nvidia").ok();
    for _ in 0..6 {
        ct.exec([PROGRAM, "101", "post-start"])
            .code(5)
            .says("cannot copy the runfile")
            .says_not("systemd did not");
    }
    ct.exec(["systemctl", "is-failed", unit]).ok();
    // Asked for by hand, and for a container that is not there.
    ct.exec(["systemctl", "start", "phoenix-nvidia-install@999.service"]);
    wait_until("the journal", || {
        let journal = ct.exec(["journalctl", "-t", "phoenix-nvidia", "-o", "cat"]).ok();
        journal.stdout.contains("999: ERROR: container 999 does not exist")
    });
}

/// The boot's unit stays active, so another one serves the driver's reloads; neither has mounts of its own.
#[test]
fn a_reload_of_the_driver_prepares_again_in_the_mounts_of_process_1() {
    let Some(lab) = lab() else { return };
    let ct = host(&lab);
    put(&ct, PROGRAM, "#!/bin/sh\necho \"$1 $(readlink /proc/self/ns/mnt)\" >>/root/calls\n", "755");
    let namespace = ct.exec(["readlink", "/proc/1/ns/mnt"]).ok().stdout;
    let calls = || ct.sh("cat /root/calls").stdout;
    let expected = |count: usize| format!("prepare {namespace}").repeat(count);
    let start = |unit: &str| ct.exec(["systemctl", "start", unit]).ok();
    start("phoenix-nvidia-nodes.service");
    start("phoenix-nvidia-nodes.service");
    assert_eq!(calls(), expected(1));
    for count in 2..5 {
        start("phoenix-nvidia-prepare.service");
        assert_eq!(calls(), expected(count));
    }
    // A driver that did not stay is not loaded again for its own event.
    ct.sh("umount /proc/driver && ! test -e /proc/driver/nvidia/version").ok();
    start("phoenix-nvidia-prepare.service");
    assert_eq!(calls(), expected(4));
}

/// What udev makes of the event that the kernel sends when the driver has found its cards (DEVPATH, SUBSYSTEM as there).
#[test]
fn udevs_rule_asks_systemd_for_it_when_the_driver_is_there() {
    let Some(lab) = lab() else { return };
    lab.write(
        "/etc/udev/rules.d/70-phoenix-nvidia.rules",
        include_str!("../../packaging/phoenix-nvidia.udev"),
    );
    let version = lab.run(["udevadm", "--version"]).ok().stdout;
    if version.trim().parse::<u32>().is_ok_and(|version| version >= 254) {
        lab.run(["udevadm", "verify", "/etc/udev/rules.d/70-phoenix-nvidia.rules"]).ok();
    }
    lab.sh("mkdir -p /sys/bus/pci/drivers && mount -t tmpfs drivers /sys/bus/pci/drivers").ok();
    lab.sh("mkdir /sys/bus/pci/drivers/nvidia /sys/bus/pci/drivers/vfio-pci").ok();
    let event = |action: &str, driver: &str| {
        let test = format!("udevadm test --action={action} /sys/bus/pci/drivers/{driver} 2>&1");
        // There is no real driver of that name.
        lab.command("sh").args(["-c", &test]).env("SYSTEMD_DEVICE_VERIFY_SYSFS", "0").run().ok()
    };
    // What udev has seen it keeps.
    event("remove", "nvidia").says_not("phoenix-nvidia-prepare.service");
    let added = event("add", "nvidia").says("SUBSYSTEM=drivers").says("TAGS=:systemd:");
    added.says("SYSTEMD_WANTS=phoenix-nvidia-prepare.service").says_not("run: ").says_not("invalid");
    event("add", "vfio-pci").says_not("phoenix-nvidia-prepare.service");
}
