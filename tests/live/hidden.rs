//! Cards whose node the container has elsewhere: its mount table does not show them, and their rules stay in force.
use crate::common::{PROGRAM, agrees, apply, assign, bad, reboot_from_inside, running};

use phoenix_lab::{Container, Errno, Lab, Output, Rootfs, Spec};

/// Root inside moves the node of card 1 away.
#[track_caller]
fn hide(ct: &Container<'_>) {
    ct.sh("touch /x && mount --bind /dev/nvidia1 /x && umount /dev/nvidia1").ok();
    assert_eq!(ct.open_node("/x"), Err(Errno::ENXIO));
}

/// A reboot of it would show nothing of that.
#[track_caller]
fn is_shut(ct: &Container<'_>) {
    assert_eq!(ct.open_node("/x"), Err(Errno::EPERM));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

/// The conf loses the pair of card 1, and any change of the container lets Proxmox write the config anew.
fn lose_the_pair(lab: &Lab) {
    assign(lab, "0");
    let lines: Vec<String> = lab.conf(101).lines().map(str::to_owned).collect();
    let pair = ["lxc.mount.entry: /dev/nvidia1 ", "lxc.cgroup2.devices.allow: c 195:1 "];
    let left = lines.iter().filter(|line| !pair.iter().any(|of| line.starts_with(of)));
    lab.write("/etc/pve/lxc/101.conf", left.map(|line| format!("{line}\n")).collect::<String>());
    change(lab);
}

#[track_caller]
fn change(lab: &Lab) {
    lab.run(["pct", "set", "101", "--memory", "300"]).ok();
    assert_eq!(lab.generated(101).contains("/dev/nvidia1"), lab.conf(101).contains("/dev/nvidia1"));
}

fn by_hand(lab: &Lab) -> Output {
    lab.run([PROGRAM, "101"])
}

const STILL: &str = "the running container still has /dev/nvidia1";

fn a_call_by_hand_restarts(spec: Spec) {
    let Some(lab) = running(2, spec, "0,1") else { return };
    let ct = lab.container(101);
    let healthy = bad(&lab);
    hide(&ct);
    assign(&lab, "0");
    lab.run([PROGRAM, "plan", "101"]).code(10).says(STILL);
    let told = |lab: &Lab| lab.run([PROGRAM, "status", "101"]).ok().stdout.contains(STILL);
    assert!(told(&lab) && bad(&lab).iter().any(|line| line.contains(STILL)), "{:?}", bad(&lab));
    let before = ct.init_pid();
    by_hand(&lab).ok().says(STILL).says("restart container 101");
    assert_ne!(ct.init_pid(), before);
    agrees(&lab, &[0], 2);
    assert!(!told(&lab));
    assert_eq!(bad(&lab), healthy);
}

#[test]
fn a_call_by_hand_restarts_a_container_that_hides_a_card() {
    a_call_by_hand_restarts(Rootfs::Busybox.privileged());
    a_call_by_hand_restarts(Rootfs::Busybox.unprivileged());
}

/// The config is another by then.
#[test]
fn a_post_start_by_hand_does_not_hide_a_card() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0,1") else { return };
    let ct = lab.container(101);
    hide(&ct);
    lose_the_pair(&lab);
    lab.run([PROGRAM, "101", "post-start"]).ok();
    lab.run([PROGRAM, "plan", "101"]).code(10).says(STILL);
    apply(&lab, &[]).ok().says("/dev/nvidia1");
    is_shut(&ct);
}

/// No hookscript runs then: what it runs with is what the conf had before our edit.
#[test]
fn a_call_by_hand_restarts_one_that_was_rebooted_from_inside() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0,1") else { return };
    let ct = lab.container(101);
    reboot_from_inside(&ct);
    hide(&ct);
    assign(&lab, "0");
    let before = ct.init_pid();
    by_hand(&lab).ok().says(STILL).says("restart container 101");
    assert_ne!(ct.init_pid(), before);
    agrees(&lab, &[0], 2);
}

fn apply_takes_it_away(spec: Spec) {
    let Some(lab) = running(2, spec, "0,1") else { return };
    let ct = lab.container(101);
    hide(&ct);
    lose_the_pair(&lab);
    lab.run([PROGRAM, "plan", "101"]).code(10).says("take away /dev/nvidia1");
    apply(&lab, &[]).ok().says("take away /dev/nvidia1");
    is_shut(&ct);
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    apply(&lab, &[]).ok().says("nothing to change");
    // What was given while it ran is known as well.
    assign(&lab, "0,1");
    apply(&lab, &[]).ok().says("add /dev/nvidia1");
    ct.sh("umount /x").ok();
    hide(&ct);
    lose_the_pair(&lab);
    apply(&lab, &[]).ok().says("take away /dev/nvidia1");
    is_shut(&ct);
}

#[test]
fn apply_takes_a_hidden_card_away_after_any_change_of_the_container() {
    apply_takes_it_away(Rootfs::Busybox.privileged());
    apply_takes_it_away(Rootfs::Busybox.unprivileged());
}

#[test]
fn detach_takes_a_hidden_card_away() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0,1") else { return };
    let ct = lab.container(101);
    hide(&ct);
    lose_the_pair(&lab);
    lab.run([PROGRAM, "detach", "101", "--live"]).ok().says("take away /dev/nvidia1");
    assert_eq!(ct.open_node("/x"), Err(Errno::EPERM));
}

/// A container that an earlier version started.
#[test]
fn without_a_record_every_card_that_is_not_its_own_is_shut() {
    for spec in [Rootfs::Busybox.privileged(), Rootfs::Busybox.unprivileged()] {
        let Some(lab) = running(3, spec, "0,1") else { return };
        let ct = lab.container(101);
        lab.append("/etc/pve/lxc/101.conf", "lxc.cgroup2.devices.allow: c 195:2 rwm\n");
        lab.run(["pct", "reboot", "101"]).ok();
        ct.wait_ready();
        hide(&ct);
        lab.sh("rm -f /run/phoenix-nvidia/state/101.rules").ok();
        lose_the_pair(&lab);
        apply(&lab, &[]).ok();
        is_shut(&ct);
        // A rule of the user's.
        ct.sh("[ -e /made2 ] || mknod /made2 c 195 2");
        if lab.conf(101).contains("unprivileged: 1") {
            continue;
        }
        assert_eq!(ct.open_node("/made2"), Err(Errno::ENXIO));
    }
}

/// The conf has a pair, and so has the config: its rule is not in force for that.
#[test]
fn a_rule_that_only_the_config_has_is_set() {
    let Some(lab) = running(3, Rootfs::Busybox.privileged(), "0") else { return };
    let ct = lab.container(101);
    let pair = "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file 0 0\n\
                lxc.cgroup2.devices.allow: c 195:1 rwm\n";
    lab.append("/etc/pve/lxc/101.conf", pair);
    change(&lab);
    // So that the node is there, and another step is due.
    ct.sh(
        "mkdir /made && mount -t tmpfs made /made && cd /made && mknod card c 195 1 && touch /dev/nvidia1 && \
           mount --bind card /dev/nvidia1",
    )
    .ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::EPERM));
    assign(&lab, "0,1,2");
    apply(&lab, &[]).ok().says("add /dev/nvidia2").says("add the device rule of /dev/nvidia1");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
    // As it was before, once a step fails.
    assert_eq!(ct.open_node("/dev/nvidia2"), Err(Errno::ENXIO));
}
