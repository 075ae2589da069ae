//! DRM nodes in a container: those of its card, and everybody inside may open them.
use crate::inject_hostile;
use crate::support;

use phoenix_lab::{Errno, Lab, Rootfs, Spec};
use support::{lab, node, setting};

const CONF: &str = "/etc/pve/lxc/101.conf";
const OURS: &str = "/run/phoenix-nvidia/dev";
const CARD: &str = "/run/phoenix-nvidia/dev/dri/card1";
/// Of the assigned card.
const ASSIGNED: [&str; 2] = ["/dev/dri/card1", "/dev/dri/renderD129"];
/// Of an Intel card, which comes first, and of another NVIDIA card.
const OTHERS: [&str; 4] = ["/dev/dri/card0", "/dev/dri/renderD128", "/dev/dri/card2", "/dev/dri/renderD130"];

/// An Intel and two NVIDIA cards with their DRM nodes, of udev's mode and groups, and a container that is assigned the
/// first of NVIDIA's for graphics.
fn with_drm(spec: Spec) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver("580.95.05"))?;
    node(&lab, "INSTALL=off");
    let pci = "/run/lab/nvidia/pci";
    for (file, text) in [("vendor", "0x8086\n"), ("class", "0x030000\n"), ("device", "0x4680\n")] {
        lab.write(format!("{pci}/0000:00:02.0/{file}"), text);
    }
    lab.sh("mkdir -p /dev/dri").ok();
    for (n, address) in
        (0..).zip(["0000:00:02.0".to_owned(), lab.nvidia().address(0), lab.nvidia().address(1)])
    {
        for (name, minor, group) in
            [(format!("card{n}"), n, 44), (format!("renderD{}", 128 + n), 128 + n, 993)]
        {
            lab.write(format!("{pci}/{address}/drm/{name}/dev"), format!("226:{minor}\n"));
            let node = format!("/dev/dri/{name}");
            lab.sh(&format!("rm -f {node}; mknod -m 660 {node} c 226 {minor} && chgrp {group} {node}")).ok();
        }
    }
    lab.create(101, spec);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0", "--capabilities", "compute,utility,graphics"])
        .ok();
    Some(lab)
}

#[track_caller]
fn has_its_nodes(lab: &Lab) {
    let ct = lab.container(101);
    for path in ASSIGNED {
        // Allowed, and no driver behind it.
        assert_eq!(ct.open_node(path), Err(Errno::ENXIO), "{path}: {}", ct.sh("ls -ln /dev/dri"));
        ct.exec(["ls", "-ln", path]).ok().says("crw-rw-rw-");
    }
    for path in OTHERS {
        assert_eq!(ct.open_node(path), Err(Errno::ENOENT), "{path}");
    }
}

#[track_caller]
fn mounts_of_ours(lab: &Lab) -> usize {
    lab.sh("cat /proc/self/mountinfo")
        .ok()
        .stdout
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(OURS))
        .count()
}

#[test]
fn a_node_below_the_hosts_run_opens_nowhere() {
    let Some(lab) = lab(Lab::builder().gpus(1)) else { return };
    node(&lab, "INSTALL=off");
    let ct = lab.create(101, Rootfs::Busybox.unprivileged());
    lab.sh("mknod -m 666 /run/plain c 226 1; mkdir -m 755 /run/devices; mount -t tmpfs -o mode=755 x /run/devices; mknod -m 666 /run/devices/good c 226 1").ok();
    lab.append(CONF, "lxc.mount.entry: /run/plain dev/plain none bind,create=file 0 0\n");
    lab.append(CONF, "lxc.mount.entry: /run/devices/good dev/good none bind,create=file 0 0\n");
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(ct.open_node("/dev/plain"), Err(Errno::EACCES));
    assert_eq!(ct.open_node("/dev/good"), Err(Errno::ENXIO));
}

#[test]
fn a_container_opens_the_drm_nodes_of_its_card_and_no_others() {
    for spec in [Rootfs::Busybox.unprivileged(), Rootfs::Busybox.privileged()] {
        let Some(lab) = with_drm(spec) else { return };
        lab.run(["phoenix-nvidia", "plan", "101"])
            .code(10)
            .says(&format!("make device node {CARD}: it is missing"));
        lab.run(["pct", "start", "101"]).ok().says(CARD).says_not("WARNING");
        has_its_nodes(&lab);
        assert_eq!(mounts_of_ours(&lab), 1);
        lab.run(["phoenix-nvidia", "doctor", "101"]).ok().says("0 failure, 0 warning");
        let ct = lab.container(101);
        let before = ct.init_pid();
        ct.wait_ready();
        ct.exec(["reboot"]);
        ct.wait_rebooted(before);
        has_its_nodes(&lab);
        lab.run(["pct", "stop", "101"]).ok();
        lab.run(["pct", "start", "101"]).ok().says("already configured").says_not(CARD);
        assert_eq!(mounts_of_ours(&lab), 1);
        // udev's own stay as they are.
        lab.sh("stat -c %a:%g /dev/dri/card1").ok().says("660:44");
    }
}

#[test]
fn a_boot_of_the_host_and_what_others_did_to_the_nodes_cost_nothing() {
    let Some(lab) = with_drm(Rootfs::Busybox.unprivileged()) else { return };
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    // The boot unit makes what the conf names, once.
    lab.sh(&format!("umount {OURS} && umount -l /run/phoenix-nvidia/proc/*; rm -rf /run/phoenix-nvidia"))
        .ok();
    lab.run(["phoenix-nvidia", "prepare"]).ok().says(CARD);
    lab.run(["phoenix-nvidia", "prepare"]).ok().says_not(CARD);
    assert_eq!(mounts_of_ours(&lab), 1);
    lab.run(["pct", "start", "101"]).ok().says_not("made");
    has_its_nodes(&lab);
    for (what, breaks) in [
        ("mode", format!("chmod 600 {CARD}")),
        ("owner", format!("chown 100000:100000 {CARD}")),
        ("directory", format!("rm {CARD} && mkdir -p {CARD}/x")),
        ("file", format!("rm {CARD} && touch {CARD}")),
        ("link", format!("ln -sf /dev/null {CARD}")),
        ("number", format!("rm {CARD} && mknod -m 666 {CARD} c 1 3")),
        ("nodev", format!("mount -o remount,nodev {OURS}")),
        ("read-only", format!("mount -o remount,ro {OURS}")),
        ("other", format!("mount -t tmpfs -o nodev x {OURS}")),
        ("gone", format!("umount -l {OURS}")),
    ] {
        lab.run(["pct", "stop", "101"]).ok();
        lab.sh(&breaks).ok();
        let start = lab.run(["pct", "start", "101"]).ok();
        assert!(start.stderr.contains(CARD) || start.stdout.contains(CARD), "{what}: {start}");
        has_its_nodes(&lab);
        assert_eq!(mounts_of_ours(&lab), 1, "{what}");
    }
}

/// It owns them, as it owns those of /dev, and by one of them their file system.
#[test]
fn what_root_of_a_privileged_container_does_to_the_nodes_lasts_until_the_next_start() {
    let Some(lab) = with_drm(Rootfs::Busybox.privileged()) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let hostile = inject_hostile::program(&lab, 101);
    let before = lab.sh(&format!("ls -ln {OURS}/dri | cut -c 1-30")).ok().stdout;
    inject_hostile::attack(&ct, &ASSIGNED.map(str::to_owned));
    for bad in [
        format!("chmod 000 {0} && chown 7:7 {0}", ASSIGNED[0]),
        format!("{hostile} --freeze {}", ASSIGNED[0]),
        format!("umount {0} && rm -f {0}", ASSIGNED[0]),
    ] {
        ct.sh(&bad).ok();
        lab.run(["pct", "stop", "101"]).ok();
        lab.run(["pct", "start", "101"]).ok().says_not("WARNING");
        has_its_nodes(&lab);
        assert_eq!(lab.sh(&format!("ls -ln {OURS}/dri | cut -c 1-30")).ok().stdout, before, "{bad}");
        lab.sh(&format!("grep ' {OURS} ' /proc/mounts")).ok().says(" rw,");
    }
}

#[test]
fn the_entries_of_0_2_0_are_replaced_and_detach_leaves_no_mount() {
    let Some(lab) = with_drm(Rootfs::Busybox.unprivileged()) else { return };
    let before = lab.conf(101);
    let old = |path: &str, minor: u32| {
        let target = path.trim_start_matches('/');
        format!(
            "lxc.mount.entry: {path} {target} none create=file,optional,bind 0 0\n\
             lxc.cgroup2.devices.allow: c 226:{minor} rwm\n"
        )
    };
    lab.append(CONF, old(ASSIGNED[0], 1) + &old(ASSIGNED[1], 129));
    // Somebody's own, for the Intel card.
    let theirs = "lxc.mount.entry: /dev/dri/renderD128 dev/dri/intel none bind,optional,create=file\n";
    lab.append(CONF, theirs);
    lab.run(["pct", "start", "101"])
        .ok()
        .says("repaired the entry of /dev/dri/card1: its source was the host's node");
    has_its_nodes(&lab);
    let conf = lab.conf(101);
    assert_eq!(conf.matches("dev/dri/card1 ").count(), 2, "{conf}");
    assert!(conf.contains(theirs) && !conf.contains("create=file,optional,bind"), "{conf}");
    lab.run(["pct", "stop", "101"]).ok();
    // While another container names them they stay.
    lab.create(102, Rootfs::Busybox.unprivileged());
    lab.append(
        "/etc/pve/lxc/102.conf",
        format!("lxc.mount.entry: {CARD} dev/dri/card1 none bind,optional,create=file 0 0\n"),
    );
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("removed /dev/dri/card1");
    assert_eq!(mounts_of_ours(&lab), 1);
    lab.run(["phoenix-nvidia", "detach", "102"]).ok();
    assert_eq!(mounts_of_ours(&lab), 0);
    assert!(!lab.exists(OURS));
    let mut left: Vec<String> = lab.conf(101).lines().map(str::to_owned).collect();
    left.retain(|line| line.starts_with("lxc."));
    assert_eq!(left, [theirs.trim()], "{before}");
}

#[test]
fn without_graphics_no_drm_node_is_made() {
    let Some(lab) = with_drm(Rootfs::Busybox.unprivileged()) else { return };
    lab.write(CONF, lab.conf(101).replace(",graphics", ""));
    setting(&lab, 101, "START_POLICY=fail");
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["phoenix-nvidia", "prepare"]).ok();
    assert_eq!(mounts_of_ours(&lab), 0);
    assert!(!lab.exists(OURS));
}

#[test]
fn a_guides_nodes_over_ours_are_named_with_the_line_that_a_restart_does_not_mend() {
    let Some(lab) = with_drm(Rootfs::Busybox.unprivileged()) else { return };
    let bare = lab.conf(101);
    let guide = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n";
    // One node over ours LXC mounts only where the node opens, and none does here.
    let theirs = "lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n";
    lab.write(CONF, bare + guide + theirs);
    let line = |lab: &Lab| lab.conf(101).lines().position(|line| line == theirs.trim()).unwrap() + 1;
    let told = |lab: &Lab| {
        let node = ASSIGNED[1];
        format!("the container may not open {node}: line {} mounts the host's node over it", line(lab))
    };
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok().says(&told(&lab));
    // Nothing of ours was there, and ours go before that line.
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    assert_eq!(ct.open_node(ASSIGNED[1]), Err(Errno::EACCES));
    lab.run(["phoenix-nvidia", "doctor", "101"])
        .code(1)
        .says(&format!("{} denied by its mode", ASSIGNED[1]))
        .says(&format!("why: line {} mounts the host's node over it", line(&lab)))
        .says("fix: nano /etc/pve/lxc/101.conf")
        .says_not("pct reboot");
    // What the fix says helps.
    lab.write(CONF, lab.conf(101).replace(theirs, ""));
    lab.run(["phoenix-nvidia", "101"]).ok();
    lab.run(["pct", "reboot", "101"]).ok();
    has_its_nodes(&lab);
    lab.run(["phoenix-nvidia", "doctor", "101"]).ok().says("0 failure, 0 warning");
}

#[test]
fn nodes_of_a_closed_mode_are_told_with_the_parameter_that_gives_it() {
    let Some(lab) = with_drm(Rootfs::Busybox.unprivileged()) else { return };
    let params = "/run/lab/nvidia/proc-driver/nvidia/params";
    let open = lab.read(params);
    lab.write(params, open.replace("DeviceFileMode: 438", "DeviceFileMode: 432"));
    lab.run(["pct", "start", "101"]).ok().says("the mode of /dev/dri/card1, /dev/dri/renderD129 keeps");
    assert_eq!(lab.container(101).open_node(ASSIGNED[0]), Err(Errno::EACCES));
    lab.run(["phoenix-nvidia", "doctor", "101"])
        .code(1)
        .says("unprivileged container may not open /dev/dri/card1, /dev/dri/renderD129")
        .says("fix: set `options nvidia NVreg_DeviceFileMode=0666`")
        .says_not("pct reboot")
        .says_not("chmod");
    // As after the boot with the parameter.
    lab.write(params, open);
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says_not("keeps the unprivileged");
    has_its_nodes(&lab);
}
