//! Why no driver is loaded, and which one the next boot loads, on hosts as they
//! are installed: with kmod's own modinfo, and files of modules.

use phoenix_lab::{Lab, Output};

const BINARY: &str = env!("CARGO_BIN_EXE_phoenix-nvidia");
/// What keeps Debian's other module reachable by the driver's name.
const ALTERNATIVE: &str = "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n\
                           install nvidia-uvm modprobe nvidia ; modprobe -i nvidia-current-uvm $CMDLINE_OPTS\n";

/// A host with this card and no driver loaded.
fn host(id: u16) -> Option<(Lab, String)> {
    let lab = Lab::builder().gpus(1).no_driver().start()?;
    lab.install(BINARY);
    lab.kmod();
    lab.nvidia().set_card(0, id, "");
    let kernel = lab.sh("uname -r").ok().stdout.trim().to_owned();
    Some((lab, kernel))
}

/// A host with this driver loaded.
fn loaded(version: &str) -> Option<(Lab, String)> {
    let lab = Lab::builder().gpus(1).driver(version).start()?;
    lab.install(BINARY);
    lab.kmod();
    let kernel = lab.sh("uname -r").ok().stdout.trim().to_owned();
    Some((lab, kernel))
}

fn prepare(lab: &Lab) -> Output {
    lab.run(["phoenix-nvidia", "prepare"]).code(4)
}

fn doctor(lab: &Lab) -> Output {
    lab.run(["phoenix-nvidia", "doctor"])
}

/// The command after `fix: `.
fn fix(output: &Output) -> String {
    let (_, fix) = output.stderr.split_once("fix: ").unwrap_or_else(|| panic!("no fix: {output}"));
    fix.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_driver_of_the_next_boot_is_found_under_the_name_of_debians_packages() {
    for (file, module) in [
        ("updates/dkms/nvidia-current.ko.xz", "nvidia-current"),
        ("updates/dkms/nvidia-current-open.ko", "nvidia-current-open"),
        ("updates/dkms/nvidia-tesla-535.ko", "nvidia-tesla-535"),
        ("kernel/nvidia-580/nvidia.ko", "nvidia"),
    ] {
        let Some((lab, kernel)) = loaded("550.163.01") else { return };
        let lines = ["version=550.172.01", "license=NVIDIA", "name=nvidia"];
        lab.module(&format!("{kernel}/{file}"), &lines);
        lab.module(&format!("{kernel}/updates/dkms/{module}-uvm.ko"), &["version=1.0.0", "name=nvidia-uvm"]);
        lab.write("/etc/modprobe.d/nvidia.conf", ALTERNATIVE.replace("nvidia-current", module));
        doctor(&lab).says("driver 550.172.01 installed, 550.163.01 still loaded");
        lab.web().standard(&["550.163.01", "550.172.01"]);
        let prefetch = lab.run(["phoenix-nvidia", "prefetch"]).ok();
        prefetch.says("driver 550.163.01: fetched").says("driver 550.172.01: fetched");
    }
}

#[test]
fn a_module_that_only_its_name_makes_nvidias_is_not_taken_for_the_driver() {
    let Some((lab, kernel)) = loaded("550.163.01") else { return };
    lab.module(&format!("{kernel}/updates/nvidia-tool.ko"), &["version=999.1", "name=nvidia_tool"]);
    lab.module(&format!("{kernel}/updates/dkms/nvidia-current.ko"), &["version=550.163.01", "name=nvidia"]);
    doctor(&lab).says_not("next-boot");
}

#[test]
fn a_loaded_driver_without_a_module_on_disk_is_unknown_and_said() {
    let Some((lab, _)) = loaded("550.163.01") else { return };
    doctor(&lab).says("unknown  next-boot").says("no module installed for the running kernel");
    lab.web().standard(&["550.163.01"]);
    lab.run(["phoenix-nvidia", "prefetch"])
        .ok()
        .says("cannot read which driver the next boot loads")
        .says("550.163.01: fetched");
}

#[test]
fn debians_module_is_there_whatever_keeps_it_from_being_loaded() {
    let Some((lab, kernel)) = host(0x2684) else { return };
    lab.module(&format!("{kernel}/updates/dkms/nvidia-current.ko"), &["version=550.163.01", "name=nvidia"]);
    lab.write("/etc/modprobe.d/nvidia.conf", ALTERNATIVE);
    prepare(&lab).says("module installed for the running kernel, but not loaded").says_not("blacklisted");
    // The kernel's own words.
    lab.replace_program(
        "/usr/bin/dmesg",
        "#!/bin/sh\necho 'Loading of module with unavailable key is rejected'\n",
    );
    lab.write("/var/lib/dkms/mok.pub", "");
    let said = prepare(&lab).says("the kernel says: Loading of module with unavailable key is rejected");
    assert_eq!(fix(&said), "mokutil --import /var/lib/dkms/mok.pub && reboot");
    // Only under another kernel.
    lab.sh(&format!("mv /lib/modules/{kernel} /lib/modules/6.8.12-1-pve")).ok();
    lab.kmod();
    prepare(&lab).says("(only for 6.8.12-1-pve)").says("dkms autoinstall");
}

#[test]
fn nouveau_is_kept_out_by_the_command_that_is_told() {
    for (driver, blacklist) in
        [("nouveau", "blacklist nouveau\n"), ("NovaCore", "blacklist nova_core\nblacklist nova_drm\n")]
    {
        let Some((lab, kernel)) = host(0x1b81) else { return };
        lab.nvidia().bind_gpu(0, driver);
        lab.module(&format!("{kernel}/updates/dkms/nvidia.ko"), &["version=580.95.05", "name=nvidia"]);
        for program in ["update-initramfs", "proxmox-boot-tool", "reboot"] {
            lab.replace_program(
                format!("/usr/sbin/{program}"),
                "#!/bin/sh\necho ${0##*/} $* >> /run/called\n",
            );
        }
        let said = prepare(&lab).says("has the card");
        lab.sh(&fix(&said)).ok();
        assert_eq!(lab.read("/etc/modprobe.d/phoenix-nvidia-blacklist.conf"), blacklist);
        let called = "update-initramfs -u -k all\nproxmox-boot-tool refresh\nreboot\n";
        assert_eq!(lab.read("/run/called"), called);
    }
}

#[test]
fn a_host_without_any_driver_is_told_which_one_its_card_needs() {
    for (id, needs) in [
        (0x15f8, "branch 580 with the proprietary kernel module"),
        (0x2342, "branch 535 or newer with the open kernel module"),
        (0x1004, "branch 470 with the proprietary kernel module"),
    ] {
        let Some((lab, _)) = host(id) else { return };
        let said =
            prepare(&lab).says("no NVIDIA kernel driver loaded: no NVIDIA driver installed on this host");
        assert_eq!(fix(&said), format!("install a driver of {needs} on this host"));
    }
}

#[test]
fn a_runfile_without_dkms_is_run_again_with_it() {
    let Some((lab, kernel)) = host(0x2684) else { return };
    let lines = ["version=580.95.05", "name=nvidia"];
    lab.module("6.8.12-15-pve/kernel/drivers/video/nvidia.ko", &lines);
    // The installer leaves its sources also where DKMS does not build them.
    lab.sh("mkdir -p /usr/src/nvidia-580.95.05").ok();
    let said = prepare(&lab).says("(only for 6.8.12-15-pve), and DKMS does not build it");
    let dkms = format!("apt install dkms linux-headers-{kernel}");
    assert_eq!(fix(&said), format!("{dkms}, then run NVIDIA's runfile of 580.95.05 again with --dkms"));
    // Our cache has it.
    lab.web().standard(&["580.95.05"]);
    lab.append("/etc/default/phoenix-nvidia", "NVIDIA_DRIVER_VERSION=580.95.05\n");
    lab.run(["phoenix-nvidia", "prefetch"]).ok().says("driver 580.95.05: fetched");
    let arch = std::env::consts::ARCH;
    let runfile = format!("/var/cache/phoenix-nvidia/NVIDIA-Linux-{arch}-580.95.05.run");
    assert!(lab.exists(&runfile));
    assert_eq!(fix(&prepare(&lab)), format!("{dkms} && sh {runfile} --dkms"));
    lab.sh("mkdir -p /var/lib/dkms/nvidia").ok();
    let said = prepare(&lab).says_not("does not build");
    assert_eq!(
        fix(&said),
        format!("apt install linux-headers-{kernel} && dkms autoinstall && phoenix-nvidia prepare")
    );
}

#[test]
fn a_driver_that_has_no_place_for_the_card_is_told_with_the_card_and_the_branch() {
    let needs = |branch: &str| format!("install a driver of {branch} on this host, then reboot it");
    for (id, version, license, why, remedy) in [
        (
            0x15f8,
            "595.45.04",
            "NVIDIA",
            "Pascal card: branch 580 was the last",
            "branch 580 with the proprietary",
        ),
        (
            0x15f8,
            "580.95.05",
            "Dual MIT/GPL",
            "Pascal card, which has no GSP",
            "branch 580 with the proprietary",
        ),
        (
            0x1004,
            "535.288.01",
            "NVIDIA",
            "Kepler card: branch 470 was the last",
            "branch 470 with the proprietary",
        ),
        (
            0x2b85,
            "580.95.05",
            "NVIDIA",
            "Blackwell card, only the open one does",
            "branch 570 or newer with the open",
        ),
        (
            0x2342,
            "550.163.01",
            "NVIDIA",
            "Grace Hopper card, only the open",
            "branch 535 or newer with the open",
        ),
        (
            0x2b85,
            "550.163.01",
            "Dual MIT/GPL",
            "branch 570 was the first",
            "branch 570 or newer with the open",
        ),
    ] {
        let Some((lab, kernel)) = host(id) else { return };
        let lines = [format!("version={version}"), format!("license={license}"), "name=nvidia".to_owned()];
        lab.module(&format!("{kernel}/updates/dkms/nvidia.ko"), &lines.each_ref().map(String::as_str));
        let said = prepare(&lab).says(&format!("0000:01:00.0 NVIDIA card 10de:{id:04x}: ")).says(why);
        assert_eq!(fix(&said), needs(&format!("{remedy} kernel module")));
        doctor(&lab).code(1).says(why);
    }
}

#[test]
fn a_card_of_the_lists_that_a_driver_brings_is_known_by_them() {
    let Some((lab, kernel)) = host(0x3500) else { return };
    let lines = ["version=620.10.01", "license=NVIDIA", "name=nvidia"];
    lab.module(&format!("{kernel}/updates/dkms/nvidia.ko"), &lines);
    prepare(&lab).says("but not loaded");
    let list =
        r#"{"chips": [{"devid": "0x3500", "name": "NVIDIA New", "legacybranch": "610.xx", "features": []}]}"#;
    lab.write("/usr/share/doc/NVIDIA_GLX-1.0/supported-gpus/supported-gpus.json", list);
    prepare(&lab).says("driver 620.10.01 does not drive this card: branch 610 was the last");
}

#[test]
fn an_upgrade_that_loses_a_card_is_told_before_the_boot() {
    let Some((lab, kernel)) = loaded("580.95.05") else { return };
    let set = |license: &str| {
        let lines = ["version=590.48.01".to_owned(), format!("license={license}"), "name=nvidia".to_owned()];
        lab.module(&format!("{kernel}/updates/dkms/nvidia.ko"), &lines.each_ref().map(String::as_str));
    };
    set("Dual MIT/GPL");
    doctor(&lab).says("driver 590.48.01 installed, 580.95.05 still loaded").says_not("loses");
    // Blackwell works with the open module that is loaded.
    lab.nvidia().set_card(0, 0x2b85, "NVIDIA GeForce RTX 5090");
    set("NVIDIA");
    doctor(&lab)
        .says("the next boot loses GPU 0 (0000:01:00.0 NVIDIA GeForce RTX 5090)")
        .says("install a driver of branch 570 or newer with the open kernel module");
}
