//! From an installed driver to the host's and back, and what a start finds inside on the way.
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::repo::catalogue;
use phoenix_lab::{Container, Lab, Rootfs, Spec};
use std::time::{Duration, Instant};
use support::{again, lab, node, setting, start};

pub const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
pub const OLD: &str = "580.95.05";
pub const OLDER: &str = "570.86.15";
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
pub const HWCAPS: &str = "/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2";
pub const LINKS: &str = "/var/lib/phoenix-nvidia/links";
pub const ROOT: &str = "/var/lib/vz/images/101/subvol-101-disk-0.subvol";

/// A host with the driver of this version, and what containers need to get it.
fn host(version: &str, lines: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver(version))?;
    lab.sh("mount --make-rshared /").ok();
    lab.nvidia().user_space(version);
    for version in [OLD, OLDER] {
        lab.web().runfile(&Runfile::new(version));
    }
    node(&lab, &format!("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\n{lines}"));
    Some(lab)
}

/// With a container that gets it, not started yet.
pub fn with(version: &str, spec: Spec, lines: &str) -> Option<Lab> {
    let lab = host(version, lines)?;
    lab.create(101, spec);
    lab.nvidia().printer(101);
    support::hooked(&lab);
    Some(lab)
}

/// A host that was upgraded, and a stopped container in which a runfile installed the driver from before.
pub fn upgraded(spec: Spec) -> Option<Lab> {
    let lab = with(OLDER, spec, "AFTER_INSTALL=none")?;
    start(&lab).ok().says("driver: installed 570.86.15");
    lab.nvidia().user_space(OLD);
    lab.nvidia().set_driver(OLD);
    Some(lab)
}

#[track_caller]
pub fn finds(ct: &Container<'_>, version: &str) {
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, format!("{version}\n{version}\n"));
}

/// What the install process wrote, once it says this.
#[track_caller]
fn worker_says(lab: &Lab, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lab.sh("cat /var/log/phoenix-nvidia/101.log").stdout.contains(what) {
        assert!(Instant::now() < deadline, "{}", lab.sh("cat /var/log/phoenix-nvidia/101.log").stdout);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Nothing of a runfile's driver is in it.
#[track_caller]
fn has_no_runfile(ct: &Container<'_>) {
    assert!(!ct.exists("/var/lib/nvidia") && !ct.exists("/usr/bin/nvidia-uninstall"));
    let left =
        ct.sh(&format!("find /usr -xdev -name '*.so.{OLDER}'; /sbin/ldconfig -p | grep {OLDER}; true"));
    assert_eq!(left.ok().stdout, "");
}

/// By its own uninstaller, in the first start; then one reboot, and nothing is left to do.
#[test]
fn a_driver_that_a_runfile_installed_is_removed_by_its_own_uninstaller() {
    let Some(lab) = upgraded(Rootfs::Debian12.unprivileged()) else { return };
    node(&lab, "AFTER_INSTALL=reboot");
    let attach = lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    attach.says("driver 570.86.15, which a runfile installed in the container, goes");
    let plan = lab.run([PROGRAM, "plan", "101"]).code(10);
    plan.says("remove driver 570.86.15, which a runfile installed, with its nvidia-uninstall");
    let first = again(&lab).ok();
    first.says("found driver 570.86.15").says("restarted once").says_not("fix: pct reboot");
    worker_says(&lab, "driver: removed 570.86.15, which a runfile had installed");
    worker_says(&lab, "container rebooted");
    let ct = lab.container(101);
    has_no_runfile(&ct);
    finds(&ct, OLD);
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));
    assert!(ct.sh("cat /var/log/nvidia-uninstall.log").ok().stdout.contains("--uninstall"));
    ct.sh("! grep rmmod /var/log/nvidia-uninstall.log").ok();
    for _ in 0..2 {
        again(&lab).ok().says("the host's, mounted").says_not("WARNING").says_not("removed");
    }
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");

    // And back, by a start.
    lab.run([PROGRAM, "attach", "101", "--install"]).ok();
    again(&lab).ok().says("links to the host's driver").says("driver: installed 580.95.05");
    assert!(!ct.exists(LINKS) && ct.exists("/var/lib/nvidia/log"));
    assert_eq!(ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout, "");
}

/// By hand it is part of the run, with its restart.
#[test]
fn a_run_by_hand_removes_it_too() {
    let Some(lab) = upgraded(Rootfs::Debian12.privileged()) else { return };
    node(&lab, "AFTER_INSTALL=reboot");
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    let hand =
        lab.run([PROGRAM, "101"]).ok().says("driver: removed 570.86.15").says("verify: 580.95.05 works");
    hand.says_not("fix:");
    has_no_runfile(&lab.container(101));
    finds(&lab.container(101), OLD);
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
}

/// It costs nobody the host's driver, is told with the command, and is tried a few times in a boot.
#[test]
fn an_uninstaller_that_fails_is_told_with_the_command_and_not_tried_for_ever() {
    let Some(lab) = upgraded(Rootfs::Debian12.unprivileged()) else { return };
    let ct = lab.container(101);
    ct.write("/root/uninstall-fails", "");
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    // Another one than what just failed.
    let fix = "fix: pct exec 101 -- find /usr/lib /usr/lib64 -xdev -name 'lib*.so.570.86.15' -delete";
    for _ in 0..3 {
        again(&lab).ok().says("WARNING").says("driver 570.86.15 of a runfile is still in").says(fix);
        finds(&ct, OLD);
    }
    lab.run([PROGRAM, "status", "101"]).ok().says("driver 570.86.15 of a runfile is still in");
    again(&lab).ok().says("the host's, mounted").says_not("is still in").says(fix);
    lab.run([PROGRAM, "101"]).ok().says("is still in").says("verify: 580.95.05 works");
    ct.files().remove("/root/uninstall-fails");
    lab.run([PROGRAM, "101"]).ok().says("driver: removed 570.86.15").says_not("WARNING");
    has_no_runfile(&ct);
}

#[test]
fn a_driver_of_packages_is_named_with_the_command_and_stays() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject\nAFTER_INSTALL=none")
    else {
        return;
    };
    start(&lab).ok();
    let ct = lab.container(101);
    for package in catalogue::debian_driver("535.261.03") {
        let file = format!("/root/debs/{}.deb", package.name());
        ct.write(
            file,
            std::fs::read(package.build().unwrap_or_else(|e| panic!("{e:#}"))).unwrap_or_default(),
        );
    }
    ct.sh("dpkg -i /root/debs/*.deb").ok();
    // As after a rollback to a time at which they were there: it is looked for again.
    lab.run(["pct", "set", "101", "--memory", "600"]).ok();
    let names = "libnvidia-ml1 nvidia-installer-cleanup nvidia-smi libcuda1";
    let purge = format!("pct exec 101 -- apt-get purge {names} && phoenix-nvidia 101");
    let fix = format!("fix: {purge}");
    for _ in 0..2 {
        again(&lab).ok().says("a driver is installed in the container too").says(&fix);
        ct.sh("dpkg -s libcuda1 | grep 'Status: install ok installed'").ok();
    }
    lab.run([PROGRAM, "doctor", "101"]).says(&fix);
    lab.run(["pct", "snapshot", "101", "before"]).ok();
    // The command as it is printed, answered: what it took away of nvidia-smi is there again.
    lab.sh(&purge.replace("purge", "purge -y")).ok();
    finds(&ct, OLD);
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));

    // Removed by somebody inside, which changes no conf: the next start makes the links, and none after it looks.
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "rollback", "101", "before"]).ok();
    start(&lab).ok().says(&fix);
    ct.sh(&format!("apt-get purge -y {names}")).ok();
    ct.exec(["nvidia-smi", "-L"]).code(127);
    again(&lab).ok().says("the host's, mounted").says_not("fix:");
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh("mv /usr/bin/lxc-attach /root/lxc-attach").ok();
    lab.replace_program("/usr/bin/lxc-attach", "#!/bin/sh\n: >/root/attached\n");
    start(&lab).ok().says("the host's, mounted");
    assert!(!lab.exists("/root/attached"));
}

/// Conf and record have forgotten it; the running container has it.
#[test]
fn what_still_runs_with_the_hosts_driver_is_restarted_before_an_install() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject") else { return };
    start(&lab).ok();
    lab.run([PROGRAM, "detach", "101"]).ok();
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--install"]).ok();
    lab.run([PROGRAM, "plan", "101"]).code(10).says("still has the host's driver 580.95.05 mounted");
    let hand = lab.command(PROGRAM).arg("101").timeout(Duration::from_secs(150)).run().ok();
    hand.says("restart container 101").says("driver: installed 580.95.05").says("verify: 580.95.05 works");
    assert!(lab.container(101).exists("/var/lib/nvidia/log"));
    lab.container(101)
        .sh(&format!("! grep -q phoenix-nvidia/driver /proc/self/mountinfo && ls {HWCAPS}"))
        .ok();
}

/// The record is of a later time than what a rollback brings back, and the conf says the same.
#[test]
fn after_a_rollback_the_links_are_looked_for_again() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject") else { return };
    start(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!(
        "mv {ROOT}{LINKS} {ROOT}/root/; find {ROOT}/usr {ROOT}/etc -lname '*x86-64-v2*' -delete"
    ))
    .ok();
    lab.sh(&format!("cp -a {ROOT} /root/before && pct snapshot 101 before")).ok();
    start(&lab).ok();
    let ct = lab.container(101);
    assert!(ct.exists(LINKS));
    lab.run(["pct", "stop", "101"]).ok();
    let conf = lab.conf(101);
    // The times of /etc/pve are whole seconds.
    lab.sh("at=$(stat -Lc %Y /etc/pve/lxc/101.conf); while [ $(date +%s) -le $at ]; do sleep 0.05; done")
        .ok();
    lab.sh(&format!(
        "pct rollback 101 before && find {ROOT} -mindepth 1 -delete && cp -a /root/before/. {ROOT}"
    ))
    .ok();
    assert_eq!(lab.conf(101), conf, "nothing but its time tells");
    start(&lab).ok();
    assert!(ct.exists(LINKS), "made again");
    ct.exec(["nvidia-smi", "-L"]).ok();
    // Nothing has changed since: no command is run in it.
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh("mv /usr/bin/lxc-attach /root/lxc-attach").ok();
    lab.replace_program("/usr/bin/lxc-attach", "#!/bin/sh\n: >/root/attached\n");
    start(&lab).ok().says("the host's, mounted");
    assert!(!lab.exists("/root/attached"));
}

/// The conf of each time decides, and the record of the other one misleads no start.
#[test]
fn a_rollback_to_the_other_mode_and_back_is_right_at_the_next_start() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "AFTER_INSTALL=none") else { return };
    let keep = |name: &str| {
        lab.run(["pct", "stop", "101"]).ok();
        lab.sh(&format!("cp -a {ROOT} /root/{name} && pct snapshot 101 {name}")).ok();
    };
    let back = |name: &str| {
        lab.sh("pct stop 101; true").ok();
        let disk = format!("find {ROOT} -mindepth 1 -delete && cp -a /root/{name}/. {ROOT}");
        lab.sh(&format!("pct rollback 101 {name} && {disk}")).ok();
        start(&lab).ok().says_not("WARNING")
    };
    start(&lab).ok().says("driver: installed 580.95.05");
    keep("installed");
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    start(&lab).ok().says("driver: removed 580.95.05");
    keep("injected");
    let ct = lab.container(101);
    for _ in 0..2 {
        back("installed").says("installed and right").says_not("driver: installed");
        assert!(ct.exists("/var/lib/nvidia/log") && !ct.exists(LINKS));
        assert!(!lab.conf(101).split("\n[").next().unwrap_or_default().contains("driver/current"));
        back("injected").says("the host's, mounted").says_not("driver: removed");
        assert!(!ct.exists("/var/lib/nvidia") && ct.exists(LINKS));
        finds(&ct, OLD);
        ct.exec(["nvidia-smi", "-L"]).ok();
    }
}

/// A library of the container's own in the directory, which it would not find any more.
#[test]
fn a_directory_with_files_of_its_own_is_found_and_no_later_start_hides_them() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject") else { return };
    let ct = lab.container(101);
    ct.write(format!("{HWCAPS}/libown.so.1"), "mine\n");
    let why = format!("{HWCAPS} in the container has files of its own, which the mount would hide");
    let fix = "fix: phoenix-nvidia attach 101 --install";
    start(&lab).says(&why).says(fix);
    lab.run([PROGRAM, "doctor", "101"]).code(1).says(&why).says(fix);
    again(&lab).ok().says("WARNING").says(&why).says(fix);
    assert!(!lab.conf(101).contains("driver/current"));
    assert_eq!(ct.sh(&format!("cat {HWCAPS}/libown.so.1")).ok().stdout, "mine\n");
    // Nobody restarts it for a mount that would hide them, and attach says so.
    let before = ct.init_pid();
    lab.run([PROGRAM, "plan", "101"]).code(5).says(&why).says(fix);
    lab.run([PROGRAM, "101"]).code(5).says(&why).says(fix);
    assert_eq!(ct.init_pid(), before);
    lab.run([PROGRAM, "attach", "101"]).ok().says(&why).says(fix);
    lab.run([PROGRAM, "101"]).code(5);
    // Once they are elsewhere, a call by hand looks again.
    lab.sh(&format!("mv {ROOT}{HWCAPS}/libown.so.1 {ROOT}{LIBRARIES}")).ok();
    lab.run([PROGRAM, "101"]).ok().says("the host's, mounted");
    finds(&ct, OLD);
    // What a copy of the container took of the driver is ours.
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!("cp -a /var/lib/phoenix-nvidia/driver/{OLD}/. {ROOT}{HWCAPS}/")).ok();
    lab.run(["pct", "set", "101", "--memory", "600"]).ok();
    start(&lab).ok().says("the host's, mounted").says_not("files of its own");
}

/// Its program has the older libraries loaded: no look that comes later helps it.
#[test]
fn an_application_container_that_found_an_older_driver_is_restarted_once() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject") else { return };
    let conf = lab.conf(101).replace("hostname: ", "entrypoint: /root/app\nhostname: ");
    lab.write("/etc/pve/lxc/101.conf", conf);
    let ct = lab.container(101);
    ct.files().program(
        "/root/app",
        "#!/bin/sh\n/root/driver-version >/at-boot\ntrap 'exit 0' TERM PWR\nwhile :; do sleep 0.1; done\n",
    );
    lab.nvidia().user_space(OLDER);
    lab.sh(&format!(
        "set -e; at={ROOT}{LIBRARIES}
         for name in libcuda libnvidia-ml; do
             cp {LIBRARIES}/$name.so.{OLDER} $at; ln -s $name.so.{OLDER} $at/$name.so.1
         done; chroot {ROOT} /sbin/ldconfig"
    ))
    .ok();
    lab.nvidia().user_space(OLD);
    start(&lab).ok().says("found driver 570.86.15").says("restarted once").says_not("WARNING");
    worker_says(&lab, "container rebooted");
    let deadline = Instant::now() + Duration::from_secs(20);
    while ct.read("/at-boot") != format!("{OLD}\n{OLD}\n") {
        assert!(Instant::now() < deadline, "{}", ct.read("/at-boot"));
        std::thread::sleep(Duration::from_millis(50));
    }
    again(&lab).ok().says("the host's, mounted").says_not("restarted");
}

/// Devices alone are asked for: what was linked is of no use.
#[test]
fn with_install_off_the_links_go_at_the_next_start() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject") else { return };
    start(&lab).ok();
    setting(&lab, 101, "INSTALL=off");
    again(&lab).ok().says("links to the host's driver").says_not("WARNING");
    let ct = lab.container(101);
    assert!(!ct.exists(LINKS) && !lab.conf(101).contains("driver/current"));
    assert_eq!(ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout, "");
    again(&lab).ok().says_not("links");
}

/// An install took them away.
#[test]
fn links_that_an_install_removed_are_not_named() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "AFTER_INSTALL=none") else { return };
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    start(&lab).ok();
    lab.run([PROGRAM, "attach", "101", "--install"]).ok();
    again(&lab).ok().says("links to the host's driver").says("driver: installed 580.95.05");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "detach", "101"]).ok().says("stay in it").says_not("links to the host's driver");
}

/// What a stopped container keeps is named, doctor finds it, and a second detach removes it.
#[test]
fn links_that_stay_in_a_stopped_container_are_named_and_can_be_removed() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "") else { return };
    setting(&lab, 101, "DRIVER_MODE=inject");
    start(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    let ct = lab.container(101);
    let stays = "/var/lib/phoenix-nvidia, the links to the host's driver, which it lists";
    let fix = "fix: pct start 101 && phoenix-nvidia detach 101";
    lab.run([PROGRAM, "detach", "101"]).ok().says(stays).says(fix).says_not("apt");
    start(&lab).ok();
    let doctor = lab.run([PROGRAM, "doctor", "101"]);
    let doctor = doctor.says("files of phoenix-nvidia in the container: /var/lib/phoenix-nvidia");
    doctor.says("may lead nowhere").says("fix: phoenix-nvidia detach 101");
    assert!(!ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout.is_empty());
    lab.run([PROGRAM, "detach", "101"]).ok().says("removed").says_not("nothing to remove");
    assert_eq!(ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout, "");
    assert!(!ct.exists("/var/lib/phoenix-nvidia"));
    lab.run([PROGRAM, "detach", "101"]).ok().says("nothing to remove");
}
