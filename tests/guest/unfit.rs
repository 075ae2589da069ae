//! Containers in which no driver can be: their devices, one warning at a start,
//! and nothing run or copied that cannot work.
use crate::support;

use phoenix_lab::{Container, Errno, Lab, Output, Rootfs, Spec};
use std::time::Duration;
use support::{lab, node};

const V: &str = "580.95.05";
const FIX: &str = "fix: INSTALL=off phoenix-nvidia attach 101";

/// A container that is made so, attached; and what attach said.
fn attached(spec: Spec, change: impl FnOnce(&Lab, &Container<'_>)) -> Option<(Lab, Output)> {
    let lab = lab(Lab::builder().gpus(1).driver(V))?;
    lab.replace_program("/usr/sbin/modinfo", format!("#!/bin/sh\necho {V}\n"));
    node(&lab, "AFTER_INSTALL=none\nNETWORK_TIMEOUT=5");
    lab.web().standard(&[V]);
    let ct = lab.create(101, spec);
    change(&lab, &ct);
    let said = lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    Some((lab, said))
}

fn start(lab: &Lab) -> Output {
    lab.command("pct").args(["start", "101"]).timeout(Duration::from_secs(100)).run()
}

fn warnings(output: &Output) -> usize {
    let lines = output.stdout.lines().chain(output.stderr.lines());
    lines.filter(|line| line.contains("WARNING") && !line.contains("fix: ")).count()
}

/// Every verb says the same of it, and none of them that something failed that can
/// be repeated.
#[track_caller]
fn devices_only(lab: &Lab, why: &str) {
    let words = format!("cannot install a driver in container 101: {why}");
    for _ in 0..2 {
        let first = start(lab).ok().says(&words).says("devices only").says(FIX);
        let first = first.says_not("ERROR").says_not("tries again").says_not("exit code").says_not("failed");
        assert_eq!(warnings(&first), 1, "{first}");
        lab.run(["phoenix-nvidia", "status", "101"]).ok().says_not("failure");
        let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]).ok();
        let doctor = doctor.says("no driver can work in the container").says(why).says(FIX);
        doctor.says_not("Debian or Ubuntu").says_not("to do:").says_not("fix: phoenix-nvidia 101");
        lab.run(["phoenix-nvidia", "plan", "101"]).code(5).says(&words).says(FIX).says_not("install driver");
        // Asked for by hand it is the requirements' code.
        lab.run(["phoenix-nvidia", "101"]).code(5).says(&words).says(FIX).says_not("completed");
        lab.run(["phoenix-nvidia", "status", "101"]).ok().says_not("failure");
        assert!(lab.container(101).running());
        lab.run(["pct", "stop", "101"]).ok();
    }
    assert_eq!(lab.web().requests().ending(".run").len(), 0);
    assert!(!lab.container(101).exists("/var/lib/phoenix-nvidia"));
    lab.sh(&FIX["fix: ".len()..]).ok();
    start(lab).ok().says_not("WARNING");
    lab.run(["phoenix-nvidia", "doctor", "101"]).ok().says_not("no driver can work");
    lab.run(["phoenix-nvidia", "101"]).ok();
}

fn opens(lab: &Lab) {
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn an_application_container_gets_its_devices_and_is_told_beforehand() {
    let application = |lab: &Lab, ct: &Container<'_>| {
        ct.files().remove("/usr/sbin/init");
        lab.append("/etc/pve/lxc/101.conf", "lxc.init.cmd: /usr/bin/sleep 100000\n");
    };
    let Some((lab, said)) = attached(Rootfs::Debian12.unprivileged(), application) else { return };
    let why = "it has no init (an application container: lxc.init.cmd: /usr/bin/sleep 100000)";
    said.says(why).says("GPUs without a driver").says(FIX).says_not("CUDA");
    devices_only(&lab, why);
    opens(&lab);
}

#[test]
fn an_oci_image_is_one_whatever_else_is_in_it() {
    let oci = |lab: &Lab, _: &Container<'_>| {
        let conf = lab.conf(101).replace("hostname: ", "entrypoint: /usr/bin/sleep 100000\nhostname: ");
        lab.write("/etc/pve/lxc/101.conf", conf);
    };
    let Some((lab, said)) = attached(Rootfs::Debian12.privileged(), oci) else { return };
    let why = "it has no init (an application container: entrypoint: /usr/bin/sleep 100000)";
    said.says(why).says(FIX);
    devices_only(&lab, why);
    opens(&lab);
}

#[test]
fn an_init_by_another_path_is_no_application() {
    let own = |lab: &Lab, _: &Container<'_>| {
        lab.append("/etc/pve/lxc/101.conf", "lxc.init.cmd: /usr/sbin/init --log\n");
        node(lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    };
    let Some((lab, said)) = attached(Rootfs::Debian12.unprivileged(), own) else { return };
    said.says_not("without a driver");
    start(&lab).ok().says("driver: installed 580.95.05").says_not("WARNING");
}

#[test]
fn alpine_gets_its_devices_as_attach_says() {
    let alpine = |lab: &Lab, ct: &Container<'_>| {
        ct.write("/lib/ld-musl-x86_64.so.1", "");
        ct.write("/etc/os-release", "ID=alpine\nPRETTY_NAME=\"Alpine Linux v3.22\"\n");
        lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("ostype: unmanaged", "ostype: alpine"));
    };
    let Some((lab, said)) = attached(Rootfs::Busybox.unprivileged(), alpine) else { return };
    said.says("Alpine Linux has no glibc, which NVIDIA's driver needs: GPUs without a driver").says(FIX);
    lab.run(["phoenix-nvidia", "plan", "101"]).code(5).says("Alpine Linux has no glibc").says(FIX);
    lab.run(["phoenix-nvidia", "status", "101"]).ok().says("warning").says_not("failure");
    devices_only(&lab, "Alpine Linux v3.22 uses musl, and NVIDIA's libraries need glibc");
    opens(&lab);
}

#[test]
fn musl_is_known_by_the_shell_where_both_loaders_are_there() {
    let void = |_: &Lab, ct: &Container<'_>| {
        ct.write("/lib/ld-musl-x86_64.so.1", "");
        ct.write("/lib64/ld-linux-x86-64.so.2", "");
        ct.files().append("/usr/lib/lab/busybox", "\n/lib/ld-musl-x86_64.so.1\n");
        ct.write("/etc/os-release", "ID=void\nPRETTY_NAME=\"Void Linux\"\n");
    };
    let Some((lab, said)) = attached(Rootfs::Busybox.unprivileged(), void) else { return };
    said.says_not("without a driver");
    devices_only(&lab, "Void Linux uses musl, and NVIDIA's libraries need glibc");
    opens(&lab);
}

#[test]
fn what_a_running_container_shows_is_told_by_attach() {
    let running = |lab: &Lab, ct: &Container<'_>| {
        ct.write("/lib/ld-musl-x86_64.so.1", "");
        ct.write("/etc/os-release", "ID=chimera\nPRETTY_NAME=\"Chimera Linux\"\n");
        lab.run(["pct", "start", "101"]).ok();
    };
    let Some((lab, said)) = attached(Rootfs::Busybox.unprivileged(), running) else { return };
    let why = "Chimera Linux uses musl, and NVIDIA's libraries need glibc";
    said.says(&format!("{why}: GPUs without a driver")).says(FIX);
    // It is restarted for its devices all the same.
    lab.run(["phoenix-nvidia", "101"]).code(5).says(why).says(FIX);
    opens(&lab);
    // Who sets it has it at once.
    lab.run(["sh", "-c", &FIX["fix: ".len()..]]).ok().says_not("without a driver");
    lab.run(["phoenix-nvidia", "101"]).ok();
}

#[test]
fn musl_beside_glibc_is_a_package() {
    let both = |lab: &Lab, ct: &Container<'_>| {
        ct.write("/lib/ld-musl-x86_64.so.1", "");
        node(lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    };
    let Some((lab, _)) = attached(Rootfs::Debian12.unprivileged(), both) else { return };
    start(&lab).ok().says("driver: installed 580.95.05").says_not("WARNING");
}

/// NixOS as far as it matters: a shell, little else on the usual path, and a loader
/// that only says what it is not.
fn nixos(release: &'static str) -> impl FnOnce(&Lab, &Container<'_>) {
    move |_, ct| {
        ct.write("/lib64/ld-linux-x86-64.so.2", "");
        ct.write("/etc/os-release", release);
    }
}

#[test]
fn nixos_takes_its_driver_from_its_own_configuration() {
    let release = "ID=nixos\nVERSION_ID=\"25.05\"\nPRETTY_NAME=\"NixOS 25.05 (Warbler)\"\n";
    let Some((lab, _)) = attached(Rootfs::Busybox.unprivileged(), nixos(release)) else { return };
    devices_only(&lab, "NixOS 25.05 (Warbler) takes its driver from its own configuration (hardware.nvidia)");
    opens(&lab);
}

#[test]
fn what_is_made_of_nixos_is_known_by_its_mark_and_its_ostype() {
    let mine = |lab: &Lab, ct: &Container<'_>| {
        nixos("ID=mine\nPRETTY_NAME=\"Mine 1\"\n")(lab, ct);
        ct.write("/etc/NIXOS", "");
        lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("ostype: unmanaged", "ostype: nixos"));
    };
    let Some((lab, said)) = attached(Rootfs::Busybox.unprivileged(), mine) else { return };
    said.says("NixOS takes its driver from its own configuration (hardware.nvidia): GPUs without a driver");
    devices_only(&lab, "Mine 1 takes its driver from its own configuration (hardware.nvidia)");
}

#[test]
fn what_has_no_shell_gets_its_devices() {
    let bare = |_: &Lab, ct: &Container<'_>| ct.files().remove("/usr/bin/sh");
    let Some((lab, _)) = attached(Rootfs::Busybox.unprivileged(), bare) else { return };
    devices_only(&lab, "cannot run /bin/sh in it");
}
