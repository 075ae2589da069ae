//! A number that is no container here: every verb says first whether it
//! exists, and where.

use phoenix_lab::{Lab, Output, Rootfs};

/// A node without a setting for GPUs; 105 is a container of node beta, 106 a
/// virtual machine there, 999 nothing.
fn lab() -> Option<Lab> {
    let lab = Lab::builder().gpus(1).start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.create(101, Rootfs::Busybox.privileged());
    lab.sh("mkdir -p /etc/pve/nodes/beta/lxc /etc/pve/nodes/beta/qemu-server").ok();
    lab.write("/etc/pve/nodes/beta/lxc/105.conf", "arch: amd64\n");
    lab.write("/etc/pve/nodes/beta/qemu-server/106.conf", "memory: 512\n");
    Some(lab)
}

/// Each verb for a container, as it is called.
const VERBS: [&str; 6] = ["", "plan ", "status ", "doctor ", "attach ", "detach "];

fn each(lab: &Lab, id: &str, check: impl Fn(&str, Output)) {
    for verb in VERBS {
        let call = format!("{verb}{id}");
        let out = lab.run(["phoenix-nvidia"].into_iter().chain(call.split(' '))).code(3);
        assert!(!out.stderr.contains("GPU_ASSIGNMENT") && !out.stderr.contains("lxc.environment"), "{out}");
        check(&call, out);
    }
}

#[test]
fn a_container_of_another_node_is_told_with_the_command_for_that_node() {
    let Some(lab) = lab() else { return };
    each(&lab, "105", |call, out| {
        out.says("container 105 is on node beta").says(&format!("ssh beta phoenix-nvidia {call}"));
    });
    let attach = ["attach", "101", "105", "--gpus", "0", "--cuda", "a b", "--chain"];
    lab.run([&["phoenix-nvidia"][..], &attach].concat())
        .code(3)
        .says("ssh beta phoenix-nvidia attach 105 --gpus 0 --cuda 'a b' --chain");
    assert!(!lab.conf(101).contains("GPU_ASSIGNMENT"));
}

#[test]
fn a_number_of_nothing_and_one_of_a_virtual_machine_are_told_as_such() {
    let Some(lab) = lab() else { return };
    each(&lab, "999", |_, out| drop(out.says("container 999 does not exist").says("pct list")));
    each(&lab, "106", |_, out| drop(out.says("106 is a virtual machine (on node beta), not a container")));
    // The number comes before the settings, and bad ones change nothing.
    lab.command("phoenix-nvidia").arg("999").env("GPU_ASSIGNMENT", "x").run().code(3);
}
