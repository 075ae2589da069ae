//! The package's own upgrade, removal and purge, beside containers that run with the host's driver.
#![allow(clippy::unwrap_used)]

use crate::package::{APT, CURRENT, OLDER, install, kmod, put, sh};
use crate::support::chrooted;
use phoenix_lab::{Lab, Rootfs};

const DRIVER: &str = "580.95.05";
const UNUSED: &str = "570.86.15";
const KEPT: &str = "/var/lib/phoenix-nvidia/driver";
const SHOWN: &str = "/run/phoenix-nvidia/driver";
const APT_CONF: &str = "/etc/apt/apt.conf.d/20phoenix-nvidia";

/// The package is there; containers 101 and 102 have the host's driver, the first of them runs.
fn host() -> Option<Lab> {
    host_with("true")
}

/// The same with what is done before.
fn host_with(first: &str) -> Option<Lab> {
    let lab = Lab::builder().gpus(1).driver(DRIVER).start()?;
    lab.sh(first).ok();
    // As systemd leaves them.
    lab.sh("mount --make-rshared /").ok();
    lab.nvidia().user_space(DRIVER);
    kmod(&lab);
    install(&lab, &put(&lab, OLDER));
    // A purge takes the node's settings.
    lab.write("/etc/pve/phoenix-nvidia/default.env", "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\n");
    for (id, spec) in [(101, Rootfs::Debian12.unprivileged()), (102, Rootfs::Debian12.privileged())] {
        lab.create(id, spec);
        lab.nvidia().printer(id);
        lab.run(["phoenix-nvidia", "attach", &id.to_string(), "--gpus", "0", "--inject"]).ok();
    }
    // A start writes the entries.
    lab.run(["pct", "start", "102"]).ok();
    lab.run(["pct", "stop", "102"]).ok();
    lab.run(["pct", "start", "101"]).ok().says("the host's, mounted");
    // Of an earlier driver, and nobody's; one of a run that was killed.
    sh(
        &lab,
        &format!(
            "cd {KEPT} && cp -r {DRIVER} {UNUSED} && sed -i s/{DRIVER}/{UNUSED}/ {UNUSED}/.phoenix-nvidia"
        ),
    );
    sh(&lab, &format!("mkdir -p {KEPT}/.{DRIVER}.4711/bin"));
    Some(lab)
}

#[track_caller]
fn has_the_driver(lab: &Lab, id: u32) {
    assert_eq!(lab.container(id).exec(["/root/driver-version"]).ok().stdout, format!("{DRIVER}\n{DRIVER}\n"));
}

/// What the host and the containers have of it.
fn all_of_it(lab: &Lab) -> String {
    let files = format!("find {KEPT}/{DRIVER} {KEPT}/{UNUSED} -printf '%p %s %i\n' | sort");
    let shown =
        format!("stat -c %d {SHOWN}/{DRIVER}; readlink {SHOWN}/current; grep driver/current /etc/pve/lxc/*");
    sh(lab, &format!("{files}; {shown}")).stdout
}

#[test]
fn upgrade_removal_and_purge_leave_what_a_running_container_has() {
    let Some(lab) = host() else { return };
    let before = all_of_it(&lab);
    install(&lab, &put(&lab, CURRENT));
    assert_eq!(all_of_it(&lab), before, "an upgrade");
    has_the_driver(&lab, 101);

    // One of its processes sees none of its mounts.
    chrooted(&lab, lab.container(101).init_pid().unwrap());
    let removed = sh(&lab, &format!("{APT} remove phoenix-nvidia"));
    removed.says("running containers keep the driver of this host that they have mounted: 101;").says(
        "mount entries stay in the confs of these containers, which start with them as without: 101 102",
    );
    assert_eq!(all_of_it(&lab), before, "a removal");
    has_the_driver(&lab, 101);
    // Until the next boot one that starts has it too, without anybody's care.
    lab.run(["pct", "start", "102"]).ok().says("phoenix-nvidia is not installed");
    has_the_driver(&lab, 102);
    lab.run(["pct", "stop", "102"]).ok();

    let confs = (lab.conf(101), lab.conf(102));
    let purged = sh(&lab, &format!("{APT} purge phoenix-nvidia"));
    purged.says(&format!("{KEPT}/{DRIVER} stays, since running containers have it mounted: 101;"));
    assert_eq!(lab.files().list(KEPT), [DRIVER]);
    assert!(!lab.exists(SHOWN) && !lab.exists(APT_CONF));
    assert_eq!((lab.conf(101), lab.conf(102)), confs);
    has_the_driver(&lab, 101);
    lab.run(["pct", "start", "102"]).ok();
    lab.run(["pct", "stop", "102"]).ok();

    // It comes back, finds its copy in use, and loses all when nobody runs.
    install(&lab, &put(&lab, CURRENT));
    lab.run(["phoenix-nvidia", "prepare"]).ok().says_not("copied");
    lab.run(["pct", "start", "102"]).ok();
    has_the_driver(&lab, 102);
    for id in ["101", "102"] {
        lab.run(["pct", "stop", id]).ok();
    }
    let purged = sh(&lab, &format!("{APT} purge phoenix-nvidia"));
    purged.says_not("stays, since").says("stay in the confs of these containers");
    assert!(!lab.exists("/var/lib/phoenix-nvidia"));
}

/// Each with a command for itself: pasted, it takes nothing of what others run with.
#[test]
fn each_tree_that_is_in_use_is_told_with_a_command_for_it_alone() {
    // A file system of its own: who has a tree bound from there has no path of ours in its table.
    let Some(lab) = host_with(&format!("mkdir -p {KEPT} && mount -t tmpfs -o mode=755 tmpfs {KEPT}")) else {
        return;
    };
    let at = "/srv/usr/lib/x86_64-linux-gnu/x86_64";
    let other = format!(
        "mount --bind {KEPT}/{UNUSED} {at} && : >/root/bound && while [ -e /root/bound ]; do sleep 0.05; done"
    );
    sh(&lab, &format!("mkdir -p {at}"));
    let other = lab.command("unshare").args(["-m", "--propagation", "private", "sh", "-c", &other]).spawn();
    sh(&lab, "until [ -e /root/bound ]; do sleep 0.01; done");
    let purged = sh(&lab, &format!("{APT} purge phoenix-nvidia"));
    let purged = purged
        .says(&format!("{KEPT}/{DRIVER} stays, since running containers have it mounted: 101;"))
        .says(&format!("{KEPT}/{UNUSED} stays, since it is mounted somewhere;"));
    assert_eq!(lab.files().list(KEPT), [UNUSED, DRIVER]);
    sh(&lab, "rm /root/bound");
    other.wait().ok();
    let all = format!("{}{}", purged.stdout, purged.stderr);
    let commands: Vec<&str> =
        all.lines().filter_map(|line| Some(line.split_once("when that has ended: ")?.1)).collect();
    assert_eq!(commands.len(), 2, "{all}");
    for command in commands.into_iter().filter(|command| !command.contains(DRIVER)) {
        sh(&lab, command);
    }
    assert_eq!(lab.files().list(KEPT), [DRIVER]);
    has_the_driver(&lab, 101);
}

/// Whatever is mounted where our files are, the package goes, and what is somebody else's stays.
#[test]
fn no_mount_makes_a_purge_fail() {
    let Some(lab) = host() else { return };
    lab.run(["pct", "stop", "101"]).ok();
    // A second mount over the overlay, a cache and a log of their own, and a directory of the user's in ours.
    sh(
        &lab,
        &format!(
            "mount -t tmpfs tmpfs {SHOWN}/{DRIVER}; mkdir -p {SHOWN}/.next && mount -t tmpfs tmpfs {SHOWN}/.next"
        ),
    );
    sh(&lab, "mkdir -p /var/cache/phoenix-nvidia && mount -t tmpfs tmpfs /var/cache/phoenix-nvidia");
    sh(&lab, &format!("mkdir -p /srv/theirs {KEPT}/{UNUSED}/x && echo mine >/srv/theirs/file"));
    sh(
        &lab,
        &format!(
            "mount -t tmpfs tmpfs /srv/theirs && echo mine >/srv/theirs/file && mount --bind /srv/theirs {KEPT}/{UNUSED}/x"
        ),
    );
    let purged = sh(&lab, &format!("{APT} purge phoenix-nvidia"));
    purged
        .says(&format!("{KEPT}/{UNUSED} stays, since it is mounted somewhere"))
        .says("/var/cache/phoenix-nvidia stays, since it cannot be removed");
    assert_eq!(lab.read("/srv/theirs/file"), "mine\n");
    assert!(!lab.exists(format!("{KEPT}/{DRIVER}")) && !lab.exists("/run/phoenix-nvidia"));
    assert_eq!(sh(&lab, "dpkg-query -W -f '${Status}' phoenix-nvidia || true").stdout, "");
}
