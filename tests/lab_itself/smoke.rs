//! The lab itself: a container starts on its real LXC, and the device rules of its conf are what decides inside.
use std::time::Duration;

use phoenix_lab::{Errno, Lab, Rootfs};

const PAIR: &str = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0
lxc.cgroup2.devices.allow: c 195:0 rwm
";

#[test]
fn a_privileged_container_opens_what_its_rules_allow_and_nothing_else() {
    let Some(lab) = Lab::builder().gpus(2).start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", PAIR);
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "status", "101"]).ok().says("status: running");
    // Allowed, and no driver behind it.
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    ct.exec(["mknod", "/dev/nvidia1", "c", "195", "1"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::EPERM));
    assert_eq!(ct.open_node("/dev/null"), Ok(()));
    lab.run(["pct", "stop", "101"]).ok();
    assert!(!ct.running());
}

#[test]
fn an_unprivileged_container_opens_whatever_node_it_has() {
    let Some(lab) = Lab::builder().gpus(2).start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/101.conf", PAIR);
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    assert_eq!(ct.open_node("/dev/null"), Ok(()));
    assert_ne!(ct.exec(["mknod", "/dev/nvidia1", "c", "195", "1"]).exit(), Some(0));
}

#[test]
fn the_host_s_driver_is_seen_inside_and_can_change() {
    let Some(lab) = Lab::builder().gpus(1).driver("580.95.05").start() else { return };
    for (id, spec) in [(101, Rootfs::Busybox.privileged()), (102, Rootfs::Busybox.unprivileged())] {
        let ct = lab.create(id, spec);
        lab.run(["pct", "start", &id.to_string()]).ok();
        ct.exec(["cat", "/proc/driver/nvidia/version"]).ok().says("  580.95.05  ");
        ct.exec(["cat", "/sys/module/nvidia/version"]).ok().says("580.95.05");
        ct.exec(["cat", "/proc/devices"]).ok().says("511 nvidia-uvm");
    }
    lab.nvidia().set_driver("590.48.01");
    lab.nvidia().set_uvm_major(509);
    assert!(lab.read("/proc/driver/nvidia/version").contains("590.48.01"));
    lab.container(102).exec(["cat", "/proc/driver/nvidia/version"]).ok().says("590.48.01");
    lab.container(102).exec(["cat", "/proc/devices"]).ok().says("509 nvidia-uvm").says_not("511 ");
    assert_eq!(lab.sh("stat -c %t:%T /dev/nvidia-uvm").ok().stdout.trim(), "1fd:0");
}

#[test]
fn a_reboot_from_inside_makes_the_config_anew() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["pct", "start", "101"]).ok();
    let before = ct.init_pid();
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    lab.append("/etc/pve/lxc/101.conf", PAIR);
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    ct.wait_ready();
    ct.exec(["poweroff"]);
    ct.wait_running(false, Duration::from_secs(20));
}

#[test]
fn nothing_of_a_lab_stays() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["pct", "start", "101"]).ok();
    let init = lab.init_pid();
    drop(lab);
    assert!(!std::path::Path::new(&format!("/proc/{init}")).exists());
}

#[test]
fn a_command_s_end_is_told_as_it_was() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.sh("exit 7").code(7);
    assert_eq!(lab.sh("kill -9 $$").signal(), Some(9));
    assert_eq!(lab.command("cat").stdin("in").run().ok().stdout, "in");
    let traced = lab.trace(["sh", "-c", "/bin/true; /bin/true"]);
    assert_eq!(traced.execs.len(), 3, "{:?}", traced.execs);
    let running = lab.command("sleep").arg("60").spawn();
    running.signal(phoenix_lab::Signal::SIGTERM);
    assert_eq!(running.wait().signal(), Some(15));
}

#[test]
fn an_address_that_the_host_manages_comes_after_post_start() {
    let Some(lab) = Lab::builder().start() else { return };
    let net = "name=eth0,bridge=vmbr0,ip=dhcp,host-managed=1,type=veth";
    let ct = lab.create(101, Rootfs::Busybox.privileged().option("--net0", net));
    lab.snippet(
        "n.sh",
        "#!/bin/sh\n[ $2 = post-start ] && lxc-attach -n $1 -- ifconfig eth0 >/run/lab/seen\nexit 0\n",
    );
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/n.sh"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    assert!(!lab.read("/run/lab/seen").contains("192.0.2."));
    ct.exec(["ifconfig", "eth0"]).ok().says("192.0.2.103");
}

#[test]
fn a_stopped_task_ends_with_its_hook() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.snippet("t.sh", "#!/bin/sh\ntouch /run/lab/begun\nsleep 303\n");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/t.sh"]).ok();
    let start = lab.command("pct").args(["start", "101"]).spawn();
    lab.sh("until [ -e /run/lab/begun ]; do sleep 0.02; done").ok();
    lab.stop_task(101);
    assert_eq!(start.wait().exit(), Some(255));
    assert!(!lab.leftovers().processes.iter().any(|process| process.contains("sleep 303")));
    assert!(!lab.container(101).running());
}
