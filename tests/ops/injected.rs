//! Containers with the host's driver: what the verbs say of them when something changes around them.
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use support::{lab, node, setting};

const PROGRAM: &str = "phoenix-nvidia";
const OLD: &str = "580.95.05";
const NEW: &str = "580.105.08";

/// A running container that has it.
fn running() -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver(OLD))?;
    lab.nvidia().user_space(OLD);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.create(101, Rootfs::Debian12.unprivileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--inject"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    Some(lab)
}

/// Each with its fix, by doctor, and by status where it needs no program.
#[test]
fn what_happens_to_the_host_is_told_with_its_fix() {
    let Some(lab) = running() else { return };
    // Another driver is loaded: who runs keeps the old one.
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    let upgraded = "driver 580.95.05 of this host is mounted in the container, 580.105.08 in the kernel";
    lab.run([PROGRAM, "status", "101"]).ok().says(upgraded).says("inject");
    let doctor = lab.run([PROGRAM, "doctor", "101"]).code(1).says(upgraded).says("fix: phoenix-nvidia 101");
    doctor.says("no copy of driver 580.105.08 for containers").says("fix: phoenix-nvidia prepare");
    lab.run([PROGRAM, "prepare"]).ok();
    lab.run([PROGRAM, "plan", "101"]).code(10).says("has the host's driver 580.95.05 mounted");
    lab.run([PROGRAM, "101"]).ok();
    lab.run([PROGRAM, "doctor", "101"]).says("driver 580.105.08 of this host is mounted in the container");

    // Its copy is not whole, or leads elsewhere.
    let tree = |what: &str| {
        lab.run([PROGRAM, "status", "101"]).ok().says(what);
        lab.run([PROGRAM, "doctor", "101"]).code(1).says(what).says("fix: phoenix-nvidia prepare");
        lab.run([PROGRAM, "prepare"]).ok();
        lab.run([PROGRAM, "status", "101"]).ok().says_not(what);
    };
    lab.sh(&format!("rm /var/lib/phoenix-nvidia/driver/{NEW}/libcuda.so.{NEW}")).ok();
    tree("the copy of driver 580.105.08 for containers lacks 1 files");
    lab.sh("ln -sfn 1.2.3 /run/phoenix-nvidia/driver/current").ok();
    tree("/run/phoenix-nvidia/driver/current does not lead to driver 580.105.08");

    // A card is lost, then the driver.
    lab.nvidia().remove_gpu(0);
    lab.run([PROGRAM, "status", "101"]).ok().says("GPU 0");
    lab.run([PROGRAM, "doctor", "101"]).code(1).says("GPU 0").says("fix: ");
    lab.nvidia().unload();
    lab.run([PROGRAM, "status", "101"]).ok().says("no NVIDIA kernel driver loaded");
    lab.run([PROGRAM, "doctor", "101"]).code(1).says("no NVIDIA kernel driver loaded").says("fix: ");
}

/// What `auto` does not use today it may use at the next start, and trees may come out of a runfile.
#[test]
fn with_auto_or_inject_no_setting_is_said_to_have_no_effect() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    lab.create(101, Rootfs::Debian12.unprivileged());
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("hostname: ", "entrypoint: /bin/x\nhostname: "));
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    for line in ["DRIVER_MODE=auto", "NVIDIA_RUNFILE_URL=https://h.invalid/x.run"] {
        setting(&lab, 101, line);
    }
    lab.run([PROGRAM, "plan", "101"]).code(10).says("is mounted at the start").says_not("has no effect");
    lab.run([PROGRAM, "doctor", "101"]).says_not("has no effect");
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("MODE=auto", "MODE=inject"));
    // A host without the driver's user space unpacks it from there.
    lab.run([PROGRAM, "plan", "101"]).code(10).says_not("has no effect");
    lab.run([PROGRAM, "doctor", "101"]).says_not("has no effect");
}

/// The manual page would not help.
#[test]
fn a_directory_in_the_place_of_a_settings_file_has_a_fix() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    let file = "/etc/pve/phoenix-nvidia/default.env";
    lab.sh(&format!("mkdir -p {file}")).ok();
    let fix = format!("fix: mv {file} {file}.aside && touch {file}");
    lab.run([PROGRAM, "doctor", "101"])
        .code(1)
        .says(&format!("cannot read {file}: it is a directory"))
        .says(&fix);
    lab.run([PROGRAM, "plan", "101"]).code(2).says(&fix);
    lab.sh(fix.trim_start_matches("fix: ")).ok();
    lab.run([PROGRAM, "plan", "101"]).code(10);
}
