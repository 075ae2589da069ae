//! Cards come and go.
use crate::common::{PROGRAM, agrees, apply, assign, bad, reboot_from_inside, running, table};
use crate::support::{chrooted, setting};

use phoenix_lab::{Errno, Rootfs, Spec, thorough};

const CARDS: u32 = 3;

/// `0` → `0,1` → `1` → `none` → `all`, and back.
fn cards_come_and_go(spec: Spec) {
    let Some(lab) = running(CARDS, spec, "0") else { return };
    let ct = lab.container(101);
    agrees(&lab, &[0], CARDS);
    let healthy = bad(&lab);
    for (assignment, cards, said) in [
        ("0,1", &[0, 1][..], "add /dev/nvidia1"),
        ("1", &[1], "take away /dev/nvidia0"),
        ("none", &[], "take away /dev/nvidia1"),
        ("all", &[0, 1, 2], "add /dev/nvidia2"),
        ("0", &[0], "take away /dev/nvidia1, take away /dev/nvidia2"),
        ("1,2", &[1, 2], "add /dev/nvidia1, add /dev/nvidia2, take away /dev/nvidia0"),
    ] {
        assign(&lab, assignment);
        let plan =
            lab.run([PROGRAM, "plan", "101"]).code(10).says("without a restart, by phoenix-nvidia apply 101");
        plan.says(said);
        apply(&lab, &[]).ok().says(said).says("without a restart").says_not("WARNING");
        agrees(&lab, cards, CARDS);
        lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
        assert_eq!(bad(&lab), healthy, "{assignment}");
        // Again: nothing is done, and nothing written.
        let written =
            (lab.inode("/etc/pve/lxc/101.conf"), lab.inode("/var/lib/lxc/101/config"), table(&lab, &ct));
        apply(&lab, &[]).ok().says("nothing to change");
        let now =
            (lab.inode("/etc/pve/lxc/101.conf"), lab.inode("/var/lib/lxc/101/config"), table(&lab, &ct));
        assert_eq!(now, written);
    }
    assert!(lab.read("/run/phoenix-nvidia/state/101.json").contains("\"apply\""));
    // A reboot from inside runs no hookscript.
    reboot_from_inside(&ct);
    agrees(&lab, &[1, 2], CARDS);
    assert_eq!(bad(&lab), healthy);
}

#[test]
#[ignore = "make test-all: the other kind of container"]
fn busybox_privileged() {
    cards_come_and_go(Rootfs::Busybox.privileged());
}

#[test]
fn busybox_unprivileged() {
    cards_come_and_go(Rootfs::Busybox.unprivileged());
}

#[test]
fn systemd_privileged() {
    cards_come_and_go(Rootfs::Debian12Systemd.privileged());
}

#[test]
#[ignore = "make test-all: the other kind of container"]
fn systemd_unprivileged() {
    cards_come_and_go(Rootfs::Debian12Systemd.unprivileged());
}

/// A mount inside on what came from the host stays inside.
#[test]
fn what_a_container_mounts_on_a_node_does_not_show_on_the_host() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
    assign(&lab, "0,1");
    apply(&lab, &[]).ok();
    let ct = lab.container(101);
    ct.sh("mount --bind /etc/passwd /dev/nvidia1").ok();
    lab.sh("test -c /dev/nvidia1").ok();
    let seen = lab.sh("grep -c ' /dev/nvidia1 ' /proc/self/mountinfo");
    assert_eq!(seen.stdout.trim(), "0");
    // What is not ours is not taken away, and that is said.
    assign(&lab, "0");
    apply(&lab, &[]).code(4).says("cannot take away /dev/nvidia1").says("busy");
    agrees_in_conf(&lab.conf(101), "/dev/nvidia1", true);
    ct.sh("umount /dev/nvidia1").ok();
    apply(&lab, &[]).ok();
    agrees(&lab, &[0], 2);
}

#[track_caller]
fn agrees_in_conf(conf: &str, node: &str, there: bool) {
    assert_eq!(conf.contains(&format!("lxc.mount.entry: {node} ")), there, "{conf}");
}

/// What root inside has unmounted comes back; what lies below is its own.
#[test]
fn nodes_that_somebody_unmounted_or_made_inside_are_brought_right() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0,1") else { return };
    let ct = lab.container(101);
    ct.sh(
        "umount /dev/nvidia1; rm /dev/nvidia1; mknod /dev/nvidia1 c 195 1; umount /proc/driver/nvidia/gpus",
    )
    .ok();
    apply(&lab, &[]).ok().says("add /dev/nvidia1");
    ct.sh("grep -q ' /dev/nvidia1 ' /proc/self/mountinfo").ok();
    assign(&lab, "0");
    apply(&lab, &[]).ok();
    // The node that was made inside is there, and its rule is gone.
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::EPERM));
    ct.sh("rm /dev/nvidia1").ok();
    agrees(&lab, &[0], 2);
    // What came in the place of a node is no reason to keep its rule.
    assign(&lab, "0,1");
    apply(&lab, &[]).ok();
    ct.sh("umount /dev/nvidia1 && rm /dev/nvidia1 && mkdir /dev/nvidia1").ok();
    assign(&lab, "0");
    apply(&lab, &[]).ok().says("take away /dev/nvidia1");
    ct.sh("rmdir /dev/nvidia1").ok();
    agrees(&lab, &[0], 2);
    // A rule that somebody took away.
    lab.run(["lxc-cgroup", "-n", "101", "devices.deny", "c 195:0 rwm"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::EPERM));
    apply(&lab, &[]).ok().says("add the device rule of /dev/nvidia0");
    agrees(&lab, &[0], 2);
}

/// A service inside with mounts of its own, and one in a chroot of that.
#[test]
fn masks_that_a_process_inside_has_mounted_stay_until_it_ends() {
    let Some(lab) = running(2, Rootfs::Debian12.privileged(), "0") else { return };
    let ct = lab.container(101);
    lab.sh(&format!(
        "setsid nsenter -t {} -m unshare -m --propagation private sh -c 'echo $$ >/holder; exec sleep 100000' \
         >/dev/null 2>&1 </dev/null &
         for i in $(seq 100); do [ ! -s /proc/{0}/root/holder ] || exit 0; sleep 0.05; done; exit 1",
        ct.init_pid().unwrap()
    ))
    .ok();
    let holder: i32 = ct.read("/holder").trim().parse().unwrap();
    chrooted(&lab, holder);
    assign(&lab, "0,1");
    apply(&lab, &[]).ok();
    assert_eq!(lab.files().list("/run/phoenix-nvidia/masks"), ["101.0", "101.1", "empty"]);
    let shown = format!("nsenter -t {holder} -m sh -c 'ls /proc/driver/nvidia/gpus/ | wc -l'");
    assert_eq!(lab.sh(&shown).ok().stdout.trim(), "1");
    lab.sh(&format!("kill -9 {holder}; while kill -0 {holder} 2>/dev/null; do sleep 0.05; done")).ok();
    assign(&lab, "0");
    apply(&lab, &[]).ok();
    assert_eq!(lab.files().list("/run/phoenix-nvidia/masks").len(), 2, "one copy, and the empty layer");
    agrees(&lab, &[0], 2);
}

/// The user's own lines keep what they give.
#[test]
fn what_the_users_lines_give_is_left_alone() {
    let Some(lab) = running(3, Rootfs::Busybox.privileged(), "0,1") else { return };
    let ct = lab.container(101);
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "set", "101", "--dev0", "/dev/nvidia2"]).ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.cgroup2.devices.allow: c 195:* rwm\n");
    lab.run(["pct", "start", "101"]).ok();
    assign(&lab, "0");
    let out = apply(&lab, &[]).ok().says("take away /dev/nvidia1").says_not("take away /dev/nvidia2");
    out.says("of container 101 allows /dev/nvidia1 all the same");
    assert_eq!(ct.open_node("/dev/nvidia2"), Err(Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

/// A small generator, so that a failure can be repeated: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn random_changes(spec: Spec, seed: u64, count: u32) {
    let Some(lab) = running(CARDS, spec, "none") else { return };
    let ct = lab.container(101);
    let files = || ct.sh("find /dev /proc/driver -xdev | sort").ok().stdout;
    let host = || {
        lab.sh("find /run/phoenix-nvidia /dev /run/lock/phoenix-nvidia | grep -v state | sort").ok().stdout
    };
    apply(&lab, &[]).ok();
    let (table_before, files_before, host_before, left) =
        (table(&lab, &ct), files(), host(), lab.leftovers());
    let mut random = Random(seed);
    for n in 0..count {
        let cards: Vec<u32> = (0..CARDS).filter(|_| random.below(2) == 1).collect();
        let list = cards.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        assign(&lab, if list.is_empty() { "none" } else { &list });
        let out = apply(&lab, &[]).ok();
        out.says_not("WARNING");
        if n % 10 == 9 {
            agrees(&lab, &cards, CARDS);
        }
    }
    assign(&lab, "none");
    apply(&lab, &[]).ok();
    // The ids of mounts and superblocks differ.
    let places = |table: &str| -> Vec<String> {
        let mut places: Vec<String> =
            table.lines().filter_map(|line| Some(line.split(' ').nth(4)?.to_owned())).collect();
        places.sort();
        places
    };
    ct.sh("rm -f /dev/made*").ok();
    assert_eq!(places(&table(&lab, &ct)), places(&table_before), "seed {seed}");
    assert_eq!(files(), files_before, "seed {seed}");
    let masks = |text: String| {
        text.lines().filter(|line| !line.contains("/masks/101.")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(masks(host()), masks(host_before), "seed {seed}");
    assert_eq!(lab.files().list("/run/phoenix-nvidia/masks").len(), 2, "one copy, and the empty layer");
    let since = lab.leftovers().since(&left);
    assert!(since.processes.is_empty() && since.mounts.is_empty(), "{since:?}");
    agrees(&lab, &[], CARDS);
}

#[test]
fn random_changes_leave_nothing_behind() {
    let count = if thorough() { 100 } else { 12 };
    random_changes(Rootfs::Busybox.privileged(), 0x5eed_0001, count);
    random_changes(Rootfs::Busybox.unprivileged(), 0x5eed_0002, count);
}

/// They are in the conf, and that is said.
#[test]
fn drm_nodes_wait_for_the_next_start() {
    let Some(lab) = running(1, Rootfs::Busybox.unprivileged(), "0") else { return };
    lab.sh("mkdir -p /dev/dri").ok();
    let pci = format!("/run/lab/nvidia/pci/{}", lab.nvidia().address(0));
    for (name, minor) in [("card1", 1), ("renderD129", 129)] {
        lab.write(format!("{pci}/drm/{name}/dev"), format!("226:{minor}\n"));
        lab.sh(&format!("rm -f /dev/dri/{name}; mknod -m 660 /dev/dri/{name} c 226 {minor}")).ok();
    }
    let ct = lab.container(101);
    setting(&lab, 101, "GPU_CAPABILITIES=graphics");
    let later = "/dev/dri/card1, /dev/dri/renderD129 come";
    lab.run([PROGRAM, "plan", "101"])
        .code(10)
        .says(&format!("only with a start: {later}"))
        .says("add /dev/nvidia-modeset");
    let out =
        apply(&lab, &[]).ok().says("add /dev/nvidia-modeset").says(&format!("at its next start: {later}"));
    out.says("fix: pct reboot 101");
    assert_eq!(ct.open_node("/dev/nvidia-modeset"), Err(Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/dri/card1"), Err(Errno::ENOENT));
    assert!(lab.conf(101).contains("dev/dri/card1"));
    assert!(!lab.generated(101).contains("dev/dri/card1"), "what it runs with");
    reboot_from_inside(&ct);
    assert_eq!(ct.open_node("/dev/dri/card1"), Err(Errno::ENXIO));
    // And back: what goes is said too.
    let conf = lab.conf(101).replace("GPU_CAPABILITIES=graphics", "GPU_CAPABILITIES=compute");
    lab.write("/etc/pve/lxc/101.conf", conf);
    apply(&lab, &[])
        .ok()
        .says("take away /dev/nvidia-modeset")
        .says("/dev/dri/card1, /dev/dri/renderD129 go");
    assert_eq!(ct.open_node("/dev/nvidia-modeset"), Err(Errno::ENOENT));
    assert_eq!(ct.open_node("/dev/dri/card1"), Err(Errno::ENXIO), "until the start");
    reboot_from_inside(&ct);
    assert_eq!(ct.open_node("/dev/dri/card1"), Err(Errno::ENOENT));
}

/// A stopped container has it at its next start; another one is unknown.
#[test]
fn a_container_that_does_not_run_is_told_and_left_alone() {
    let Some(lab) = running(2, Rootfs::Busybox.privileged(), "0") else { return };
    lab.run(["pct", "stop", "101"]).ok();
    let conf = lab.conf(101);
    lab.run([PROGRAM, "apply", "101"]).ok().says("is stopped: its next start");
    assert_eq!(lab.conf(101), conf);
    lab.run([PROGRAM, "apply", "999"]).code(3);
    lab.run([PROGRAM, "apply"]).code(2);
    lab.create(102, Rootfs::Busybox.privileged());
    lab.run([PROGRAM, "apply", "102"]).code(2).says("GPU_ASSIGNMENT");
}
