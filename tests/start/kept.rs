//! Driver trees over an upgrade of the host: kept before the files are replaced, completed, and gone when nobody has
//! them any more.

use crate::inject::{HWCAPS, KEPT, NEW, OLD, PROGRAM, SHOWN, create, finds, finds_now, host, start};
use crate::support::{lab, node};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use phoenix_lab::nvidia::userspace::packed;
use phoenix_lab::{Lab, Output, Rootfs};
use std::time::Duration;

const HOOK: &str = include_str!("../../packaging/phoenix-nvidia.apt");
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

fn apt(lab: &Lab, words: &str) -> Output {
    let line = format!(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -y --no-install-recommends {words}"
    );
    lab.command("sh").args(["-c", &line]).timeout(Duration::from_secs(120)).run()
}

/// What our program said among apt's lines.
fn ours(output: &Output) -> Vec<String> {
    let all = format!("{}\n{}", output.stdout, output.stderr);
    all.lines().filter(|line| line.starts_with("phoenix-nvidia:")).map(str::to_owned).collect()
}

/// A package without files.
fn unrelated(lab: &Lab, name: &str) -> String {
    let control = format!(
        "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: lab <lab@lab.invalid>\nDescription: nothing\n"
    );
    lab.write(format!("/root/{name}/DEBIAN/control"), control);
    lab.sh(&format!("dpkg-deb -b /root/{name} /root/{name}.deb")).ok();
    format!("/root/{name}.deb")
}

/// The user space of a driver as a package of the distribution; the host has it no more than before.
fn driver_package(lab: &Lab, version: &str) -> String {
    let control = format!(
        "Package: nvidia-driver-lab\nVersion: {version}\nArchitecture: amd64\nMaintainer: lab <lab@lab.invalid>\n\
         Description: a driver\n"
    );
    let root = format!("/root/nvidia-{version}");
    lab.write(format!("{root}/DEBIAN/control"), control);
    lab.nvidia().user_space(version);
    lab.sh(&format!(
        "set -e; mkdir -p {root}{LIBRARIES} {root}/usr/bin
         mv {LIBRARIES}/libcuda.so.{version} {LIBRARIES}/libnvidia-ml.so.{version} {root}{LIBRARIES}
         mv /usr/bin/nvidia-smi {root}/usr/bin
         dpkg-deb -b {root} {root}.deb"
    ))
    .ok();
    lab.nvidia().remove_user_space();
    format!("{root}.deb")
}

fn hook(lab: &Lab) {
    lab.write("/etc/apt/apt.conf.d/20phoenix-nvidia", HOOK);
}

/// As after a boot: nothing under /run, and the driver that is on the disk.
fn reboot(lab: &Lab, driver: &str) {
    lab.sh(&format!("umount {SHOWN}/* /run/phoenix-nvidia/proc/* 2>/dev/null; rm -r /run/phoenix-nvidia"))
        .ok();
    lab.nvidia().set_driver(driver);
    lab.driver_on_disk(driver);
}

/// The host's packages are upgraded while its kernel driver stays until the reboot.
#[test]
fn the_loaded_drivers_files_are_kept_when_apt_replaces_them() {
    let Some(lab) = host() else { return };
    let (old, new) = (driver_package(&lab, OLD), driver_package(&lab, NEW));
    apt(&lab, &format!("install {old}")).ok();
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    hook(&lab);
    assert!(!lab.exists(KEPT));
    let upgrade = apt(&lab, &format!("install {new}")).ok();
    let said = ours(&upgrade);
    assert!(said.len() == 1 && said[0].contains("driver 580.95.05: copied for containers in"), "{upgrade}");
    assert!(!lab.exists(format!("{LIBRARIES}/libcuda.so.{OLD}")));
    assert!(lab.exists(format!("{LIBRARIES}/libcuda.so.{NEW}")));
    // A container that starts before the reboot, for the first time; and apt again.
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
    let more = apt(&lab, &format!("install {}", unrelated(&lab, "hello-lab"))).ok();
    assert_eq!(ours(&more), [""; 0], "{more}");
    // The driver's package goes, in the same time: the one that runs keeps what it has, and so does the next start.
    let removed = apt(&lab, "remove nvidia-driver-lab").ok();
    assert_eq!(ours(&removed), [""; 0], "{removed}");
    finds(&lab.container(101), OLD);
    lab.run(["pct", "stop", "101"]).ok();
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
    // The reboot.
    apt(&lab, &format!("install {new}")).ok();
    lab.run(["pct", "stop", "101"]).ok();
    reboot(&lab, NEW);
    lab.run([PROGRAM, "prepare"])
        .ok()
        .says("driver 580.105.08: copied for containers")
        .says("driver 580.95.05: removed its copy");
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says_not("copied").says_not("WARNING");
    finds(&lab.container(101), NEW);
    assert_eq!(lab.files().list(KEPT), [NEW]);
}

/// A runfile's installer calls no hook: the copy was made before, by `prepare` at boot.
#[test]
fn a_runfile_replaces_the_files_of_a_driver_that_was_kept_at_boot() {
    let Some(lab) = host() else { return };
    create(&lab, 101, Rootfs::Debian12.privileged());
    lab.run([PROGRAM, "prepare"]).ok().says("copied for containers");
    lab.nvidia().user_space(NEW);
    start(&lab).ok().says_not("WARNING");
    finds(&lab.container(101), OLD);
    // A later upgrade by apt finds nothing of the loaded one to keep, and says nothing.
    hook(&lab);
    let more = apt(&lab, &format!("install {}", unrelated(&lab, "hello-lab"))).ok();
    assert_eq!(ours(&more), [""; 0], "{more}");
    lab.run(["pct", "stop", "101"]).ok();
    reboot(&lab, NEW);
    lab.run([PROGRAM, "prepare"]).ok().says("driver 580.95.05: removed its copy");
    lab.container(101).write("/at-boot", "");
    start(&lab).ok();
    finds(&lab.container(101), NEW);
}

/// What `keep` runs and opens, and how often it waits.
fn cost(lab: &Lab) -> (usize, usize) {
    let trace =
        format!("strace -f -qq -e trace=execve,%file -o /root/trace {PROGRAM} keep && cat /root/trace");
    let trace = lab.sh(&trace).ok().stdout;
    let programs = trace.lines().filter(|line| line.contains("execve(") && line.ends_with("= 0")).count();
    (programs, trace.lines().count())
}

#[test]
fn apt_says_nothing_where_nobody_asks_and_is_stopped_by_nothing() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.nvidia().user_space(OLD);
    hook(&lab);
    let mut count = 0;
    let mut install = || {
        count += 1;
        apt(&lab, &format!("install {}", unrelated(&lab, &format!("hello-{count}")))).ok()
    };
    for lines in ["", "INSTALL=off", "DRIVER_MODE=inject", "INSTALL=on\nDRIVER_MODE=auto"] {
        node(&lab, lines);
        assert_eq!(ours(&install()), [""; 0], "{lines}");
        assert!(!lab.exists(KEPT), "{lines}");
    }
    // A container's conf is enough, and so is the default of the node or the cluster.
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: DRIVER_MODE=inject\n");
    let lacks_one = format!("umount {SHOWN}/{OLD}; rm -r {KEPT}");
    assert_eq!(ours(&install()).len(), 1);
    lab.sh(&lacks_one).ok();
    lab.write("/etc/pve/lxc/101.conf", "hostname: x\n");
    // Nobody asks: one other process reads all of /etc/pve that tells.
    assert_eq!((cost(&lab).0, lab.exists(KEPT)), (2, false));
    lab.write("/etc/pve/phoenix-nvidia/default.env", "DRIVER_MODE=inject\n");
    assert_eq!(ours(&install()).len(), 1);
    // Nothing to do: no other program, and no more than a look at the driver's files.
    let (programs, calls) = cost(&lab);
    assert!(programs == 1 && calls < 250, "{programs} programs, {calls} calls");
    // What it lacks it gets, also where the confs do not answer.
    lab.sh(&format!("rm {KEPT}/{OLD}/libcuda.so.{OLD}")).ok();
    let said = ours(&install());
    assert!(said.len() == 1 && said[0].contains("restored 1 files"), "{said:?}");
    // A process with mounts of its own: the copy is made, and the next start mounts it.
    lab.sh(&lacks_one).ok();
    let own = lab.sh(&format!("unshare -m --propagation private {PROGRAM} keep")).ok();
    assert!(own.stderr.contains("copied for containers") && own.stderr.lines().count() == 1, "{own}");
    assert!(lab.exists(format!("{KEPT}/{OLD}")) && !lab.exists(format!("{SHOWN}/{OLD}/.phoenix-nvidia")));
    lab.run([PROGRAM, "prepare"]).ok().says_not("copied");
    assert!(lab.exists(format!("{SHOWN}/current/libcuda.so.1")));
    // It fails: a full disk.
    lab.sh(&lacks_one).ok();
    lab.sh(&format!("mkdir -p {KEPT} && mount -t tmpfs -o size=1m,mode=755 tmpfs {KEPT}")).ok();
    let said = ours(&install());
    assert!(said.iter().any(|line| line.contains("free")), "{said:?}");
    lab.sh(&format!("umount {KEPT}")).ok();
    // It crashes, hangs without hearing TERM, is gone.
    lab.sh(&format!("mv {PROGRAM} /root/program")).ok();
    lab.files().program(PROGRAM, "#!/bin/sh\nkill -SEGV $$\n");
    install();
    lab.sh("sed -i 's/-k 5 90/-k 1 1/' /etc/apt/apt.conf.d/20phoenix-nvidia && grep -q 'k 1 1' /etc/apt/apt.conf.d/20*")
        .ok();
    lab.files().program(PROGRAM, "#!/bin/sh\ntrap '' TERM INT HUP\nwhile :; do sleep 777; done\n");
    let hung = install();
    assert!(hung.took < Duration::from_secs(30), "{hung}");
    lab.files().remove(PROGRAM);
    install().says_not("not found");
}

/// A library that the host gets later, of the driver's version.
fn library(lab: &Lab, name: &str) {
    lab.sh(&format!(
        "echo | gcc -shared -nostdlib -x c - -Wl,-soname,{name}.so.1 -o {LIBRARIES}/{name}.so.{OLD}"
    ))
    .ok();
}

#[test]
fn files_that_the_host_gets_later_are_added_and_running_containers_keep_what_they_have() {
    let Some(lab) = host() else { return };
    create(&lab, 101, Rootfs::Debian12.privileged());
    create(&lab, 102, Rootfs::Debian12.unprivileged());
    start(&lab).ok();
    library(&lab, "libnvidia-encode");
    // Whoever starts meanwhile finds one or the other.
    let watch = format!(
        ": >/root/watched; while [ -e /root/watched ]; do [ -e {SHOWN}/current/libcuda.so.1 ] || echo gone; done"
    );
    let watch = lab.command("sh").args(["-c", &watch]).spawn();
    lab.sh("until [ -e /root/watched ]; do sleep 0.01; done").ok();
    let prepare = lab.run([PROGRAM, "prepare"]).ok();
    prepare.says("added libnvidia-encode.so.580.95.05, libnvidia-encode.so.1 to its copy for containers");
    lab.sh("rm /root/watched").ok();
    assert_eq!(watch.wait().stdout.lines().count(), 0);
    lab.run([PROGRAM, "prepare"]).ok().says_not("added");
    assert_eq!(lab.files().list(KEPT), [OLD, "old-1-580.95.05"]);
    assert_eq!(lab.sh(&format!("grep -c {SHOWN} /proc/mounts")).stdout.trim(), "1", "one mount");
    assert_eq!(lab.sh(&format!("readlink {SHOWN}/current")).stdout.trim(), OLD);
    // The copy of both is one: nothing is stored twice.
    let links = lab.sh(&format!("stat -c %h {KEPT}/{OLD}/libcuda.so.{OLD}")).ok();
    assert_eq!(links.stdout.trim(), "2");
    let has_one =
        |id: u32, name: &str| lab.container(id).sh(&format!("test -e {HWCAPS}/{name}")).exit() == Some(0);
    let has = |id: u32| has_one(id, "libnvidia-encode.so.1");
    finds(&lab.container(101), OLD);
    assert!(!has(101));
    lab.run(["pct", "start", "102"]).ok().says_not("WARNING");
    finds(&lab.container(102), OLD);
    assert!(has(102));
    // apt's hook does the same; with two earlier ones in use each container has its own.
    library(&lab, "libnvidia-fbc");
    lab.run([PROGRAM, "keep"]).ok().says("added libnvidia-fbc");
    finds(&lab.container(101), OLD);
    finds(&lab.container(102), OLD);
    assert!(!has(101) && has(102) && !has_one(102, "libnvidia-fbc.so.1"));
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "stop", "102"]).ok();
    lab.run([PROGRAM, "prepare"]).ok().says("removed its earlier copy");
    assert_eq!(lab.files().list(KEPT), [OLD]);
    for id in ["101", "102"] {
        lab.container(id.parse().unwrap()).write("/at-boot", "");
        lab.run(["pct", "start", id]).ok().says_not("WARNING");
    }
    finds(&lab.container(101), OLD);
    assert!(has(101) && has(102) && has_one(101, "libnvidia-fbc.so.1"));
}

/// In mounts of its own it completes the copy and cannot show it: what is shown is the one that was put aside.
#[test]
fn a_tree_that_was_completed_out_of_sight_takes_nothing_from_the_containers() {
    let Some(lab) = host() else { return };
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    start(&lab).ok();
    library(&lab, "libnvidia-encode");
    lab.sh(&format!("unshare -m --propagation private {PROGRAM} prepare")).code(5).says("nsenter -t 1 -m");
    assert_eq!(lab.files().list(KEPT), [OLD, "old-1-580.95.05"]);
    finds(&lab.container(101), OLD);
    lab.run([PROGRAM, "prepare"]).ok().says_not("added");
    assert!(lab.exists(format!("{SHOWN}/current/libnvidia-encode.so.1")));
    finds(&lab.container(101), OLD);
}

/// Whenever it is killed while it adds a file, what runs and what starts has a driver.
#[test]
#[ignore = "make test-all: killed at each call"]
fn a_tree_that_grows_is_whole_whenever_its_maker_is_killed() {
    let Some(lab) = host() else { return };
    create(&lab, 101, Rootfs::Debian12.privileged());
    create(&lab, 102, Rootfs::Debian12.unprivileged());
    start(&lab).ok();
    // Calls that change something, each the last one in some run. With each round there is a file
    // more, so that a step of one would never come to the end of them.
    let (mut rounds, mut within) = (0, 0);
    for (call, step) in
        [("mkdir", 2), ("link", 3), ("symlink", 2), ("fsync", 2), ("rename", 1), ("mount", 1), ("umount", 1)]
    {
        for nth in (1..).step_by(step) {
            library(&lab, &format!("libnvidia-extra{rounds}"));
            rounds += 1;
            let set = format!("/^{call}");
            let run = lab
                .command("strace")
                .args(["-qq", "-o", "/dev/null", "-e", &format!("trace={set}"), "-e"])
                .arg(format!("inject={set}:signal=SIGKILL:when={nth}"))
                .args([PROGRAM, "keep"])
                .timeout(Duration::from_secs(60))
                .run();
            if run.exit() == Some(0) {
                break;
            }
            assert!(nth < 100, "{call}: {run}");
            let left = lab.files().list(KEPT);
            within += usize::from(left.iter().any(|name| name.starts_with('.')));
            finds_now(&lab.container(101), OLD);
            lab.run(["pct", "start", "102"]).ok().says_not("WARNING");
            finds_now(&lab.container(102), OLD);
            lab.run([PROGRAM, "prepare"]).ok();
            for id in [101, 102] {
                finds_now(&lab.container(id), OLD);
            }
            lab.run(["pct", "stop", "102"]).ok();
        }
    }
    assert!(within > 5, "{within} of {rounds} were killed while they filled the new directory");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "prepare"]).ok();
    assert_eq!(lab.files().list(KEPT), [OLD]);
    assert!(lab.exists(format!("{SHOWN}/current/libnvidia-extra{}.so.1", rounds - 1)));
    assert_eq!(lab.sh(&format!("grep -c {SHOWN} /proc/mounts")).stdout.trim(), "1", "one mount");
}

/// A full disk, after a boot: what could not be added is no reason to have nothing.
#[test]
fn what_cannot_be_added_or_repaired_takes_no_driver_from_a_start() {
    let Some(lab) = host() else { return };
    create(&lab, 101, Rootfs::Debian12.unprivileged());
    let at = "/var/lib/phoenix-nvidia";
    lab.sh(&format!("mkdir -p {at} && mount -t tmpfs -o size=200m,mode=755 tmpfs {at}")).ok();
    lab.run([PROGRAM, "prepare"]).ok().says("copied for containers");
    library(&lab, "libnvidia-encode");
    lab.sh(&format!("mount -o remount,size=60m {at}")).ok();
    reboot(&lab, OLD);
    start(&lab).ok().says("cannot add libnvidia-encode").says("free").says("the host's, mounted");
    finds(&lab.container(101), OLD);
    // One that lacks a file which the host has no more is told, and what there is stays for the next.
    lab.run(["pct", "stop", "101"]).ok();
    let mounted =
        || lab.sh(&format!("grep ' {SHOWN}/{OLD} ' /proc/self/mountinfo | cut -d' ' -f1")).ok().stdout;
    let before = mounted();
    lab.sh(&format!("rm {KEPT}/{OLD}/bin/nvidia-smi")).ok();
    lab.sh("mv /usr/bin/nvidia-smi /root/nvidia-smi").ok();
    lab.run([PROGRAM, "prepare"]).code(5).says("bin/nvidia-smi");
    assert_eq!((mounted(), lab.exists(format!("{SHOWN}/current/libcuda.so.1"))), (before, true));
    reboot(&lab, OLD);
    lab.run([PROGRAM, "prepare"]).code(5).says("bin/nvidia-smi");
    lab.container(101).write("/at-boot", "");
    start(&lab).ok().says("the host's, mounted");
    finds(&lab.container(101), OLD);
    // Once it is there, a container that runs keeps what it has, and nothing is written below that.
    lab.sh(&format!("mv /root/nvidia-smi /usr/bin/nvidia-smi; mount -o remount,size=200m {at}")).ok();
    lab.sh(&format!("rm {LIBRARIES}/libnvidia-encode.so.{OLD}")).ok();
    let tree = format!("{KEPT}/{OLD}");
    let inode = lab.inode(&tree);
    lab.run([PROGRAM, "prepare"]).ok().says("restored 1 files");
    assert_ne!(lab.inode(&tree), inode);
    assert!(lab.exists(format!("{SHOWN}/current/bin/nvidia-smi")));
    assert_eq!(lab.sh(&format!("grep -c {SHOWN} /proc/mounts")).stdout.trim(), "1", "one mount");
    finds(&lab.container(101), OLD);
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "prepare"]).ok().says("removed its earlier copy");
    assert_eq!(lab.files().list(KEPT), [OLD]);
}

/// As after a boot with the new driver: one copies, nobody downloads, and `current` moves once.
#[test]
fn after_a_host_upgrade_many_starts_make_one_tree_and_move_current_once() {
    let Some(lab) = host() else { return };
    // Whoever asks for a runfile gets it, and shows: NVIDIA_RUNFILE_URL leads there.
    let web = lab.web();
    for version in [OLD, NEW] {
        web.runfile(&packed(version, 0));
    }
    let ids = 101..=108;
    for id in ids.clone() {
        create(&lab, id, Rootfs::Busybox.unprivileged());
    }
    lab.run([PROGRAM, "prepare"]).ok().says("driver 580.95.05: copied");
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    lab.driver_on_disk(NEW);
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    let shown = format!("/proc/{}/root{SHOWN}", lab.init_pid());
    watch.add_watch(shown.as_str(), AddWatchFlags::IN_MOVED_TO).unwrap();
    let starts = ids.clone().map(|id| lab.command("pct").args(["start", &id.to_string()]).spawn());
    let said: Vec<String> =
        starts.collect::<Vec<_>>().into_iter().map(|start| start.wait().ok().stdout).collect();
    let said = said.join("\n");
    assert_eq!(said.matches("driver 580.105.08: copied for containers").count(), 1, "{said}");
    assert_eq!(said.matches("the host's, mounted").count(), 8, "{said}");
    let mut moved = Vec::new();
    while let Ok(events) = watch.read_events() {
        moved.extend(events.into_iter().filter_map(|event| event.name));
    }
    assert_eq!(moved, ["current"]);
    for id in ids {
        let version = lab.container(id).sh(&format!("ls {HWCAPS}")).ok().stdout;
        assert!(version.contains(&format!("libcuda.so.{NEW}")), "{version}");
    }
    lab.run([PROGRAM, "prepare"]).ok().says("driver 580.95.05: removed its copy");
    assert_eq!(web.requests().ending(".run").len(), 0, "no runfile is downloaded");
    // One that is not on the host's disk is, from there.
    lab.nvidia().remove_user_space();
    reboot(&lab, OLD);
    lab.run([PROGRAM, "prepare"]).ok().says("download: ").says("unpacked from");
    assert_eq!(web.requests().ending(".run").len(), 1);
}
