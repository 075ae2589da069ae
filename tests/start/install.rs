//! The main job: one start of a container without a driver, and what can go
//! wrong with it.
use crate::support;

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::web::Fault;
use phoenix_lab::{Errno, Lab, Rootfs, Spec};
use std::time::{Duration, Instant};
use support::{lab, node, setting};

const NEW: &str = "580.95.05";
const OLD: &str = "580.76.05";

/// Two GPUs, a server with NVIDIA's files, containers with the hookscript.
fn host(more: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver(NEW))?;
    lab.web().standard(&[OLD, NEW]);
    node(
        &lab,
        "NVIDIA_RUNFILE_URL=http://127.0.0.1/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run",
    );
    // Only the test of the reboot wants it.
    node(&lab, "AFTER_INSTALL=none");
    node(&lab, more);
    Some(lab)
}

fn attached(lab: &Lab, id: u32, spec: Spec, gpus: &str) {
    let ct = lab.create(id, spec);
    lab.web().use_distribution(&ct);
    setting(lab, id, &format!("GPU_ASSIGNMENT={gpus}"));
    lab.run(["pct", "set", &id.to_string(), "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
}

/// What the shell calls in the container's temp directories.
fn temporary(lab: &Lab, id: u32) -> String {
    lab.container(id).sh("ls -A /tmp /var/tmp | grep -v '^/\\|^$' || true").ok().stdout
}

#[test]
fn one_start_brings_gpu_and_driver_and_the_next_one_has_nothing_to_do() {
    let Some(lab) = host("") else { return };
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    let start = lab.run(["pct", "start", "101"]).ok();
    let start = start.says("driver: installed 580.95.05").says_not("WARNING").says_not("ERROR");
    assert!(start.stdout.lines().count() <= 12, "a dozen lines at most: {start}");
    let ct = lab.container(101);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    ct.exec(["nvidia-smi", "--version"]).ok().says("NVIDIA-SMI version  : 580.95.05");
    ct.sh("dpkg -s cuda-toolkit-13-0 nvtop && apt-get check").ok();
    assert_eq!(temporary(&lab, 101), "");

    lab.run(["pct", "shutdown", "101"]).ok();
    let before = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));
    lab.run(["pct", "start", "101"]).ok().says("installed and right").says_not("to do");
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), before);
    let traced = lab.trace(["/usr/sbin/phoenix-nvidia", "101", "post-start"]);
    // Ourselves, one child, and what that becomes in the container.
    let programs: Vec<_> = traced.execs.iter().filter_map(|e| e.split('"').nth(1)).collect();
    assert_eq!(programs, ["/usr/sbin/phoenix-nvidia", "/usr/bin/lxc-attach", "/bin/sh"]);
    assert_eq!(lab.web().requests().ending(".run").len(), 1);
}

#[test]
fn an_unprivileged_container_gets_it_too() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none") else { return };
    attached(&lab, 101, Rootfs::Debian12.unprivileged(), "0,1");
    lab.run(["pct", "start", "101"]).ok().says("driver: installed 580.95.05").says_not("WARNING");
    lab.container(101).exec(["nvidia-smi", "-L"]).ok().says("GPU 0:").says("GPU 1:");
}

#[test]
fn an_older_driver_follows_the_host_in_one_start() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none") else { return };
    lab.nvidia().set_driver(OLD);
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    lab.run(["pct", "start", "101"]).ok().says("installed 580.76.05");
    lab.run(["pct", "stop", "101"]).ok();
    lab.nvidia().set_driver(NEW);
    lab.run(["pct", "start", "101"]).ok().says("580.76.05 → 580.95.05");
    lab.container(101).exec(["nvidia-smi", "--version"]).ok().says("NVIDIA-SMI version  : 580.95.05");
}

#[test]
fn no_gpu_assigned_means_the_control_devices_and_the_driver() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none") else { return };
    attached(&lab, 101, Rootfs::Debian12.privileged(), "none");
    lab.run(["pct", "start", "101"]).ok().says("installed 580.95.05").says_not("WARNING").says_not("ERROR");
    let ct = lab.container(101);
    assert_eq!(ct.open_node("/dev/nvidiactl"), Err(Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENOENT));
    ct.exec(["nvidia-smi"]).code(6);
    lab.run(["/usr/sbin/phoenix-nvidia", "101"]).ok();
}

#[test]
fn a_server_that_fails_costs_one_start_its_driver_and_the_next_one_has_it() {
    let faults = [
        (Fault::Status(404), "404"),
        (Fault::Stall(100_000), "timed out after 4 s"),
        (Fault::Cut(100_000), "cut off after"),
    ];
    for (fault, said) in faults {
        let name = format!("{fault:?}");
        let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nDOWNLOAD_TIMEOUT=4") else { return };
        attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
        lab.web().fail("*.run", fault);
        let start = lab.run(["pct", "start", "101"]).ok();
        start.says("on post-start").says("exit code 5").says("ERROR").says(said);
        assert!(lab.container(101).running());
        assert_eq!(temporary(&lab, 101), "", "{name}");
        lab.run(["pct", "stop", "101"]).ok();
        lab.web().heal();
        lab.run(["pct", "start", "101"]).ok().says("installed 580.95.05");
    }
}

#[test]
fn an_installer_that_fails_is_exit_5_by_hand_and_the_next_run_completes() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none") else { return };
    lab.web().runfile(&Runfile::new(NEW).flaw(Flaw::Fails));
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    lab.run(["/usr/sbin/phoenix-nvidia", "101"]).code(5).says("driver");
    assert_eq!(temporary(&lab, 101), "");
    lab.web().runfile(&Runfile::new(NEW));
    lab.sh("rm -rf /var/cache/phoenix-nvidia").ok();
    lab.run(["/usr/sbin/phoenix-nvidia", "101"]).ok().says("installed 580.95.05");
}

#[test]
fn a_version_that_the_kernel_driver_is_not_is_refused_before_any_download() {
    let Some(lab) = host("NVIDIA_DRIVER_VERSION=580.76.05") else { return };
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    lab.run(["/usr/sbin/phoenix-nvidia", "101"]).code(5).says("580.76.05").says("580.95.05");
    assert!(!lab.container(101).running(), "nothing was done");
    lab.run(["pct", "start", "101"]).ok().says("exit code 5").says("NVIDIA_DRIVER_VERSION=host");
    assert!(lab.web().requests().all().is_empty());
}

#[test]
fn by_hand_with_the_hook_attached_the_work_is_done_once() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=reboot") else { return };
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    let run = lab.run(["/usr/sbin/phoenix-nvidia", "101"]).ok();
    assert_eq!(run.stderr.matches("installed 580.95.05").count(), 1, "{run}");
    let starts = lab.calls().iter().filter(|c| c.contains("start 101")).count();
    assert_eq!(starts, 2, "a start and one restart: {:?}", lab.calls());
    assert_eq!(lab.web().requests().ending(".run").len(), 1);
    let again = lab.run(["/usr/sbin/phoenix-nvidia", "101"]).ok();
    again.says("installed and right").says_not("restart");
    assert_eq!(lab.calls().iter().filter(|c| c.contains("start 101")).count(), 2);
}

#[test]
fn by_hand_twice_and_beside_a_start_the_driver_is_installed_once() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none") else { return };
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    let start = lab.command("pct").args(["start", "101"]).spawn();
    let first = lab.command("/usr/sbin/phoenix-nvidia").arg("101").timeout(Duration::from_secs(120)).spawn();
    let second = lab.command("/usr/sbin/phoenix-nvidia").arg("101").timeout(Duration::from_secs(120)).spawn();
    let (first, second) = (first.wait().ok(), second.wait().ok());
    start.wait();
    let log = if lab.exists("/var/log/phoenix-nvidia/101.log") {
        lab.read("/var/log/phoenix-nvidia/101.log")
    } else {
        String::new()
    };
    let all = format!("{}{}{log}", first.stderr, second.stderr);
    assert_eq!(all.matches("driver: installed").count(), 1, "{all}");
    lab.container(101).exec(["nvidia-smi", "-L"]).ok().says("GPU 0:");
}

#[test]
fn two_containers_that_start_at_once_share_one_download() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none") else { return };
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    attached(&lab, 102, Rootfs::Debian12.unprivileged(), "1");
    let both = ["101", "102"].map(|id| lab.command("pct").args(["start", id]).spawn());
    for start in both {
        start.wait().ok().says("installed 580.95.05");
    }
    assert_eq!(lab.web().requests().ending(".run").len(), 1);
}

#[test]
fn after_an_install_the_container_is_rebooted_once() {
    let Some(lab) = host("CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=reboot") else { return };
    attached(&lab, 101, Rootfs::Debian12.privileged(), "0");
    lab.run(["pct", "start", "101"]).ok();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !lab.read("/var/log/phoenix-nvidia/101.log").contains("container rebooted") {
        assert!(Instant::now() < deadline, "{}", lab.read("/var/log/phoenix-nvidia/101.log"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(lab.calls().iter().filter(|c| c.contains("reboot 101")).count(), 1);
    lab.container(101).exec(["nvidia-smi", "-L"]).ok().says("GPU 0:");
    lab.run(["pct", "reboot", "101"]).ok();
    assert_eq!(lab.calls().iter().filter(|c| c.contains("reboot 101")).count(), 2, "only ours and this one");
}
