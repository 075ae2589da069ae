//! NVIDIA's own installer in a container, and its uninstaller as this program calls it.
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use std::time::Duration;
use support::real::runfile;
use support::{lab, node, setting};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
const OLD: &str = "580.95.05";

fn run(lab: &Lab, words: &[&str]) -> phoenix_lab::Output {
    lab.command(words[0]).args(&words[1..]).timeout(Duration::from_secs(300)).run()
}

/// The files of a driver in the container, by name, without what is mounted.
fn files(lab: &Lab, version: &str) -> String {
    let find =
        format!("find /usr /etc /var/lib -xdev '(' -name '*.so.{version}' -o -name 'nvidia-*' ')' -type f");
    lab.container(101).sh(&find).ok().stdout
}

#[test]
#[ignore = "make test-all: 0.4 GB to download, 5 GB of space"]
fn nvidias_uninstaller_removes_what_its_installer_installed_and_no_kernel_module() {
    let Some((version, file)) = runfile("590") else { return };
    let Some(lab) = lab(Lab::builder().gpus(1).driver(&version)) else { return };
    lab.sh("mount --make-rshared /").ok();
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nINSTALL_WAIT=250");
    node(&lab, &format!("NVIDIA_RUNFILE_URL={}", file.display()));
    lab.create(101, Rootfs::Debian12.privileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    // Its nvidia-smi finds no kernel driver in the lab.
    run(&lab, &["pct", "start", "101"]).says(&format!("driver: installed {version}"));
    assert!(files(&lab, &version).lines().count() > 20, "{}", files(&lab, &version));

    lab.nvidia().user_space(OLD);
    lab.nvidia().set_driver(OLD);
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    // What would be run of the host's modules is noted.
    let ct = lab.container(101);
    let note = "cd /usr/sbin; for program in rmmod modprobe depmod; do mv $program $program.real
                printf '#!/bin/sh\\necho %s $* >>/root/modules\\n' $program >$program; chmod 755 $program; done; depmod noted";
    ct.sh(note).ok();
    lab.run(["pct", "stop", "101"]).ok();
    let removed = format!("driver: removed {version}, which a runfile had installed");
    run(&lab, &["pct", "start", "101"]).ok().says(&removed);
    assert_eq!(ct.read("/root/modules"), "depmod noted\n", "{}", ct.read("/var/log/nvidia-uninstall.log"));
    assert_eq!(files(&lab, &version), "");
    assert!(!ct.exists("/var/lib/nvidia"));
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));
}
