//! The host's driver, exchanged in a running container.
use crate::common::{PROGRAM, apply, bad, reboot_from_inside, table};
use crate::support::{lab, node, setting};

use phoenix_lab::{Container, Lab, Rootfs, Running, Spec};
use std::time::{Duration, Instant};

const OLD: &str = "580.95.05";
const NEW: &str = "580.105.08";
const HWCAPS: &str = "/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2";

/// Container 101 runs with the host's driver, or without.
fn host(spec: Spec, mode: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver(OLD))?;
    lab.sh("mount --make-rshared /").ok();
    lab.nvidia().user_space(OLD);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.create(101, spec);
    lab.nvidia().printer(101);
    setting(&lab, 101, &format!("DRIVER_MODE={mode}"));
    if mode != "inject" {
        setting(&lab, 101, "INSTALL=off");
    }
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.container(101).wait_ready();
    Some(lab)
}

#[track_caller]
fn finds(ct: &Container<'_>, version: &str) {
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, format!("{version}\n{version}\n"));
}

fn upgrade(lab: &Lab, version: &str) {
    lab.nvidia().user_space(version);
    lab.nvidia().set_driver(version);
    lab.driver_on_disk(version);
}

fn driver_mounts(lab: &Lab) -> usize {
    table(lab, &lab.container(101)).lines().filter(|line| line.contains("phoenix-nvidia/driver/")).count()
}

fn exchanged(spec: Spec) {
    let Some(lab) = host(spec, "inject") else { return };
    let ct = lab.container(101);
    finds(&ct, OLD);
    assert_eq!(driver_mounts(&lab), 2);
    upgrade(&lab, NEW);
    let said = "exchange driver 580.95.05 for 580.105.08";
    lab.run([PROGRAM, "plan", "101"]).code(10).says(said);
    apply(&lab, &[]).ok().says(said).says("without a restart").says_not("WARNING");
    finds(&ct, NEW);
    assert_eq!(driver_mounts(&lab), 2);
    assert_eq!(bad(&lab), Vec::<String>::new(), "{}", lab.run([PROGRAM, "doctor", "101"]));
    apply(&lab, &[]).ok().says("nothing to change");
    let conf = lab.conf(101).replace("GPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT=0,1\n");
    lab.write("/etc/pve/lxc/101.conf", conf);
    apply(&lab, &[]).ok().says("add /dev/nvidia1").says_not("exchange");
    assert_eq!(bad(&lab), Vec::<String>::new());
    // Nobody has the old one any more.
    lab.run([PROGRAM, "prepare"]).ok().says("driver 580.95.05: removed its copy");
    finds(&ct, NEW);
    // Read-only for root inside, whatever it tries.
    for line in [
        "echo x >F",
        "mount -o remount,rw F; echo x >F",
        "mount -o remount,bind,rw F; echo x >F",
        "rm F/libcuda.so.1",
    ] {
        assert_ne!(ct.sh(&line.replace('F', HWCAPS)).exit(), Some(0), "{line}");
    }
    lab.sh(&format!("grep -q {NEW} /run/phoenix-nvidia/driver/{NEW}/libcuda.so.1")).ok();
    reboot_from_inside(&ct);
    finds(&ct, NEW);
    assert_eq!(bad(&lab), Vec::<String>::new());
}

#[test]
fn a_privileged_container_gets_the_new_driver_while_it_runs() {
    exchanged(Rootfs::Debian12.privileged());
}

#[test]
fn an_unprivileged_container_gets_the_new_driver_while_it_runs() {
    exchanged(Rootfs::Debian12.unprivileged());
}

/// A process that maps the library of the driver.
fn mapping(lab: &Lab) -> Running {
    let line = format!("LD_PRELOAD={HWCAPS}/libcuda.so.1 exec sleep 600");
    let running = lab.container(101).command("sh").args(["-c", &line]).spawn();
    let deadline = Instant::now() + Duration::from_secs(20);
    while lab.container(101).sh("grep -l libcuda /proc/[0-9]*/maps").exit() != Some(0) {
        assert!(Instant::now() < deadline, "{}", running.so_far());
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

/// What runs with the old one keeps it, and new programs too: two versions in one container would be worse.
#[test]
fn a_driver_that_a_process_maps_stays_until_the_next_start() {
    let Some(lab) = host(Rootfs::Debian12.unprivileged(), "inject") else { return };
    let ct = lab.container(101);
    let process = mapping(&lab);
    upgrade(&lab, NEW);
    let conf = lab.conf(101).replace("GPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT=0,1\n");
    lab.write("/etc/pve/lxc/101.conf", conf);
    let said = "exchange driver 580.95.05 for 580.105.08: used by process";
    lab.run([PROGRAM, "plan", "101"])
        .code(10)
        .says(&format!("only with a start: {said}"))
        .says("add /dev/nvidia1");
    let out = apply(&lab, &["--force"]).ok().says(&format!("at its next start: {said}")).says("(sleep)");
    // The cards do not wait for it.
    out.says("add /dev/nvidia1").says("fix: pct reboot 101");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(phoenix_lab::Errno::ENXIO));
    finds(&ct, OLD);
    drop(process);
    let deadline = Instant::now() + Duration::from_secs(20);
    while ct.sh("grep -l libcuda /proc/[0-9]*/maps").exit() == Some(0) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    apply(&lab, &[]).ok().says("exchange driver 580.95.05 for 580.105.08").says_not("next start");
    finds(&ct, NEW);
}

/// The description for engines names what the container has: the new card, and the old driver until the next start.
#[test]
fn engines_get_a_card_that_comes_while_the_driver_waits() {
    let Some(lab) = host(Rootfs::Debian12.unprivileged(), "inject") else { return };
    let ct = lab.container(101);
    lab.run([PROGRAM, "attach", "101", "--nested"]).ok();
    apply(&lab, &[]).ok().says("engines in the container: nvidia.com/gpu = 0, all");
    let described =
        |what: &str| ct.sh(&format!("grep -q '{what}' /etc/cdi/phoenix-nvidia-index.json")).exit() == Some(0);
    assert!(described("/dev/nvidia0") && described(HWCAPS) && !described("/dev/nvidia1"));
    let process = mapping(&lab);
    upgrade(&lab, NEW);
    let conf = lab.conf(101);
    lab.write("/etc/pve/lxc/101.conf", conf.replace("GPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT=0,1\n"));
    let out = apply(&lab, &[]).ok().says("add /dev/nvidia1").says("at its next start: exchange driver");
    out.says("engines in the container: nvidia.com/gpu = 0, 1, all").says_not("no description");
    assert!(described("/dev/nvidia0") && described("/dev/nvidia1") && described(HWCAPS));
    // And one that goes.
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("GPU_ASSIGNMENT=0,1\n", "GPU_ASSIGNMENT=1\n"));
    apply(&lab, &[]).ok().says("take away /dev/nvidia0").says("nvidia.com/gpu = 0, all");
    assert!(!described("/dev/nvidia0") && described("/dev/nvidia1") && described(HWCAPS));
    apply(&lab, &[]).ok().says_not("nvidia.com/gpu");
    finds(&ct, OLD);
    drop(process);
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says_not("WARNING");
    finds(&ct, NEW);
    assert!(!described("/dev/nvidia0") && described("/dev/nvidia1") && described(HWCAPS));
    assert_eq!(bad(&lab), Vec::<String>::new(), "{}", lab.run([PROGRAM, "doctor", "101"]));
}

/// It comes and goes with the setting.
#[test]
fn the_driver_comes_and_goes_with_the_setting() {
    for spec in [Rootfs::Debian12.privileged(), Rootfs::Debian12.unprivileged()] {
        let Some(lab) = host(spec, "install") else { return };
        let ct = lab.container(101);
        assert_ne!(ct.exec(["/root/driver-version"]).exit(), Some(0));
        let conf = lab.conf(101);
        let lines: Vec<&str> = conf.lines().filter(|line| !line.contains("INSTALL=off")).collect();
        lab.write("/etc/pve/lxc/101.conf", format!("{}\n", lines.join("\n")));
        let out = lab.run([PROGRAM, "attach", "101", "--inject", "--live"]).ok();
        out.says("mount driver 580.95.05").says("without a restart");
        finds(&ct, OLD);
        assert_eq!(driver_mounts(&lab), 2);
        assert_eq!(bad(&lab), Vec::<String>::new());
        reboot_from_inside(&ct);
        finds(&ct, OLD);
        // The setting alone goes, and comes back.
        let injecting = lab.conf(101);
        setting(&lab, 101, "INSTALL=off");
        apply(&lab, &[]).ok().says("take away driver 580.95.05");
        assert_eq!(driver_mounts(&lab), 0);
        assert_eq!(lab.conf(101).matches("driver/current").count(), 0);
        let lines: Vec<String> =
            injecting.lines().filter(|line| !line.contains("driver/current")).map(str::to_owned).collect();
        lab.write("/etc/pve/lxc/101.conf", format!("{}\n", lines.join("\n")));
        apply(&lab, &[]).ok().says("mount driver 580.95.05");
        finds(&ct, OLD);
        lab.run([PROGRAM, "detach", "101", "--live"]).ok().says("take away driver 580.95.05");
        assert_eq!(driver_mounts(&lab), 0);
        assert_ne!(ct.exec(["/root/driver-version"]).exit(), Some(0));
        assert!(!lab.conf(101).contains("phoenix-nvidia"), "{}", lab.conf(101));
    }
}

/// What fails at the second place undoes the first.
#[test]
fn an_exchange_that_fails_half_way_is_undone() {
    let Some(lab) = host(Rootfs::Debian12.privileged(), "install") else { return };
    let ct = lab.container(101);
    let conf = lab.conf(101);
    let lines: Vec<&str> = conf.lines().filter(|line| !line.contains("INSTALL=off")).collect();
    lab.write("/etc/pve/lxc/101.conf", format!("{}\n", lines.join("\n")));
    // The second of the two places.
    ct.sh("ln -s /etc /usr/lib/x86_64-linux-gnu/x86_64").ok();
    let before = table(&lab, &ct);
    let out = lab.run([PROGRAM, "attach", "101", "--inject", "--live"]).code(4);
    out.says("is a symbolic link in the container").says("rolled back: mount the driver");
    assert_eq!(table(&lab, &ct), before);
    assert!(!lab.conf(101).contains("driver/current"), "{}", lab.conf(101));
    // Files of its own would be hidden.
    ct.sh("cd /usr/lib/x86_64-linux-gnu; rm x86_64; mkdir x86_64; : >x86_64/libown.so").ok();
    apply(&lab, &[]).code(4).says("/usr/lib/x86_64-linux-gnu/x86_64 in the container has files of its own");
    assert_eq!(table(&lab, &ct), before);
    ct.sh("rm -r /usr/lib/x86_64-linux-gnu/x86_64").ok();
    apply(&lab, &[]).ok().says("mount driver 580.95.05");
    finds(&ct, OLD);
}

/// An install is due then, and takes the time of one: until it is there the container keeps what it has.
#[test]
fn a_driver_that_is_to_be_installed_takes_the_place_of_the_hosts_at_the_next_start() {
    let Some(lab) = host(Rootfs::Debian12.unprivileged(), "inject") else { return };
    let ct = lab.container(101);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nNETWORK_TIMEOUT=5");
    lab.web().standard(&[OLD]);
    lab.web().use_distribution(&ct);
    finds(&ct, OLD);
    let later = "the mounted driver 580.95.05 goes, and driver 580.95.05 is installed";
    let out = lab.run([PROGRAM, "attach", "101", "--install", "--live"]).ok();
    out.says(&format!("at its next start: {later}"))
        .says("fix: pct reboot 101")
        .says_not("without a restart");
    finds(&ct, OLD);
    assert_eq!(driver_mounts(&lab), 2);
    assert!(!lab.conf(101).contains("driver/current"), "{}", lab.conf(101));
    let plan = lab.run([PROGRAM, "plan", "101"]).code(10);
    plan.says(&format!("only with a start: {later}")).says_not("without a restart");
    // A card does not wait for it, nor does one for the other.
    let conf = lab.conf(101).replace("GPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT=0,1\n");
    lab.write("/etc/pve/lxc/101.conf", conf);
    apply(&lab, &[]).ok().says("add /dev/nvidia1").says(&format!("at its next start: {later}"));
    finds(&ct, OLD);
    lab.command("pct").args(["reboot", "101"]).timeout(Duration::from_secs(150)).run().ok();
    assert_eq!(driver_mounts(&lab), 0);
    ct.exec(["nvidia-smi", "-L"]).ok().says("GPU 1");
    apply(&lab, &[]).ok().says("nothing to change");
    // Without an install it goes at once.
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    lab.command("pct").args(["reboot", "101"]).timeout(Duration::from_secs(150)).run().ok();
    assert_eq!(driver_mounts(&lab), 2);
    setting(&lab, 101, "INSTALL=off");
    apply(&lab, &[]).ok().says("take away driver 580.95.05").says("without a restart");
    assert_eq!(driver_mounts(&lab), 0);
}
