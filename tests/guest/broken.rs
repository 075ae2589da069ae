//! The driver step cut off, without space, or twenty times at once.
use crate::support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::web::Fault;
use phoenix_lab::{Builder, Container, Errno, Lab, Output, Rootfs, Spec};
use std::time::{Duration, Instant};
use support::{lab, node, setting, start};

const V: &str = "580.95.05";

fn bare(builder: Builder) -> Option<Lab> {
    let lab = lab(builder)?;
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    lab.web();
    Some(lab)
}

fn wanting(rootfs: Spec) -> Option<Lab> {
    let lab = bare(Lab::builder().gpus(1).driver(V))?;
    want(&lab, 101, rootfs);
    Some(lab)
}

fn want(lab: &Lab, id: u32, rootfs: Spec) {
    lab.create(id, rootfs);
    setting(lab, id, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", &id.to_string(), "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
}

fn by_hand(lab: &Lab) -> Output {
    lab.command("phoenix-nvidia").arg("101").timeout(Duration::from_secs(150)).run()
}

/// A container that runs, with its device nodes and without a driver.
fn running_without(rootfs: Spec) -> Option<Lab> {
    let lab = wanting(rootfs)?;
    node(&lab, "INSTALL=off");
    start(&lab).ok();
    node(&lab, "INSTALL=on");
    Some(lab)
}

#[track_caller]
fn right(ct: &Container<'_>) {
    ct.exec(["nvidia-smi", "--version"]).ok().says(&format!("NVIDIA-SMI version  : {V}"));
    nothing_in_tmp(ct);
    assert!(!ct.exists("/var/lib/phoenix-nvidia/driver.installing"));
}

#[track_caller]
fn nothing_in_tmp(ct: &Container<'_>) {
    ct.sh("{ ls -A /tmp; ls -A /var/tmp; } | grep -e phoenix -e installer").code(1);
}

#[track_caller]
fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn installer_runs(ct: &Container<'_>) -> bool {
    ct.exists("/var/lib/phoenix-nvidia/driver.installing")
        && ct.sh("ls -A /tmp/phoenix-nvidia.unpack | grep .").exit() == Some(0)
}

#[test]
fn an_installer_that_is_killed_in_the_middle_is_found_out_and_repaired() {
    let Some(lab) = running_without(Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new(V).flaw(Flaw::Slow(60)));
    let ct = lab.container(101);
    let run = lab.command("phoenix-nvidia").arg("101").spawn();
    wait_for("the installer does not run", || installer_runs(&ct));
    // As kill -9 of the whole of it inside, not of us.
    // One that forks meanwhile, or is not there yet, is met in a later round.
    ct.sh("for round in $(seq 30); do for p in /proc/[0-9]*; do \
           case $(readlink $p/cwd) in *phoenix-nvidia.unpack*) kill -9 ${p#/proc/};; esac; done; sleep 0.1; done");
    run.wait().code(5).says("the installer of 580.95.05 failed");
    nothing_in_tmp(&ct);
    assert!(ct.exists("/var/lib/phoenix-nvidia/driver.installing"));
    lab.sh("rm -rf /var/cache/phoenix-nvidia");
    lab.web().runfile(&Runfile::new(V));
    by_hand(&lab).ok().says("driver: installed 580.95.05");
    right(&ct);
}

#[test]
fn a_run_that_is_killed_itself_leaves_nothing_that_works_against_the_next() {
    let Some(lab) = running_without(Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new(V).flaw(Flaw::Slow(60)));
    let ct = lab.container(101);
    let run = lab.command("phoenix-nvidia").arg("101").spawn();
    wait_for("the installer does not run", || installer_runs(&ct));
    lab.sh("pkill -9 -x phoenix-nvidia");
    run.wait();
    lab.sh("rm -rf /var/cache/phoenix-nvidia");
    lab.web().runfile(&Runfile::new(V));
    by_hand(&lab).ok().says("driver: installed 580.95.05");
    right(&ct);
    ct.sh("readlink /proc/[0-9]*/cwd | grep unpack").code(1);
}

#[test]
fn a_run_that_is_stopped_cleans_up_at_once() {
    let Some(lab) = running_without(Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new(V).flaw(Flaw::Slow(60)));
    let ct = lab.container(101);
    let run = lab.command("phoenix-nvidia").arg("101").spawn();
    wait_for("the installer does not run", || installer_runs(&ct));
    let stopped = Instant::now();
    lab.sh("pkill -TERM -x phoenix-nvidia");
    run.wait().says("interrupted by SIGTERM");
    assert!(stopped.elapsed() < Duration::from_secs(20), "{:?}", stopped.elapsed());
    nothing_in_tmp(&ct);
}

#[test]
fn a_signal_while_a_runfile_is_verified_does_not_remove_it() {
    let Some(lab) = bare(Lab::builder().gpus(1).driver(V)) else { return };
    lab.web().runfile(&Runfile::new(V));
    lab.run(["phoenix-nvidia", "prefetch"]).ok();
    // Longer than before, it is verified again, which now takes a while.
    lab.sh("truncate -s 8G /var/cache/phoenix-nvidia/*.run").ok();
    let run = lab.command("phoenix-nvidia").arg("prefetch").spawn();
    wait_for("it is not verified", || lab.sh("ls -l /proc/[0-9]*/fd | grep '[.]run$'").exit() == Some(0));
    lab.sh("pkill -TERM -x phoenix-nvidia");
    run.wait().code(1).says("interrupted by SIGTERM").says_not("removing");
    lab.sh("ls /var/cache/phoenix-nvidia/*.run").ok();
}

#[test]
fn a_container_that_stops_in_the_middle_is_said_to_be_gone() {
    let Some(lab) = running_without(Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new(V).flaw(Flaw::Slow(60)));
    let ct = lab.container(101);
    let run = lab.command("phoenix-nvidia").arg("101").spawn();
    wait_for("the installer does not run", || installer_runs(&ct));
    lab.run(["pct", "stop", "101"]).ok();
    run.wait().says("container 101 is no longer running");
    lab.sh("rm -rf /var/cache/phoenix-nvidia");
    lab.web().runfile(&Runfile::new(V));
    start(&lab).ok().says("install of 580.95.05 interrupted").says("driver: installed 580.95.05");
    right(&ct);
}

#[test]
fn a_disk_that_is_too_small_is_found_out_before_anything_is_written() {
    let Some(lab) = bare(Lab::builder().gpus(1).driver(V)) else { return };
    lab.sh("mkdir -p /run/lab/disks/101 && mount -t tmpfs -o size=24m tmpfs /run/lab/disks/101").ok();
    want(&lab, 101, Rootfs::Debian12.privileged());
    lab.web().runfile(&Runfile::new(V).size(6_000_000));
    start(&lab).ok().says("on a disk").says("/tmp has").says("exit code 5");
    let ct = lab.container(101);
    nothing_in_tmp(&ct);
    assert!(!ct.exists("/var/lib/phoenix-nvidia"));
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh("mount -o remount,size=200m /run/lab/disks/101").ok();
    start(&lab).ok().says("driver: installed 580.95.05");
    right(&ct);
}

/// It had room when it was looked at, and something else took it meanwhile.
#[test]
fn a_disk_that_fills_up_under_the_installer_is_said_and_the_next_start_completes() {
    let Some(lab) = bare(Lab::builder().gpus(1).driver(V)) else { return };
    lab.sh("mkdir -p /run/lab/disks/101 && mount -t tmpfs -o size=64m tmpfs /run/lab/disks/101").ok();
    want(&lab, 101, Rootfs::Debian12.privileged());
    let fill = "head -c 200000000 /dev/zero >/var/fill 2>/dev/null || :";
    lab.web().runfile(&Runfile::new(V).flaw(Flaw::Runs(fill.into())));
    start(&lab).ok().says("SIGBUS: the container's disk is full").says("exit code 5");
    let ct = lab.container(101);
    nothing_in_tmp(&ct);
    ct.exec(["rm", "/var/fill"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh("rm -rf /var/cache/phoenix-nvidia");
    lab.web().runfile(&Runfile::new(V));
    start(&lab).ok().says("interrupted").says("driver: installed 580.95.05");
    right(&ct);
}

#[test]
fn an_nvidia_smi_that_cannot_be_replaced_is_found_out_and_repaired_later() {
    let Some(lab) = wanting(Rootfs::Debian12.privileged()) else { return };
    lab.web().runfile(&Runfile::new(V));
    let old = phoenix_lab::nvidia::runfile::smi("580.76.05").unwrap();
    lab.replace_program("/root/old-smi", old);
    let mount = "lxc.mount.entry: /root/old-smi usr/bin/nvidia-smi none bind,ro,create=file 0 0\n";
    lab.append("/etc/pve/lxc/101.conf", mount);
    start(&lab).ok().says("exit code 5");
    lab.run(["pct", "stop", "101"]).ok();
    let conf = lab.conf(101).replace(mount, "");
    lab.write("/etc/pve/lxc/101.conf", conf);
    start(&lab).ok().says("driver: installed 580.95.05");
    right(&lab.container(101));
}

#[test]
fn twenty_containers_at_once_ask_the_server_once() {
    let Some(lab) = bare(Lab::builder().gpus(1).driver(V)) else { return };
    node(&lab, "MAX_INSTALLS=4\nINSTALL_WAIT=120");
    let path = lab.web().runfile(&Runfile::new(V).size(3_000_000));
    for id in 101..121 {
        want(&lab, id, Rootfs::Debian12.unprivileged());
    }
    let all: Vec<_> = (101..121u32)
        .map(|id| {
            lab.command("pct").args(["start", &id.to_string()]).timeout(Duration::from_secs(300)).spawn()
        })
        .collect();
    for run in all {
        run.wait().ok().says_not("exit code");
    }
    for id in 101..121 {
        right(&lab.container(id));
    }
    assert_eq!(lab.web().requests().of(&path).len(), 1);
}

#[test]
fn prefetch_spares_the_start_the_network() {
    let Some(lab) = wanting(Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new(V));
    let path = lab.web().runfile(&Runfile::new("590.48.01"));
    lab.run(["phoenix-nvidia", "prefetch"]).ok().says("driver 580.95.05: fetched");
    lab.run(["phoenix-nvidia", "prefetch"]).ok().says("driver 580.95.05: already in the cache");
    lab.run(["phoenix-nvidia", "prefetch", "590.48.01"]).ok().says("driver 590.48.01: fetched");
    assert_eq!(lab.web().requests().of(&path).len(), 1);
    lab.run(["phoenix-nvidia", "prefetch", "1.2"]).code(2);
    lab.run(["phoenix-nvidia", "prefetch", "570.10.01"]).code(5).says("404");
    lab.web().stop();
    start(&lab).ok().says("driver: installed 580.95.05");
    right(&lab.container(101));
}

#[test]
fn a_driver_that_only_waits_for_a_boot_is_prefetched() {
    let Some(lab) = bare(Lab::builder().gpus(1).driver("580.76.05")) else { return };
    lab.web().runfile(&Runfile::new("580.76.05"));
    lab.web().runfile(&Runfile::new(V));
    lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 580.95.05\n");
    lab.run(["phoenix-nvidia", "prefetch"])
        .ok()
        .says("driver 580.76.05: fetched")
        .says("driver 580.95.05: fetched");
}

#[test]
fn a_node_that_the_running_containers_rules_refuse_is_named_and_a_restart_mends_it() {
    let Some(lab) = wanting(Rootfs::Debian12.privileged()) else { return };
    lab.web().runfile(&Runfile::new(V));
    start(&lab).ok();
    lab.run(["lxc-cgroup", "-n", "101", "devices.deny", "c 195:0 rwm"]).ok();
    // A look while it is so, as an install process has it, names the node.
    let verified = lab.run(["phoenix-nvidia", "doctor", "101"]).code(1);
    verified.says("/dev/nvidia0 denied by the container's device rules (EPERM)");
    by_hand(&lab).ok().says("the running container has no device rule for /dev/nvidia0");
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
}

#[test]
fn a_node_whose_mode_keeps_the_container_out_is_named() {
    let Some(lab) = wanting(Rootfs::Debian12.unprivileged()) else { return };
    lab.web().runfile(&Runfile::new(V));
    start(&lab).ok();
    lab.sh("chmod 600 /dev/nvidia0").ok();
    let output = lab.container(101).sh("nvidia-smi");
    assert_ne!(output.exit(), Some(0), "{output}");
    by_hand(&lab).code(5).says("/dev/nvidia0 denied by its mode (EACCES)");
}

#[test]
fn without_a_gpu_the_verification_asks_for_none() {
    let Some(lab) = bare(Lab::builder().gpus(1).driver(V)) else { return };
    lab.create(101, Rootfs::Debian12.unprivileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=none");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    lab.web().runfile(&Runfile::new(V));
    start(&lab).ok().says("driver: installed 580.95.05").says("verify: no GPU assigned");
    right(&lab.container(101));
}

#[test]
fn a_host_without_space_for_the_download_is_told_before_it() {
    let Some(lab) = wanting(Rootfs::Debian12.unprivileged()) else { return };
    let path = lab.web().runfile(&Runfile::new(V));
    lab.sh(
        "mkdir -p /var/cache/phoenix-nvidia && mount -t tmpfs -o size=64m tmpfs /var/cache/phoenix-nvidia",
    )
    .ok();
    start(&lab)
        .ok()
        .says("not enough space for the runfile in /var/cache/phoenix-nvidia")
        .says("exit code 5");
    lab.sh("ls /var/cache/phoenix-nvidia | grep run$").code(1);
    lab.sh("umount /var/cache/phoenix-nvidia").ok();
    by_hand(&lab).ok().says("driver: installed");
    assert!(!lab.web().requests().of(&path).is_empty());
}

#[test]
fn a_hook_uses_the_proxy_that_proxmox_knows_of() {
    let Some(lab) = wanting(Rootfs::Debian12.unprivileged()) else { return };
    let path = lab.web().runfile(&Runfile::new(V));
    lab.write("/etc/pve/datacenter.cfg", "keyboard: de\nhttp_proxy: http://192.0.2.1:80\n");
    start(&lab).ok().says("driver: installed 580.95.05");
    let requests = lab.web().requests();
    assert!(requests.of("mirror.lab:443").iter().any(|r| r.method == "CONNECT"), "{requests:?}");
    assert_eq!(requests.of(&path).len(), 1);
}

#[test]
fn a_full_disk_is_said_so_and_heals_by_itself() {
    let Some(lab) = running_without(Rootfs::Debian12.unprivileged()) else { return };
    // Little enough that a body without a length meets its end.
    lab.sh(
        "mkdir -p /var/cache/phoenix-nvidia && mount -t tmpfs -o size=160m tmpfs /var/cache/phoenix-nvidia",
    )
    .ok();
    let path = lab.web().runfile(&Runfile::new(V));
    lab.web().fail(&path, Fault::Endless);
    let free = || lab.sh("df -k --output=avail /var/cache/phoenix-nvidia | tail -n 1").ok().stdout;
    let before = free();
    let run = by_hand(&lab).code(5);
    run.says("not enough space for the runfile").says("needed").says("du -xh");
    assert_eq!(free(), before, "the part takes the room that is missing");
    // Full by somebody else's doing, with what an earlier call left.
    lab.web().heal();
    lab.web().fail_times(&path, 3, Fault::Cut(100_000));
    by_hand(&lab).code(5).says("cut off");
    lab.sh("head -c 40M /dev/zero >/var/cache/phoenix-nvidia/other").ok();
    by_hand(&lab).code(5).says("not enough space for the runfile");
    lab.sh("rm /var/cache/phoenix-nvidia/other").ok();
    by_hand(&lab).ok().says("driver: installed 580.95.05");
}

#[test]
fn a_server_that_never_ends_is_left_at_download_max() {
    let Some(lab) = running_without(Rootfs::Debian12.unprivileged()) else { return };
    let path = lab.web().runfile(&Runfile::new(V));
    node(&lab, "DOWNLOAD_MAX=20");
    for fault in [Fault::Endless, Fault::Length(u64::MAX)] {
        lab.web().heal();
        lab.web().fail(&path, fault);
        by_hand(&lab).code(5).says("exceeds DOWNLOAD_MAX (20 MiB)").says_not("panicked");
        assert!(!lab.sh("ls /var/cache/phoenix-nvidia").ok().stdout.contains(".run"));
    }
    lab.web().heal();
    by_hand(&lab).ok().says("driver: installed 580.95.05");
}

#[test]
fn a_redirect_from_this_machine_to_another_needs_a_checksum() {
    let Some(lab) = running_without(Rootfs::Debian12.unprivileged()) else { return };
    let path = lab.web().runfile(&Runfile::new(V));
    node(&lab, "NVIDIA_RUNFILE_URL=http://127.0.0.1/start.run");
    lab.web().fail("/start.run", Fault::Redirect(lab.web().url(&path)));
    let run = by_hand(&lab).code(5).says("redirect to http://mirror.lab/").says("NVIDIA_RUNFILE_SHA256");
    run.says_not("rejected and deleted");
    assert_eq!(lab.web().requests().of(&path).len(), 0, "the other server was asked");
    let sum = lab.sh(&format!("sha256sum /run/lab/web/www{path}")).ok().stdout;
    node(&lab, &format!("NVIDIA_RUNFILE_SHA256={}", sum.split(' ').next().unwrap_or_default()));
    by_hand(&lab).ok().says("driver: installed 580.95.05");
}
