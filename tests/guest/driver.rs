//! The driver in real containers: right after one start, whatever was there.
use crate::support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::web::Fault;
use phoenix_lab::{Builder, Container, Lab, Rootfs, Spec};
use support::{lab, node, setting, start};

/// A lab with one GPU, and a container that has it and wants the driver alone.
fn wanting(builder: Builder, rootfs: Spec) -> Option<Lab> {
    let lab = lab(builder)?;
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    lab.create(101, rootfs);
    support::hooked(&lab);
    Some(lab)
}

fn one_gpu() -> Builder {
    Lab::builder().gpus(1).driver("580.95.05")
}

fn stop(lab: &Lab) {
    lab.run(["pct", "stop", "101"]).ok();
}

#[track_caller]
fn right(ct: &Container<'_>, version: &str) {
    ct.exec(["nvidia-smi", "--version"]).ok().says(&format!("NVIDIA-SMI version  : {version}"));
    ct.exec(["nvidia-smi"]).ok();
    nothing_left(ct);
}

/// Neither files of ours in the temporary directories, nor the mark.
#[track_caller]
fn nothing_left(ct: &Container<'_>) {
    nothing_of_ours_in_tmp(ct);
    assert!(!ct.exists("/var/lib/phoenix-nvidia/driver.installing"));
}

fn the_first_start_brings_the_driver(rootfs: Spec) {
    let Some(lab) = wanting(one_gpu(), rootfs) else { return };
    let path = lab.web().runfile(&Runfile::new("580.95.05"));
    let first = start(&lab).ok();
    first.says("driver: installed 580.95.05 in").says("verify: 580.95.05 works").says_not("WARNING");
    let ct = lab.container(101);
    right(&ct, "580.95.05");
    stop(&lab);
    start(&lab).ok().says("driver 580.95.05: installed and right").says_not("download");
    assert_eq!(lab.web().requests().of(&path).len(), 1);
}

#[test]
fn debian_12_has_its_driver_after_the_first_start() {
    the_first_start_brings_the_driver(Rootfs::Debian12.unprivileged());
}

#[test]
fn debian_12_privileged_has_its_driver_after_the_first_start() {
    the_first_start_brings_the_driver(Rootfs::Debian12.privileged());
}

#[test]
#[ignore = "make test-all: another release"]
fn debian_11_has_its_driver_after_the_first_start() {
    the_first_start_brings_the_driver(Rootfs::Debian11.unprivileged());
}

#[test]
#[ignore = "make test-all: another release"]
fn debian_13_has_its_driver_after_the_first_start() {
    the_first_start_brings_the_driver(Rootfs::Debian13.unprivileged());
}

#[test]
fn a_host_upgrade_is_followed_at_the_next_start() {
    let Some(lab) = wanting(Lab::builder().gpus(1).driver("580.76.05"), Rootfs::Debian12.unprivileged())
    else {
        return;
    };
    lab.web().runfile(&Runfile::new("580.76.05"));
    lab.web().runfile(&Runfile::new("580.95.05"));
    start(&lab).ok();
    stop(&lab);
    lab.nvidia().set_driver("580.95.05");
    start(&lab).ok().says("580.76.05 → 580.95.05");
    right(&lab.container(101), "580.95.05");
}

#[test]
fn an_installer_that_fails_in_any_way_is_found_out_and_the_next_start_repairs() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Debian12.unprivileged()) else { return };
    let flaws = [
        (Flaw::Fails, "exit code 1"),
        (Flaw::NothingInstalled, "exit code 0, but the driver in the container is not installed"),
        (Flaw::HalfInstalled, "SIGBUS"),
        (Flaw::Installs("580.76.05".into()), "but the driver in the container is version 580.76.05"),
    ];
    for (flaw, says) in flaws {
        lab.sh("rm -rf /var/cache/phoenix-nvidia");
        lab.web().runfile(&Runfile::new("580.95.05").flaw(flaw.clone()));
        let failed = start(&lab).ok();
        failed.says(says).says("exit code 5");
        nothing_of_ours_in_tmp(&lab.container(101));
        stop(&lab);
    }
    lab.sh("rm -rf /var/cache/phoenix-nvidia");
    lab.web().runfile(&Runfile::new("580.95.05"));
    start(&lab).ok();
    right(&lab.container(101), "580.95.05");
}

#[track_caller]
fn nothing_of_ours_in_tmp(ct: &Container<'_>) {
    ct.sh("{ ls -A /tmp; ls -A /var/tmp; } | grep -e phoenix -e installer").code(1);
}

#[test]
fn a_container_without_kmod_is_told_what_it_lacks() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new("580.95.05"));
    let ct = lab.container(101);
    node(&lab, "INSTALL=off");
    start(&lab).ok();
    ct.sh("dpkg --purge --force-depends kmod; rm -f /etc/apt/sources.list; apt-get clean").ok();
    stop(&lab);
    node(&lab, "INSTALL=on");
    // No distribution answers here: the message is what counts.
    start(&lab).ok().says("cannot install kmod").says("pct exec 101 -- apt-get install -y kmod");
}

#[test]
fn a_tmpfs_on_tmp_is_passed_over() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Debian12.privileged()) else { return };
    lab.web().runfile(&Runfile::new("580.95.05"));
    lab.append("/etc/pve/lxc/101.conf", "lxc.mount.entry: tmpfs tmp tmpfs rw,size=64m 0 0\n");
    start(&lab).ok().says("driver: installed");
    right(&lab.container(101), "580.95.05");
}

#[test]
fn a_driver_of_the_distributions_packages_is_refused_with_its_names() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new("580.95.05"));
    let ct = lab.container(101);
    ct.write("/var/lib/dpkg/info/libnvidia-ml1:amd64.list", "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1\n");
    start(&lab).ok().says("libnvidia-ml1:amd64").says("pct exec 101 -- apt-get purge libnvidia-ml1:amd64");
    assert_eq!(lab.web().requests().ending(".run").len(), 0);
}

#[test]
fn containers_that_cannot_have_a_driver_are_refused_up_front() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Busybox.unprivileged()) else { return };
    start(&lab).ok().says("cannot install a driver in container 101").says_not("ERROR");
    assert_eq!(lab.web().requests().ending(".run").len(), 0);
}

#[test]
fn musl_and_a_missing_shell_are_the_reasons_given() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Busybox.unprivileged()) else { return };
    let ct = lab.container(101);
    ct.write("/lib/ld-musl-x86_64.so.1", "");
    ct.write("/etc/os-release", "ID=alpine\nPRETTY_NAME=\"Alpine Linux v3.22\"\n");
    start(&lab).ok().says("Alpine Linux v3.22 uses musl").says_not("exit code");
    stop(&lab);
    lab.sh("rm /var/lib/vz/images/101/*.subvol/usr/bin/sh").ok();
    start(&lab).ok().says("cannot run /bin/sh").says_not("ERROR");
}

#[test]
fn a_version_that_is_not_the_kernels_is_refused_before_any_download() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Debian12.unprivileged()) else { return };
    setting(&lab, 101, "NVIDIA_DRIVER_VERSION=580.76.05");
    start(&lab).ok().says("580.76.05").says("580.95.05").says("exit code 5");
    assert_eq!(lab.web().requests().ending(".run").len(), 0);
}

#[test]
fn a_server_that_answers_404_stalls_or_cuts_leaves_the_container_as_it_was() {
    let Some(lab) = wanting(one_gpu(), Rootfs::Debian12.unprivileged()) else { return };
    lab.web();
    start(&lab).ok().says("404").says("exit code 5");
    nothing_of_ours_in_tmp(&lab.container(101));
    stop(&lab);
    let path = lab.web().runfile(&Runfile::new("580.95.05"));
    lab.web().fail(&path, Fault::LoginPage);
    start(&lab).ok().says("a web page").says("exit code 5");
    nothing_of_ours_in_tmp(&lab.container(101));
    stop(&lab);
    lab.web().heal();
    start(&lab).ok();
    right(&lab.container(101), "580.95.05");
}
