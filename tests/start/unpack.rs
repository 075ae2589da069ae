//! DRIVER_MODE=inject on a host without user space of its driver: a container has that of NVIDIA's runfile, which is
//! unpacked without running it.
// A helper of the tests may panic.
#![allow(clippy::unwrap_used)]
use super::inject::{create, finds, start};
use crate::support;

use phoenix_lab::nvidia::package::Compression;
use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::nvidia::userspace::packed;
use phoenix_lab::web::Fault;
use phoenix_lab::{Lab, Rootfs};
use std::time::Duration;
use support::{lab, node, unpacks_without_running};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
const OLD: &str = "580.95.05";
const NEW: &str = "580.105.08";
const KEPT: &str = "/var/lib/phoenix-nvidia/driver";
const SHOWN: &str = "/run/phoenix-nvidia/driver";
const CACHE: &str = "/var/cache/phoenix-nvidia";

/// A host whose driver has no user space there, and container 101, which is to have it.
fn host(unprivileged: bool) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver(OLD))?;
    lab.sh("mount --make-rshared /").ok();
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nDRIVER_MODE=inject");
    let root = Rootfs::Debian12;
    create(&lab, 101, if unprivileged { root.unprivileged() } else { root.privileged() });
    Some(lab)
}

/// Puts a runfile into the cache, as a download leaves it, and tells where it is.
fn cached(lab: &Lab, runfile: &Runfile) -> String {
    let path = format!("{CACHE}/{}", runfile.name());
    lab.write(&path, std::fs::read(runfile.build().unwrap()).unwrap());
    path
}

/// As if nobody had made a tree.
fn forget(lab: &Lab) {
    lab.sh(&format!("umount {SHOWN}/{OLD}; rm -rf {KEPT}/{OLD}; true")).ok();
}

fn trees(lab: &Lab) -> Vec<String> {
    if lab.exists(KEPT) { lab.files().list(KEPT) } else { Vec::new() }
}

#[test]
fn the_first_start_unpacks_the_runfile_of_the_cache_and_runs_nothing_of_it() {
    for unprivileged in [true, false] {
        let Some(lab) = host(unprivileged) else { return };
        let file = cached(&lab, &packed(OLD, 0).compressed(Compression::Zstd));
        lab.run([PROGRAM, "doctor", "101"]).code(1).says(&format!("a start makes it, unpacked from {file}"));
        lab.run([PROGRAM, "plan", "101"]).code(10).says(&format!("(unpacked from {file})"));
        let started = start(&lab).ok().says(&format!("driver {OLD}: unpacked from {file} for containers"));
        started.says("the host's, mounted").says_not("WARNING");
        finds(&lab.container(101), OLD);
        lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
        // Links are by SONAME, what is glvnd's is not there, and owners and modes are ours.
        let links = lab.sh(&format!("cd {KEPT}/{OLD} && readlink libcuda.so.1 libcuda.so; ls -ld lib*EGL*"));
        assert_eq!(links.stdout, format!("libcuda.so.{OLD}\nlibcuda.so.1\n"));
        let odd = format!(r"find {KEPT} ! -type l \( ! -user 0 -o -perm /7022 \)");
        assert_eq!(lab.sh(&odd).ok().stdout, "");
    }
}

#[test]
fn whatever_the_compression_no_program_is_run_for_it() {
    let Some(lab) = host(true) else { return };
    for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::None] {
        cached(&lab, &packed(OLD, 0).compressed(compression));
        unpacks_without_running(&lab, 500_000).says("unpacked from");
        lab.sh(&format!("test -f {KEPT}/{OLD}/libcuda.so.{OLD} && test -x {KEPT}/{OLD}/bin/nvidia-smi")).ok();
        forget(&lab);
    }
}

/// The server has it, but a download may take as long as it likes.
#[test]
fn a_start_waits_for_no_download_and_prepare_makes_it() {
    let Some(lab) = host(true) else { return };
    let path = lab.web().runfile(&packed(OLD, 0).compressed(Compression::Zstd));
    let why = format!("libcuda.so.{OLD} is not on this host");
    let warned = start(&lab).ok().says("WARNING").says(&why).says("its runfile is not in the cache");
    warned.says("fix: phoenix-nvidia prepare");
    assert!(lab.container(101).running() && trees(&lab).is_empty());
    lab.run([PROGRAM, "doctor", "101"]).code(1).says("a start cannot make it").says(&why);
    lab.run(["pct", "stop", "101"]).ok();
    node(&lab, "START_POLICY=fail");
    start(&lab).code(255).says(&why);
    assert_eq!(lab.web().requests().of(&path).len(), 0, "a start downloads nothing");
    lab.run([PROGRAM, "plan", "101"]).code(10).says("unpacked from its runfile, which is downloaded");
    lab.run([PROGRAM, "prepare"]).ok().says("download: ").says("unpacked from").says_not("WARNING");
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
    assert_eq!(lab.web().requests().of(&path).len(), 1);
}

/// The guests wait for the unit of the boot: it leaves a download that takes longer to the one after it.
#[test]
fn at_boot_no_guest_waits_for_a_download() {
    let Some(lab) = host(true) else { return };
    let unit = |name: &str| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/").to_owned() + name;
        let text = std::fs::read_to_string(path).unwrap();
        let value =
            |key: &str| text.lines().filter_map(|line| line.strip_prefix(key)).collect::<Vec<_>>().join(" ");
        format!("env {} {}", value("Environment="), value("ExecStart="))
    };
    lab.web().runfile(&packed(OLD, 0).compressed(Compression::Zstd));
    lab.web().fail("*.run", Fault::Stall(1000));
    let boot = lab.sh(&unit("phoenix-nvidia-nodes.service")).code(5).says("timed out after 10 s");
    assert!(boot.took < Duration::from_secs(30), "{boot}");
    assert!(trees(&lab).is_empty());
    lab.web().heal();
    lab.sh(&unit("phoenix-nvidia-prepare.service")).ok().says("unpacked from");
    assert_eq!(trees(&lab), [OLD]);
}

#[test]
fn a_run_by_hand_downloads_it_and_one_that_is_not_published_is_told() {
    let Some(lab) = host(true) else { return };
    lab.web().requests();
    lab.run([PROGRAM, "101"]).code(5).says("is not published there").says("fix: set NVIDIA_RUNFILE_URL");
    assert!(trees(&lab).is_empty());
    lab.web().runfile(&packed(OLD, 0).compressed(Compression::Xz));
    lab.run([PROGRAM, "101"]).ok().says("unpacked from").says("verify: 580.95.05 works");
    finds(&lab.container(101), OLD);
}

#[test]
fn a_damaged_runfile_leaves_nothing() {
    let Some(lab) = host(true) else { return };
    let file = cached(&lab, &packed(OLD, 0).compressed(Compression::Zstd));
    let damage = |lab: &Lab| {
        // As a disk does it: nothing tells of it but the bytes.
        lab.sh(&format!(
            "cd /root && touch -r {file} time && printf X | dd of={file} bs=1 conv=notrunc \
             seek=$(($(stat -c %s {file}) - 3000)) && touch -r time {file}"
        ))
        .ok();
    };
    // Verified before.
    lab.run([PROGRAM, "prepare"]).ok().says("unpacked from");
    forget(&lab);
    damage(&lab);
    start(&lab).ok().says("WARNING").says(&file);
    assert!(lab.container(101).running() && trees(&lab).is_empty(), "{:?}", trees(&lab));
    lab.run(["pct", "stop", "101"]).ok();
    // Never verified.
    lab.sh(&format!("rm {CACHE}/*.checked")).ok();
    start(&lab)
        .ok()
        .says("WARNING")
        .says("its MD5 differs from its header")
        .says("fix: phoenix-nvidia prepare");
    assert!(trees(&lab).is_empty());
    // Another checksum than the one that is set.
    lab.run(["pct", "stop", "101"]).ok();
    cached(&lab, &packed(OLD, 0).compressed(Compression::Zstd));
    node(&lab, &format!("NVIDIA_RUNFILE_SHA256={}", "00".repeat(32)));
    start(&lab)
        .ok()
        .says("WARNING")
        .says("NVIDIA_RUNFILE_SHA256 is 00")
        .says("fix: correct NVIDIA_RUNFILE_SHA256");
    assert!(trees(&lab).is_empty() && lab.exists(&file));
    lab.run(["pct", "stop", "101"]).ok();
    node(&lab, "NVIDIA_RUNFILE_SHA256=none");
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
}

#[test]
#[ignore = "make test-all: killed at many moments"]
fn it_is_whole_or_not_there_whenever_its_maker_is_killed_and_on_a_full_disk() {
    let Some(lab) = host(true) else { return };
    // Large enough to be caught.
    let runfile = packed(OLD, 60_000_000).compressed(Compression::Zstd);
    cached(&lab, &runfile);
    lab.sh("mkdir -p /var/lib/phoenix-nvidia && mount -t tmpfs -o size=100m,mode=755 tmpfs /var/lib/phoenix-nvidia")
        .ok();
    start(&lab).ok().says("WARNING").says("needed in /var/lib/phoenix-nvidia/driver");
    assert!(lab.container(101).running() && trees(&lab).is_empty(), "{:?}", trees(&lab));
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh("mount -o remount,size=400m /var/lib/phoenix-nvidia").ok();
    let mut partial = 0;
    for ms in (40..=1000).step_by(60) {
        lab.sh(&format!("timeout -s KILL {}.{:03} {PROGRAM} prepare; true", ms / 1000, ms % 1000));
        if lab.exists(format!("{KEPT}/{OLD}")) {
            // Whole from its first moment.
            let big = format!("{KEPT}/{OLD}/libnvidia-nvvm.so.{OLD}");
            lab.sh(&format!("test $(stat -c %s {big}) -gt 60000000 && test -f {KEPT}/{OLD}/.phoenix-nvidia"))
                .ok();
            forget(&lab);
        } else if !trees(&lab).is_empty() {
            partial += 1;
        }
    }
    assert!(partial > 0, "no run was killed while it unpacked");
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
    assert_eq!(trees(&lab), [OLD]);
    // What is missing comes back out of the same file, also where the host has its own files by now.
    lab.run(["pct", "stop", "101"]).ok();
    lab.nvidia().user_space(OLD);
    lab.sh(&format!("rm {KEPT}/{OLD}/libnvidia-ml.so.{OLD}")).ok();
    lab.run([PROGRAM, "prepare"]).ok().says("restored 1 files");
    lab.run([PROGRAM, "doctor", "101"]).says_not("lacks");
}

/// As after a boot, with a runfile that was put there by hand: who comes first reads and unpacks it.
#[test]
fn many_starts_at_once_unpack_a_runfile_that_nobody_checked_once() {
    let Some(lab) = host(true) else { return };
    for id in 102..=108 {
        create(&lab, id, Rootfs::Busybox.unprivileged());
    }
    cached(&lab, &packed(OLD, 60_000_000).compressed(Compression::Zstd));
    assert!(!lab.sh(&format!("ls {CACHE}")).ok().stdout.contains(".checked"));
    let starts = (101..=108).map(|id| lab.command("pct").args(["start", &id.to_string()]).spawn());
    let said: Vec<String> =
        starts.collect::<Vec<_>>().into_iter().map(|start| start.wait().ok().stdout).collect();
    let said = said.join("\n");
    assert_eq!(said.matches("the host's, mounted").count(), 8, "{said}");
    assert_eq!(said.matches("unpacked from").count(), 1, "{said}");
    assert_eq!(trees(&lab), [OLD]);
    finds(&lab.container(101), OLD);
}

/// Guests wait for a start and for `prepare`, nobody for `prefetch`.
#[test]
fn what_is_not_unpacked_in_time_is_by_prefetch() {
    let Some(lab) = host(true) else { return };
    let web = lab.web();
    web.runfile(&packed(OLD, 20_000_000).compressed(Compression::Zstd));
    node(&lab, "PRE_START_TIMEOUT=1");
    // So that it takes ten seconds, on a fast machine too.
    web.fail("*.run", Fault::Slow(2_000_000));
    let said = lab.sh(&format!("DOWNLOAD_TIMEOUT=1 {PROGRAM} prefetch {OLD}")).code(5);
    said.says(&format!("fix: DOWNLOAD_TIMEOUT=7200 phoenix-nvidia prefetch {OLD}"));
    web.heal();
    lab.sh(&format!("DOWNLOAD_TIMEOUT=7200 {PROGRAM} prefetch {OLD}")).ok().says("fetched");
    // The same for what writes the tree.
    let slow = "strace -f -qq -o /dev/null -e trace=fchmod -e inject=fchmod:delay_enter=300000";
    let late = lab.sh(&format!("{slow} {PROGRAM} 101 pre-start")).ok();
    late.says("WARNING").says("within 1 s").says("fix: phoenix-nvidia prefetch");
    assert!(trees(&lab).is_empty());
    lab.run([PROGRAM, "prefetch"]).ok().says(&format!("driver {OLD}: ready for the containers"));
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
}

/// An upgrade of the host: prefetch has the next driver ready before the reboot, which then needs no network.
#[test]
fn prefetch_makes_the_tree_of_the_next_boot_and_prepare_leaves_it() {
    let Some(lab) = host(true) else { return };
    lab.kmod();
    let kernel = lab.sh("uname -r").ok().stdout.trim().to_owned();
    lab.module(
        &format!("{kernel}/updates/dkms/nvidia.ko"),
        &[&format!("version={NEW}"), "name=nvidia", "license=NVIDIA"],
    );
    for version in [OLD, NEW] {
        lab.web().runfile(&packed(version, 0).compressed(Compression::Zstd));
    }
    let fetched = lab.run([PROGRAM, "prefetch"]).ok().says(&format!("driver {NEW}: fetched"));
    let fetched = fetched.says(&format!("driver {NEW}: ready for the containers that have the host's"));
    fetched.says(&format!("driver {OLD}: ready for the containers that have the host's"));
    assert_eq!(trees(&lab), [NEW, OLD]);
    start(&lab).ok().says_not("unpacked from").says_not("WARNING");
    finds(&lab.container(101), OLD);
    lab.run([PROGRAM, "prepare"]).ok().says_not("removed");
    assert_eq!(trees(&lab), [NEW, OLD]);
    lab.run(["pct", "stop", "101"]).ok();
    // The boot.
    lab.web().stop();
    lab.sh(&format!(
        "umount {SHOWN}/{OLD} && umount /run/phoenix-nvidia/proc/101; rm -r /run/phoenix-nvidia {CACHE}"
    ))
    .ok();
    lab.nvidia().set_driver(NEW);
    // Where modinfo does not run, or knows none, a tree may be the next boot's.
    lab.sh("mv /usr/sbin/modinfo /root/modinfo").ok();
    lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\nexit 1\n");
    lab.run([PROGRAM, "prepare"]).ok().says_not("removed");
    assert_eq!(trees(&lab), [NEW, OLD]);
    lab.sh("mv /root/modinfo /usr/sbin/modinfo").ok();
    lab.run([PROGRAM, "prepare"]).ok().says_not("unpacked").says(&format!("driver {OLD}: removed its copy"));
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), NEW);
}

/// Where all containers install, and none has a tree, prefetch makes none.
#[test]
fn prefetch_makes_no_tree_where_nobody_asks_for_it() {
    let Some(lab) = host(true) else { return };
    lab.web().runfile(&packed(OLD, 0));
    lab.kmod();
    let kernel = lab.sh("uname -r").ok().stdout.trim().to_owned();
    lab.module(&format!("{kernel}/updates/dkms/nvidia.ko"), &[&format!("version={OLD}"), "name=nvidia"]);
    node(&lab, "DRIVER_MODE=install");
    lab.run([PROGRAM, "prefetch"]).ok().says("fetched").says_not("ready for the containers");
    assert!(trees(&lab).is_empty());
    // The default of the node, also without a container that has it.
    lab.run(["pct", "destroy", "101"]).ok();
    node(&lab, "DRIVER_MODE=inject");
    lab.run([PROGRAM, "prefetch"]).ok().says("already in the cache").says("ready for the containers");
    assert_eq!(trees(&lab), [OLD]);
}

/// What is there of the driver is more than nothing, also where a download could repair it.
#[test]
fn a_tree_whose_runfile_cannot_be_had_is_shown_as_it_is_and_that_is_told() {
    let Some(lab) = host(true) else { return };
    cached(&lab, &packed(OLD, 0).compressed(Compression::Zstd));
    lab.run([PROGRAM, "prepare"]).ok().says("unpacked from");
    // As after a boot.
    lab.sh(&format!(
        "umount {SHOWN}/{OLD}; rm -r /run/phoenix-nvidia {CACHE}; rm {KEPT}/{OLD}/libnvidia-ml.so.{OLD}"
    ))
    .ok();
    node(&lab, "NVIDIA_RUNFILE_URL=/root/none.run");
    lab.run([PROGRAM, "prepare"]).code(5).says("no such file: /root/none.run").says("fix: ");
    lab.sh(&format!("test -e {SHOWN}/current/libcuda.so.{OLD}")).ok();
}

/// A host whose next boot loads another driver, for which containers are to have a tree.
fn upgraded() -> Option<Lab> {
    let lab = host(true)?;
    lab.kmod();
    let kernel = lab.sh("uname -r").ok().stdout.trim().to_owned();
    lab.module(
        &format!("{kernel}/updates/dkms/nvidia.ko"),
        &[&format!("version={NEW}"), "name=nvidia", "license=NVIDIA"],
    );
    Some(lab)
}

#[test]
fn prefetch_asks_no_other_version_for_the_checksum_of_one() {
    let Some(lab) = upgraded() else { return };
    let runfile = packed(OLD, 0).compressed(Compression::Zstd);
    let file = runfile.build().unwrap();
    let sum = lab_sum(&file);
    for runfile in [runfile, packed(NEW, 0).compressed(Compression::Zstd)] {
        lab.web().runfile(&runfile);
    }
    node(&lab, &format!("NVIDIA_DRIVER_VERSION={OLD}\nNVIDIA_RUNFILE_SHA256={sum}"));
    let fetched = lab.run([PROGRAM, "prefetch"]).ok().says(&format!("driver {OLD}: fetched"));
    fetched.says(&format!("driver {NEW}: ready for the containers that have the host's"));
    assert_eq!(trees(&lab), [NEW, OLD]);
}

fn lab_sum(file: &std::path::Path) -> String {
    let line = phoenix_lab::nvidia::runfile::sha256sum(file).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn prefetch_tells_once_what_it_could_not_fetch_and_asks_for_it_once() {
    let Some(lab) = upgraded() else { return };
    lab.web().runfile(&packed(OLD, 0).compressed(Compression::Zstd));
    let failed = lab.run([PROGRAM, "prefetch"]).code(5).says(&format!("driver {OLD}: fetched")).says("fix: ");
    assert_eq!(failed.stderr.matches(&format!("cannot download driver {NEW}")).count(), 1, "{failed}");
    assert!(!failed.stderr.contains("cannot give"), "{failed}");
}
