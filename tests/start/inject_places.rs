//! Where the host's driver is mounted, how it is shown there, and what is in the way.
use crate::inject::{HWCAPS, KEPT, NEW, OLD, PROGRAM, SHOWN, create, finds, host, injecting, start};
use crate::inject_hostile;
use crate::support::{lab, node};

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use std::time::Duration;

/// auto: it gets one of its own, where an installer can bring it.
#[test]
fn with_auto_a_container_with_files_of_its_own_there_gets_an_install() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    lab.web().runfile(&Runfile::new(OLD));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nDRIVER_MODE=auto");
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    // Nowhere to unpack a runfile, so that the host's driver is tried.
    let memory = ["tmp", "var/tmp"].map(|at| format!("lxc.mount.entry: tmpfs {at} tmpfs size=1m 0 0\n"));
    let conf = lab.conf(101);
    lab.append("/etc/pve/lxc/101.conf", memory.concat());
    let ct = lab.container(101);
    ct.write(format!("{HWCAPS}/libtheirs.so.1"), "theirs");
    start(&lab).ok().says("/var/tmp is in memory");
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab).ok().says(&format!("{HWCAPS} in the container has files of its own"));
    lab.run(["pct", "stop", "101"]).ok();
    lab.write("/etc/pve/lxc/101.conf", conf);
    start(&lab).ok().says("driver: installed 580.95.05").says_not("files of its own");
}

/// File systems that lie on others as deep as the kernel allows, as in a Proxmox that is a container itself.
fn too_deep_for_an_overlay(lab: &Lab, at: &str) {
    lab.sh(&format!(
        "set -e; mkdir -p {at} /tmp/deep/upper /tmp/deep/work /root/lower
         mount -t overlay -o lowerdir=/root/lower,upperdir=/tmp/deep/upper,workdir=/tmp/deep/work deep {at}"
    ))
    .ok();
}

#[test]
fn without_an_overlay_privileged_containers_are_refused_and_others_are_not() {
    let Some(lab) = host() else { return };
    too_deep_for_an_overlay(&lab, "/var/lib/phoenix-nvidia");
    create(&lab, 101, Rootfs::Debian12.privileged());
    create(&lab, 102, Rootfs::Debian12.unprivileged());
    let fix = "fix: modprobe overlay && phoenix-nvidia prepare";
    lab.run([PROGRAM, "prepare"]).ok().says("no overlay over");
    let refused = start(&lab).ok();
    refused.says("WARNING").says("root of a privileged container could write").says(fix);
    assert!(lab.container(101).running() && !lab.conf(101).contains("driver/current"));
    lab.container(101).exec(["/root/driver-version"]).code(127);
    lab.run([PROGRAM, "plan", "101"]).code(5).says("no overlay");
    lab.run([PROGRAM, "doctor", "101"]).code(1).says("no overlay").says(fix);

    lab.run(["pct", "start", "102"]).ok().says("the host's, mounted").says_not("refused");
    let ct = lab.container(102);
    finds(&ct, OLD);
    inject_hostile::program(&lab, 102);
    let sum = format!("cd {KEPT}/{OLD} && find . -type f -exec md5sum {{}} + | sort && find . | sort");
    let before = lab.sh(&sum).ok().stdout;
    let tried = inject_hostile::attack(&ct, &[HWCAPS.to_owned(), format!("{HWCAPS}/libcuda.so.{OLD}")]);
    assert_eq!(lab.sh(&sum).ok().stdout, before, "{tried}");
    // A reboot of the host later there is one.
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "stop", "102"]).ok();
    lab.sh(&format!("umount {SHOWN}/{OLD} /var/lib/phoenix-nvidia")).ok();
    lab.run([PROGRAM, "prepare"]).ok().says_not("no overlay");
    start(&lab).ok().says("the host's, mounted").says_not("WARNING");
    finds(&lab.container(101), OLD);
}

/// The mount table of a container has the path within that file system, which does not name us.
#[test]
fn a_tree_that_is_bound_from_a_file_system_of_its_own_is_known_and_stays_while_it_is_used() {
    let Some(lab) = host() else { return };
    too_deep_for_an_overlay(&lab, KEPT);
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    start(&lab).ok().says("no overlay over").says("the host's, mounted");
    let ct = lab.container(101);
    finds(&ct, OLD);
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    lab.driver_on_disk(NEW);
    for _ in 0..2 {
        lab.run([PROGRAM, "prepare"]).ok().says_not("removed its copy");
    }
    finds(&ct, OLD);
    lab.run([PROGRAM, "doctor", "101"]).code(1).says("keeps its driver until its next start");
    lab.run(["pct", "stop", "101"]).ok();
    ct.write("/at-boot", "");
    start(&lab).ok();
    finds(&ct, NEW);
    lab.run([PROGRAM, "prepare"]).ok().says(&format!("driver {OLD}: removed its copy"));
    finds(&ct, NEW);
}

/// Each call that changes something is the last one in some run; every fifth, without `make test-all`.
#[test]
fn a_maker_that_is_killed_before_any_of_its_steps_leaves_a_whole_tree_or_none() {
    let Some(lab) = injecting(Rootfs::Busybox.unprivileged()) else { return };
    let fresh = format!("umount {SHOWN}/{OLD} 2>/dev/null; rm -rf {KEPT} /run/phoenix-nvidia/driver; true");
    let mut all = 0;
    let must = ["mkdir", "openat", "copy_file_range", "fsync", "fchmod", "symlink", "rename", "mount"];
    let may = ["link", "unlink", "chmod"];
    for call in must.into_iter().chain(may) {
        let mut killed = 0;
        // The kernel's names differ by machine: those of one kind together.
        let set = format!("/^{call}");
        for nth in (1..).step_by(if phoenix_lab::thorough() { 1 } else { 5 }) {
            lab.sh(&fresh).ok();
            let run = lab
                .command("strace")
                .args(["-qq", "-o", "/dev/null", "-e", &format!("trace={set}"), "-e"])
                .arg(format!("inject={set}:signal=SIGKILL:when={nth}"))
                .args([PROGRAM, "prepare"])
                .timeout(Duration::from_secs(60))
                .run();
            if run.exit() == Some(0) {
                break;
            }
            assert!(nth < 400, "{call}: {run}");
            killed += 1;
            let listed = if lab.exists(KEPT) { lab.files().list(KEPT) } else { Vec::new() };
            if listed.iter().any(|name| name == OLD) {
                whole(&lab);
            }
            lab.run([PROGRAM, "prepare"]).ok();
            whole(&lab);
            assert_eq!(lab.files().list(KEPT), [OLD], "{call} {nth}");
            let shown = lab.sh(&format!(
                "test -f {SHOWN}/current/libcuda.so.1 && grep -c ' {SHOWN}/{OLD} ' /proc/mounts"
            ));
            assert_eq!((shown.exit(), shown.stdout.as_str()), (Some(0), "1\n"), "{call} {nth}: {shown}");
        }
        assert!(killed > 0 || may.contains(&call), "{call}: no run was killed");
        all += killed;
    }
    assert!(all > 20, "{all} runs were killed");
}

/// All that its list names, and to the byte.
#[track_caller]
fn whole(lab: &Lab) {
    lab.sh(&format!(
        "set -e; cd {KEPT}/{OLD}; test -f .phoenix-nvidia
         for name in libcuda libnvidia-ml; do cmp $name.so.{OLD} /usr/lib/x86_64-linux-gnu/$name.so.{OLD}; test -e $name.so.1; done
         cmp bin/nvidia-smi /usr/bin/nvidia-smi; test -x bin/nvidia-smi"
    ))
    .ok();
}

/// Space is there, and no more files can be made.
#[test]
fn a_file_system_without_room_for_another_file_leaves_nothing_and_is_told() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    let at = "/var/lib/phoenix-nvidia";
    lab.sh(&format!("mkdir -p {at} && mount -t tmpfs -o size=200m,nr_inodes=7,mode=755 tmpfs {at}")).ok();
    let start_1 = start(&lab).ok();
    start_1.says("WARNING").says("No space left on device").says("fix: ");
    assert!(lab.container(101).running());
    assert_eq!(lab.files().list(KEPT), [""; 0]);
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!("mount -o remount,nr_inodes=1000 {at}")).ok();
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
}
