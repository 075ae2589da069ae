//! SIGKILL at any moment of a first start: the next start ends with a
//! container that works.
use crate::robust_support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Errno, Rootfs};
use robust_support::*;
use std::time::Duration;

/// Twenty moments over the time that a whole first start takes here, in four
/// labs at once.
fn killed_at(moments: impl Iterator<Item = u64>, after_install: &str) {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, &format!("AFTER_INSTALL={after_install}"));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let ct = lab.container(101);
    for moment in moments {
        let start = lab.command("pct").args(["start", "101"]).spawn();
        std::thread::sleep(Duration::from_millis(moment));
        // The hook, its children die with it; and the install process, if it
        // was there already.
        let killed = ours(&lab);
        signal(&lab, &killed, "KILL");
        start.wait();
        wait_for_all(&lab, &ct);
        if ct.running() {
            lab.run(["pct", "stop", "101"]);
            ct.wait_running(false, Duration::from_secs(20));
        }
        let what = format!("killed {} after {moment} ms", killed.len());
        let again = lab.run(["pct", "start", "101"]).ok();
        wait_for_the_end(&lab);
        assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO), "{what}: {again}");
        let smi = ct.exec(["nvidia-smi", "--version"]);
        assert!(smi.exit() == Some(0) && smi.stdout.contains(DRIVER), "{what}: {again}\n{smi}");
        assert_eq!(says(&lab, 101, "outcome"), "ok", "{what}: {}", state(&lab, 101));
        let left = ct.sh("ls -A /tmp /var/tmp; ls /var/lib/phoenix-nvidia").stdout;
        for part in ["nvidia-driver-installer", "phoenix-nvidia.", "driver.installing"] {
            assert!(!left.contains(part), "{what}: {left}");
        }
        let left = lab.leftovers().files.join("\n");
        assert!(!left.contains(".tmp") && !left.contains("conf.phoenix-nvidia"), "{what}: {left}");
        // As new for the next one.
        ct.exec(["nvidia-uninstall", "-s"]).ok();
        lab.run(["pct", "stop", "101"]).ok();
        lab.sh("sed -i /dev.nvidia/d /etc/pve/lxc/101.conf; rm -rf /var/cache/phoenix-nvidia").ok();
    }
}

#[test]
fn a_start_killed_early_is_completed_by_the_next() {
    killed_at([5, 30, 60, 90, 120].into_iter(), "reboot");
}

#[test]
#[ignore = "make test-all: more moments"]
fn an_install_killed_while_it_copies_is_completed_by_the_next_start() {
    killed_at([180, 220, 260, 300, 340].into_iter(), "none");
}

#[test]
#[ignore = "make test-all: more moments"]
fn an_install_killed_while_the_installer_runs_is_completed_by_the_next_start() {
    killed_at([390, 450, 520, 600, 690].into_iter(), "none");
}

#[test]
fn an_install_killed_at_its_end_or_in_its_reboot_is_completed_by_the_next_start() {
    killed_at([760, 860, 980, 1120, 1300].into_iter(), "reboot");
}
