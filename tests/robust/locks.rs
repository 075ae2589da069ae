//! Locks and state are root's alone, and a look at a lock does not take it.
use crate::robust_support;

use phoenix_lab::{Errno, Lab, Output, Rootfs};
use robust_support::*;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

/// Where everything of ours is that another user might reach.
const OURS: &str =
    "/run/lock/phoenix-nvidia /run/phoenix-nvidia /var/lib/phoenix-nvidia /var/log/phoenix-nvidia";

/// A container that was started, checked and left with state and locks.
fn used() -> Option<Lab> {
    let lab = lab()?;
    attached(&lab, 101, Rootfs::Debian12.privileged());
    node(&lab, "INSTALL_WAIT=30\nNVIDIA_RUNFILE_URL=/srv/nothing.run");
    // Its install finds no runfile: a state, a log.
    lab.run(["pct", "start", "101"]).ok();
    wait_for_the_end(&lab);
    Some(lab)
}

fn as_nobody(lab: &Lab, script: &str) -> Output {
    lab.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "bash", "-c", script])
}

#[test]
fn no_other_user_can_open_lock_or_read_anything_of_ours() {
    let Some(lab) = used() else { return };
    lab.run([PROGRAM, "101"]);
    // What a container is shown of the driver is for all to read, and of the driver.
    let all = lab.sh(&format!("find {OURS} -type f -not -path '*/phoenix-nvidia/proc/*'")).ok().stdout;
    assert!(
        all.contains("/101.run.lock") && all.contains("/state/101.json") && all.contains("/101.log"),
        "{all}"
    );
    for path in all.lines() {
        as_nobody(&lab, &format!("exec 9<{path}")).code(1).says("Permission denied");
        as_nobody(&lab, &format!("exec 9>>{path}")).code(1);
    }
    let modes = lab.sh(&format!("stat -c '%a %U %n' $(find {OURS} -type d)")).ok().stdout;
    for line in [
        "755 root /run/phoenix-nvidia",
        "700 root /run/phoenix-nvidia/state",
        "700 root /run/lock/phoenix-nvidia",
    ] {
        assert!(modes.lines().any(|found| found == line), "{line}: {modes}");
    }
}

/// 0.1.0 recorded URLs with their passwords in files for all. The upgrade, and
/// each boot, applies what the package says of them.
#[test]
#[allow(clippy::disallowed_methods)] // a program of the system's, and files of a test's
fn what_was_for_all_to_read_before_the_upgrade_is_roots_alone() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["run", "var/lib"].map(|above| dir.path().join(above).join("phoenix-nvidia/101.json"));
    for file in &files {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "{}").unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let root = format!("--root={}", dir.path().display());
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/phoenix-nvidia.tmpfiles");
    let run = std::process::Command::new("systemd-tmpfiles").args([&root, "--create", own]).output().unwrap();
    for file in &files {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{run:?}");
    }
}

/// 0.1.0's directory was open to everybody, and somebody held its locks.
#[test]
fn a_lock_that_a_local_user_held_before_the_upgrade_holds_nobody_up() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off\nGPU_EXCLUSIVE=yes\nSTART_POLICY=fail\nPRE_START_TIMEOUT=3");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.sh("mkdir -m 755 /run/lock/phoenix-nvidia; cd /run/lock/phoenix-nvidia; umask 022; \
         touch cards.lock 101.lock 101.run.lock 101.worker.lock 101.state.lock")
        .ok();
    let script = "cd /run/lock/phoenix-nvidia; n=10; for l in *.lock; do eval \"exec $n<$l\"; flock $n; n=$((n+1)); done; \
                  echo held; exec sleep 60";
    let stranger = lab
        .command("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "bash", "-c", script])
        .spawn();
    wait_for_output(&stranger, "held");
    let begun = Instant::now();
    lab.run(["pct", "start", "101"]).ok().says_not("is getting its GPUs").says_not("WARNING");
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    lab.run([PROGRAM, "101"]).ok().says_not("waiting for it").says_not("WARNING");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(lab.sh("stat -c %a /run/lock/phoenix-nvidia").ok().stdout.trim(), "700");
    assert_eq!(lab.sh("stat -c %a /run/lock/phoenix-nvidia/cards.lock").ok().stdout.trim(), "600");
}

#[test]
fn a_directory_that_is_a_link_or_somebody_elses_is_refused_with_the_command_that_mends_it() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.sh("mkdir -m 777 /tmp/trap").ok();
    for (what, make, fix) in [
        ("is a symlink", "ln -s /tmp/trap", "|| rm -r"),
        ("is writable by users other than root", "mkdir -m 1777", "chmod go-w"),
        ("is not a directory", "mkfifo", "|| rm -r"),
    ] {
        lab.sh(&format!("rm -rf /run/lock/phoenix-nvidia; {make} /run/lock/phoenix-nvidia")).ok();
        lab.run([PROGRAM, "101"])
            .code(1)
            .says("cannot take a lock: ")
            .says(what)
            .says(&format!("{fix} /run/lock/phoenix-nvidia"));
        // A start is not held up: it needs none of that.
        let start = lab.run(["pct", "start", "101"]).ok();
        assert!(start.took < Duration::from_secs(20), "{start}");
        lab.run(["pct", "stop", "101"]).ok();
        assert_eq!(lab.sh("ls -A /tmp/trap").ok().stdout, "", "nothing is followed");
    }
    lab.sh("rm -rf /run/lock/phoenix-nvidia").ok();
    lab.run([PROGRAM, "101"]).ok();
}

/// Two could have a lock whose file was removed under its holder.
#[test]
fn the_command_that_mends_a_directory_takes_no_lock_from_its_holder() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    let (at, lock) = ("/run/lock/phoenix-nvidia", "/run/lock/phoenix-nvidia/101.lock");
    lab.sh(&format!("mkdir -p {at} && chmod 700 {at} && : >{lock}")).ok();
    let inode = lab.inode(lock);
    let holder = lab.command("flock").args(["-F", lock, "sh", "-c", "echo held; exec sleep 1009"]).spawn();
    wait_for_output(&holder, "held");
    let fix = |makes: &str| {
        lab.sh(makes).ok();
        let said = lab.run([PROGRAM, "101"]).code(1);
        let all = format!("{}{}", said.stdout, said.stderr);
        all.lines().find_map(|line| Some(line.split_once("fix: ")?.1.to_owned())).unwrap()
    };
    for mode in ["0775", "1777"] {
        lab.sh(&fix(&format!("chmod {mode} {at}"))).ok();
        assert_eq!(lab.inode(lock), inode, "{mode}");
        lab.run([PROGRAM, "101"]).ok();
    }
    lab.sh(&fix(&format!("chmod 666 {at}/101.run.lock"))).ok();
    lab.run([PROGRAM, "101"]).ok();
    // Somebody else's: whoever holds a lock there is shown, and when nobody does, it goes.
    let remove = fix(&format!("chown 65534 {at}"));
    lab.sh(&remove).ok().says(lock);
    assert_eq!(lab.inode(lock), inode);
    signal(&lab, &pids(&lab, "sleep 1009"), "KILL");
    holder.wait();
    lab.sh(&remove).ok();
    lab.run([PROGRAM, "101"]).ok();
}

#[test]
fn who_holds_a_lock_is_named_in_one_harmless_line() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.sh(
        "mkdir -m 700 /run/lock/phoenix-nvidia; cp /usr/bin/flock \"$(printf '/tmp/a\\033[31mb\\nERROR')\"",
    )
    .ok();
    let script = "umask 077; exec \"$(printf '/tmp/a\\033[31mb\\nERROR')\" /run/lock/phoenix-nvidia/101.run.lock sleep 3";
    let holder = lab.command("bash").args(["-c", script]).spawn();
    wait_until("the lock", || {
        lab.sh("[ -e /run/lock/phoenix-nvidia/101.run.lock ] && ! flock -n /run/lock/phoenix-nvidia/101.run.lock true")
            .exit()
            == Some(0)
    });
    let run = lab.run([PROGRAM, "101"]).ok().says("a\\u{1b}[31mb\\nERROR").says("waiting for it");
    assert!(!run.stderr.contains('\u{1b}'), "{run}");
    drop(holder);
}

/// The shell of `(flock 9; …) 9>FILE`: the process that took the lock has
/// ended, and /proc/locks does not show it in a lab.
#[test]
fn a_lock_whose_taker_has_ended_is_seen_by_who_looks_and_by_its_holders_children() {
    let Some(lab) = used() else { return };
    let script = "umask 077; exec 9>/run/lock/phoenix-nvidia/101.worker.lock; flock 9; \
         sed -i 's/\"outcome\": \"[a-z]*\"/\"outcome\": \"running\"/; s/\"job\": null/\"job\": \"1@1\"/' \
             /run/phoenix-nvidia/state/101.json; \
         echo held; exec sleep 60";
    let holder = lab.command("bash").args(["-c", script]).spawn();
    wait_for_output(&holder, "held");
    lab.run([PROGRAM, "status", "101"]).says("install running").says_not("ended without a result");
    drop(holder);
    wait_until("the end of the holder", || pids(&lab, "sleep 60").is_empty());
    lab.run([PROGRAM, "status", "101"]).says("ended without a result");

    // Proxmox' lock, held by an ancestor who did not take it himself.
    lab.sh("sed -i /dev.nvidia/d /etc/pve/lxc/101.conf").ok();
    let begun = Instant::now();
    let script =
        format!("exec 9>>/run/lock/lxc/pve-config-101.lock; flock 9; {PROGRAM} 101 pre-start; exit $?");
    lab.run(["bash", "-c", &script]).ok().says("configured").says_not("is locked");
    assert!(begun.elapsed() < Duration::from_secs(5), "Proxmox' patience is 10 s");
    assert!(lab.conf(101).contains("/dev/nvidia0"));
}

/// Somebody who looks at every moment keeps nobody from his lock.
#[test]
fn a_look_at_proxmoxs_lock_and_at_ours_takes_neither() {
    let Some(lab) = used() else { return };
    lab.create(102, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/102.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    let locks = "/run/lock/lxc/pve-config-102.lock /run/lock/phoenix-nvidia/101.worker.lock";
    lab.sh(&format!("umask 077; for l in {locks}; do : >>$l; done")).ok();
    lab.sh("sed -i 's/\"outcome\": \"[a-z]*\"/\"outcome\": \"running\"/; s/\"job\": null/\"job\": \"1@1\"/' /run/phoenix-nvidia/state/101.json").ok();
    node(&lab, "GPU_EXCLUSIVE=yes");
    for command in [&["status", "101"][..], &["plan", "101"], &["101", "pre-start"]] {
        let traced = lab.command("strace").args([
            "-f",
            "-qq",
            "-e",
            "trace=flock,openat",
            "-o",
            "/tmp/trace",
            PROGRAM,
        ]);
        traced.args(command).run();
        let trace = lab.read("/tmp/trace");
        for lock in locks.split(' ') {
            assert!(!trace.contains(lock), "{command:?} opens {lock}: {trace}");
        }
    }
}
