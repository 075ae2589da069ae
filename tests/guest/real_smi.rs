//! The real nvidia-smi, from Debian's archive, in a container without a GPU:
//! what it says is understood, and the reason named.
// A helper of the tests may panic.
#![allow(clippy::unwrap_used)]
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use std::path::Path;
use support::real::driver;
use support::{lab, node, setting};

fn without_a_gpu(suite: &str) {
    let Some((version, root)) = driver(suite) else { return };
    let smi = root.join("usr/lib/nvidia/current/nvidia-smi");
    let library = root.join(format!("usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.{version}"));
    let Some(lab) = lab(Lab::builder().gpus(1).driver(&version)) else { return };
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nINSTALL=off");
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    let place = |path: &str, from: &Path| ct.files().program(path, std::fs::read(from).unwrap());
    place("/usr/bin/nvidia-smi", &smi);
    place(&format!("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{version}"), &library);
    ct.sh(&format!(
        "cd /usr/lib/x86_64-linux-gnu; ln -s libnvidia-ml.so.{version} libnvidia-ml.so.1
         : > libcuda.so.{version}; ln -s libcuda.so.{version} libcuda.so.1; ldconfig"
    ))
    .ok();
    ct.exec(["nvidia-smi", "-h"]).ok().says(&format!("-- v{version}"));
    ct.exec(["nvidia-smi", "--version"]).code(9);
    // The library says that it is right; nvidia-smi is asked by hand, and the
    // nodes tell that the container is not to blame.
    node(&lab, "INSTALL=on");
    let output = lab.run(["phoenix-nvidia", "101"]).code(5);
    output
        .says(&format!("driver {version}: installed and right"))
        .says("exit code 9, no kernel driver")
        .says("the kernel driver does not answer");
}

#[test]
fn branch_535_without_a_gpu() {
    without_a_gpu("bookworm");
}

#[test]
fn branch_550_without_a_gpu() {
    without_a_gpu("trixie");
}
