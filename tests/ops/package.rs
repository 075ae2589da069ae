//! The Debian package, with real dpkg and apt: on the lab's host, where
//! containers use it, and in a clean Debian container.
#![allow(clippy::unwrap_used)]

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Errno, Lab, Rootfs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

const SNIPPET: &str = "/var/lib/vz/snippets/phoenix-nvidia";
pub const CURRENT: &str = env!("CARGO_PKG_VERSION");
pub const OLDER: &str = "0.0.9~test";

/// Those that are built: each is built once.
static BUILT: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());

/// The package of this build, under another version for upgrades.
fn package(version: &str) -> PathBuf {
    let mut all = BUILT.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, path)) = all.iter().find(|(v, _)| v == version) {
        return path.clone();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deb");
    #[allow(clippy::disallowed_methods)] // a test's own child
    let mut build = Command::new(root.join("packaging/build-deb"));
    build.args([Path::new(env!("CARGO_BIN_EXE_phoenix-nvidia")), &output]);
    // Most of the time went into packing.
    build.env("DPKG_DEB_COMPRESSOR_LEVEL", "0");
    if version != CURRENT {
        build.env("PHOENIX_VERSION", version);
    }
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let path = PathBuf::from(String::from_utf8(built.stdout).unwrap().trim());
    all.push((version.to_owned(), path.clone()));
    path
}

/// Every file of the system but those in which dpkg, apt and the like keep
/// their own accounts, and what stays of conffiles' directories.
const FILES: &str = "find /etc /lib/ /usr /var /run/phoenix-nvidia /run/lock/phoenix-nvidia -xdev \\( -path /var/lib/dpkg -o -path /var/lib/apt \
    -o -path /var/cache/apt -o -path /var/cache/man -o -path /var/cache/debconf -o -path /var/log/apt -o -path /var/lib/pam -o -path /var/lib/systemd \
    -o -path /usr/local -o -path /usr/share/mime -o -path /var/lib/lxc -o -path /var/lib/vz -o -path /etc/pve -o -path '/var/log/pve' \\) -prune -o -print 2>/dev/null \
    | grep -v -e /ld.so.cache -e dpkg.log -e alternatives.log | sort -u";

const MIRROR: &str = "NVIDIA_RUNFILE_URL=https://mirror.lab/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run\n";

pub const APT: &str =
    "DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -y --no-install-recommends --allow-downgrades";

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// The lines of `after` that are not in `before`.
fn added<'a>(before: &'a str, after: &'a str) -> Vec<&'a str> {
    let before: std::collections::HashSet<&str> = before.lines().collect();
    lines(after).into_iter().filter(|line| !before.contains(line)).collect()
}

fn host() -> Option<Lab> {
    let lab = Lab::builder().gpus(1).start()?;
    lab.create(101, Rootfs::Busybox.privileged());
    lab.create(102, Rootfs::Busybox.privileged());
    kmod(&lab);
    Some(lab)
}

pub fn put(lab: &Lab, version: &str) -> String {
    let path = package(version);
    let name = format!("/root/phoenix-nvidia_{}.deb", version.replace('~', "-"));
    lab.write(&name, std::fs::read(path).unwrap());
    name
}

pub fn sh(lab: &Lab, line: &str) -> phoenix_lab::Output {
    lab.command("sh").args(["-c", line]).timeout(Duration::from_secs(180)).run().ok()
}

/// Where this machine lacks kmod, the lab's host gets a package of that name:
/// apt has no network there.
pub fn kmod(lab: &Lab) {
    let control = "Package: kmod\nVersion: 99\nArchitecture: all\nMaintainer: lab <lab@lab.invalid>\nDescription: stand-in\n";
    lab.write("/root/kmod/DEBIAN/control", control);
    sh(
        lab,
        "dpkg-query -W -f '${Status}' kmod 2>/dev/null | grep -q 'ok installed' || \
         { dpkg-deb -b /root/kmod /root/kmod.deb && dpkg -i /root/kmod.deb; }",
    );
}

pub fn install(lab: &Lab, deb: &str) {
    sh(lab, &format!("{APT} install {deb}"));
}

#[test]
fn from_install_to_purge_a_host_keeps_its_containers_startable() {
    let Some(lab) = host() else { return };
    let (old, new) = (put(&lab, OLDER), put(&lab, CURRENT));
    let before = sh(&lab, FILES).stdout;
    let conf = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));

    // Install: its files, the boot unit enabled, no container touched.
    install(&lab, &old);
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), conf);
    assert!(!lab.exists(SNIPPET));
    let installed = sh(&lab, FILES).stdout;
    let new_files = added(&before, &installed);
    for file in [
        "/usr/sbin/phoenix-nvidia",
        "/etc/default/phoenix-nvidia",
        "/etc/systemd/system/multi-user.target.wants/phoenix-nvidia-nodes.service",
        "/usr/share/phoenix-nvidia/phoenix-nvidia",
        "/etc/apt/apt.conf.d/20phoenix-nvidia",
        "/usr/lib/udev/rules.d/70-phoenix-nvidia.rules",
        "/usr/share/man/man8/phoenix-nvidia.8.gz",
        "/usr/share/man/man5/phoenix-nvidia.env.5.gz",
        "/usr/share/bash-completion/completions/phoenix-nvidia",
    ] {
        assert!(new_files.contains(&file), "{file} is not there: {new_files:#?}");
    }
    assert_eq!(added(&installed, &before), [""; 0], "an install takes nothing away");

    // Attach and start: the node's settings work as they are shipped.
    sh(&lab, "sed -i 's/^#INSTALL=on/INSTALL=off/' /etc/default/phoenix-nvidia");
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    lab.run(["pct", "stop", "101"]).ok();

    // Upgrade: settings stay, the snippet stays, starts go on.
    let settings = lab.read("/etc/default/phoenix-nvidia");
    let attached = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"));
    install(&lab, &new);
    assert_eq!(lab.read("/etc/default/phoenix-nvidia"), settings);
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf")), attached);
    assert!(sh(&lab, "dpkg-query -W phoenix-nvidia").stdout.contains(CURRENT));
    // What is new since the install: the snippet's note; what a start makes and
    // records is of this boot, but for the state.
    let now = sh(&lab, FILES).stdout;
    let recorded =
        |file: &&str| file.starts_with("/run/") || file.starts_with("/var/lib/phoenix-nvidia/state");
    assert_eq!(
        added(&installed, &now).into_iter().filter(|file| !recorded(file)).collect::<Vec<_>>(),
        ["/var/lib/phoenix-nvidia", "/var/lib/phoenix-nvidia/snippets"]
            .into_iter()
            .filter(|f| !installed.contains(f))
            .collect::<Vec<_>>()
    );
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();

    // Remove, with a container that names the hookscript: it still starts.
    sh(&lab, &format!("{APT} remove phoenix-nvidia")).says("the hookscript stays");
    assert!(lab.exists(SNIPPET) && !lab.exists("/usr/sbin/phoenix-nvidia"));
    assert!(lab.exists("/etc/default/phoenix-nvidia"), "a conffile stays until purge");
    // So does apt's hook, which finds nobody to call.
    assert!(lab.exists("/etc/apt/apt.conf.d/20phoenix-nvidia"));
    sh(
        &lab,
        "mkdir -p /root/x/DEBIAN && sed s/kmod/x/ /root/kmod/DEBIAN/control >/root/x/DEBIAN/control && dpkg-deb -b /root/x /root/x.deb",
    );
    sh(&lab, &format!("{APT} install /root/x.deb")).says_not("phoenix").says_not("not found");
    sh(&lab, &format!("{APT} purge x"));
    lab.run(["pct", "start", "101"])
        .ok()
        .says("WARN: container 101, pre-start: phoenix-nvidia is not installed");
    lab.run(["pct", "stop", "101"]).ok();

    // Purge: node-local, and nothing of it is left there.
    let conf = lab.conf(101);
    sh(&lab, &format!("{APT} purge phoenix-nvidia"));
    assert_eq!(lab.conf(101), conf);
    assert!(lab.exists(SNIPPET), "still named by a conf");
    assert_eq!(added(&before, &sh(&lab, FILES).stdout), [""; 0]);
    lab.run(["pct", "start", "101"]).ok();
}

/// The whole of it, as a reader of the README would do it.
#[test]
fn after_apt_install_and_attach_the_first_start_brings_gpu_and_driver() {
    let Some(lab) = host() else { return };
    install(&lab, &put(&lab, CURRENT));
    // The node's settings stay as they are shipped: the cluster's, which are
    // nearer, name the lab's mirror.
    lab.web().runfile(&Runfile::new("580.95.05"));
    lab.write(
        "/etc/pve/phoenix-nvidia/default.env",
        format!("{MIRROR}CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\n"),
    );
    let ct = lab.create(103, Rootfs::Debian12.unprivileged());
    lab.run(["phoenix-nvidia", "attach", "103", "--gpus", "0"]).ok();
    let start = lab.command("pct").args(["start", "103"]).timeout(Duration::from_secs(150)).run();
    start.ok().says("driver: installed 580.95.05");
    // The one reboot after an install comes when the task has ended.
    lab.command("sh")
        .args([
            "-c",
            "until grep -q 'container rebooted' /var/log/phoenix-nvidia/103.log; do sleep 0.1; done",
        ])
        .run()
        .ok();
    ct.exec(["nvidia-smi", "-L"]).ok().says("GPU 0: ");
    lab.run(["phoenix-nvidia", "doctor", "103"]).ok();

    // A purge takes nothing from it while it runs, and leaves no more than that.
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    sh(&lab, &format!("{APT} purge phoenix-nvidia"));
    ct.sh("cat /proc/driver/nvidia/params /proc/driver/nvidia/gpus/*/information")
        .ok()
        .says("ModifyDeviceFiles: 0")
        .says("GPU UUID:");
    let left = sh(&lab, "ls -d /run/phoenix-nvidia/* /run/phoenix-nvidia/masks/*.*").stdout;
    assert!(left.lines().all(|path| path.starts_with("/run/phoenix-nvidia/masks")), "{left}");
    assert!(left.contains("/masks/103.") && !left.contains("/masks/101."), "{left}");
}

#[test]
#[ignore = "make test-all: a package for each case"]
fn the_snippet_goes_with_the_package_only_when_surely_nothing_names_it() {
    let Some(lab) = host() else { return };
    let deb = put(&lab, CURRENT);
    let remove = || sh(&lab, &format!("{APT} remove phoenix-nvidia"));
    install(&lab, &deb);
    sh(&lab, "sed -i 's/^#INSTALL=on/INSTALL=off/' /etc/default/phoenix-nvidia");
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["phoenix-nvidia", "detach", "101"]).ok();

    // A container of another node, a snapshot, and /etc/pve out of reach.
    lab.sh("mkdir -p /etc/pve/nodes/beta/lxc").ok();
    lab.write("/etc/pve/nodes/beta/lxc/300.conf", "arch: amd64\nhookscript: local:snippets/phoenix-nvidia\n");
    remove();
    assert!(lab.exists(SNIPPET), "named on another node");
    lab.write(
        "/etc/pve/nodes/beta/lxc/300.conf",
        "arch: amd64\n\n[snap]\nhookscript: local:snippets/phoenix-nvidia\n",
    );
    install(&lab, &deb);
    remove();
    assert!(lab.exists(SNIPPET), "named by a snapshot");
    lab.files().remove("/etc/pve/nodes/beta/lxc/300.conf");
    install(&lab, &deb);
    lab.sh("mkdir /tmp/away && mv /etc/pve/* /tmp/away/").ok();
    remove();
    assert!(lab.exists(SNIPPET), "/etc/pve could not be read");
    lab.sh("mv /tmp/away/* /etc/pve/").ok();

    // Somebody else's file under that name is nobody's to remove.
    install(&lab, &deb);
    lab.snippet("phoenix-nvidia", "#!/bin/sh\n# mine\n");
    remove();
    assert!(lab.exists(SNIPPET), "not ours");
    lab.files().remove(SNIPPET);
    install(&lab, &deb);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["phoenix-nvidia", "detach", "101"]).ok();
    remove().says_not("the hookscript stays");
    assert!(!lab.exists(SNIPPET));
}

fn built_on_13_or_later() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap();
    let version = release.lines().find_map(|line| line.strip_prefix("VERSION_ID="));
    version.and_then(|v| v.trim_matches('"').parse::<f32>().ok()).is_some_and(|v| v >= 13.0)
}

#[test]
fn a_clean_debian_takes_and_loses_it_without_a_trace() {
    for rootfs in Rootfs::releases() {
        if *rootfs == Rootfs::Debian12 && built_on_13_or_later() {
            continue; // its C library is older than the one that the package was built with
        }
        let Some(lab) = Lab::builder().start() else { return };
        let ct = lab.create(101, rootfs.privileged());
        lab.run(["pct", "start", "101"]).ok();
        let run =
            |line: &str| ct.command("sh").args(["-c", line]).timeout(Duration::from_secs(180)).run().ok();
        ct.write("/root/p.deb", std::fs::read(package(CURRENT)).unwrap());
        let before = run(FILES).stdout;
        run(&format!("{APT} install /root/p.deb"));
        run("dpkg --verify phoenix-nvidia").says_not("5");
        run("phoenix-nvidia --version").says(CURRENT);
        run("test -L /etc/systemd/system/multi-user.target.wants/phoenix-nvidia-nodes.service");
        let other = ct.command("phoenix-nvidia").args(["attach", "101", "--gpus", "0"]).run();
        assert_eq!(other.exit(), Some(3), "no Proxmox here: {}", other.stderr);
        run(&format!("{APT} remove phoenix-nvidia"));
        run("test ! -e /usr/sbin/phoenix-nvidia && test -e /etc/default/phoenix-nvidia");
        run(&format!("{APT} purge phoenix-nvidia"));
        let after = run(FILES).stdout;
        assert_eq!((added(&before, &after), added(&after, &before)), (vec![], vec![]));
    }
}

#[test]
fn lintian_has_neither_errors_nor_warnings() {
    let deb = package(CURRENT);
    #[allow(clippy::disallowed_methods)] // a test's own child
    let out = Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(deb).output();
    let Ok(out) = out else {
        assert!(std::env::var("PHOENIX_REQUIRE_LAB").is_err(), "lintian is not installed");
        return;
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn make_install_puts_the_same_files_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let there = tempfile::tempdir().unwrap();
    #[allow(clippy::disallowed_methods)] // a test's own child
    let made = Command::new("make")
        .current_dir(root)
        .args(["install-files", "PREFIX=/usr/local"])
        .arg(format!("BINARY={}", env!("CARGO_BIN_EXE_phoenix-nvidia")))
        .arg(format!("DESTDIR={}", there.path().display()))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let unit = there.path().join("usr/local/lib/systemd/system/phoenix-nvidia-nodes.service");
    assert!(
        std::fs::read_to_string(unit).unwrap().contains("ExecStart=/usr/local/sbin/phoenix-nvidia prepare")
    );
    assert!(there.path().join("etc/default/phoenix-nvidia").exists());
    assert!(there.path().join("usr/local/lib/udev/rules.d/70-phoenix-nvidia.rules").exists());
    let hook = std::fs::read_to_string(there.path().join("etc/apt/apt.conf.d/20phoenix-nvidia")).unwrap();
    assert_eq!(hook.matches("/usr/local/sbin/phoenix-nvidia").count(), 2, "{hook}");
    assert!(!hook.contains("/usr/sbin/"), "{hook}");
}
