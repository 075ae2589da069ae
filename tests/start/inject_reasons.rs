//! What was found in a container and keeps it from the host's driver: until it has gone.
use crate::inject::{HWCAPS, OLD, PROGRAM, finds_now, injecting};
use crate::support::{again, node, start};

use phoenix_lab::{Lab, Rootfs, Spec};

const ROOT: &str = "/var/lib/vz/images/101/subvol-101-disk-0.subvol";
const LINKS: &str = "/var/lib/phoenix-nvidia/links";
const GONE: &str = "what kept the host's driver from the container has gone: its next start has it";

/// A container that never starts without its devices, not started yet.
fn strict(spec: Spec) -> Option<Lab> {
    let lab = injecting(spec)?;
    node(&lab, "START_POLICY=fail");
    Some(lab)
}

/// The start in which that is found, and one that leaves the mount out.
#[track_caller]
fn is_found(lab: &Lab, why: &str) {
    start(lab).ok().says(why);
    stays(lab, why);
}

/// Another start without the mount, which nothing stops.
#[track_caller]
fn stays(lab: &Lab, why: &str) {
    again(lab).ok().says("WARNING").says(why).says("START_POLICY=fail lets it start").says_not(GONE);
    assert!(!mounts(lab), "{}", lab.conf(101));
    assert!(lab.container(101).running());
}

/// A start finds it gone, and the next one mounts.
#[track_caller]
fn is_gone(lab: &Lab) {
    start(lab).ok().says(GONE).says("fix: pct reboot 101");
    assert!(!mounts(lab), "{}", lab.conf(101));
    again(lab).ok().says("the host's, mounted").says_not("WARNING");
    finds_now(&lab.container(101), OLD);
}

fn mounts(lab: &Lab) -> bool {
    lab.conf(101).split("\n[").next().unwrap_or_default().contains("driver/current")
}

fn stop(lab: &Lab) {
    lab.run(["pct", "stop", "101"]).ok();
}

#[test]
fn a_rollback_to_before_it_blocks_no_start_and_the_driver_comes_back() {
    let Some(lab) = strict(Rootfs::Debian12.unprivileged()) else { return };
    lab.run(["pct", "snapshot", "101", "new"]).ok();
    let ct = lab.container(101);
    ct.write(format!("{HWCAPS}/libown.so.1"), "mine\n");
    let why = format!("{HWCAPS} in the container has files of its own");
    is_found(&lab, &why);
    assert_eq!(ct.sh(&format!("cat {HWCAPS}/libown.so.1")).ok().stdout, "mine\n");
    stop(&lab);
    lab.run(["pct", "rollback", "101", "new"]).ok();
    is_gone(&lab);
}

/// No conf is written for it.
#[test]
fn a_repair_inside_is_found_by_the_next_start() {
    let Some(lab) = strict(Rootfs::Debian12.privileged()) else { return };
    let ct = lab.container(101);
    // What a shell's * does not see is somebody's too.
    ct.write(format!("{HWCAPS}/.own"), "mine\n");
    is_found(&lab, &format!("{HWCAPS} in the container has files of its own"));
    stays(&lab, &format!("{HWCAPS} in the container has files of its own"));
    ct.sh(&format!("rm {HWCAPS}/.own")).ok();
    stop(&lab);
    is_gone(&lab);
}

/// Another C library, and another one again.
#[test]
fn an_unfit_container_that_became_fit_has_the_driver_again() {
    let Some(lab) = strict(Rootfs::Busybox.privileged()) else { return };
    let ct = lab.container(101);
    ct.write("/lib/ld-musl-x86_64.so.1", "");
    is_found(&lab, "the container has musl");
    stop(&lab);
    ct.files().remove("/lib/ld-musl-x86_64.so.1");
    start(&lab).ok().says(GONE).says("the container has musl");
    again(&lab).ok().says_not(GONE).says_not("musl");
    assert!(mounts(&lab));
}

/// Where the driver is of no use its links are of none.
#[test]
fn links_in_an_unfit_container_go_with_install_off() {
    let Some(lab) = injecting(Rootfs::Busybox.privileged()) else { return };
    let ct = lab.container(101);
    ct.write("/lib/ld-musl-x86_64.so.1", "");
    start(&lab).ok().says("the container has musl");
    assert!(ct.exists(LINKS), "made before anybody knew");
    lab.run(["env", "INSTALL=off", PROGRAM, "attach", "101"]).ok();
    again(&lab).ok().says("links to the host's driver").says_not("WARNING");
    assert!(!ct.exists(LINKS));
    again(&lab).ok().says_not("links");
}

/// Found by a call by hand in contents that a restore then replaces.
#[test]
fn what_a_call_by_hand_found_is_of_those_contents_alone() {
    let Some(lab) = strict(Rootfs::Debian12.unprivileged()) else { return };
    lab.container(101).write(format!("{HWCAPS}/libown.so.1"), "mine\n");
    let why = format!("{HWCAPS} in the container has files of its own");
    is_found(&lab, &why);
    lab.run([PROGRAM, "101"]).code(5).says(&why);
    stop(&lab);
    lab.sh(&format!("rm {ROOT}{HWCAPS}/libown.so.1")).ok();
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("ostype: debian", "ostype: ubuntu"));
    start(&lab).ok().says("the host's, mounted").says_not("WARNING");
    finds_now(&lab.container(101), OLD);
}
