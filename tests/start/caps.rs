//! The capabilities of the driver: a container has the node that it needs, and never
//! the host's directory, into which its root could make any node.
use crate::support;

use phoenix_lab::{Errno, Lab, Rootfs, Spec};
use support::{lab, node};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
const MONITOR: &str = "/dev/nvidia-caps/nvidia-cap2";
/// What version 0.2.0 wrote.
const DIRECTORY: &str = "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir 0 0\n\
     lxc.cgroup2.devices.allow: c 510:2 rwm\n";
const PAIR: &str = "lxc.mount.entry: /dev/nvidia-caps/nvidia-cap2 dev/nvidia-caps/nvidia-cap2 none bind,optional,create=file 0 0\n\
     lxc.cgroup2.devices.allow: c 510:2 rwm\n";
/// Stands behind the pair, and is the user's.
const THEIRS: &str = "lxc.cgroup2.devices.allow: c 10:200 rwm\n";

fn attached(spec: Spec) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver("580.95.05"))?;
    node(&lab, "INSTALL=off");
    lab.create(101, spec);
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    Some(lab)
}

/// The same, as version 0.2.0 left it: the conf has the directory, and so has the
/// container, which runs.
fn of_0_2_0(spec: Spec) -> Option<Lab> {
    let lab = attached(spec)?;
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    older(&lab);
    lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.container(101).sh("test -c /dev/nvidia-caps/nvidia-cap1").ok();
    Some(lab)
}

/// Puts the directory into the place of the node.
fn older(lab: &Lab) {
    let conf = lab.conf(101);
    assert!(conf.contains(PAIR), "{conf}");
    lab.write("/etc/pve/lxc/101.conf", conf.replace(PAIR, &format!("{DIRECTORY}{THEIRS}")));
}

/// The names in the host's directory, and its mode.
fn of_the_host(lab: &Lab) -> String {
    lab.sh("ls /dev/nvidia-caps; stat -c %a /dev/nvidia-caps").ok().stdout
}

const AS_MADE: &str = "nvidia-cap1\nnvidia-cap2\n755\n";
/// What root in a container tries there.
const HOSTILE: &str = "cd /dev/nvidia-caps && mknod x b 8 0 && chmod 666 x && ln -s /etc/shadow nvidia-cap9 && \
     mv nvidia-cap2 y; rm -f nvidia-cap2; chmod 777 .; true";

#[test]
fn root_in_a_privileged_container_makes_no_node_in_the_hosts_dev() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.create(102, Rootfs::Busybox.unprivileged());
    lab.run([PROGRAM, "attach", "102", "--gpus", "0"]).ok();
    for ctid in ["101", "102"] {
        lab.run(["pct", "start", ctid]).ok().says_not("WARNING");
    }
    let ct = lab.container(101);
    assert_eq!(ct.open_node(MONITOR), Err(Errno::ENXIO));
    assert_eq!(ct.sh("ls /dev/nvidia-caps").ok().stdout, "nvidia-cap2\n");
    ct.sh(HOSTILE).ok();
    ct.sh("test -b /dev/nvidia-caps/x").ok();
    assert_eq!(of_the_host(&lab), AS_MADE);
    assert_eq!(lab.container(102).sh("ls /dev/nvidia-caps").ok().stdout, "nvidia-cap2\n");
    lab.run([PROGRAM, "doctor"]).says_not("/dev/nvidia-caps");
    // What it made is gone with its own /dev.
    lab.run(["pct", "reboot", "101"]).ok();
    assert_eq!(ct.sh("ls /dev/nvidia-caps").ok().stdout, "nvidia-cap2\n");
    assert_eq!(ct.open_node(MONITOR), Err(Errno::ENXIO));
}

#[test]
fn a_container_of_an_older_version_is_told_and_its_next_start_has_the_node_alone() {
    let Some(lab) = of_0_2_0(Rootfs::Busybox.privileged()) else { return };
    let ct = lab.container(101);
    let before = ct.init_pid();
    // It lacks nothing.
    let row = lab.run([PROGRAM, "status", "101"]).ok();
    assert!(
        row.stdout.lines().any(|line| line.starts_with("101") && line.trim_end().ends_with("ok")),
        "{row}"
    );
    lab.run([PROGRAM, "doctor", "101"])
        .ok()
        .says("the privileged container has the host's own directory /dev/nvidia-caps mounted")
        .says("fix: pct reboot 101")
        .says("the running container has its devices")
        .says_not("out of date");
    // What it may do there, and how that is told.
    ct.sh("mknod -m 666 /dev/nvidia-caps/x b 8 0; ln -s /etc/passwd '/dev/nvidia-caps/a;b'").ok();
    lab.run([PROGRAM, "doctor", "101"])
        .code(1)
        .says("not the NVIDIA driver's, in /dev/nvidia-caps: a;b (a symlink), x (block device 8:0)")
        .says("fix: rm -r '/dev/nvidia-caps/a;b' /dev/nvidia-caps/x");
    lab.sh("rm -r '/dev/nvidia-caps/a;b' /dev/nvidia-caps/x").ok();
    // By hand the conf is corrected, and nothing restarted.
    lab.run([PROGRAM, "plan", "101"]).code(10).says_not("restart");
    lab.run([PROGRAM, "101"])
        .ok()
        .says("removed /dev/nvidia-caps")
        .says("added /dev/nvidia-caps/nvidia-cap2");
    assert_eq!(ct.init_pid(), before);
    let conf = lab.conf(101);
    assert!(conf.contains(&format!("{PAIR}{THEIRS}")) && !conf.contains("create=dir"), "{conf}");
    lab.run([PROGRAM, "plan", "101"]).ok();
    lab.run([PROGRAM, "apply", "101"]).ok().says("nothing to change").says_not("WARNING");
    lab.run([PROGRAM, "doctor", "101"]).ok().says("fix: pct reboot 101");
    lab.run(["pct", "reboot", "101"]).ok().says_not("WARNING");
    lab.run([PROGRAM, "doctor", "101"]).ok().says_not("/dev/nvidia-caps");
    ct.sh(HOSTILE).ok();
    assert_eq!(of_the_host(&lab), AS_MADE);
    assert_eq!(lab.conf(101), conf);
}

#[test]
fn a_start_apply_and_a_conf_of_a_snapshot_replace_the_directory() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    older(&lab);
    let old = lab.conf(101);
    lab.run(["pct", "snapshot", "101", "before"]).ok();
    let right = |how: &str| {
        let conf = lab.conf(101);
        let main = conf.split("\n[").next().unwrap();
        assert!(main.contains(&format!("{PAIR}{THEIRS}")) && !main.contains("create=dir"), "{how}: {conf}");
        assert_eq!(main.matches("lxc.").count(), old.matches("lxc.").count(), "{how}: {conf}");
    };
    for how in ["upgrade", "rollback"] {
        if how == "rollback" {
            lab.run(["pct", "stop", "101"]).ok();
            lab.run(["pct", "rollback", "101", "before"]).ok();
            assert!(lab.conf(101).split("\n[").next().unwrap().contains(DIRECTORY));
        }
        lab.run(["pct", "start", "101"])
            .ok()
            .says("removed /dev/nvidia-caps (c 510:2): the host's own directory")
            .says_not("WARNING");
        right(how);
        let ct = lab.container(101);
        // The same start has it.
        assert_eq!(ct.open_node(MONITOR), Err(Errno::ENXIO));
        assert_eq!(ct.sh("ls /dev/nvidia-caps").ok().stdout, "nvidia-cap2\n");
    }
    // While it runs, with settings that cannot be read too.
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replacen(PAIR, DIRECTORY, 1));
    lab.run([PROGRAM, "apply", "101"]).ok().says("removed /dev/nvidia-caps").says_not("WARNING");
    right("apply");
    lab.run(["pct", "stop", "101"]).ok();
    let broken =
        lab.conf(101).replacen(PAIR, DIRECTORY, 1).replace("GPU_ASSIGNMENT=0", "GPU_ASSIGNMENT=0,,x");
    lab.write("/etc/pve/lxc/101.conf", broken);
    lab.run(["pct", "start", "101"]).ok();
    right("settings that cannot be read");
}

#[test]
fn detach_takes_the_directory_of_an_older_version_out_of_the_conf() {
    for runs in [false, true] {
        let lab = if runs {
            of_0_2_0(Rootfs::Busybox.privileged())
        } else {
            attached(Rootfs::Busybox.privileged())
        };
        let Some(lab) = lab else { return };
        if !runs {
            lab.run(["pct", "start", "101"]).ok();
            lab.run(["pct", "stop", "101"]).ok();
            older(&lab);
        }
        if runs {
            let out = lab.run([PROGRAM, "detach", "101", "--live"]).ok();
            out.says("take away /dev/nvidia-caps").says("removed /dev/nvidia-caps").says_not("next start");
            assert!(!lab.container(101).exists("/dev/nvidia-caps"));
            assert_eq!(of_the_host(&lab), AS_MADE);
        } else {
            lab.run([PROGRAM, "detach", "101"]).ok().says("removed /dev/nvidia-caps");
        }
        let conf = lab.conf(101);
        assert!(!conf.contains("nvidia") && !conf.contains("510:2") && conf.contains(THEIRS), "{conf}");
    }
}

/// The driver may keep the monitor to root: nobody's GPU.
#[test]
fn an_unprivileged_container_is_told_nothing_of_a_monitor_that_it_may_not_open() {
    let Some(lab) = attached(Rootfs::Busybox.unprivileged()) else { return };
    lab.sh(&format!("chmod 400 {MONITOR}")).ok();
    lab.run(["pct", "start", "101"]).ok().says_not("WARNING");
    let ct = lab.container(101);
    assert_eq!(ct.open_node(MONITOR), Err(Errno::EACCES));
    let before = ct.init_pid();
    for call in [&["doctor", "101"][..], &["101"], &["plan", "101"], &["apply", "101"], &["status", "101"]] {
        lab.run([&[PROGRAM], call].concat())
            .ok()
            .says_not("WARNING")
            .says_not("warning  ")
            .says_not("may not open");
    }
    assert_eq!(ct.init_pid(), before);
    assert_eq!(ct.sh("mknod /dev/nvidia-caps/x b 8 0").exit(), Some(1));

    // Nor of the directory, in which its root is nobody.
    let Some(lab) = of_0_2_0(Rootfs::Busybox.unprivileged()) else { return };
    assert_ne!(lab.container(101).sh("mknod /dev/nvidia-caps/x c 510 9").exit(), Some(0));
    lab.run([PROGRAM, "doctor", "101"]).ok().says_not("warning  ").says_not("host's own");
    let before = lab.container(101).init_pid();
    lab.run([PROGRAM, "101"]).ok().says_not("WARNING");
    assert_eq!(lab.container(101).init_pid(), before);
}

/// What an older container left there is followed by nobody.
#[test]
fn a_link_in_the_place_of_a_capability_node_is_given_to_no_container() {
    let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
    lab.sh(&format!(
        "rm {MONITOR} && echo secret >/root/secret && chmod 600 /root/secret && ln -s /root/secret {MONITOR}"
    ))
    .ok();
    lab.run(["pct", "start", "101"])
        .ok()
        .says("/dev/nvidia-caps/nvidia-cap2 is a symlink, not a device: left out")
        .says_not("WARNING");
    let ct = lab.container(101);
    assert!(!ct.exists(MONITOR) && !lab.conf(101).contains("nvidia-caps"), "{}", lab.conf(101));
    lab.run([PROGRAM, "prepare"]).ok();
    assert_eq!(lab.sh("stat -c '%a %u' /root/secret").ok().stdout, "600 0\n");
    lab.run([PROGRAM, "doctor", "101"])
        .code(1)
        .says("in /dev/nvidia-caps: nvidia-cap2 (a symlink)")
        .says("fix: rm -r /dev/nvidia-caps/nvidia-cap2");
    lab.sh(&format!("rm -r {MONITOR}")).ok();
    // A MIG instance without its node is a fault.
    let mig = "/run/lab/nvidia/proc-driver/nvidia/capabilities/gpu0/mig/gi1";
    for (directory, minor) in [("", 12), ("/ci0", 13)] {
        let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
        lab.write(format!("{mig}{directory}/access"), text);
    }
    lab.sh("ln -s /root/secret /dev/nvidia-caps/nvidia-cap12").ok();
    lab.run([PROGRAM, "attach", "101", "--gpus", "0:1/0"])
        .says("rm /dev/nvidia-caps/nvidia-cap12 && phoenix-nvidia prepare");
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("GPU_ASSIGNMENT=0", "GPU_ASSIGNMENT=0:1/0"));
    lab.run(["pct", "reboot", "101"]).says("/dev/nvidia-caps/nvidia-cap12: is a symlink, not a device");
    assert!(!ct.exists("/dev/nvidia-caps/nvidia-cap12"));
    assert_eq!(lab.sh("stat -c '%a %u' /root/secret").ok().stdout, "600 0\n");
    lab.run([PROGRAM, "doctor", "101"]).code(1).says("rm -r /dev/nvidia-caps/nvidia-cap12");
}

#[test]
fn a_dev_line_of_the_users_passes_the_node_and_another_one_stands_beside_ours() {
    for (line, has) in [
        ("dev0: /dev/nvidia-caps/nvidia-cap2\n", "nvidia-cap2\n"),
        ("dev0: /dev/nvidia-caps/nvidia-cap1\n", "nvidia-cap1\nnvidia-cap2\n"),
    ] {
        let Some(lab) = attached(Rootfs::Busybox.privileged()) else { return };
        lab.write("/etc/pve/lxc/101.conf", format!("{line}{}", lab.conf(101)));
        lab.run(["pct", "start", "101"]).ok().says_not("WARNING");
        assert_eq!(lab.container(101).sh("ls /dev/nvidia-caps").ok().stdout, has);
        assert_eq!(lab.conf(101).contains(PAIR), line.contains("cap1"));
        assert_eq!(lab.container(101).open_node(MONITOR), Err(Errno::ENXIO));
        lab.run([PROGRAM, "doctor", "101"]).ok().says_not("/dev/nvidia-caps");
    }
}
