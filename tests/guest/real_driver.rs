//! Debian's real driver packages as the host's: what is taken of them is NVIDIA's, and the real nvidia-smi in a container
//! loads the real library.
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use support::real::{driver, give};
use support::{lab, node, setting};

fn as_the_hosts(suite: &str) {
    let Some((version, root)) = driver(suite) else { return };
    let Some(lab) = lab(Lab::builder().gpus(1).driver(&version)) else { return };
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nDRIVER_MODE=inject");
    give(&lab, &root);
    let ct = lab.create(101, Rootfs::Debian12.unprivileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.run(["pct", "start", "101"]).ok().says("the host's, mounted").says_not("WARNING");
    let tree = format!("/var/lib/phoenix-nvidia/driver/{version}");
    let files = lab.files().list(&tree);
    for name in ["libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so", "libnvidia-opencl.so"] {
        assert!(files.contains(&format!("{name}.{version}")), "{files:?}");
    }
    for link in [
        "libcuda.so",
        "libcuda.so.1",
        "libnvidia-ml.so.1",
        "libnvidia-ptxjitcompiler.so.1",
        "libnvidia-opencl.so.1",
    ] {
        assert!(files.contains(&link.to_owned()), "{link}: {files:?}");
    }
    assert!(
        !files.iter().any(|name| name.starts_with("libOpenCL") || name.starts_with("libGL.")),
        "{files:?}"
    );
    assert!(
        lab.read(format!("{tree}/.phoenix-nvidia")).lines().any(|line| line.starts_with("glibc 2.")),
        "{files:?}"
    );
    // 12 is "library not found", 9 "no kernel driver".
    ct.exec(["nvidia-smi"]).code(9);
    ct.exec(["nvidia-smi", "-h"]).ok().says(&format!("-- v{version}"));
}

#[test]
fn debians_550_is_what_a_container_has() {
    as_the_hosts("trixie");
}

#[test]
#[ignore = "make test-all: another release"]
fn debians_535_is_what_a_container_has() {
    as_the_hosts("bookworm");
}
