//! DRIVER_MODE=inject: a container has the host's own driver, mounted, in its first start.
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Container, Errno, Lab, Rootfs, Spec};
use std::time::Duration;
use support::{lab, node, setting};

pub const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
pub const OLD: &str = "580.95.05";
pub const OLDER: &str = "570.86.15";
pub const NEW: &str = "580.105.08";
pub const KEPT: &str = "/var/lib/phoenix-nvidia/driver";
pub const SHOWN: &str = "/run/phoenix-nvidia/driver";
pub const HWCAPS: &str = "/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2";

/// A host with a driver of its own, that gives it to its containers.
pub fn host() -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver(OLD))?;
    // As systemd leaves them: what is mounted and unmounted here is in the namespaces of others too.
    lab.sh("mount --make-rshared /").ok();
    lab.nvidia().user_space(OLD);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nDRIVER_MODE=inject");
    Some(lab)
}

pub fn create(lab: &Lab, id: u32, spec: Spec) {
    lab.create(id, spec);
    lab.nvidia().printer(id);
    setting(lab, id, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", &id.to_string(), "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
}

/// A container with a program that prints the versions of the libraries that it finds, not started yet.
pub fn injecting(spec: Spec) -> Option<Lab> {
    let lab = host()?;
    create(&lab, 101, spec);
    Some(lab)
}

pub fn start(lab: &Lab) -> phoenix_lab::Output {
    lab.command("pct").args(["start", "101"]).timeout(Duration::from_secs(150)).run()
}

/// What the program printed as the container's process 1 ran it, before anything of ours ran inside, and now.
#[track_caller]
pub fn finds(ct: &Container<'_>, version: &str) {
    let both = format!("{version}\n{version}\n");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while ct.read("/at-boot").is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ct.read("/at-boot"), both);
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, both);
}

pub fn the_first_start_has_the_driver(spec: Spec) {
    let Some(lab) = injecting(spec) else { return };
    start(&lab)
        .ok()
        .says("driver 580.95.05: copied for containers")
        .says("the host's, mounted")
        .says_not("WARNING");
    let ct = lab.container(101);
    finds(&ct, OLD);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    ct.exec(["nvidia-smi", "-L"]).ok().says(&lab.nvidia().uuid(0));
    ct.exec(["/sbin/ldconfig", "-p"]).ok().says("libcuda.so.1").says_not("libEGL");
    assert!(!ct.exists("/var/lib/nvidia/log"), "nothing is installed");
    // A reboot from inside runs no hookscript.
    let before = ct.init_pid();
    ct.wait_ready();
    ct.write("/at-boot", "");
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    finds(&ct, OLD);
    // Nothing to do: the conf stays, nothing is copied, and no command is run in the container.
    lab.run(["pct", "shutdown", "101"]).ok();
    let conf = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));
    lab.sh("mv /usr/bin/lxc-attach /root/lxc-attach").ok();
    lab.replace_program("/usr/bin/lxc-attach", "#!/bin/sh\n: >/root/attached\n");
    start(&lab).ok().says("the host's, mounted").says_not("copied").says_not("WARNING");
    assert!(!lab.exists("/root/attached"));
    lab.sh("mv /root/lxc-attach /usr/bin/lxc-attach").ok();
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), conf);
    finds(&ct, OLD);
    // Ours alone, and in pre-start the one that reads what a lost card may block.
    assert_eq!([programs(&lab, "pre-start"), programs(&lab, "post-start")], [2, 1]);
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "plan", "101"]).code(10).says("driver 580.95.05 of this host is mounted at the start");
    start(&lab).ok();
    lab.run([PROGRAM, "doctor", "101"]).says("is mounted in the container").says("0 failure, 0 warning");
    lab.run([PROGRAM, "status"]).ok().says("inject").says(OLD);
}

/// How many programs a phase runs, itself included.
fn programs(lab: &Lab, phase: &str) -> usize {
    let trace =
        format!("strace -f -qq -e trace=execve -o /root/trace {PROGRAM} 101 {phase} && cat /root/trace");
    lab.sh(&trace)
        .ok()
        .stdout
        .lines()
        .filter(|line| line.contains("execve(") && line.ends_with("= 0"))
        .count()
}

#[test]
fn debian_12_has_it_in_the_first_start() {
    the_first_start_has_the_driver(Rootfs::Debian12.privileged());
    the_first_start_has_the_driver(Rootfs::Debian12.unprivileged());
}

#[test]
fn debian_13_has_it_in_the_first_start() {
    the_first_start_has_the_driver(Rootfs::Debian13.unprivileged());
}

/// glibc 2.31 searches the older directory.
#[test]
fn debian_11_has_it_in_the_first_start() {
    the_first_start_has_the_driver(Rootfs::Debian11.privileged());
    the_first_start_has_the_driver(Rootfs::Debian11.unprivileged());
}

/// Its program starts at once, before any look, and no packages are brought to it.
#[test]
fn an_application_container_has_it_before_its_program_starts() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    node(&lab, "DRIVER_MODE=inject");
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    let conf = lab.conf(101).replace("hostname: ", "entrypoint: /root/app\nhostname: ");
    lab.write("/etc/pve/lxc/101.conf", conf);
    let ct = lab.container(101);
    ct.files().program("/root/app", "#!/bin/sh\n/root/driver-version >/at-boot\nexec sleep 100000\n");
    let attach = lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    attach.says_not("no init");
    lab.run([PROGRAM, "plan", "101"]).code(10).says("is mounted at the start").says_not("no init");
    start(&lab).ok().says("the host's, mounted").says_not("no init").says_not("WARNING").says_not("cuda");
    finds(&ct, OLD);
    lab.run([PROGRAM, "101"]).ok().says("the host's, mounted").says_not("no init");
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
    lab.run([PROGRAM, "status"]).ok().says_not("no init");
}

/// auto: what an installer cannot serve gets the host's, at once where the conf says so, or from the next start on.
#[test]
fn auto_injects_where_an_install_cannot_work_and_installs_elsewhere() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    lab.web().runfile(&Runfile::new(OLD));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nDRIVER_MODE=auto");
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    start(&lab).ok().says("driver: installed 580.95.05").says_not("auto");
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab).ok().says("installed and right").says_not("WARNING");
    assert!(!lab.exists(KEPT));

    create(&lab, 102, Rootfs::Debian12.unprivileged());
    let conf = lab
        .read("/etc/pve/lxc/102.conf")
        .replace("hostname: ", "entrypoint: /usr/bin/sleep 1000\nhostname: ");
    lab.write("/etc/pve/lxc/102.conf", conf);
    let application = lab.run(["pct", "start", "102"]).ok();
    application
        .says("DRIVER_MODE=auto: the host's driver is mounted: an application container")
        .says_not("WARNING");
    finds_now(&lab.container(102), OLD);
    lab.run([PROGRAM, "status", "102"]).ok().says("inject");

    // Without a shell: that shows in the first start, and the next one is right.
    create(&lab, 103, Rootfs::Debian12.unprivileged());
    let root = "/var/lib/vz/images/103/subvol-103-disk-0.subvol";
    lab.sh(&format!("rm {root}/usr/bin/sh {root}/usr/bin/dash {root}/usr/bin/bash")).ok();
    lab.run(["pct", "start", "103"]).ok().says("cannot run /bin/sh");
    lab.run(["pct", "stop", "103"]).ok();
    lab.run(["pct", "start", "103"])
        .ok()
        .says("DRIVER_MODE=auto: the host's driver is mounted")
        .says_not("WARNING");
    finds_now(&lab.container(103), OLD);

    // Nowhere to unpack a runfile.
    create(&lab, 104, Rootfs::Debian12.unprivileged());
    for directory in ["tmp", "var/tmp"] {
        let line = format!("lxc.mount.entry: tmpfs {directory} tmpfs size=1m 0 0\n");
        lab.append("/etc/pve/lxc/104.conf", line);
    }
    lab.run(["pct", "start", "104"]).ok().says("/var/tmp is in memory");
    lab.run(["pct", "stop", "104"]).ok();
    let mounted =
        lab.run(["pct", "start", "104"]).ok().says("DRIVER_MODE=auto: the host's driver is mounted");
    mounted.says("/var/tmp is in memory").says_not("WARNING");
    finds_now(&lab.container(104), OLD);
    // A call by hand has nothing to install there, and forgets it for no later start.
    lab.run([PROGRAM, "104"]).ok();
    lab.run(["pct", "stop", "104"]).ok();
    lab.run(["pct", "start", "104"]).ok().says("the host's, mounted").says_not("WARNING");
}

/// There is nothing to look with.
#[test]
fn a_container_without_a_shell_has_it_too() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    let root = "/var/lib/vz/images/101/subvol-101-disk-0.subvol";
    lab.sh(&format!("rm {root}/usr/bin/sh {root}/usr/bin/dash {root}/usr/bin/bash")).ok();
    start(&lab).ok().says("no shell in the container").says("the host's, mounted").says_not("WARNING");
    finds(&lab.container(101), OLD);
    lab.run([PROGRAM, "101"]).ok().says("no shell in the container");
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
}

/// Two containers: one keeps running.
#[test]
fn after_a_host_upgrade_running_containers_keep_theirs_and_new_starts_get_the_new_one() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    create(&lab, 102, Rootfs::Debian12.unprivileged());
    for id in ["101", "102"] {
        lab.run(["pct", "start", id]).ok();
    }
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    lab.driver_on_disk(NEW);
    lab.run(["pct", "stop", "102"]).ok();
    lab.write("/root/empty", "");
    lab.container(102).write("/at-boot", "");
    lab.run(["pct", "start", "102"]).ok().says("driver 580.105.08: copied for containers");
    finds(&lab.container(102), NEW);
    finds(&lab.container(101), OLD);
    // Whoever removes what is not needed looks into all of them.
    lab.run([PROGRAM, "prepare"]).ok();
    finds(&lab.container(101), OLD);
    let status = lab.run([PROGRAM, "status", "101"]).ok();
    status.says("driver 580.95.05 of this host is mounted in the container, 580.105.08 in the kernel");
    lab.run([PROGRAM, "doctor", "101"])
        .code(1)
        .says("keeps its driver until its next start")
        .says("fix: phoenix-nvidia 101");
    lab.run([PROGRAM, "101"]).ok().says("restart container 101").says("verify: 580.105.08 works");
    finds(&lab.container(101), NEW);
    lab.run([PROGRAM, "prepare"]).ok().says("driver 580.95.05: removed its copy");
    assert_eq!(lab.files().list(KEPT), [NEW]);
    finds(&lab.container(101), NEW);
}

/// An upgrade of the host's files before its reboot: what is loaded goes on to work.
#[test]
fn files_of_the_next_driver_on_disk_do_no_harm_to_the_one_that_is_loaded() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    lab.run([PROGRAM, "prepare"]).ok().says("copied for containers");
    lab.nvidia().user_space(NEW);
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
    // One that was not kept before cannot be had any more, and that is said.
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!("umount {SHOWN}/{OLD}; rm -r {KEPT}/{OLD}")).ok();
    let warned = start(&lab).ok();
    warned.says("WARNING").says("its driver files are 580.105.08").says("fix: phoenix-nvidia prepare");
    // Nor is its runfile to be had.
    // A reboot helps where it loads the driver of these files, and else the download's own remedy.
    lab.run([PROGRAM, "prepare"]).code(5).says("its driver files are").says("fix: ").says_not("fix: reboot");
    lab.driver_on_disk(OLD);
    lab.run([PROGRAM, "prepare"]).code(5).says("fix: ").says_not("fix: reboot");
    lab.driver_on_disk(NEW);
    lab.run([PROGRAM, "prepare"]).code(5).says("fix: reboot");
    lab.run(["pct", "stop", "101"]).ok();
    node(&lab, "START_POLICY=fail");
    start(&lab).code(255).says("its driver files are 580.105.08");
}

/// Everything under /run is gone: with `prepare` before the guests, and with nothing but their starts.
#[test]
fn after_a_reboot_of_the_host_it_is_there_again() {
    for prepared in [true, false] {
        let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
        start(&lab).ok();
        lab.run(["pct", "stop", "101"]).ok();
        lab.sh(&format!(
            "umount {SHOWN}/{OLD} && umount /run/phoenix-nvidia/proc/101 && rm -r /run/phoenix-nvidia"
        ))
        .ok();
        lab.container(101).write("/at-boot", "");
        if prepared {
            lab.run([PROGRAM, "prepare"]).ok().says_not("copied");
        }
        start(&lab).ok().says_not("copied").says_not("WARNING");
        finds(&lab.container(101), OLD);
        let mode = lab.sh(&format!("stat -c %a /run/phoenix-nvidia {SHOWN} {SHOWN}/{OLD}")).ok();
        assert_eq!(mode.stdout, "755\n755\n755\n");
    }
}

/// AppArmor does not see mount_setattr(2), and without it a plain remount is enough: the overlay takes no write.
#[test]
fn root_in_a_privileged_container_cannot_write_to_the_tree() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    start(&lab).ok();
    let sums = format!(
        "cd {KEPT}/{OLD} && find . -type f -exec md5sum {{}} + && find . | sort && stat -c '%a %U' ."
    );
    let before = lab.sh(&sums).ok().stdout;
    let ct = lab.container(101);
    let hostile = format!(
        "for at in {HWCAPS} /usr/lib/x86_64-linux-gnu/x86_64; do
             mount -o remount,bind,rw,suid,dev $at; mount -o remount,rw $at; mount --make-shared $at
             echo made >$at/made; echo made >$at/libcuda.so.1; chmod 777 $at; rm -f $at/bin/nvidia-smi; mkdir $at/made
             mv $at/libcuda.so.{OLD} $at/x; ln -sf /etc/shadow $at/libnvidia-ml.so.1
         done; true"
    );
    ct.sh(&hostile).ok();
    assert_eq!(lab.sh(&sums).ok().stdout, before);
    // What it mounts over the tree is its own.
    ct.sh(&format!("mount -t tmpfs tmpfs {HWCAPS}")).ok();
    assert!(lab.exists(format!("{SHOWN}/current/libcuda.so.1")));
    lab.run([PROGRAM, "prepare"]).ok();
    assert_eq!(lab.sh(&sums).ok().stdout, before);
}

#[test]
fn a_tree_is_whole_or_not_there_whenever_its_maker_is_killed() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    // Large enough to be caught.
    let big = format!("/usr/lib/x86_64-linux-gnu/libnvidia-nvvm.so.{OLD}");
    lab.sh(&format!(
        "cp /usr/lib/x86_64-linux-gnu/libcuda.so.{OLD} {big} && head -c 60000000 /dev/urandom >>{big}"
    ))
    .ok();
    let mut partial = 0;
    for ms in [5, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320] {
        lab.sh(&format!("timeout -s KILL {}.{:03} {PROGRAM} prepare; true", ms / 1000, ms % 1000));
        if lab.exists(format!("{KEPT}/{OLD}")) {
            // Whole from its first moment.
            lab.sh(&format!(
                "cmp {big} {KEPT}/{OLD}/libnvidia-nvvm.so.{OLD} && test -f {KEPT}/{OLD}/.phoenix-nvidia"
            ))
            .ok();
            lab.sh(&format!("umount {SHOWN}/{OLD}; rm -rf {KEPT}/{OLD}; true")).ok();
        } else if lab.exists(KEPT) && !lab.files().list(KEPT).is_empty() {
            partial += 1;
        }
    }
    assert!(partial > 0, "no run was killed while it copied");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
    assert_eq!(lab.files().list(KEPT), [OLD]);
}

#[test]
fn two_at_once_make_one_and_a_current_that_leads_nowhere_is_put_right() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    let both = lab.sh(&format!("{PROGRAM} prepare & {PROGRAM} prepare; wait")).ok();
    assert_eq!((both.stdout + &both.stderr).matches("copied for containers").count(), 1);
    for target in ["999.99.99", "/nonexistent", "."] {
        lab.sh(&format!("ln -sfn {target} {SHOWN}/current")).ok();
        start(&lab).ok().says_not("WARNING");
        finds(&lab.container(101), OLD);
        lab.run(["pct", "stop", "101"]).ok();
    }
    assert_eq!(lab.sh(&format!("grep -c {SHOWN} /proc/mounts")).stdout.trim(), "1", "one mount");
}

#[test]
fn a_full_disk_leaves_nothing_and_is_told() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    lab.sh("mkdir -p /var/lib/phoenix-nvidia && mount -t tmpfs -o size=8m,mode=755 tmpfs /var/lib/phoenix-nvidia")
        .ok();
    start(&lab).ok().says("WARNING").says("needed in /var/lib/phoenix-nvidia/driver");
    assert!(lab.container(101).running());
    assert_eq!(lab.files().list(KEPT), [""; 0]);
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh("mount -o remount,size=200m /var/lib/phoenix-nvidia").ok();
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
}

#[test]
fn a_file_that_is_missing_in_the_tree_comes_back() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!("rm {KEPT}/{OLD}/libnvidia-ml.so.{OLD}")).ok();
    lab.run([PROGRAM, "doctor", "101"]).code(1).says("lacks 1 files").says("fix: phoenix-nvidia prepare");
    lab.run([PROGRAM, "prepare"]).ok().says("restored 1 files");
    start(&lab).ok();
    finds(&lab.container(101), OLD);
}

#[test]
fn a_users_entry_at_its_place_and_a_container_without_glibc_are_refused() {
    let Some(lab) = host() else { return };
    lab.create(101, Rootfs::Debian12.privileged());
    let theirs = format!("lxc.mount.entry: /srv {} none bind,create=dir 0 0\n", &HWCAPS[1..]);
    lab.append("/etc/pve/lxc/101.conf", &theirs);
    let line = lab.conf(101).lines().position(|line| line.contains("/srv")).unwrap() + 1;
    let attach = lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).code(5);
    attach.says(&format!("line {line} of the conf mounts something at {HWCAPS}"));
    assert!(!lab.conf(101).contains("GPU_ASSIGNMENT"));
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    start(&lab).ok().says("WARNING").says("of the conf mounts something at");
    assert!(lab.conf(101).contains(theirs.trim()) && !lab.conf(101).contains("driver/current"));
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    lab.run([PROGRAM, "plan", "101"]).code(5).says("mounts something at");
    lab.run([PROGRAM, "101"]).code(5).says("mounts something at");

    lab.create(102, Rootfs::Busybox.privileged().option("--ostype", "alpine"));
    lab.run([PROGRAM, "attach", "102", "--gpus", "0"]).code(5).says("Alpine Linux has no glibc");
    lab.run([PROGRAM, "attach", "102", "--gpus", "0", "--install"]).ok();
}

/// From the one to the other and back, by hand and by starts, with a driver that a runfile installed.
#[test]
fn a_container_changes_from_install_to_inject_and_back() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    lab.web().runfile(&Runfile::new(OLD));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok().says("DRIVER_MODE=inject");
    lab.run([PROGRAM, "101"])
        .ok()
        .says("the host's, mounted")
        .says("verify: 580.95.05 works")
        .says_not("install driver");
    let ct = lab.container(101);
    finds(&ct, OLD);
    assert!(
        lab.conf(101)
            .contains("/run/phoenix-nvidia/driver/current usr/lib/x86_64-linux-gnu/x86_64 none bind,ro")
    );

    // By hand: nothing is installed below the mount.
    lab.run([PROGRAM, "attach", "101", "--install"])
        .ok()
        .says("still has driver 580.95.05 of this host mounted");
    let plan = lab.run([PROGRAM, "plan", "101"]).code(10);
    plan.says("removed the mount over /usr/lib/x86_64-linux-gnu/x86_64").says("still has the host's driver");
    let hand = lab.command(PROGRAM).arg("101").timeout(Duration::from_secs(150)).run().ok();
    hand.says("restart container 101").says("links to the host's driver").says("driver: installed 580.95.05");
    assert!(!lab.conf(101).contains("driver/current") && ct.exists("/var/lib/nvidia/log"));
    assert_eq!(ct.sh(&format!("ls -A {HWCAPS}")).ok().stdout, "", "an empty directory stays");
    ct.exec(["nvidia-smi", "-L"]).ok();
    // Installed, and of the real size of the lab's libraries: without a program's functions.
    ct.sh("test -f /usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05").ok();

    // Back, by a start: the one that is installed goes.
    lab.run([PROGRAM, "attach", "101", "--inject"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab)
        .ok()
        .says("a driver is installed in the container too")
        .says("driver: removed 580.95.05, which a runfile had installed")
        .says_not("container rebooted");
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, format!("{OLD}\n{OLD}\n"));
    lab.run([PROGRAM, "101"]).ok();
    lab.run([PROGRAM, "plan", "101"]).ok();
    finds_now(&ct, OLD);
    ct.exec(["nvidia-smi", "-L"]).ok();

    // detach leaves the conf as it was and an empty directory.
    lab.run([PROGRAM, "detach", "101"])
        .ok()
        .says("empty directories stay")
        .says("removed")
        .says_not("nvidia-uninstall");
    assert!(!lab.conf(101).contains("phoenix-nvidia/driver"));
    assert!(!ct.exists("/var/lib/phoenix-nvidia/links"));
    assert_eq!(ct.sh("find /usr /etc -lname '*x86-64-v2*'").stdout, "");
}

#[track_caller]
pub fn finds_now(ct: &Container<'_>, version: &str) {
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, format!("{version}\n{version}\n"));
}

/// What a container puts in the place of a link is its own: a package of that name, say.
#[test]
fn links_take_no_place_of_a_file_and_one_that_was_replaced_stays() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    let ct = lab.container(101);
    ct.files().program("/usr/bin/nvidia-smi", "#!/bin/sh\necho mine\n");
    start(&lab).ok();
    ct.exec(["nvidia-smi"]).ok().says("mine");
    let link = "/usr/lib/x86_64-linux-gnu/libcuda.so.1";
    assert_eq!(ct.exec(["readlink", link]).ok().stdout.trim(), "glibc-hwcaps/x86-64-v2/libcuda.so.1");
    ct.sh(&format!("rm {link} && echo theirs >{link}")).ok();
    lab.run([PROGRAM, "detach", "101"]).ok();
    assert_eq!(ct.exec(["cat", link]).ok().stdout, "theirs\n");
    assert!(!ct.exists("/etc/OpenCL/vendors/nvidia.icd") && ct.exists("/usr/bin/nvidia-smi"));
}

#[test]
fn cuda_comes_from_apt_as_before_and_no_driver_with_it() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    node(&lab, "AFTER_INSTALL=none\nNETWORK_TIMEOUT=5\nDRIVER_MODE=inject");
    lab.web().standard(&[OLD]);
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    let ct = lab.container(101);
    lab.web().use_distribution(&ct);
    let first = start(&lab).ok().says("cuda: installed cuda-toolkit-13-0").says("utilities: installed nvtop");
    first.says_not("driver: installed").says_not("WARNING");
    finds(&ct, OLD);
    ct.exec(["/usr/local/cuda/bin/nvcc"]).ok().says("release 13.0");
    ct.sh("apt-get -s install libnvidia-ml1").code(100);
    ct.sh("apt-get -s install cuda-drivers-580").code(100);
    for _ in 0..2 {
        lab.run(["pct", "stop", "101"]).ok();
        start(&lab).ok().says("the host's, mounted").says_not("cuda:");
    }
    assert_eq!(programs(&lab, "post-start"), 1);
    assert!(lab.web().requests().ending(".run").is_empty(), "no runfile is downloaded");
    // What apt needed for CUDA is in it, also where the driver is not.
    lab.run(["pct", "stop", "101"]).ok();
    for _ in 0..2 {
        let detach = lab.run([PROGRAM, "detach", "101"]).ok().says("files of phoenix-nvidia stay in it");
        detach.says("/etc/apt/sources.list.d/phoenix-nvidia.sources").says_not("nvidia-uninstall");
    }
    start(&lab).ok();
    lab.run([PROGRAM, "detach", "101"]).ok().says("removed in it: /etc/apt/preferences.d/phoenix-nvidia");
    assert!(!ct.exists("/etc/apt/sources.list.d/phoenix-nvidia.sources"));
}

/// What only shows inside is recorded, and said before the next start.
#[test]
fn a_container_that_turns_out_to_have_no_glibc_is_refused_from_then_on() {
    let Some(lab) = injecting(Rootfs::Busybox.privileged()) else { return };
    let ct = lab.container(101);
    ct.write("/lib/ld-musl-x86_64.so.1", "");
    start(&lab).ok().says("the container has musl");
    lab.run([PROGRAM, "doctor", "101"])
        .code(1)
        .says("the container has musl")
        .says("fix: INSTALL=off phoenix-nvidia attach 101");
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab).ok().says("WARNING").says("the container has musl");
    assert!(!lab.conf(101).contains("driver/current"));
    // A call by hand looks again.
    ct.files().remove("/lib/ld-musl-x86_64.so.1");
    lab.run([PROGRAM, "101"]).says("restart container 101").says_not("musl");
    assert!(lab.conf(101).contains("driver/current"));
}

/// As vzdump's suspend mode copies a running container: what is on another file system is left out.
#[test]
fn a_backup_of_a_running_container_does_not_carry_the_driver() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    let pid = lab.container(101).init_pid().unwrap();
    let list = |more: &str| {
        let tar = format!("tar -C /proc/{pid}/root {more} -cf - usr/lib/x86_64-linux-gnu | tar -tf -");
        lab.sh(&tar).ok().stdout
    };
    let library = format!("x86-64-v2/libcuda.so.{OLD}");
    assert!(list("").contains(&library), "it is there to be copied");
    let copied = list("--one-file-system");
    assert!(copied.contains("/libc.so.6") && !copied.contains(&library), "{copied}");
}

/// dpkg puts its files beside, and over our links: one mount a file would be `Invalid cross-device link`.
#[test]
fn a_package_with_files_of_the_same_names_comes_and_goes() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    start(&lab).ok();
    let ct = lab.container(101);
    ct.sh(
        "set -e; cd /root; mkdir -p p/DEBIAN p/usr/lib/x86_64-linux-gnu p/usr/bin
         echo theirs >p/usr/lib/x86_64-linux-gnu/libcuda.so.1; echo theirs >p/usr/bin/nvidia-smi
         printf 'Package: theirs\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x.invalid>\\nDescription: x\\n' >p/DEBIAN/control
         dpkg-deb -b p p.deb >/dev/null; dpkg -i p.deb",
    )
    .ok();
    finds(&ct, OLD);
    ct.sh("dpkg -r theirs && dpkg --audit").ok();
    lab.run([PROGRAM, "101"]).ok();
    ct.exec(["nvidia-smi", "-L"]).ok();
    finds(&ct, OLD);
}

/// As after a boot: whoever comes first copies, the others wait for it.
#[test]
fn many_starts_at_once_make_one_copy() {
    let Some(lab) = host() else { return };
    let ids = 101..=108;
    for id in ids.clone() {
        create(&lab, id, Rootfs::Busybox.unprivileged());
    }
    let starts = ids.map(|id| lab.command("pct").args(["start", &id.to_string()]).spawn());
    let said: Vec<String> =
        starts.collect::<Vec<_>>().into_iter().map(|start| start.wait().ok().stdout).collect();
    let said = said.join("\n");
    assert_eq!(said.matches("copied for containers").count(), 1, "{said}");
    assert_eq!(said.matches("the host's, mounted").count(), 8, "{said}");
    assert_eq!(lab.files().list(KEPT), [OLD]);
}

/// A clone, and a start on a node without the package: the conf alone decides.
#[test]
fn a_clone_has_it_and_a_node_without_the_package_starts_without_it() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "clone", "101", "102", "--full"]).ok();
    lab.run(["pct", "start", "102"]).ok().says_not("WARNING");
    finds(&lab.container(102), OLD);
    lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    lab.run(["pct", "stop", "102"]).ok();
    lab.sh(&format!("umount {SHOWN}/{OLD} && umount /run/phoenix-nvidia/proc/*; rm -r /run/phoenix-nvidia"))
        .ok();
    start(&lab).ok();
    assert!(lab.container(101).running());
    assert_eq!(lab.container(101).sh(&format!("ls -A {HWCAPS}")).ok().stdout, "");
}

/// A removal of the package keeps all of it; a purge keeps what containers run with.
#[test]
fn a_purge_leaves_the_driver_of_a_running_container() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    let postrm = |what: &str| lab.run(["sh", "/root/postrm", what]).ok();
    lab.write("/root/postrm", include_str!("../../packaging/debian/postrm"));
    postrm("remove");
    assert!(lab.exists(format!("{SHOWN}/current/libcuda.so.1")));
    postrm("purge").says(&format!("{KEPT}/{OLD} stays"));
    finds(&lab.container(101), OLD);
    assert!(!lab.exists("/var/lib/phoenix-nvidia/state") && !lab.exists("/run/phoenix-nvidia/driver"));
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!("mkdir -p {KEPT}/.{OLD}.4711/bin {KEPT}/old-1-{OLD}")).ok();
    postrm("purge").says_not(&format!("{KEPT}/{OLD} stays"));
    assert!(!lab.exists("/var/lib/phoenix-nvidia"));
}

/// A copy without its list is nobody's, but the container that has it mounted keeps it.
#[test]
fn a_tree_in_use_is_put_aside_and_goes_when_nobody_has_it() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    create(&lab, 102, Rootfs::Debian12.unprivileged());
    start(&lab).ok();
    lab.run(["pct", "start", "102"]).ok();
    let mark = format!("{KEPT}/{OLD}/.phoenix-nvidia");
    // Gone, and of another form: by `prepare`, and by a start.
    lab.sh(&format!("sed -i 's/driver 1/driver 0/' {mark}")).ok();
    lab.run([PROGRAM, "prepare"]).ok().says("put aside").says("copied for containers");
    finds(&lab.container(101), OLD);
    lab.run(["pct", "stop", "102"]).ok();
    lab.sh(&format!("umount {SHOWN}/{OLD}; rm {mark}")).ok();
    lab.container(102).write("/at-boot", "");
    lab.run(["pct", "start", "102"]).ok().says("copied for containers");
    finds(&lab.container(102), OLD);
    finds(&lab.container(101), OLD);
    lab.run([PROGRAM, "prepare"]).ok();
    finds(&lab.container(101), OLD);
    assert!(lab.exists(format!("{KEPT}/old-1-{OLD}")));
    // What the next start has is the new one.
    lab.run(["pct", "stop", "101"]).ok();
    lab.container(101).write("/at-boot", "");
    start(&lab).ok();
    lab.run([PROGRAM, "prepare"]).ok().says("removed its earlier copy");
    assert_eq!(lab.files().list(KEPT), [OLD]);
    finds(&lab.container(101), OLD);
    finds(&lab.container(102), OLD);
}

/// The kernel goes on to show what it remembers of a layer that is gone.
#[test]
fn a_copy_that_was_deleted_is_made_and_mounted_again() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    for again in [&format!("{PROGRAM} prepare"), "true"] {
        start(&lab).ok();
        lab.run(["pct", "stop", "101"]).ok();
        lab.sh(&format!("cat {SHOWN}/{OLD}/.phoenix-nvidia >/dev/null; rm -rf {KEPT}/{OLD}; {again}")).ok();
        lab.container(101).write("/at-boot", "");
        start(&lab).ok().says_not("WARNING");
        finds(&lab.container(101), OLD);
        lab.run(["pct", "stop", "101"]).ok();
    }
    // A bind, from before there was overlayfs: its remedy works.
    lab.sh(&format!("umount {SHOWN}/{OLD} && mount --bind -o ro {KEPT}/{OLD} {SHOWN}/{OLD}")).ok();
    lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    create(&lab, 102, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "102"])
        .ok()
        .says("no overlay")
        .says("fix: modprobe overlay && phoenix-nvidia prepare");
    lab.run(["pct", "stop", "102"]).ok();
    lab.run([PROGRAM, "prepare"]).ok();
    lab.container(102).write("/at-boot", "");
    lab.run(["pct", "start", "102"]).ok().says_not("no overlay");
    finds(&lab.container(102), OLD);
}

/// Puts the libraries of an older driver into the root of a container, below the directory of its libraries, as one
/// that was installed there before.
pub fn older_driver(lab: &Lab, id: u32, below: &str) {
    lab.nvidia().user_space(OLDER);
    lab.sh(&format!(
        "set -e; root=/var/lib/vz/images/{id}/subvol-{id}-disk-0.subvol; at=$root/usr/lib/x86_64-linux-gnu
         mkdir -p $at/{below}
         for name in libcuda libnvidia-ml; do
             cp /usr/lib/x86_64-linux-gnu/$name.so.{OLDER} $at/{below}
             ln -sf {below}$name.so.{OLDER} $at/$name.so.1
         done
         chroot $root /sbin/ldconfig"
    ))
    .ok();
    lab.nvidia().user_space(OLD);
}

/// What the install process wrote, once it says this.
#[track_caller]
pub fn worker_says(lab: &Lab, id: u32, what: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let log = format!("/var/log/phoenix-nvidia/{id}.log");
    while !lab.sh(&format!("cat {log}")).stdout.contains(what) {
        assert!(std::time::Instant::now() < deadline, "{}", lab.sh(&format!("cat {log}")).stdout);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// An older driver in the container is in the linker's cache until the first step inside.
#[test]
fn services_that_started_with_an_older_driver_are_restarted_once() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    let ct = lab.container(101);
    older_driver(&lab, 101, "");
    start(&lab).ok().says("found driver 570.86.15").says("restarted once").says_not("fix: pct reboot");
    worker_says(&lab, 101, "container rebooted");
    finds(&ct, OLD);
    lab.run(["pct", "stop", "101"]).ok();
    ct.write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&ct, OLD);

    // Debian's packages have theirs below another directory; and nobody wants a reboot.
    create(&lab, 102, Rootfs::Debian12.privileged());
    older_driver(&lab, 102, "nvidia/current/");
    setting(&lab, 102, "AFTER_INSTALL=none");
    lab.run(["pct", "start", "102"]).ok().says("found driver 570.86.15").says("fix: pct reboot 102");
    assert_eq!(lab.container(102).read("/at-boot"), format!("{OLDER}\n{OLDER}\n"));
    lab.run(["pct", "stop", "102"]).ok();
    lab.container(102).write("/at-boot", "");
    lab.run(["pct", "start", "102"]).ok().says_not("WARNING");
    finds(&lab.container(102), OLD);
}

/// By hand: the restart is part of the run.
#[test]
fn a_run_by_hand_restarts_what_found_an_older_driver() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    older_driver(&lab, 101, "");
    lab.run([PROGRAM, "101"]).ok().says("found driver 570.86.15").says("restart container 101");
    lab.run([PROGRAM, "101"]).ok().says_not("restart").says_not("570.86.15, which");
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    // What a rollback takes away is made again, and plan says so.
    let ct = lab.container(101);
    ct.sh("rm -r /var/lib/phoenix-nvidia/links").ok();
    lab.run([PROGRAM, "plan", "101"]).code(10).says("make links to driver 580.95.05");
    lab.run([PROGRAM, "101"]).ok();
    assert!(ct.exists("/var/lib/phoenix-nvidia/links"));
}

/// On a busy node the step inside is not over in its time: the install process makes it.
#[test]
fn links_that_a_start_has_no_time_for_are_made_in_the_background() {
    let Some(lab) = host() else { return };
    node(&lab, "CHECK_TIMEOUT=1");
    create(&lab, 101, Rootfs::Debian12.privileged());
    lab.sh("mv /usr/bin/lxc-attach /root/lxc-attach").ok();
    lab.replace_program(
        "/usr/bin/lxc-attach",
        "#!/bin/sh\n[ -e /root/once ] || { : >/root/once; exec sleep 5; }\nexec /root/lxc-attach \"$@\"\n",
    );
    start(&lab).ok().says("continues in the background");
    worker_says(&lab, 101, "done in");
    let ct = lab.container(101);
    assert!(ct.exists("/var/lib/phoenix-nvidia/links"));
    ct.exec(["/sbin/ldconfig", "-p"]).ok().says("glibc-hwcaps/x86-64-v2/libcuda.so");
}

/// A word that nobody knows takes no driver away.
#[test]
fn a_mode_that_cannot_be_read_keeps_what_the_conf_has() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    let conf = lab.conf(101);
    assert!(conf.contains("driver/current"));
    node(&lab, "DRIVER_MODE=injct");
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says("WARNING").says("DRIVER_MODE=injct").says("keeping the driver mounts of the conf");
    assert_eq!(lab.conf(101), conf);
    finds(&lab.container(101), OLD);
    lab.run([PROGRAM, "status", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    // Nobody's is made where there was none.
    create(&lab, 102, Rootfs::Debian12.unprivileged());
    lab.run(["pct", "start", "102"]).ok().says("DRIVER_MODE=injct");
    assert!(!lab.conf(102).contains("driver/current"));
    node(&lab, "DRIVER_MODE=injct\nSTART_POLICY=fail");
    start(&lab).code(255).says("DRIVER_MODE=injct");
}

/// A list of links that cannot be written costs the links, and nothing else.
#[test]
fn a_container_that_takes_no_links_has_the_driver_all_the_same() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    lab.container(101).files().mkdir("/var/lib/phoenix-nvidia/links");
    start(&lab).ok().says("the host's, mounted").says_not("WARNING");
    finds(&lab.container(101), OLD);
}

/// The place on AArch64 is no file of the host that keeps an installer out.
#[test]
fn our_own_directory_is_no_driver_file_of_the_users() {
    let Some(lab) = injecting(Rootfs::Debian12.privileged()) else { return };
    start(&lab).ok();
    let own = "/usr/lib/aarch64-linux-gnu/phoenix-nvidia";
    lab.container(101).sh(&format!("mkdir -p {own} && mount --bind {HWCAPS} {own}")).ok();
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning").says_not("driver files of the host");
}

#[test]
fn no_tree_is_made_where_nobody_asks_for_it() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    lab.run([PROGRAM, "prepare"]).ok();
    start(&lab).ok();
    assert!(!lab.exists(KEPT) && !lab.conf(101).contains("driver/current"));
    // INSTALL=off is devices only, whatever DRIVER_MODE says.
    setting(&lab, 101, "DRIVER_MODE=inject");
    lab.run(["pct", "stop", "101"]).ok();
    start(&lab).ok();
    assert!(!lab.exists(KEPT) && !lab.conf(101).contains("driver/current"));
}
