//! What the lab's pct can do beyond what was recorded.
use std::time::Duration;

use phoenix_lab::{Lab, Rootfs};

#[test]
fn files_go_in_and_out_of_a_running_container_only() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.unprivileged());
    lab.write("/srv/from", "content\n");
    lab.run(["pct", "push", "101", "/srv/from", "/root/to"])
        .code(255)
        .says("only push files to a running CT");
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "push", "101", "/srv/from", "/root/to", "--perms", "755"]).ok();
    assert_eq!(ct.exec(["stat", "-c", "%a %u", "/root/to"]).ok().stdout, "755 0\n");
    lab.run(["pct", "pull", "101", "/root/to", "/srv/back"]).ok();
    assert_eq!(lab.read("/srv/back"), "content\n");
    lab.command("pct")
        .args(["exec", "101", "--", "sh", "-c", "cat >/root/in; exit 5"])
        .stdin("piped")
        .run()
        .code(5);
    assert_eq!(ct.read("/root/in"), "piped");
}

#[test]
fn a_destroyed_container_is_gone_and_its_number_can_be_used_again() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    ct.write("/root/mine", "old");
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "destroy", "101"]).code(255).says("CT 101 is running");
    lab.run(["pct", "destroy", "101", "--force", "1"]).ok();
    lab.run(["pct", "status", "101"]).code(2);
    let ct = lab.create(101, Rootfs::Busybox.unprivileged());
    assert!(!ct.exists("/root/mine"));
    lab.run(["pct", "start", "101"]).ok();
}

#[test]
fn a_template_does_not_start_and_its_clone_does() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.create(101, Rootfs::Busybox.privileged()).write("/root/mine", "copied");
    lab.run(["pct", "template", "101"]).ok();
    lab.run(["pct", "start", "101"]).code(255).says("you can't start a CT if it's a template");
    lab.run(["pct", "clone", "101", "102"]).ok();
    lab.run(["pct", "start", "102"]).ok();
    assert_eq!(lab.container(102).read("/root/mine"), "copied");
}

#[test]
fn a_rollback_brings_the_lines_and_files_of_then_back() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    ct.write("/root/mine", "then");
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.run(["pct", "snapshot", "101", "before"]).ok();
    let snapshot = lab.conf(101);
    let (main, section) = snapshot.split_once("\n[before]\n").unwrap_or_else(|| panic!("{snapshot}"));
    assert!(main.contains("parent: before") && section.contains("snaptime: "), "{snapshot}");
    lab.write("/etc/pve/lxc/101.conf", snapshot.replacen("ASSIGNMENT=0", "ASSIGNMENT=1", 1));
    ct.write("/root/mine", "later");
    ct.write("/root/more", "later");
    lab.run(["pct", "rollback", "101", "before"]).ok();
    assert_eq!(ct.read("/root/mine"), "then");
    assert!(!ct.exists("/root/more"));
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(ct.sh("cat /root/mine; ls /root").ok().stdout, "thenmine\n");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "config", "101"]).ok().says("GPU_ASSIGNMENT=0").says_not("GPU_ASSIGNMENT=1");
    lab.run(["pct", "delsnapshot", "101", "before"]).ok();
    assert!(!lab.conf(101).contains("before"));
}

#[test]
fn what_a_running_container_can_t_take_waits_for_its_next_start() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "set", "101", "--hostname", "new", "--memory", "300"]).ok();
    assert!(
        lab.conf(101).contains("memory: 300") && lab.conf(101).contains("\n[pve:pending]\nhostname: new\n")
    );
    lab.run(["pct", "pending", "101"]).ok().says("cur hostname: ct101\nnew hostname: new\n");
    lab.run(["pct", "reboot", "101"]).ok();
    assert!(!lab.conf(101).contains("pending"));
    lab.container(101).exec(["hostname"]).ok().says("new");
}

#[test]
fn a_container_of_another_node_is_not_here() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.sh("mv /etc/pve/nodes/pve1/lxc/101.conf /etc/pve/nodes/pve2/lxc/").ok();
    for call in ["status", "config", "start"] {
        lab.run(["pct", call, "101"])
            .code(2)
            .says("Configuration file 'nodes/pve1/lxc/101.conf' does not exist");
    }
}

#[test]
fn a_shutdown_that_is_not_heard_ends_with_its_time() {
    let Some(lab) = Lab::builder().start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    // Takes the signal, and does nothing about it.
    ct.files().program("/sbin/init", "#!/bin/sh\ntrap : PWR\nwhile :; do sleep 1; done\n");
    lab.run(["pct", "start", "101"]).ok();
    let asked = lab.run(["pct", "shutdown", "101", "--timeout", "1"]).code(255);
    assert!(ct.running(), "{asked}");
    lab.run(["pct", "shutdown", "101", "--timeout", "1", "--forceStop", "1"]).ok();
    assert!(!ct.running());
}

#[test]
fn calls_are_counted_and_can_take_as_long_as_perl() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    let before = lab.calls().len();
    lab.perl(Duration::from_millis(300));
    assert!(lab.run(["pct", "status", "101"]).ok().took >= Duration::from_millis(300));
    assert_eq!(lab.calls()[before..], ["status 101"]);
}
