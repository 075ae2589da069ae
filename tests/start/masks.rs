//! What a container sees of /proc/driver/nvidia: its own GPUs, and that nobody makes device nodes.
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Container, Errno, Lab, Rootfs, Spec};
use support::{lab, node, setting};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
const INFORMATION: &str = "cat /proc/driver/nvidia/gpus/*/information";

/// Two cards, a container with the hookscript that is assigned one, with the driver inside after its first start.
fn first_start(spec: Spec, assignment: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver("580.95.05"))?;
    lab.web().runfile(&Runfile::new("580.95.05"));
    node(
        &lab,
        "NVIDIA_RUNFILE_URL=http://127.0.0.1/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run\n\
         AFTER_INSTALL=none\nCUDA_PACKAGES=none\nUTILITY_PACKAGES=none",
    );
    lab.create(101, spec);
    setting(&lab, 101, &format!("GPU_ASSIGNMENT={assignment}"));
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.run(["pct", "start", "101"]).ok().says("driver: installed 580.95.05").says_not("WARNING");
    Some(lab)
}

/// No node of a card that is not assigned, and no name of it, after nvidia-smi ran as root.
#[track_caller]
fn sees(lab: &Lab, ct: &Container<'_>, gpus: &[u32]) {
    let mut list = ct.exec(["nvidia-smi", "-L"]).ok();
    let mut shown = ct.sh(INFORMATION);
    let nodes = ct.sh("ls -l /dev").ok();
    for gpu in 0..2 {
        let uuid = lab.nvidia().uuid(gpu);
        let node = format!("/dev/nvidia{gpu}");
        if gpus.contains(&gpu) {
            list = list.says(&uuid);
            shown = shown.says(&uuid);
            assert_eq!(ct.open_node(&node), Err(Errno::ENXIO), "{node}");
        } else {
            list = list.says_not(&uuid);
            shown = shown.says_not(&uuid);
            assert_eq!(ct.open_node(&node), Err(Errno::ENOENT), "{nodes}");
        }
    }
    ct.sh("grep ^Model: /proc/driver/nvidia/version; cat /proc/driver/nvidia/params")
        .ok()
        .says("ModifyDeviceFiles: 0");
}

fn reboot_from_inside(ct: &Container<'_>) {
    let before = ct.init_pid();
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
}

fn no_stray_node_and_no_foreign_uuid(spec: Spec) {
    let Some(lab) = first_start(spec, "0") else { return };
    let ct = lab.container(101);
    sees(&lab, &ct, &[0]);
    reboot_from_inside(&ct);
    sees(&lab, &ct, &[0]);
    lab.run(["pct", "shutdown", "101"]).ok();
    let before = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));
    lab.run(["pct", "start", "101"]).ok().says("already configured").says_not("WARNING");
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), before);
    sees(&lab, &ct, &[0]);
    // Read-only, also for root inside.
    assert_ne!(ct.sh("echo x >/proc/driver/nvidia/params").exit(), Some(0));
    assert_ne!(ct.sh("mkdir /proc/driver/nvidia/gpus/x").exit(), Some(0));

    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("GPU_ASSIGNMENT=0", "GPU_ASSIGNMENT=0,1"));
    lab.run([PROGRAM, "101"]).ok();
    sees(&lab, &ct, &[0, 1]);
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("GPU_ASSIGNMENT=0,1", "GPU_ASSIGNMENT=1"));
    lab.run([PROGRAM, "101"]).ok();
    sees(&lab, &ct, &[1]);
    lab.run([PROGRAM, "plan", "101"]).ok().says("lists its own GPUs only").says("Nothing to do");
    lab.run([PROGRAM, "doctor", "101"]).says("lists its own GPUs only");
}

#[test]
fn a_privileged_container_has_no_stray_node_and_no_foreign_uuid() {
    no_stray_node_and_no_foreign_uuid(Rootfs::Debian12.privileged());
}

#[test]
fn an_unprivileged_container_has_no_stray_node_and_no_foreign_uuid() {
    no_stray_node_and_no_foreign_uuid(Rootfs::Debian12.unprivileged());
}

/// With the hookscript, and no driver to be installed.
fn plain(assignment: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver("580.95.05"))?;
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", assignment]).ok();
    Some(lab)
}

const COPIES: &str = "/run/phoenix-nvidia/proc/101";

#[test]
fn a_container_without_gpus_is_shown_none_and_one_with_a_dev_line_that_gpu() {
    let Some(lab) = plain("none") else { return };
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    assert_eq!(ct.sh("ls /proc/driver/nvidia/gpus").ok().stdout, "");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "set", "101", "--dev0", "gid=44,path=/dev/nvidia1"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    ct.sh(INFORMATION).ok().says(&lab.nvidia().uuid(1)).says_not(&lab.nvidia().uuid(0));
}

#[test]
fn a_uuid_that_was_not_known_is_there_once_the_driver_knows_it() {
    let Some(lab) = plain("0") else { return };
    lab.nvidia().show_uuid(0, false);
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    ct.sh(INFORMATION).ok().says("GPU-????????");
    lab.nvidia().show_uuid(0, true);
    // By hand nothing of a container that runs is touched; its next start knows.
    let before = ct.init_pid();
    lab.run([PROGRAM, "101"]).ok();
    assert_eq!(ct.init_pid(), before);
    ct.sh(INFORMATION).ok().says("GPU-????????");
    lab.run(["pct", "reboot", "101"]).ok();
    ct.sh(INFORMATION).ok().says(&lab.nvidia().uuid(0));
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "prepare"]).ok();
    assert_eq!(lab.sh("ls -d /run/phoenix-nvidia/masks/101.*").ok().stdout.lines().count(), 1);
}

#[test]
fn everybody_may_pass_to_the_copies_whatever_the_umask_and_nobody_may_write() {
    let Some(lab) = plain("0") else { return };
    lab.sh(&format!("umask 077; exec {PROGRAM} 101 pre-start")).ok();
    let modes =
        "stat -c '%a %n' /run/phoenix-nvidia /run/phoenix-nvidia/proc $(find /run/phoenix-nvidia/proc/101)";
    let modes = lab.sh(modes).ok().stdout;
    assert!(modes.lines().count() >= 7, "{modes}");
    for line in modes.lines() {
        let mode = if line.ends_with("params") || line.ends_with("information") { "444 " } else { "755 " };
        assert!(line.starts_with(mode), "{modes}");
    }
}

#[test]
fn copies_that_cannot_be_written_cost_no_start_anything() {
    let Some(lab) = plain("0") else { return };
    node(&lab, "START_POLICY=fail");
    lab.write("/run/phoenix-nvidia/proc", "in the way");
    lab.run(["pct", "start", "101"])
        .ok()
        .says("WARNING: /proc/driver/nvidia in the container may show all GPUs of the host");
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

/// A read-only bind is no protection from root of a privileged container: without AppArmor it remounts it, with it
/// mount_setattr(2) does the same. What it is shown cannot be written to, whatever it does.
#[test]
fn root_in_a_privileged_container_cannot_write_to_what_it_is_shown() {
    let Some(lab) = plain("0") else { return };
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    let hostile = "for at in gpus params; do mount -o remount,bind,rw /proc/driver/nvidia/$at; done; \
                   mount -o remount,rw /proc/driver/nvidia/gpus; \
                   mkdir /proc/driver/nvidia/gpus/made; echo made >/proc/driver/nvidia/params; \
                   ln -s /etc /proc/driver/nvidia/gpus/made; true";
    ct.sh(hostile).ok();
    let made = lab.sh("find /run/phoenix-nvidia -name 'made*'; grep -rl made /run/phoenix-nvidia; true").ok();
    assert_eq!(made.stdout, "", "{}", lab.sh("ls -lR /run/phoenix-nvidia"));
    // A container that is detached keeps what it was shown while it runs.
    lab.run([PROGRAM, "detach", "101"]).ok();
    ct.sh(INFORMATION).ok().says(&lab.nvidia().uuid(0)).says_not(&lab.nvidia().uuid(1));
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "prepare"]).ok();
    assert_eq!(lab.sh("ls -A /run/phoenix-nvidia/masks | grep 101; true").ok().stdout, "");
}

/// On a node without the package, or before the first pre-start of a boot.
#[test]
fn a_start_whose_copies_are_missing_is_a_start_without_them() {
    for loaded in [true, false] {
        let Some(lab) = plain("0") else { return };
        lab.run(["pct", "start", "101"]).ok();
        lab.run(["pct", "stop", "101"]).ok();
        lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
        lab.sh(&format!("umount {COPIES} && rm -r /run/phoenix-nvidia/proc")).ok();
        if !loaded {
            lab.nvidia().unload();
        }
        assert!(lab.conf(101).contains(COPIES));
        lab.run(["pct", "start", "101"]).ok();
        assert!(lab.container(101).running());
    }
}

#[test]
fn detach_leaves_nothing_and_the_conf_byte_for_byte() {
    let Some(lab) = lab(Lab::builder().gpus(2).driver("580.95.05")) else { return };
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.mount.entry: /srv srv none bind,optional,create=dir 0 0\n");
    let before = lab.conf(101);
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    assert!(lab.exists(COPIES) && lab.conf(101).contains(COPIES));
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "detach", "101"]).ok().says("removed the mount over /proc/driver/nvidia/gpus");
    assert_eq!(lab.conf(101), before);
    assert!(!lab.exists(COPIES));
}

#[test]
fn a_clone_gets_copies_of_its_own_and_those_of_a_destroyed_container_go() {
    let Some(lab) = plain("0") else { return };
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "clone", "101", "102", "--full"]).ok();
    lab.run(["pct", "destroy", "101"]).ok();
    assert!(lab.exists(COPIES));
    lab.run(["pct", "start", "102"]).ok();
    assert!(!lab.conf(102).contains(COPIES), "{}", lab.conf(102));
    lab.container(102).sh(INFORMATION).ok().says_not(&lab.nvidia().uuid(1));
    assert!(!lab.exists(COPIES) && lab.exists("/run/phoenix-nvidia/proc/102/params"));
    lab.run(["pct", "stop", "102"]).ok();
    lab.run(["pct", "destroy", "102"]).ok();
    lab.run([PROGRAM, "prepare"]).ok();
    assert!(!lab.exists("/run/phoenix-nvidia/proc/102"));
}

/// A capability of a MIG instance is root's alone as the driver makes it.
#[test]
fn a_capability_node_that_is_closed_to_an_unprivileged_container_is_told() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    node(&lab, "INSTALL=off");
    let mig = "/run/lab/nvidia/proc-driver/nvidia/capabilities/gpu0/mig/gi1";
    for (directory, minor) in [("", 12), ("/ci0", 13)] {
        let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 256\nDeviceFileModify: 1\n");
        lab.write(format!("{mig}{directory}/access"), text);
        let path = format!("/dev/nvidia-caps/nvidia-cap{minor}");
        lab.nvidia().make_node(&path, 510, minor);
        lab.sh(&format!("chmod 400 {path}")).ok();
    }
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0:1/0"]).ok();
    let caps = ["/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13"];
    lab.run(["pct", "start", "101"])
        .ok()
        .says("keeps the unprivileged container out")
        .says(caps[0])
        .says(caps[1]);
    let ct = lab.container(101);
    assert_eq!(ct.open_node(caps[0]), Err(Errno::EACCES));
    let doctor = lab.run([PROGRAM, "doctor", "101"]).code(1);
    let doctor = doctor.says("may not open /dev/nvidia-caps/nvidia-cap12, /dev/nvidia-caps/nvidia-cap13, the capabilities of its MIG");
    doctor.says(&format!("chmod 444 {}", caps.join(" "))).says_not("chmod 666");
    lab.sh(&format!("chmod 444 {}", caps.join(" "))).ok();
    lab.run([PROGRAM, "doctor", "101"]).says_not("may not open");
    ct.sh(&format!("exec 3<{}", caps[0])).says_not("ermission denied");
}
