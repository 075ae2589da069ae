//! Engines in containers that have nothing for them: no GPU, or no driver that could be.
use crate::support::{lab, node, start};

use phoenix_lab::{Lab, Rootfs};

const DRIVER: &str = "580.95.05";
const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";

/// NESTED=cdi for a whole node says nothing of a container without a GPU.
#[test]
fn where_no_gpu_is_given_nothing_of_the_container_is_changed() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(DRIVER)) else { return };
    lab.nvidia().user_space(DRIVER);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "none", "--inject", "--nested"]).ok();
    ct.files().program("/usr/bin/dockerd", "#!/bin/sh\necho 'Docker version 26.1.5, build 0'\n");
    let (toolkit, toml) =
        ("/etc/nvidia-container-runtime/config.toml", "[nvidia-container-cli]\n#no-cgroups = false\n");
    ct.write(toolkit, toml);
    start(&lab).ok().says("no GPU to describe").says_not("no-cgroups").says_not("WARNING");
    assert!(!ct.exists("/etc/cdi") && !ct.exists("/etc/docker/daemon.json"));
    assert_eq!(ct.read(toolkit), toml);
    // With one it is.
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab).ok().says("nvidia.com/gpu = 0, all").says("set no-cgroups = true").says("features.cdi set");
    assert_eq!(ct.read(toolkit), toml.replace("#no-cgroups = false", "no-cgroups = true"));
}

/// No command brings a driver there: what is told is the one that asks for none.
#[test]
fn where_no_driver_can_be_the_fix_is_to_ask_for_none() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(DRIVER)) else { return };
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    let ct = lab.create(101, Rootfs::Busybox.unprivileged());
    ct.write("/lib/ld-musl-x86_64.so.1", "");
    ct.write("/etc/os-release", "ID=chimera\nPRETTY_NAME=\"Chimera Linux\"\n");
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--nested"]).ok();
    let fix = "phoenix-nvidia attach 101 --no-nested";
    start(&lab).ok().says("no file of driver 580.95.05").says(&format!("fix: {fix}"));
    lab.run(["sh", "-c", fix]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab).ok().says_not("engines");
}
