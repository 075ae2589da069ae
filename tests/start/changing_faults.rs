//! Changing over between an installed driver and the host's, with something in the way.
use crate::changing::{HWCAPS, LINKS, OLD, OLDER, PROGRAM, ROOT, finds, upgraded, with};
use crate::support::{again, node, setting, start};

use phoenix_lab::{Lab, Rootfs};
use std::time::Duration;

const FIND: &str = "fix: pct exec 101 -- find /usr/lib /usr/lib64 -xdev -name 'lib*.so.570.86.15' -delete";

/// A mount entry at the end of the conf.
fn mounts(lab: &Lab, source: &str, target: &str, options: &str) {
    lab.append("/etc/pve/lxc/101.conf", format!("lxc.mount.entry: {source} {target} none {options} 0 0\n"));
}

/// The conf without the lines that have this.
fn without(lab: &Lab, what: &str) {
    let lines: Vec<String> =
        lab.conf(101).lines().filter(|line| !line.contains(what)).map(str::to_owned).collect();
    lab.write("/etc/pve/lxc/101.conf", format!("{}\n", lines.join("\n")));
}

/// A directory with links of ours, which nobody in the container can write to.
fn read_only(lab: &Lab) {
    mounts(lab, &format!("{ROOT}/etc/OpenCL/vendors"), "etc/OpenCL/vendors", "bind,ro");
}

/// Its name is a number, and its place ends like one of ours.
#[test]
fn a_directory_that_the_user_mounts_is_not_the_hosts_driver() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "") else { return };
    lab.write("/srv/tools/2024.1/tool", "theirs\n");
    mounts(&lab, "/srv/tools/2024.1", "opt/tools/x86_64", "bind,create=dir");
    node(&lab, "AFTER_INSTALL=none");
    start(&lab).ok().says("driver: installed 580.95.05").says_not("still");
    let ct = lab.container(101);
    let before = ct.init_pid();
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    lab.run([PROGRAM, "101"]).ok().says("installed and right").says_not("restart");
    assert_eq!(ct.init_pid(), before);
    lab.run([PROGRAM, "apply", "101"]).ok().says_not("2024.1");
    assert_eq!(ct.sh("cat /opt/tools/x86_64/tool").ok().stdout, "theirs\n");
    // With the host's driver the mount before that one is not taken for it.
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    again(&lab).ok().says("driver: removed 580.95.05").says_not("2024.1");
    finds(&ct, OLD);
    lab.run([PROGRAM, "apply", "101"]).ok().says_not("2024.1");
    lab.run([PROGRAM, "doctor", "101"]).says("driver 580.95.05 of this host is mounted");
    assert_eq!(ct.sh("cat /opt/tools/x86_64/tool").ok().stdout, "theirs\n");
}

#[test]
fn with_install_off_links_that_cannot_be_removed_are_told_until_they_are() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject") else { return };
    start(&lab).ok();
    setting(&lab, 101, "INSTALL=off");
    read_only(&lab);
    let ct = lab.container(101);
    for _ in 0..2 {
        again(&lab).ok().says("WARNING").says("cannot remove the links").says("fix: pct reboot 101");
        assert!(ct.exists(LINKS));
    }
    without(&lab, "OpenCL");
    again(&lab).ok().says("links to the host's driver").says_not("WARNING");
    assert!(!ct.exists(LINKS));
    assert_eq!(ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout, "");
    again(&lab).ok().says_not("links");
}

#[test]
fn no_installer_runs_over_links_that_cannot_be_removed() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "AFTER_INSTALL=none") else { return };
    setting(&lab, 101, "DRIVER_MODE=inject");
    start(&lab).ok();
    without(&lab, "DRIVER_MODE");
    read_only(&lab);
    let ct = lab.container(101);
    again(&lab).says("nothing installed").says("/etc/OpenCL/vendors/nvidia.icd cannot be removed");
    let hand = lab.command(PROGRAM).arg("101").timeout(Duration::from_secs(150)).run().code(5);
    hand.says("nothing installed").says("fix: phoenix-nvidia 101");
    assert!(!ct.exists("/var/lib/nvidia/log") && ct.exists(LINKS));
    without(&lab, "OpenCL");
    again(&lab).ok().says("links to the host's driver").says("driver: installed 580.95.05");
    assert!(!ct.exists(LINKS));
}

/// `ldconfig` takes longer than a look may.
#[test]
fn a_slow_linker_cache_costs_no_install() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "AFTER_INSTALL=none\nREADY_TIMEOUT=60") else {
        return;
    };
    setting(&lab, 101, "DRIVER_MODE=inject");
    start(&lab).ok();
    without(&lab, "DRIVER_MODE");
    let ct = lab.container(101);
    ct.sh("mv /usr/sbin/ldconfig /usr/sbin/ldconfig.slow").ok();
    ct.files().program("/usr/sbin/ldconfig", "#!/bin/sh\nsleep 8\nexec /usr/sbin/ldconfig.slow \"$@\"\n");
    node(&lab, "CHECK_TIMEOUT=5");
    again(&lab).ok().says("links to the host's driver").says("driver: installed 580.95.05");
    assert!(!ct.exists(LINKS));
}

#[test]
fn detach_keeps_the_list_of_links_that_cannot_be_removed() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "") else { return };
    setting(&lab, 101, "DRIVER_MODE=inject");
    start(&lab).ok();
    read_only(&lab);
    again(&lab).ok();
    let ct = lab.container(101);
    ct.write("/var/lib/phoenix-nvidia/software.installing", "x\n");
    let detach = lab.run([PROGRAM, "detach", "101"]).ok();
    detach.says("/etc/OpenCL/vendors/nvidia.icd cannot be removed").says("fix: phoenix-nvidia detach 101");
    assert_eq!(ct.sh("ls /var/lib/phoenix-nvidia").ok().stdout, "links\n");
    assert_eq!(ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout, "/etc/OpenCL/vendors/nvidia.icd\n");
    without(&lab, "OpenCL");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.run([PROGRAM, "detach", "101"]).ok().says("removed").says_not("WARNING");
    assert_eq!(ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout, "");
    assert!(!ct.exists("/var/lib/phoenix-nvidia"));
}

/// The installer's list has a file that is the host's, bound where it can be written.
#[test]
fn no_uninstaller_runs_through_a_mount_of_the_hosts_files() {
    let Some(lab) = upgraded(Rootfs::Debian12.privileged()) else { return };
    let (theirs, at) = ("/srv/vdpau/libvdpau_nvidia.so.570.86.15", "/usr/lib/x86_64-linux-gnu/vdpau");
    lab.write(theirs, "of the host\n");
    mounts(&lab, "/srv/vdpau", at.trim_start_matches('/'), "bind,create=dir");
    let list = format!("{ROOT}/var/lib/nvidia/log");
    lab.sh(&format!(
        "printf '1: {at}/libvdpau_nvidia.so.570.86.15\\n%s\\n' $(cksum <{theirs} | cut -d ' ' -f 1) >>{list}"
    ))
    .ok();
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    let first = again(&lab).ok();
    assert_eq!(lab.read(theirs), "of the host\n");
    let told = first.says("driver files of the host").says("fix: nano /etc/pve/lxc/101.conf");
    told.says_not("driver: removed").says_not("-delete");
    lab.run([PROGRAM, "101"]).ok().says_not("driver: removed");
    lab.run([PROGRAM, "doctor", "101"]).says("fix: nano /etc/pve/lxc/101.conf");
    assert_eq!(lab.read(theirs), "of the host\n");
    finds(&lab.container(101), OLD);
    // Once it is not mounted any more, the rest goes.
    without(&lab, "vdpau");
    again(&lab).ok().says("driver: removed 570.86.15");
    assert_eq!(lab.read(theirs), "of the host\n");
}

/// What the uninstaller cannot remove, the command that is told for it removes.
#[test]
fn the_command_that_is_told_removes_what_an_uninstaller_does_not() {
    let Some(lab) = upgraded(Rootfs::Debian12.unprivileged()) else { return };
    let ct = lab.container(101);
    ct.write("/root/uninstall-fails", "");
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    again(&lab).ok().says("WARNING").says("is still in").says(FIND);
    lab.sh(FIND.trim_start_matches("fix: ")).ok();
    again(&lab)
        .ok()
        .says("the host's, mounted")
        .says_not("WARNING")
        .says_not("is installed in the container");
    finds(&ct, OLD);
    assert_eq!(ct.sh(&format!("find /usr -xdev -name '*.so.{OLDER}'")).ok().stdout, "");
}

/// A link that leads nowhere and a file with a dot are files of its own too: the look before a restart sees what the
/// one after it would.
#[test]
fn nobody_restarts_a_container_for_a_mount_that_would_hide_a_link_or_a_dot_file() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "AFTER_INSTALL=none") else { return };
    start(&lab).ok().says("driver: installed 580.95.05");
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    let ct = lab.container(101);
    let before = ct.init_pid();
    for own in ["ln -s nowhere libown.so", ": >.own", ": >..own"] {
        ct.sh(&format!("rm -rf {HWCAPS}; mkdir -p {HWCAPS}; cd {HWCAPS}; {own}")).ok();
        let hand = lab.run([PROGRAM, "101"]).code(5);
        hand.says(&format!("{HWCAPS} in the container has files of its own")).says_not("restart");
        assert_eq!(ct.init_pid(), before, "{own}");
    }
}

/// Nothing can be installed in it.
#[test]
fn an_application_container_with_files_of_its_own_is_told_another_way_than_an_install() {
    let Some(lab) = with(OLD, Rootfs::Debian12.unprivileged(), "DRIVER_MODE=inject") else { return };
    let conf = lab.conf(101).replace("hostname: ", "entrypoint: /root/app\nhostname: ");
    lab.write("/etc/pve/lxc/101.conf", conf);
    let ct = lab.container(101);
    ct.files().program("/root/app", "#!/bin/sh\ntrap 'exit 0' TERM PWR\nwhile :; do sleep 0.1; done\n");
    ct.write(format!("{HWCAPS}/libown.so.1"), "mine\n");
    for _ in 0..2 {
        let said = start(&lab);
        let said = said.says("has files of its own").says("fix: INSTALL=off phoenix-nvidia attach 101");
        said.says_not("attach 101 --install");
        lab.run([PROGRAM, "doctor", "101"]).says_not("attach 101 --install");
        lab.run(["pct", "stop", "101"]).ok();
    }
    lab.sh("INSTALL=off phoenix-nvidia attach 101").ok();
    start(&lab).ok().says_not("WARNING");
}
