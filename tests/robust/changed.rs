//! An install that was begun in a container ends when that is not the one any
//! more, or asks for it no more; and a look that was not over in time is
//! repeated without holding the start up.
use crate::robust_support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::{Errno, Lab, Rootfs};
use robust_support::*;
use std::time::{Duration, Instant};

const LOG: &str = "/var/log/phoenix-nvidia/101.log";
const CONF: &str = "/etc/pve/lxc/101.conf";
const STATE: &str = "/run/phoenix-nvidia/state/101.json";

/// A container whose install is under way, in the installer's own run.
fn under_way(seconds: u32) -> Option<Lab> {
    let lab = lab()?;
    offers(&lab, &Runfile::new(DRIVER).flaw(Flaw::Slow(seconds)));
    node(&lab, "INSTALL_WAIT=1");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.run(["pct", "snapshot", "101", "attached"]).ok();
    begin(&lab);
    Some(lab)
}

fn begin(lab: &Lab) {
    lab.run(["pct", "start", "101"]).ok().says("install continues in the background");
    wait_until("the installer", || !pids(lab, "phoenix-nvidia.unpack").is_empty());
}

/// Ends it and makes another one of its number, as Proxmox does: with another
/// address. The install process looks again when that is done.
fn replaced_by(lab: &Lab, settings: &str) {
    let install = pids(lab, "install 101");
    signal(lab, &install, "STOP");
    for verb in ["stop", "destroy"] {
        lab.run(["pct", verb, "101"]).ok();
    }
    attached(lab, 101, Rootfs::Debian12.privileged());
    let conf = lab.conf(101).replace("hostname: ct101", "hostname: heir");
    assert!(conf.contains("heir") && conf.contains("GPU_ASSIGNMENT"), "{conf}");
    lab.write(CONF, conf.replace("lxc.environment: GPU_ASSIGNMENT=0\n", settings));
    if settings.is_empty() {
        lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    }
    lab.run(["pct", "start", "101"]).ok();
    signal(lab, &install, "CONT");
    wait_for_the_end(lab);
}

/// Nothing of ours was done to the container, and it was not rebooted.
#[track_caller]
fn untouched(lab: &Lab, said: &str) {
    let logged = lab.read(LOG);
    assert!(logged.contains("install stopped: ") && logged.contains(said), "{logged}");
    assert!(!logged.contains("ERROR") && !logged.contains("container rebooted"), "{logged}");
    assert_eq!(calls(lab, "reboot 101"), 0, "{logged}");
}

#[track_caller]
fn has_no_driver(lab: &Lab) {
    let ct = lab.container(101);
    assert!(ct.running());
    let found = ct.sh("ls -d /usr/bin/nvidia-smi /tmp/nvidia* /var/lib/phoenix-nvidia 2>/dev/null").stdout;
    assert_eq!(found, "");
}

#[test]
fn another_container_of_the_number_gets_neither_driver_nor_reboot_nor_state() {
    let Some(lab) = under_way(3) else { return };
    replaced_by(&lab, "");
    untouched(&lab, "container 101 was replaced by another one (heir");
    has_no_driver(&lab);
    let status = lab.run([PROGRAM, "status", "101", "--json"]).stdout;
    let row = &serde_json::from_str::<serde_json::Value>(&status).unwrap()["containers"][0];
    assert!(row["last"].is_null(), "{row:#}");
}

#[test]
fn a_call_by_hand_ends_too_and_records_nothing_of_the_new_one() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER).flaw(Flaw::Slow(3)));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let hand = lab.command(PROGRAM).arg("101").spawn();
    wait_until("the installer", || !pids(&lab, "phoenix-nvidia.unpack").is_empty());
    let ours = pids(&lab, "/phoenix-nvidia 101");
    signal(&lab, &ours, "STOP");
    for verb in ["stop", "destroy"] {
        lab.run(["pct", verb, "101"]).ok();
    }
    lab.create(101, Rootfs::Debian12.privileged());
    lab.write(CONF, lab.conf(101).replace("hostname: ct101", "hostname: heir"));
    lab.run(["pct", "start", "101"]).ok();
    signal(&lab, &ours, "CONT");
    let hand = hand.wait().code(5);
    has_no_driver(&lab);
    assert!(!says(&lab, 101, "whom").contains("heir"), "{hand}");
    assert_ne!(says(&lab, 101, "outcome"), "failed", "{hand}");
    assert_eq!(calls(&lab, "shutdown 101") + calls(&lab, "reboot 101"), 0, "{hand}");
}

/// Its post-start found the old one's install at work, and left it to that.
#[test]
fn another_container_of_the_number_that_asks_gets_its_own_install() {
    let Some(lab) = under_way(3) else { return };
    replaced_by(&lab, "lxc.environment: GPU_ASSIGNMENT=0\n");
    let logged = lab.read(LOG);
    assert!(
        logged.contains("replaced by another one")
            && logged.contains("starting the install that this one needs"),
        "{logged}"
    );
    let ct = lab.container(101);
    ct.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    assert_eq!((says(&lab, 101, "outcome"), says(&lab, 101, "code")), ("ok".into(), "0".into()));
    assert!(says(&lab, 101, "whom").contains("heir"));
    assert_eq!(calls(&lab, "reboot 101"), 1, "{logged}");
}

#[test]
fn a_container_that_is_detached_under_its_install_is_left_and_not_recorded_again() {
    let Some(lab) = under_way(2) else { return };
    lab.run([PROGRAM, "detach", "101"]).ok();
    wait_for_the_end(&lab);
    untouched(&lab, "container 101 no longer has the hookscript");
    assert!(!lab.exists(STATE) && !lab.exists("/var/lib/phoenix-nvidia/state/101.json"));
}

#[test]
fn a_container_whose_settings_ask_no_more_is_left() {
    for (line, said) in [
        ("/GPU_ASSIGNMENT/d", "GPU_ASSIGNMENT of container 101 is no longer set"),
        ("s/GPU_ASSIGNMENT=0/&\\nlxc.environment: INSTALL=off/", "INSTALL of container 101 is now off"),
        (
            "s/GPU_ASSIGNMENT=0/&\\nlxc.environment: NVIDIA_DRIVER_VERSION=580.76.05/",
            "the settings of container 101 now ask for driver 580.76.05",
        ),
    ] {
        let Some(lab) = under_way(2) else { return };
        lab.sh(&format!("sed '1,/^\\[/{{{line}}}' {CONF} >/tmp/conf && cat /tmp/conf >{CONF}")).ok();
        wait_for_the_end(&lab);
        untouched(&lab, said);
        assert_eq!(says(&lab, 101, "outcome"), "none", "{}", state(&lab, 101));
        assert!(says(&lab, 101, "message").contains(said), "{}", state(&lab, 101));
        // Wanted again, it is completed.
        lab.run(["pct", "rollback", "101", "attached"]).ok();
        node(&lab, "INSTALL_WAIT=60\nAFTER_INSTALL=none");
        lab.run(["pct", "start", "101"]).ok().says("driver: installed");
    }
}

/// A snapshot from before the container was attached.
#[test]
fn a_container_that_is_rolled_back_under_its_install_is_left() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER).flaw(Flaw::Slow(3)));
    node(&lab, "INSTALL_WAIT=1");
    lab.create(101, Rootfs::Debian12.privileged());
    lab.run(["pct", "snapshot", "101", "bare"]).ok();
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    begin(&lab);
    let install = pids(&lab, "install 101");
    signal(&lab, &install, "STOP");
    lab.run(["pct", "rollback", "101", "bare"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    signal(&lab, &install, "CONT");
    wait_for_the_end(&lab);
    untouched(&lab, "container 101 no longer has the hookscript");
    assert!(!lab.container(101).exists("/usr/bin/nvidia-smi"));
}

/// While the reboot waited for a lock.
#[test]
fn a_container_that_asks_no_more_is_not_rebooted() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    attached(&lab, 101, Rootfs::Debian12.privileged());
    lab.sh("cp $(readlink -f /usr/sbin/pct) /usr/sbin/pct.real; rm /usr/sbin/pct").ok();
    lab.replace_program(
        "/usr/sbin/pct",
        format!(
            "#!/bin/sh\n[ \"$1\" = reboot ] || exec /usr/sbin/pct.real \"$@\"\necho x >>/tmp/reboots\n\
             sed '/GPU_ASSIGNMENT/d' {CONF} >/tmp/conf && cat /tmp/conf >{CONF}\n\
             echo \"can't lock file '/run/lock/lxc/pve-config-101.lock' - got timeout\" >&2\nexit 4\n"
        ),
    );
    lab.run(["pct", "start", "101"]).ok().says("driver: installed");
    wait_for_the_end(&lab);
    assert_eq!(lab.read("/tmp/reboots").lines().count(), 1, "{}", lab.read(LOG));
    lab.container(101).exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
}

/// Nobody renamed it into another one: it runs since the install began.
#[test]
fn a_container_that_is_renamed_under_its_install_gets_it() {
    let Some(lab) = under_way(2) else { return };
    lab.run(["pct", "set", "101", "--hostname", "renamed"]).ok();
    wait_for_the_end(&lab);
    let logged = lab.read(LOG);
    lab.container(101).exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    assert_eq!(calls(&lab, "reboot 101"), 1, "{logged}");
}

/// Every way into a container takes this long, as on a busy node.
fn busy(lab: &Lab, seconds: &str) {
    lab.sh("[ -e /usr/bin/lxc-attach.real ] || mv /usr/bin/lxc-attach /usr/bin/lxc-attach.real").ok();
    let script = format!("#!/bin/sh\nsleep {seconds}\nexec /usr/bin/lxc-attach.real \"$@\"\n");
    lab.replace_program("/usr/bin/lxc-attach", script);
}

#[test]
fn a_look_that_was_not_over_in_time_is_repeated_and_the_driver_installed() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, "CHECK_TIMEOUT=1");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    busy(&lab, "3");
    let begun = Instant::now();
    let start = lab.run(["pct", "start", "101"]).ok();
    assert!(begun.elapsed() < Duration::from_secs(10), "the start waits for none of it: {start}");
    start
        .says("cannot probe container 101")
        .says("driver check continues in the background")
        .says_not("driver: installed");
    wait_until("the driver", || lab.exists(LOG) && lab.read(LOG).contains("driver: installed"));
    busy(&lab, "0");
    wait_for_the_end(&lab);
    lab.container(101).exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    assert_eq!((says(&lab, 101, "outcome"), calls(&lab, "reboot 101")), ("ok".into(), 1));

    // And where all is right, that is what is recorded.
    lab.run(["pct", "stop", "101"]).ok();
    busy(&lab, "2");
    lab.run(["pct", "start", "101"]).ok().says("driver check continues in the background");
    wait_for_the_end(&lab);
    assert_eq!((says(&lab, 101, "outcome"), says(&lab, 101, "code")), ("ok".into(), "0".into()));
    assert_eq!(calls(&lab, "reboot 101"), 1, "{}", lab.read(LOG));
}

/// The container's own shell is stuck for a while.
#[test]
fn a_shell_that_blocks_at_first_costs_the_start_nothing_but_its_check() {
    let Some(lab) = lab() else { return };
    offers(&lab, &Runfile::new(DRIVER));
    node(&lab, "CHECK_TIMEOUT=1\nAFTER_INSTALL=none\nREADY_TIMEOUT=20");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    let ct = lab.container(101);
    ct.write("/blocked", "");
    let sh = lab.sh("cd /var/lib/vz/images/101/*; readlink usr/bin/sh").ok().stdout;
    assert_eq!(sh.trim(), "dash");
    lab.sh("cd /var/lib/vz/images/101/*/usr/bin && rm sh && \
            printf '#!/usr/bin/dash\\nwhile [ -e /blocked ]; do sleep 0.2; done\\nexec /usr/bin/dash \"$@\"\\n' >sh && chmod 755 sh")
        .ok();
    let start = lab
        .run(["pct", "start", "101"])
        .ok()
        .says("cannot probe")
        .says("driver check continues in the background");
    assert!(start.took < Duration::from_secs(10), "{start}");
    std::thread::sleep(Duration::from_secs(3));
    ct.files().remove("/blocked");
    wait_for_the_end(&lab);
    ct.exec(["nvidia-smi", "--version"]).ok().says(DRIVER);
    assert_eq!(says(&lab, 101, "outcome"), "ok", "{}", lab.read(LOG));

    // One that stays stuck ends in a warning, not in a failed install.
    lab.run(["pct", "stop", "101"]).ok();
    node(&lab, "READY_TIMEOUT=3");
    ct.write("/blocked", "");
    lab.run(["pct", "start", "101"]).ok().says("driver check continues in the background");
    wait_for_the_end(&lab);
    assert_eq!((says(&lab, 101, "outcome"), says(&lab, 101, "code")), ("warning".into(), "0".into()));
    assert!(pids(&lab, "lxc-attach").is_empty());
}
