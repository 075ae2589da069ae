//! Containers of every sort that have the host's driver mounted: what is in them, and where they come from.
use crate::inject::{
    HWCAPS, OLD, OLDER, PROGRAM, SHOWN, finds, finds_now, injecting, older_driver, start,
    the_first_start_has_the_driver,
};

use phoenix_lab::{Container, Lab, Rootfs};
use std::time::{Duration, Instant};

const CONF: &str = "/etc/pve/lxc/101.conf";
const ROOT: &str = "/var/lib/vz/images/101/subvol-101-disk-0.subvol";

#[test]
#[ignore = "make test-all: another release"]
fn ubuntu_has_it_in_the_first_start() {
    if let Err(why) = Rootfs::Ubuntu2404.obtainable() {
        return phoenix_lab::skipped(&format!("Ubuntu is not to be had: {why:#}"));
    }
    for spec in [Rootfs::Ubuntu2404.privileged(), Rootfs::Ubuntu2404.unprivileged()] {
        the_first_start_has_the_driver(spec.option("--ostype", "ubuntu"));
    }
}

/// What it writes as process 1, before anything of ours ran inside.
#[track_caller]
fn found_at_boot(ct: &Container<'_>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while ct.read("/at-boot").is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ct.read("/at-boot"), format!("{OLD}\n{OLD}\n"));
}

/// The only program of a container: it writes what it finds, and reboots when it is told to.
const APPLICATION: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>
extern const char *lab_cuda(void), *lab_ml(void);
static void ends(int signal) { reboot(signal == SIGUSR1 ? RB_AUTOBOOT : RB_POWER_OFF); }
int main(void) {
    FILE *file = fopen("/at-boot", "w");
    if (!file) return 1;
    fprintf(file, "%s\n%s\n", lab_cuda(), lab_ml());
    fclose(file);
    signal(SIGUSR1, ends);
    signal(SIGPWR, ends);
    for (;;) pause();
}
"#;

/// glibc, its loader, and one program; no shell, no ldconfig, no cache of the loader.
fn application(lab: &Lab) {
    lab.write("/root/application.c", APPLICATION);
    lab.sh(&format!(
        "set -e; cd /root; gcc -O1 -o application application.c -Lstubs -lcuda -lnvidia-ml
         cd {ROOT}; lib=usr/lib/x86_64-linux-gnu
         mkdir /root/kept
         cp -a --parents lib lib64 usr/lib64/ld-linux-x86-64.so.2 $lib/ld-linux-x86-64.so.2 $lib/libc.so.6 etc/hostname \
             etc/hosts /root/kept
         rm -rf bin sbin lib lib64 etc root home opt srv media mnt boot usr var
         cp -a /root/kept/. .; mkdir root; cp /root/application root/; : >at-boot; chmod 666 at-boot; chmod 755 root"
    ))
    .ok();
    assert_eq!(
        lab.sh(&format!("find {ROOT}/usr {ROOT}/root -type f | sed 's,.*/,,' | sort")).ok().stdout,
        "application\nld-linux-x86-64.so.2\nlibc.so.6\n"
    );
    let conf = lab.conf(101).replace("hostname: ", "entrypoint: /root/application\nhostname: ");
    lab.write(CONF, conf);
}

#[test]
fn a_root_with_nothing_but_glibc_and_its_program_has_it() {
    for spec in [Rootfs::Debian12.unprivileged(), Rootfs::Debian12.privileged()] {
        let Some(lab) = injecting(spec) else { return };
        application(&lab);
        let ct = lab.container(101);
        start(&lab).ok().says("no shell in the container").says("the host's, mounted").says_not("WARNING");
        found_at_boot(&ct);
        // A reboot from inside, which runs no hookscript.
        let before = ct.init_pid();
        ct.write("/at-boot", "");
        lab.sh(&format!("kill -USR1 {}", before.unwrap())).ok();
        ct.wait_rebooted(before);
        found_at_boot(&ct);
        lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
        // One of the host.
        lab.run(["pct", "stop", "101"]).ok();
        lab.sh(&format!("umount {SHOWN}/{OLD} /run/phoenix-nvidia/proc/101; rm -r /run/phoenix-nvidia")).ok();
        lab.run([PROGRAM, "prepare"]).ok();
        ct.write("/at-boot", "");
        start(&lab).ok().says_not("copied").says_not("WARNING");
        found_at_boot(&ct);
    }
}

/// busybox, with glibc for the one program that needs it; of no known distribution.
#[test]
fn busybox_has_it_where_it_has_a_glibc() {
    let Some(lab) = injecting(Rootfs::Busybox.unprivileged()) else { return };
    lab.sh(&format!(
        "set -e; cd {ROOT}; lib=usr/lib/x86_64-linux-gnu; mkdir -p $lib lib64
         cp /$lib/libc.so.6 $lib/; cp /$lib/ld-linux-x86-64.so.2 lib64/
         chown -R 100000:100000 usr/lib/x86_64-linux-gnu lib64"
    ))
    .ok();
    assert!(lab.conf(101).contains("ostype: unmanaged"));
    start(&lab).ok().says("the host's, mounted").says_not("WARNING");
    let ct = lab.container(101);
    finds(&ct, OLD);
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
    let before = ct.init_pid();
    ct.wait_ready();
    ct.write("/at-boot", "");
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    finds(&ct, OLD);
}

/// A package of another version's libraries, as Debian's own are, with NVIDIA's names.
#[test]
fn a_driver_that_apt_brings_later_does_not_win() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    let ct = lab.container(101);
    older_driver(&lab, 101, "package/");
    let control = "Package: libcuda1\nVersion: 570.86.15-1\nArchitecture: amd64\nMaintainer: x <x@x.invalid>\nDescription: x\n";
    lab.write("/root/p/DEBIAN/control", control);
    lab.write("/root/p/DEBIAN/triggers", "activate-noawait ldconfig\n");
    lab.sh(&format!(
        "set -e; lib=usr/lib/x86_64-linux-gnu; cd /root/p; mkdir -p $lib
         mv {ROOT}/$lib/package/* $lib/; rmdir {ROOT}/$lib/package
         for name in libcuda libnvidia-ml; do rm -f {ROOT}/$lib/$name.so.1; ln -s $name.so.{OLDER} $lib/$name.so.1; done
         dpkg-deb -b . /root/p.deb >/dev/null; cp /root/p.deb {ROOT}/root/"
    ))
    .ok();
    let apt = |words: &str| {
        let line = format!("DEBIAN_FRONTEND=noninteractive apt-get -qy {words}");
        ct.command("sh").args(["-c", &line]).timeout(Duration::from_secs(120)).run().ok()
    };
    apt("install /root/p.deb");
    ct.sh(&format!("test -f /usr/lib/x86_64-linux-gnu/libcuda.so.{OLDER}")).ok();
    finds_now(&ct, OLD);
    lab.run([PROGRAM, "doctor", "101"]).says("a driver is installed in the container too").says("libcuda1");
    lab.run(["pct", "stop", "101"]).ok();
    ct.write("/at-boot", "");
    start(&lab).ok();
    finds(&ct, OLD);
    apt("remove libcuda1");
    finds_now(&ct, OLD);
    lab.run([PROGRAM, "101"]).ok();
    ct.exec(["nvidia-smi", "-L"]).ok();
    ct.exec(["/sbin/ldconfig", "-p"]).ok().says("libcuda.so.1");
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
}

/// A backup of the stopped container, on a node that never had it, under another number.
#[test]
fn a_restore_has_it_in_its_first_start() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!("tar -C {ROOT} --one-file-system --numeric-owner -cf /root/backup.tar . && cp {CONF} /root/backup.conf"))
        .ok();
    lab.sh(&format!("tar -tf /root/backup.tar | grep 'libcuda.so.{OLD}'")).code(1);
    lab.run(["pct", "destroy", "101"]).ok();
    lab.sh(&format!("umount {SHOWN}/{OLD}; rm -rf /var/lib/phoenix-nvidia/* /run/phoenix-nvidia/state")).ok();
    lab.create(103, Rootfs::Debian12.unprivileged());
    let root = ROOT.replace("101", "103");
    let conf = lab.read("/root/backup.conf").replace("101", "103");
    lab.sh(&format!("cd {root} && rm -rf usr etc var root && tar --numeric-owner -xf /root/backup.tar")).ok();
    lab.write("/etc/pve/lxc/103.conf", conf);
    lab.container(103).write("/at-boot", "");
    lab.run(["pct", "start", "103"]).ok().says("copied for containers").says_not("WARNING");
    finds(&lab.container(103), OLD);
    lab.run([PROGRAM, "doctor", "103"]).says("0 failure, 0 warning");
}

/// The snippet is there, as in a shared storage, and the program is not.
#[test]
fn a_node_with_the_snippet_alone_starts_it_without_a_driver() {
    let Some(lab) = injecting(Rootfs::Debian12.unprivileged()) else { return };
    start(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    let conf = lab.conf(101);
    lab.sh(&format!(
        "umount {SHOWN}/{OLD} /run/phoenix-nvidia/proc/101; rm -r /run/phoenix-nvidia /var/lib/phoenix-nvidia
         mv {PROGRAM} /root/away"
    ))
    .ok();
    let ct = lab.container(101);
    ct.write("/at-boot", "");
    start(&lab).ok().says("not installed");
    assert!(ct.running());
    assert_eq!(lab.conf(101), conf);
    assert_eq!(ct.sh(&format!("ls -A {HWCAPS}")).ok().stdout, "");
    // Programs say that a library is missing, and everything else works.
    ct.exec(["/root/driver-version"]).code(127).says("libcuda.so.1");
    ct.exec(["/sbin/ldconfig"]).ok();
    ct.sh("test ! -e /usr/lib/x86_64-linux-gnu/libcuda.so.1").ok();
    // And with the package there.
    lab.run(["pct", "stop", "101"]).ok();
    lab.sh(&format!("mv /root/away {PROGRAM}")).ok();
    ct.write("/at-boot", "");
    start(&lab).ok().says("copied for containers").says_not("WARNING");
    finds(&ct, OLD);
    ct.exec(["nvidia-smi", "-L"]).ok();
    ct.exec(["/sbin/ldconfig", "-p"]).ok().says("libcuda.so.1");
}
