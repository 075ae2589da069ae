//! A driver that apt installed: right where its version is the kernel's, and
//! never mixed with a runfile's.
#![allow(clippy::unwrap_used)] // a failing helper fails its test
use crate::support;

use phoenix_lab::repo::{Package, Repo, catalogue};
use phoenix_lab::{Lab, Rootfs};
use support::{lab, node, start};

const V: &str = "535.261.03";
const NEWER: &str = "550.163.01";
const NAMES: &str = "libnvidia-ml1 nvidia-installer-cleanup nvidia-smi libcuda1";

/// A host with driver 535.261.03; a container with these packages, attached.
fn container(packages: Vec<Package>, lines: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver(V).proprietary())?;
    node(&lab, &format!("AFTER_INSTALL=none\nNETWORK_TIMEOUT=5\nUTILITY_PACKAGES=none\n{lines}"));
    lab.web().standard(&[V, NEWER]);
    let ct = lab.create(101, Rootfs::Debian12.unprivileged());
    lab.web().use_distribution(&ct);
    lab.run(["pct", "start", "101"]).ok();
    install(&lab, packages);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    Some(lab)
}

fn install(lab: &Lab, packages: Vec<Package>) {
    let ct = lab.container(101);
    for package in packages {
        let file = format!("/root/debs/{}.deb", package.name());
        ct.write(file, std::fs::read(package.build().unwrap()).unwrap());
    }
    ct.sh("dpkg -i /root/debs/*.deb").ok();
}

/// The distribution has Debian's packages of the newer driver.
fn offer_newer(lab: &Lab) {
    let repo = Repo::dists("bookworm", "main").packages(catalogue::debian_driver(NEWER));
    lab.web().repo("/debian", &repo.key_file("archive.asc"));
    let ct = lab.container(101);
    lab.web().use_distribution(&ct);
    ct.sh("apt-get update").ok();
}

fn runfiles(lab: &Lab) -> usize {
    lab.web().requests().ending(".run").len()
}

#[test]
fn a_driver_of_debians_packages_in_the_kernels_version_is_right_and_left_to_apt() {
    let Some(lab) = container(catalogue::debian_driver(V), "CUDA_PACKAGES=none") else { return };
    start(&lab).ok().says("driver 535.261.03: installed and right").says_not("ERROR").says_not("WARNING");
    lab.run(["phoenix-nvidia", "101"]).ok().says("verify: 535.261.03 works");
    lab.run(["phoenix-nvidia", "status", "101"]).ok().says(V);
    assert_eq!(runfiles(&lab), 0);
    // Only its next upgrade can break it.
    let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]).ok();
    let doctor = doctor.says("driver 535.261.03 from packages, as in the kernel: apt upgrades it");
    let hold = format!("pct exec 101 -- apt-mark hold {NAMES}");
    doctor.says(&hold);
    lab.sh(&hold).ok();
    lab.run(["phoenix-nvidia", "doctor", "101"]).ok().says_not("apt-mark");
    // Only apt removes what apt installed.
    let remove = format!("pct exec 101 -- apt-get purge {NAMES}");
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says(&remove).says_not("nvidia-uninstall");
}

#[test]
fn cuda_is_installed_beside_apts_driver_and_apt_may_still_upgrade_that() {
    let Some(lab) = container(catalogue::debian_driver(V), "CUDA_PACKAGES=cuda-toolkit-12-2") else { return };
    start(&lab).ok().says("cuda: installed cuda-toolkit-12-2").says_not("driver: installed");
    assert!(!lab.container(101).exists("/etc/apt/preferences.d/phoenix-nvidia"));
    assert_eq!(runfiles(&lab), 0);
    // That of NVIDIA's repository, which has just come.
    let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]).ok();
    doctor.says("apt's next upgrade brings 580.126.09-1");
}

#[test]
fn after_an_upgrade_of_the_host_both_ways_are_named_and_both_work() {
    let Some(lab) = container(catalogue::debian_driver(V), "CUDA_PACKAGES=none") else { return };
    lab.nvidia().set_driver(NEWER);
    // No such packages: only the other way.
    let remove = format!("pct exec 101 -- apt-get purge {NAMES} && phoenix-nvidia 101");
    let refused = start(&lab).ok().says("driver 535.261.03 from packages").says(&format!("fix: {remove}"));
    refused.says_not("apt can upgrade it").says("exit code 5");
    offer_newer(&lab);
    lab.container(101).sh("apt-mark hold libcuda1").ok();
    let version = format!("{NEWER}-1~deb12u1");
    let upgrade = format!(
        "pct exec 101 -- apt-get install --allow-change-held-packages libnvidia-ml1={version} \
         nvidia-smi={version} libcuda1={version}"
    );
    let hand = lab.run(["phoenix-nvidia", "101"]).code(5);
    hand.says(&format!("fix: {upgrade}")).says(&format!("apt can upgrade it, or remove it: {remove}"));
    lab.run(["phoenix-nvidia", "doctor", "101"]).code(1).says(&format!("fix: {upgrade}")).says(&remove);
    lab.run(["phoenix-nvidia", "plan", "101"]).code(5).says(&upgrade);
    assert_eq!(runfiles(&lab), 0);
    lab.sh(&upgrade.replace("install ", "install -y ")).ok();
    lab.run(["phoenix-nvidia", "101"]).ok().says("verify: 550.163.01 works");
    // The other way.
    lab.nvidia().set_driver(V);
    let remove = remove.replace("purge ", "purge -y --allow-change-held-packages ");
    lab.sh(&remove).ok().says("driver: installed 535.261.03");
}
