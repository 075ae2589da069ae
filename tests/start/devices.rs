//! pre-start in real containers: the devices are there in the same start.
use crate::support;

use phoenix_lab::{Errno, Lab, Rootfs};
use support::{lab, node, setting};

/// Two GPUs of which the container has one, the hookscript attached.
fn attached(rootfs: phoenix_lab::Spec) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver("580.95.05"))?;
    node(&lab, "INSTALL=off");
    lab.create(101, rootfs);
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    Some(lab)
}

fn the_first_start_gives_the_gpu(rootfs: phoenix_lab::Spec) {
    let Some(lab) = attached(rootfs) else { return };
    assert!(!lab.conf(101).contains("nvidia0"));
    lab.run(["pct", "start", "101"]).ok().says("GPU 0").says_not("WARNING");
    let ct = lab.container(101);
    for path in ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"] {
        // Allowed, and no driver behind it.
        assert_eq!(ct.open_node(path), Err(Errno::ENXIO), "{path}");
    }
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    let conf = lab.conf(101);
    assert!(conf.contains(
        "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
         lxc.cgroup2.devices.allow: c 195:0 rwm\n"
    ));
    // What Proxmox makes of the conf changes nothing for us.
    lab.run(["pct", "set", "101", "--memory", "300"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    let (conf, inode) = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));
    lab.run(["pct", "start", "101"]).ok().says("already configured");
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), (conf, inode));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn a_privileged_container_has_its_gpu_in_the_first_start() {
    the_first_start_gives_the_gpu(Rootfs::Busybox.privileged());
}

#[test]
fn an_unprivileged_container_has_its_gpu_in_the_first_start() {
    the_first_start_gives_the_gpu(Rootfs::Busybox.unprivileged());
}

#[test]
fn a_gpu_that_is_not_assigned_is_refused_even_when_its_node_is_made_inside() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    ct.exec(["mknod", "/dev/nvidia1", "c", "195", "1"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::EPERM));
}

#[test]
fn a_reboot_from_inside_keeps_the_gpu() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    ct.wait_ready();
    let before = ct.init_pid();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn a_gpu_taken_from_the_settings_is_gone_in_the_next_start_entry_and_rule() {
    let Some(lab) = lab(Lab::builder().gpus(2)) else { return };
    node(&lab, "INSTALL=off");
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0,1");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENXIO));
    lab.run(["pct", "stop", "101"]).ok();
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("GPU_ASSIGNMENT=0,1", "GPU_ASSIGNMENT=0"));
    lab.run(["pct", "start", "101"]).ok();
    assert!(!lab.conf(101).contains("195:1 ") && !lab.conf(101).contains("nvidia1"));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    ct.exec(["mknod", "/dev/nvidia1", "c", "195", "1"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::EPERM));
}

#[test]
fn with_nothing_to_do_pre_start_starts_one_child_that_looks_and_writes_nothing() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let before = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"), lab.generated(101));
    let traced = lab.trace(["/usr/sbin/phoenix-nvidia", "101", "pre-start"]);
    assert_eq!(traced.execs.len(), 2, "itself and the one: {:?}", traced.execs);
    assert!(traced.execs[1].contains("\"phoenix-nvidia\", \"look\"]"), "{:?}", traced.execs);
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"), lab.generated(101)), before);
}

#[test]
fn with_nothing_to_do_pre_start_makes_few_file_calls_and_none_at_the_driver() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.run(["pct", "start", "101"]).ok();
    let traced = lab.trace_files(["/usr/sbin/phoenix-nvidia", "101", "pre-start"]);
    traced.output.ok().says("already configured");
    println!("file calls: {} of its own, {} of the one that looks", traced.own.len(), traced.others.len());
    assert!(traced.own.len() <= 40, "{:#?}", traced.own);
    let driver = |calls: &[String]| calls.iter().filter(|call| call.contains("/proc/driver")).count();
    assert_eq!(driver(&traced.own), 0, "{:#?}", traced.own);
    assert!(driver(&traced.others) > 4, "{:#?}", traced.others);
}

/// Missing settings, a bad one, and a GPU that the host lacks: with
/// `continue` the container starts and one sees why, with `fail` it does not,
/// with the code.
#[test]
fn the_policy_decides_what_a_fault_means() {
    for (line, code, said) in [
        ("GPU_ASSIGNMENT=7", 4, "GPU 7"),
        ("GPU_ASSIGNMENT=first", 2, "GPU_ASSIGNMENT=first (/etc/pve/lxc/101.conf line"),
        ("SOMETHING=else", 2, "GPU_ASSIGNMENT is not set"),
    ] {
        let Some(lab) = lab(Lab::builder().gpus(1)) else { return };
        node(&lab, "INSTALL=off");
        let ct = lab.create(101, Rootfs::Busybox.privileged());
        setting(&lab, 101, line);
        lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
        lab.run(["pct", "start", "101"]).ok().says(said).says("WARNING");
        assert!(ct.running());
        assert!(!ct.exists("/dev/nvidia7"));
        lab.run(["pct", "stop", "101"]).ok();
        setting(&lab, 101, "START_POLICY=fail");
        let failed = lab.run(["pct", "start", "101"]).code(255);
        failed.says(said).says(&format!("failed: exit code {code}"));
        assert!(!ct.running());
    }
}

#[test]
fn a_missing_binary_never_fails_a_start() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.sh("rm /usr/sbin/phoenix-nvidia").ok();
    lab.run(["pct", "start", "101"]).ok().says("phoenix-nvidia").says("101");
    assert!(lab.container(101).running());
}

#[test]
fn a_nodes_policy_counts_where_the_conf_cannot_be_read() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.sh("head -c 1100000 /dev/zero | tr '\\0' '#' >>/etc/pve/lxc/101.conf").ok();
    lab.run(["phoenix-nvidia", "101", "pre-start"]).ok().says("larger than 1 MiB");
    node(&lab, "START_POLICY=fail");
    lab.run(["phoenix-nvidia", "101", "pre-start"]).code(4).says("larger than 1 MiB");
}

/// A restore without root's rights takes the settings away and leaves the hookscript.
#[test]
fn without_an_assignment_nothing_is_installed() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.run(["pct", "start", "101"]).ok().says("driver check skipped").says_not("exit code");
    assert!(!lab.exists("/run/phoenix-nvidia/state/101.job"));
}

#[test]
fn a_mode_that_keeps_an_unprivileged_container_out_is_told_at_the_start() {
    let Some(lab) = attached(Rootfs::Busybox.unprivileged()) else { return };
    lab.sh("chmod 660 /dev/nvidia0").ok();
    lab.run(["pct", "start", "101"]).ok().says("WARNING: the mode of /dev/nvidia0 keeps");
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::EACCES));
    lab.run(["phoenix-nvidia", "status"]).ok().says("failure").says("may not open /dev/nvidia0");
    lab.run(["phoenix-nvidia", "doctor", "101"]).code(1).says("may not open /dev/nvidia0");
    lab.sh("chmod 666 /dev/nvidia0").ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says_not("WARNING");
}

/// Neither runs while the other one asks: what counts is who was first.
#[test]
fn of_two_that_start_at_once_one_has_the_exclusive_card() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    node(&lab, "INSTALL=off\nGPU_EXCLUSIVE=yes\nGPU_ASSIGNMENT=0");
    for id in [101, 102] {
        lab.create(id, Rootfs::Busybox.privileged());
        lab.run(["pct", "set", &id.to_string(), "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    }
    // Making a node takes so long that both are in pre-start at once.
    lab.sh("rm /dev/nvidia-uvm-tools").ok();
    lab.replace_program("/usr/bin/nvidia-modprobe", "#!/bin/sh\nsleep 1\n");
    let both = ["101", "102"].map(|id| lab.command("pct").args(["start", id]).spawn());
    for start in both {
        start.wait().ok();
    }
    let has = [101, 102].map(|id| lab.container(id).open_node("/dev/nvidia0") == Err(Errno::ENXIO));
    assert_eq!(has.iter().filter(|has| **has).count(), 1, "{has:?}");
}

/// As Proxmox 9.1 puts an OCI image's environment into the conf, where ordinary users may change it.
#[test]
fn the_environment_of_an_image_takes_gpus_away_and_adds_none() {
    let Some(lab) = attached(Rootfs::Busybox.unprivileged()) else { return };
    let ct = lab.container(101);
    let base = lab.conf(101).replace("GPU_ASSIGNMENT=0", "GPU_ASSIGNMENT=ASSIGNED");
    let start = |assigned: &str, environment: &str, doctor_says: &str| {
        let lines: String = environment.lines().map(|l| format!("lxc.environment.runtime: {l}\n")).collect();
        lab.write("/etc/pve/lxc/101.conf", base.replace("ASSIGNED", assigned) + &lines);
        let said = lab.run(["pct", "start", "101"]).ok();
        let has: Vec<u32> =
            (0..2).filter(|n| ct.open_node(&format!("/dev/nvidia{n}")) == Err(Errno::ENXIO)).collect();
        // A run finds nothing to do, and a report no fault.
        lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");
        let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]);
        let doctor = doctor.says("the running container has its devices").says_not("device entries");
        doctor.says(doctor_says);
        lab.run(["pct", "stop", "101"]).ok();
        (has, said)
    };
    let starts = |assigned: &str, environment: &str| {
        let (has, said) = start(assigned, environment, "");
        (has, said.says_not("WARNING"))
    };
    let narrowed = "narrows GPU_ASSIGNMENT=all";
    let (has, said) = starts("all", "NVIDIA_VISIBLE_DEVICES=0");
    assert_eq!(has, [0]);
    said.says("NVIDIA_VISIBLE_DEVICES=0 of the container narrows GPU_ASSIGNMENT=all");
    for none in ["none", "void"] {
        let (has, said) = starts("all", &format!("NVIDIA_VISIBLE_DEVICES={none}"));
        assert_eq!(has, [0; 0]);
        said.says(narrowed);
    }
    let (has, said) = starts("0", "NVIDIA_VISIBLE_DEVICES=all\nNVIDIA_DRIVER_CAPABILITIES=all");
    assert_eq!(has, [0]);
    said.says_not("narrows");
    // One that is not his is no fault, with the strictest policy neither.
    node(&lab, "START_POLICY=fail");
    assert_eq!(starts("0,1", "NVIDIA_VISIBLE_DEVICES=1,5").0, [1]);
    // Written by one who counts as nvidia-smi in the container: its only card is not lost without a word.
    let says =
        "NVIDIA_VISIBLE_DEVICES=0 of the container names no GPU of GPU_ASSIGNMENT=1, and narrows nothing";
    let (has, said) = start("1", "NVIDIA_VISIBLE_DEVICES=0", says);
    assert_eq!(has, [1]);
    said.says("WARNING")
        .says(says)
        .says("fix: nano /etc/pve/lxc/101.conf")
        .says_not("narrows GPU_ASSIGNMENT");
    let other = format!("NVIDIA_VISIBLE_DEVICES={}", lab.nvidia().uuid(0));
    let says = format!("{other} of the container names no GPU of GPU_ASSIGNMENT=1, and leaves none");
    let (has, said) = start("1", &other, &says);
    assert_eq!(has, [0; 0]);
    said.says("WARNING").says(&says);
    let (has, said) = starts("all", "NVIDIA_VISIBLE_DEVICES=\"; reboot");
    assert_eq!(has, [0, 1]);
    said.says("cannot be read, and narrows nothing");
}
