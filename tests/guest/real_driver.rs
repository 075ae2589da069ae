//! Debian's real driver packages as the host's: what is taken of them is NVIDIA's, and the real nvidia-smi in a container
//! loads the real library.
// apt fetches the packages, within a time limit; helpers of a test may panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{lab, node, setting};

const PACKAGES: &str =
    "nvidia-smi libnvidia-ml1 libcuda1 libnvidia-ptxjitcompiler1 libnvidia-cfg1 nvidia-opencl-icd";

/// The packages of a Debian release, unpacked, and the driver's version; `None` where the archive cannot be reached (the
/// reason has been printed).
fn unpacked(suite: &str) -> Option<(String, PathBuf)> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-driver-{suite}"));
    let script = r#"
        set -e
        mkdir -p "$1/lists/partial" "$1/root" && cd "$1"
        [ -e done ] && exit 0
        key=/usr/share/keyrings/debian-archive-keyring.gpg packages=$4
        echo "deb [signed-by=$key] $3 $2 non-free" > source.list
        set -- -o Dir::Etc::sourcelist="$1/source.list" -o Dir::Etc::sourceparts=- \
            -o Dir::State::lists="$1/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
            -o APT::Sandbox::User=root -o APT::Architecture=amd64 -o Acquire::Retries=1 -o Acquire::http::Timeout=20
        timeout 120 apt-get -qq "$@" update
        timeout 200 apt-get -qq "$@" download $packages
        for deb in *.deb; do dpkg -x "$deb" root; done
        rm -f *.deb
        touch done
    "#;
    let mirror = phoenix_lab::rootfs::mirror().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&home).arg(suite).arg(mirror).arg(PACKAGES);
    let output = command.output().unwrap();
    let libraries = home.join("root/usr/lib/x86_64-linux-gnu");
    let found = Command::new("find")
        .arg(&libraries)
        .args(["-name", "libcuda.so.*.*", "-type", "f"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let Some(version) =
        text.lines().next().and_then(|line| line.rsplit_once("libcuda.so.")).map(|(_, v)| v.to_owned())
    else {
        let said = String::from_utf8_lossy(&output.stderr);
        phoenix_lab::skipped(&format!(
            "the driver of {suite} is not to be had from Debian's archive: {}",
            said.trim()
        ));
        return None;
    };
    Some((version, home.join("root")))
}

fn as_the_hosts(suite: &str) {
    let Some((version, root)) = unpacked(suite) else { return };
    let Some(lab) = lab(Lab::builder().gpus(1).driver(&version)) else { return };
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nDRIVER_MODE=inject");
    // As dpkg and its alternatives leave them.
    lab.sh(&format!(
        "cp -a {}/usr/lib/. /usr/lib/ && cp -a {}/etc/. /etc/; ln -sf ../lib/nvidia/current/nvidia-smi /usr/bin/nvidia-smi",
        root.display(),
        root.display()
    ))
    .ok();
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
