//! The real nvidia-smi, from Debian's archive, in a container without a GPU:
//! what it says is understood, and the reason named.
// apt fetches the package, within a time limit; helpers of a test may panic and print.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stdout)]
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{lab, node, setting};

/// nvidia-smi and its library of a Debian release, unpacked; `None` where the
/// archive cannot be reached (the reason has been printed).
fn unpacked(suite: &str) -> Option<(String, PathBuf, PathBuf)> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("real-smi-{suite}"));
    let script = r#"
        set -e
        mkdir -p "$1/lists/partial" "$1/root" && cd "$1"
        [ -e done ] && exit 0
        key=/usr/share/keyrings/debian-archive-keyring.gpg
        echo "deb [signed-by=$key] $3 $2 non-free" > source.list
        set -- -o Dir::Etc::sourcelist="$1/source.list" -o Dir::Etc::sourceparts=- \
            -o Dir::State::lists="$1/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
            -o APT::Sandbox::User=root -o APT::Architecture=amd64 -o Acquire::Retries=1 -o Acquire::http::Timeout=20
        timeout 120 apt-get -qq "$@" update
        timeout 120 apt-get -qq "$@" download nvidia-smi libnvidia-ml1
        for deb in *.deb; do dpkg -x "$deb" root; done
        touch done
    "#;
    let mirror = phoenix_lab::rootfs::mirror().unwrap();
    let output =
        Command::new("sh").args(["-c", script, "sh"]).arg(&home).arg(suite).arg(mirror).output().unwrap();
    let find = |name: &str| {
        let found =
            Command::new("find").arg(home.join("root/usr/lib")).args(["-name", name, "-type", "f"]).output();
        let text = String::from_utf8(found.ok()?.stdout).ok()?;
        text.lines().next().map(PathBuf::from)
    };
    let (Some(smi), Some(library)) = (find("nvidia-smi"), find("libnvidia-ml.so.*.*")) else {
        let said = String::from_utf8_lossy(&output.stderr);
        phoenix_lab::skipped(&format!(
            "nvidia-smi of {suite} is not to be had from Debian's archive: {}",
            said.trim()
        ));
        return None;
    };
    let name = library.file_name()?.to_str()?.to_owned();
    Some((name.trim_start_matches("libnvidia-ml.so.").to_owned(), smi, library))
}

fn without_a_gpu(suite: &str) {
    let Some((version, smi, library)) = unpacked(suite) else { return };
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
