//! NVIDIA's own installer in a container, and its uninstaller as this program calls it.
#![allow(clippy::disallowed_methods)] // links the runfile to where the lab sees it
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{lab, node, setting};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
const OLD: &str = "580.95.05";

/// The runfile of NVIDIA that `PHOENIX_TEST_RUNFILE` names, where the lab sees it, and its version.
fn runfile() -> Option<(PathBuf, String)> {
    let Some(path) = std::env::var_os("PHOENIX_TEST_RUNFILE") else {
        phoenix_lab::skipped("PHOENIX_TEST_RUNFILE names no runfile of NVIDIA");
        return None;
    };
    let name = Path::new(&path).file_name()?.to_string_lossy().into_owned();
    let version = name.strip_suffix(".run")?.rsplit_once('-')?.1.to_owned();
    let here = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_file(&here);
    let linked = std::fs::hard_link(&path, &here).or_else(|_| std::fs::copy(&path, &here).map(drop));
    linked.unwrap_or_else(|error| panic!("{}: {error}", Path::new(&path).display()));
    Some((here, version))
}

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
#[ignore = "make test-all: PHOENIX_TEST_RUNFILE=/path/of/NVIDIA-Linux-x86_64-590.48.01.run"]
fn nvidias_uninstaller_removes_what_its_installer_installed_and_no_kernel_module() {
    let Some((file, version)) = runfile() else { return };
    let Some(lab) = lab(Lab::builder().gpus(1).driver(&version)) else { return };
    lab.sh("mount --make-rshared /").ok();
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nINSTALL_WAIT=250");
    node(&lab, &format!("NVIDIA_RUNFILE_URL={}", file.display()));
    lab.create(101, Rootfs::Debian12.privileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    // Its nvidia-smi finds no kernel driver in the lab.
    let begun = Instant::now();
    run(&lab, &["pct", "start", "101"]).says(&format!("driver: installed {version}"));
    println!("installed in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(files(&lab, &version).lines().count() > 20, "{}", files(&lab, &version));

    lab.nvidia().user_space(OLD);
    lab.nvidia().set_driver(OLD);
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    // What would be run of the host's modules is noted.
    let ct = lab.container(101);
    let note = "for program in rmmod modprobe depmod; do cd /usr/sbin; mv $program $program.real
                printf '#!/bin/sh\\necho %s $* >>/root/modules\\n' $program >$program; chmod 755 $program; done";
    ct.sh(note).ok();
    lab.run(["pct", "stop", "101"]).ok();
    let begun = Instant::now();
    run(&lab, &["pct", "start", "101"])
        .ok()
        .says(&format!("driver: removed {version}, which a runfile had installed"));
    println!("removed in {:.1} s", begun.elapsed().as_secs_f64());
    println!("modules: {}", ct.sh("cat /root/modules; true").ok().stdout);
    println!("log: {}", ct.sh("tail -n 40 /var/log/nvidia-uninstall.log").ok().stdout);
    ct.sh("! grep -e '^rmmod' -e '^depmod' /root/modules").ok();
    assert_eq!(files(&lab, &version), "");
    assert!(!ct.exists("/var/lib/nvidia"));
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));
    let _ = std::fs::remove_file(file);
}
