//! Devices that Proxmox itself passes on, by the `devN:` lines of a conf, beside ours.
use crate::support;

use phoenix_lab::{Errno, Lab, Rootfs};
use support::{lab, node, setting};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";

/// A running container with the hookscript that has GPU 0 by `dev0:` alone.
fn by_dev_line(assignment: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver("580.95.05"))?;
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["pct", "set", "101", "--dev0", "gid=44,path=/dev//nvidia0"]).ok();
    setting(&lab, 101, &format!("GPU_ASSIGNMENT={assignment}"));
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.run(["pct", "start", "101"]).ok().says_not("WARNING");
    assert!(!lab.conf(101).contains("lxc.mount.entry: /dev/nvidia0"), "{}", lab.conf(101));
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    Some(lab)
}

#[test]
fn a_gpu_whose_dev_line_is_pending_deletion_is_told_and_stays_after_a_call_by_hand() {
    let Some(lab) = by_dev_line("0") else { return };
    let ct = lab.container(101);
    lab.run(["pct", "set", "101", "--delete", "dev0"]).ok();
    assert!(lab.conf(101).contains("dev0:"), "pending");
    let told = "dev0 is pending deletion: the next start, also a reboot from inside, removes /dev/nvidia0";
    lab.run([PROGRAM, "plan", "101"]).code(10).says(told).says("added /dev/nvidia0");
    lab.run([PROGRAM, "doctor", "101"]).says(told);

    // The conf gets our pair now, and nothing that runs is touched for it.
    let before = ct.init_pid();
    lab.run([PROGRAM, "101"]).ok().says("added /dev/nvidia0");
    assert_eq!(ct.init_pid(), before);
    let both = |conf: &str| {
        let main = conf.split("\n[").next().unwrap_or_default();
        main.contains("dev0:") && main.contains("lxc.mount.entry: /dev/nvidia0")
    };
    assert!(both(&lab.conf(101)), "{}", lab.conf(101));
    lab.run([PROGRAM, "plan", "101"]).ok().says_not("pending deletion");
    lab.run([PROGRAM, "doctor", "101"]).says_not("pending deletion").says_not("does not start");
    lab.run(["pct", "snapshot", "101", "between"]).ok();

    // No hookscript runs now.
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    assert!(!lab.conf(101).split("\n[").next().unwrap_or_default().contains("dev0:"), "{}", lab.conf(101));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));

    // The snapshot has line and pair: LXC alone fails on the two.
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "rollback", "101", "between"]).ok();
    assert!(both(&lab.conf(101)), "{}", lab.conf(101));
    lab.run(["pct", "start", "101"]).ok().says("removed /dev/nvidia0");
    assert!(!both(&lab.conf(101)), "{}", lab.conf(101));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn a_device_that_is_pending_to_come_gets_no_second_entry() {
    let Some(lab) = by_dev_line("0,1") else { return };
    let ct = lab.container(101);
    lab.run(["pct", "set", "101", "--dev0", "/dev/nvidia1"]).ok();
    // GPU 1 changes from our pair to the line, GPU 0 the other way round.
    lab.run([PROGRAM, "101"]).ok().says("added /dev/nvidia0").says("removed /dev/nvidia1");
    let before = ct.init_pid();
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    for path in ["/dev/nvidia0", "/dev/nvidia1"] {
        assert_eq!(ct.open_node(path), Err(Errno::ENXIO), "{path}");
    }
}

#[test]
fn nodes_of_nvidia_that_the_user_passes_are_no_difference() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    node(&lab, "INSTALL=off");
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    for (path, major, minor) in [
        ("/dev/nvidia-nvswitchctl", 500, 255),
        ("/dev/nvidia-fs0", 501, 0),
        ("/dev/nvidia-caps-imex-channels/channel0", 502, 0),
    ] {
        lab.nvidia().make_node(path, major, minor);
        let target = path.trim_start_matches('/');
        let lines = format!(
            "lxc.mount.entry: {path} {target} none bind,optional,create=file 0 0\n\
             lxc.cgroup2.devices.allow: c {major}:{minor} rwm\n"
        );
        lab.append("/etc/pve/lxc/101.conf", lines);
    }
    lab.run([PROGRAM, "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia-nvswitchctl"), Err(Errno::ENXIO));
    let before = ct.init_pid();
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    lab.run([PROGRAM, "doctor", "101"]).says_not("still has");
    lab.run([PROGRAM, "101"]).ok().says_not("still has");
    assert_eq!(ct.init_pid(), before, "not restarted");
}

#[test]
fn an_exclusive_card_is_not_shared_with_a_dev_line_in_any_of_its_forms() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    node(&lab, "INSTALL=off\nGPU_EXCLUSIVE=yes");
    lab.create(101, Rootfs::Busybox.privileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.create(102, Rootfs::Busybox.privileged());
    for line in ["gid=44,path=/dev/nvidia0", "/dev//nvidia0", "deny-write=0,/dev/nvidia0"] {
        lab.run(["pct", "set", "102", "--dev0", line]).ok();
        lab.run(["pct", "start", "102"]).ok();
        lab.run([PROGRAM, "plan", "101"]).code(4).says("in use by running container 102");
        lab.run([PROGRAM, "101", "pre-start"]).ok().says("in use by running container 102");
        lab.run(["pct", "stop", "102"]).ok();
    }
}

#[test]
fn a_gpu_of_a_dev_line_is_no_gpu_too_many_for_the_verification() {
    let Some(lab) = lab(Lab::builder().gpus(2).driver("580.95.05")) else { return };
    lab.web().standard(&["580.95.05"]);
    node(
        &lab,
        "NVIDIA_RUNFILE_URL=http://127.0.0.1/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run\n\
         CUDA_PACKAGES=none\nUTILITY_PACKAGES=none",
    );
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    lab.web().use_distribution(&ct);
    lab.run(["pct", "set", "101", "--dev0", "gid=44,path=/dev/nvidia1"]).ok();
    setting(&lab, 101, "GPU_ASSIGNMENT=none");
    lab.run([PROGRAM, "101"]).ok().says("GPU 0 ").says(&lab.nvidia().uuid(1));
    // One that the settings assign as well counts once.
    setting(&lab, 101, "GPU_ASSIGNMENT=0,1");
    lab.run([PROGRAM, "101"]).ok();
    ct.exec(["nvidia-smi", "-L"]).ok().says("GPU 0:").says("GPU 1:");
}
