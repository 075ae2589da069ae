//! The host's side of a start, in the lab: nodes that nobody has made, majors
//! that changed, GPUs that are gone, on real containers.

use phoenix_lab::{Container, Errno, Lab, Output, Rootfs};

const CONF: &str = "/etc/pve/lxc/101.conf";
const BINARY: &str = env!("CARGO_BIN_EXE_phoenix-nvidia");

/// Whether nothing was started but the program itself and what looks for it.
fn only_looks(execs: &[String]) -> bool {
    execs.iter().skip(1).all(|exec| exec.contains("\"phoenix-nvidia\", \"look\"]"))
}

/// A privileged container (the kind that needs device rules) with the
/// hookscript and these settings.
fn container<'lab>(lab: &'lab Lab, settings: &[&str]) -> Container<'lab> {
    lab.install(BINARY);
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    for setting in ["INSTALL=off"].iter().chain(settings) {
        lab.append(CONF, format!("lxc.environment: {setting}\n"));
    }
    ct
}

fn start(lab: &Lab) -> Output {
    lab.run(["pct", "start", "101"])
}

fn stop(lab: &Lab) {
    lab.run(["pct", "stop", "101"]).ok();
}

/// The nodes can be opened, as far as that goes without a driver behind them.
fn works(ct: &Container, nodes: &[&str]) {
    for node in nodes {
        assert_eq!(ct.open_node(node), Err(Errno::ENXIO), "{node}");
    }
}

const OF_GPU_0: [&str; 5] = [
    "/dev/nvidia0",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-caps/nvidia-cap2",
];

#[test]
fn nodes_that_nobody_has_made_are_there_after_one_start() {
    let Some(lab) = Lab::builder().gpus(2).no_nodes().start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0"]);
    start(&lab).ok().says("made device nodes /dev/nvidia0, /dev/nvidiactl, /dev/nvidia-uvm");
    works(&ct, &OF_GPU_0);
    // Only what was assigned was made.
    assert!(!lab.exists("/dev/nvidia1"));
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    stop(&lab);
    let inode = lab.inode(CONF);
    start(&lab).ok().says_not("made");
    assert_eq!(lab.inode(CONF), inode);
    works(&ct, &OF_GPU_0);
}

#[test]
fn a_node_removed_between_two_starts_comes_back() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=all"]);
    start(&lab).ok();
    works(&ct, &OF_GPU_0);
    stop(&lab);
    let before = lab.read(CONF);
    lab.sh("rm -r /dev/nvidia0 /dev/nvidia-uvm /dev/nvidia-caps").ok();
    start(&lab).ok();
    works(&ct, &OF_GPU_0);
    assert_eq!(lab.read(CONF), before);
}

#[test]
fn another_uvm_major_is_followed_in_one_start_and_the_old_rule_is_gone() {
    let Some(lab) = Lab::builder().gpus(1).uvm_major(511).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0"]);
    start(&lab).ok();
    stop(&lab);
    assert!(lab.read(CONF).contains("c 511:0 rwm"));
    lab.nvidia().set_uvm_major(497);
    start(&lab).ok();
    works(&ct, &OF_GPU_0);
    let generated = lab.generated(101);
    for text in [lab.read(CONF), generated] {
        assert!(text.contains("c 497:0 rwm") && text.contains("c 497:1 rwm"), "{text}");
        assert!(!text.contains("c 511:"), "{text}");
    }
}

#[test]
fn stale_uvm_nodes_are_made_anew() {
    let Some(lab) = Lab::builder().gpus(1).uvm_major(511).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0"]);
    // The module was reloaded: the driver has another major, the nodes the old one.
    lab.nvidia().set_uvm_major(497);
    lab.nvidia().remove_node("/dev/nvidia-uvm");
    lab.nvidia().make_node("/dev/nvidia-uvm", 511, 0);
    start(&lab).ok();
    works(&ct, &OF_GPU_0);
    assert_eq!(lab.sh("stat -c %t:%T /dev/nvidia-uvm").ok().stdout.trim(), "1f1:0");
    assert!(!lab.read(CONF).contains("c 511:"));
}

#[test]
fn a_conf_from_another_host_is_right_after_one_start() {
    let Some(lab) = Lab::builder().gpus(2).uvm_major(497).caps_major(499).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0"]);
    let pair = |path: &str, rule: &str| {
        format!(
            "lxc.mount.entry: {path} {} none bind,optional,create=file 0 0\nlxc.cgroup2.devices.allow: c {rule} rwm\n",
            &path[1..]
        )
    };
    let foreign = [
        pair("/dev/nvidia0", "195:0"),
        pair("/dev/nvidia3", "195:3"), // that host had more cards
        pair("/dev/nvidiactl", "195:255"),
        pair("/dev/nvidia-uvm", "508:0"),
        pair("/dev/nvidia-uvm-tools", "508:1"),
        "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir 0 0\n".to_owned(),
        "lxc.cgroup2.devices.allow: c 509:2 rwm\n".to_owned(),
        "lxc.cgroup2.devices.allow: c 10:200 rwm\n".to_owned(), // the user's, for a VPN
    ];
    lab.append(CONF, foreign.concat());
    start(&lab).ok();
    works(&ct, &OF_GPU_0);
    let conf = lab.read(CONF);
    for rule in ["c 497:0 rwm", "c 497:1 rwm", "c 499:2 rwm", "c 195:0 rwm", "c 10:200 rwm"] {
        assert!(conf.contains(rule), "{rule}: {conf}");
    }
    for gone in ["c 508:", "c 509:", "nvidia3", "195:3"] {
        assert!(!conf.contains(gone), "{gone}: {conf}");
    }
}

#[test]
fn an_nvidia_modprobe_that_hangs_does_not_hold_the_start() {
    let Some(lab) = Lab::builder().gpus(1).no_nodes().start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0", "PRE_START_TIMEOUT=3"]);
    lab.replace_program("/usr/bin/nvidia-modprobe", "#!/bin/sh\necho $$ >> /run/hung\nexec sleep 1000\n");
    start(&lab).ok().says("nvidia-modprobe timed out after");
    // The nodes were made without it.
    works(&ct, &OF_GPU_0);
    // Called once, and gone.
    let pids = lab.read("/run/hung");
    assert_eq!(pids.lines().count(), 1, "{pids}");
    lab.sh(&format!("! kill -0 {}", pids.trim())).ok();
}

#[test]
fn nodes_that_cannot_be_made_are_left_out_and_never_empty_files() {
    let Some(lab) = Lab::builder().gpus(1).no_nodes().start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0"]);
    let params = lab.read("/proc/driver/nvidia/params");
    lab.write(
        "/run/lab/nvidia/proc-driver/nvidia/params",
        params.replace("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0"),
    );
    lab.replace_program("/usr/bin/nvidia-modprobe", "#!/bin/sh\nexit 0\n");
    start(&lab).ok().says("ModifyDeviceFiles: 0").says("/dev/nvidia0: is missing");
    assert!(ct.running());
    // A capability says by itself that its node may be made.
    for node in OF_GPU_0.iter().filter(|node| !node.contains("caps")) {
        assert_eq!(ct.open_node(node), Err(Errno::ENOENT), "{node}");
        assert!(!lab.read(CONF).contains(&format!("{node} ")), "{node}");
    }
}

#[test]
fn a_missing_gpu_with_continue_starts_and_keeps_what_is_right() {
    let Some(lab) = Lab::builder().gpus(2).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0,1"]);
    start(&lab).ok();
    stop(&lab);
    lab.nvidia().remove_gpu(1);
    lab.nvidia().set_uvm_major(497);
    let output = start(&lab).ok();
    output.says("GPU 1: no such GPU; this host has 0 (0000:01:00.0");
    works(&ct, &OF_GPU_0);
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    let conf = lab.read(CONF);
    assert!(conf.contains("c 497:0 rwm") && !conf.contains("c 511:") && !conf.contains("nvidia1"), "{conf}");
    assert!(!ct.exists("/dev/nvidia1"));
}

#[test]
fn a_missing_gpu_with_fail_stops_the_start_with_code_4() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0,1", "START_POLICY=fail"]);
    let before = lab.read(CONF);
    start(&lab).code(255).says("GPU 1: no such GPU").says("exit code 4");
    assert!(!ct.running());
    assert_eq!(lab.read(CONF), before);
}

#[test]
fn no_driver_is_one_warning() {
    let Some(lab) = Lab::builder().gpus(2).no_driver().start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0,1"]);
    lab.nvidia().bind_gpu(0, "vfio-pci");
    lab.nvidia().bind_gpu(1, "vfio-pci");
    lab.write("/etc/pve/nodes/pve1/qemu-server/200.conf", "name: games\nhostpci0: 0000:01:00,pcie=1\n");
    let output = start(&lab).ok();
    let text = format!("{}{}", output.stdout, output.stderr);
    let warnings = text.lines().filter(|l| l.contains("NVIDIA kernel driver")).count();
    assert_eq!(warnings, 1, "{text}");
    output.says("0000:01:00.0 bound to vfio-pci, in hostpci of VM 200");
    assert!(ct.running());
}

#[test]
fn a_uuid_and_an_address_are_followed_to_the_minor_of_now() {
    // The first card on the bus is /dev/nvidia1.
    let Some(lab) = Lab::builder().minors([1, 0]).start() else { return };
    let uuid = lab.nvidia().uuid(0);
    let ct = container(&lab, &[&format!("GPU_ASSIGNMENT={uuid}")]);
    start(&lab).ok();
    works(&ct, &["/dev/nvidia1"]);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    stop(&lab);
    let conf = lab.read(CONF).replace(&uuid, "00000000:02:00.0");
    lab.write(CONF, conf);
    start(&lab).ok();
    works(&ct, &["/dev/nvidia0"]);
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
}

#[test]
fn an_exclusive_gpu_is_refused_while_another_container_runs_with_it() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0", "GPU_EXCLUSIVE=yes"]);
    let other = lab.create(102, Rootfs::Busybox.privileged());
    lab.append(
        "/etc/pve/lxc/102.conf",
        "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n",
    );
    lab.run(["pct", "start", "102"]).ok();
    start(&lab).ok().says("GPU 0: in use by running container 102");
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    works(&ct, &["/dev/nvidiactl"]);
    stop(&lab);
    lab.run(["pct", "stop", "102"]).ok();
    assert!(!other.running());
    start(&lab).ok().says_not("102");
    works(&ct, &["/dev/nvidia0"]);
}

#[test]
fn an_exclusive_gpu_is_shared_by_a_privileged_container_that_may_open_every_card() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0", "GPU_EXCLUSIVE=yes"]);
    lab.create(102, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/102.conf", "lxc.cgroup2.devices.allow: c 195:* rwm\n");
    let line = lab.conf(102).lines().count();
    lab.run(["pct", "start", "102"]).ok();
    start(&lab)
        .ok()
        .says(&format!("GPU 0: in use by running container 102, whose line {line} allows every NVIDIA card"));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    stop(&lab);
    lab.run(["pct", "stop", "102"]).ok();
    // An unprivileged one makes no nodes.
    lab.create(103, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/103.conf", "lxc.cgroup2.devices.allow: c 195:* rwm\n");
    lab.run(["pct", "start", "103"]).ok();
    start(&lab).ok().says_not("in use by");
    works(&ct, &["/dev/nvidia0"]);
}

#[test]
fn prepare_makes_the_nodes_of_all_cards_so_that_dev_lines_work() {
    let Some(lab) = Lab::builder().gpus(2).no_nodes().start() else { return };
    lab.install(BINARY);
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.append(CONF, "dev0: /dev/nvidia1\n");
    start(&lab).says("/dev/nvidia1 does not exist");
    lab.run(["phoenix-nvidia", "prepare"]).ok().says("made /dev/nvidia0, /dev/nvidia1, /dev/nvidiactl");
    start(&lab).ok();
    works(&ct, &["/dev/nvidia1"]);
    let again = lab.trace(["phoenix-nvidia", "prepare"]);
    again.output.ok().says("all device nodes present");
    assert!(only_looks(&again.execs), "{:?}", again.execs);
}

#[test]
fn prepare_makes_what_the_confs_of_this_node_name() {
    let Some(lab) = Lab::builder().gpus(2).no_nodes().caps_major(237).start() else { return };
    lab.install(BINARY);
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    for (n, path) in [
        "nvidia0",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
        "nvidia-modeset",
        "nvidia-caps/nvidia-cap1",
        "nvidia-caps/nvidia-cap2",
    ]
    .iter()
    .enumerate()
    {
        lab.append(CONF, format!("dev{n}: /dev/{path},gid=44\n"));
    }
    lab.append(CONF, "lxc.environment: GPU_ASSIGNMENT=0\nlxc.environment: INSTALL=off\n");
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"])
        .ok()
        .says("does not start: dev4 passes /dev/nvidia-modeset, which does not exist")
        .says("fix: phoenix-nvidia prepare");
    start(&lab).says("/dev/nvidia0 does not exist");
    lab.run(["phoenix-nvidia", "doctor", "101"]).code(1).says("dev5 passes /dev/nvidia-caps/nvidia-cap1");
    lab.run(["phoenix-nvidia", "status", "101"]).ok().says("dev0 passes /dev/nvidia0");
    lab.run(["phoenix-nvidia", "plan", "101"]).code(6).says("dev4 passes").says("phoenix-nvidia prepare");
    let made = lab.run(["phoenix-nvidia", "prepare"]).ok();
    made.says("/dev/nvidia-modeset").says("/dev/nvidia-caps/nvidia-cap1").says_not("WARN");
    lab.sh("stat -c '%a %t:%T' /dev/nvidia-caps/nvidia-cap1").ok().says("400 ed:1");
    start(&lab).ok();
    works(&ct, &["/dev/nvidia0", "/dev/nvidia-modeset", "/dev/nvidia-caps/nvidia-cap1"]);
    lab.run(["phoenix-nvidia", "prepare"]).ok().says("all device nodes present");
    stop(&lab);

    // By a guide's entry, of another container; and what the driver does not have.
    lab.sh("rm -r /dev/nvidia-modeset /dev/nvidia-caps").ok();
    lab.create(102, Rootfs::Busybox.privileged());
    lab.append(
        "/etc/pve/lxc/102.conf",
        "dev0: /dev/nvidia-caps/nvidia-cap77\n\
         lxc.mount.entry: /dev/nvidia-modeset dev/nvidia-modeset none bind,create=file\n",
    );
    lab.append(CONF, "dev7: /dev/nvidia5\n");
    let conf = lab.read(CONF);
    lab.write(CONF, conf.replace("dev4:", "#").replace("dev5:", "#").replace("dev6:", "#"));
    lab.run(["phoenix-nvidia", "prepare"])
        .ok()
        .says("/dev/nvidia-modeset")
        .says("/dev/nvidia-caps/nvidia-cap77: the NVIDIA driver has no such capability")
        .says("the conf of container 102 names it")
        .says("/dev/nvidia5: the NVIDIA driver has no such card");
    assert!(lab.exists("/dev/nvidia-modeset") && !lab.exists("/dev/nvidia-caps/nvidia-cap77"));
    lab.run(["phoenix-nvidia", "doctor", "102"]).code(1).says("fix: pct set 102 --delete dev0");
    lab.run(["phoenix-nvidia", "doctor", "101"]).code(1).says("fix: pct set 101 --delete dev7");
}

#[test]
fn prepare_on_a_host_without_cards_is_no_failure() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.install(BINARY);
    lab.run(["phoenix-nvidia", "prepare"]).ok().says("nothing to prepare");
}

#[test]
fn prepare_without_a_driver_says_why_with_code_4() {
    let Some(lab) = Lab::builder().gpus(1).no_driver().start() else { return };
    lab.install(BINARY);
    let kernel = lab.sh("uname -r").ok().stdout;
    lab.write("/lib/modules/6.8.12-1-pve/modules.dep", "updates/dkms/nvidia.ko.zst:\n");
    lab.run(["phoenix-nvidia", "prepare"])
        .code(4)
        .says("no NVIDIA kernel driver loaded: no module installed for the running kernel")
        .says("(only for 6.8.12-1-pve)")
        .says(&format!("fix: apt install linux-headers-{} && dkms autoinstall", kernel.trim()));
}

#[test]
fn the_remedy_of_a_blacklist_removes_that_line_and_no_other() {
    let Some(lab) = Lab::builder().gpus(1).no_driver().start() else { return };
    lab.install(BINARY);
    let kernel = lab.sh("uname -r").ok().stdout;
    lab.write(format!("/lib/modules/{}/modules.dep", kernel.trim()), "updates/dkms/nvidia.ko.zst:\n");
    let lines = "blacklist nouveau\n blacklist  nvidia\nblacklist nvidiafb\nblacklist nvidia-drm\n";
    lab.write("/etc/modprobe.d/vm.conf", lines);
    let said = lab.run(["phoenix-nvidia", "prepare"]).code(4);
    let said = said.says("no NVIDIA kernel driver loaded: module blacklisted in /etc/modprobe.d/vm.conf");
    let (_, fix) = said.stderr.split_once("fix: ").unwrap();
    let (sed, _) = fix.split_once(" && modprobe nvidia").unwrap();
    lab.sh(sed).ok();
    let left = lab.sh("cat /etc/modprobe.d/vm.conf").ok().stdout;
    assert_eq!(left, lines.replace(" blacklist  nvidia\n", "# blacklist  nvidia\n"));
}

#[test]
fn pre_start_runs_no_program_when_every_node_is_there() {
    let Some(lab) = Lab::builder().gpus(2).start() else { return };
    container(&lab, &["GPU_ASSIGNMENT=0"]);
    for program in ["/usr/bin/nvidia-modprobe", "/usr/bin/nvidia-smi"] {
        lab.replace_program(program, "#!/bin/sh\nexit 1\n");
    }
    for _ in 0..2 {
        let trace = lab.trace(["phoenix-nvidia", "101", "pre-start"]);
        trace.output.ok();
        assert!(only_looks(&trace.execs), "{:?}", trace.execs);
    }
}

#[test]
fn with_settings_that_cannot_be_read_the_entries_stay_and_their_nodes_are_made() {
    let Some(lab) = Lab::builder().gpus(2).start() else { return };
    let ct = container(&lab, &["GPU_ASSIGNMENT=0"]);
    start(&lab).ok();
    stop(&lab);
    let conf = lab.read(CONF);
    lab.write(CONF, conf.replace("GPU_ASSIGNMENT=0", "GPU_ASSIGNMENT=nvidia0"));
    // As after a boot.
    lab.sh("rm -r /dev/nvidia*").ok();
    lab.nvidia().set_uvm_major(497);
    start(&lab).ok().says("'nvidia0' is not a GPU");
    works(&ct, &OF_GPU_0);
    assert!(lab.read(CONF).contains("c 497:0 rwm"));
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
}

#[test]
fn a_mig_instance_is_all_that_a_container_gets_of_a_card() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let caps = "/run/lab/nvidia/proc-driver/nvidia/capabilities/gpu0/mig";
    for (path, minor) in [("gi1", 12), ("gi1/ci0", 13), ("gi2", 21), ("gi2/ci0", 22)] {
        let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
        lab.write(format!("{caps}/{path}/access"), text);
    }
    let ct = container(&lab, &["GPU_ASSIGNMENT=0:2/0"]);
    start(&lab).ok();
    // The capability nodes were made, and each has its own rule.
    works(
        &ct,
        &["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"],
    );
    for (minor, other) in [("2", "monitor"), ("12", "the other instance")] {
        let node = format!("/dev/nvidia-caps/nvidia-cap{minor}");
        assert_eq!(ct.open_node(&node), Err(Errno::ENOENT), "{other}");
        ct.exec(["mknod", &node, "c", "510", minor]).ok();
        assert_eq!(ct.open_node(&node), Err(Errno::EPERM), "{other}");
    }
    let conf = lab.read(CONF);
    assert!(
        conf.contains("c 510:21 rwm") && conf.contains("c 510:22 rwm") && !conf.contains("c 510:2 rwm"),
        "{conf}"
    );
    // Another instance instead: the old nodes and rules are gone.
    stop(&lab);
    lab.write(CONF, conf.replace("GPU_ASSIGNMENT=0:2/0", "GPU_ASSIGNMENT=0:1/0"));
    start(&lab).ok();
    works(&ct, &["/dev/nvidia-caps/nvidia-cap12"]);
    assert_eq!(ct.open_node("/dev/nvidia-caps/nvidia-cap21"), Err(Errno::ENOENT));
    assert!(!lab.read(CONF).contains("510:21"));
}
