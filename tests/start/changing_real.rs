//! From Debian's own driver packages, as its archive has them, to a driver of another version: the host's, or NVIDIA's.
use crate::changing::{HWCAPS, PROGRAM, ROOT};
use crate::support;

use phoenix_lab::{Container, Lab, Rootfs};
use std::path::Path;
use std::time::{Duration, Instant};
use support::real::{driver, give, packages, runfile};
use support::{again, lab, node};

const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Linked against both libraries; prints the file of each that the dynamic linker took.
const PRINTER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
int cuDriverGetVersion(int *version);
int nvmlInit_v2(void);
int main(void) {
    int version;
    int (*volatile linked)(void) = nvmlInit_v2;
    const char *names[] = {"cuDriverGetVersion", "nvmlInit_v2"};
    if (!linked || cuDriverGetVersion(&version)) return 1;
    for (int i = 0; i < 2; i++) {
        Dl_info found;
        char path[4096];
        if (!dladdr(dlsym(RTLD_DEFAULT, names[i]), &found) || !realpath(found.dli_fname, path)) return 2;
        puts(path);
    }
    return 0;
}
"#;

/// What the program prints where it finds both in this directory.
fn both(directory: &str, version: &str) -> String {
    format!("{directory}/libcuda.so.{version}\n{directory}/libnvidia-ml.so.{version}\n")
}

/// What a container has of Debian's driver.
const NAMES: [&str; 3] = ["nvidia-smi", "libcuda1", "nvidia-opencl-icd"];

/// Starts container 101 and has apt install them there, of these packages; tells their driver's version.
fn install(lab: &Lab, debs: &Path) -> String {
    let ct = lab.container(101);
    lab.sh(&format!("cp -r {} {ROOT}/srv/debs", debs.display())).ok();
    ct.write("/etc/apt/sources.list.d/driver.list", "deb [trusted=yes] file:/srv/debs ./\n");
    lab.run(["pct", "start", "101"]).ok();
    apt(&ct, &format!("apt-get update && apt-get install -y --no-install-recommends {}", NAMES.join(" ")));
    let version = ct.sh("dpkg-query -W -f '${Version}' libcuda1").ok().stdout;
    version.split('-').next().unwrap_or_default().to_owned()
}

/// A host with the driver of one release, and a running container of another with that one's, which apt installed, and
/// with the program, which its process 1 runs too: with the versions of both.
fn with_apts(host: &str, suite: &str, rootfs: Rootfs) -> Option<(Lab, String, String)> {
    let debs = packages(suite, rootfs, &NAMES)?;
    let (new, root) = driver(host)?;
    let lab = lab(Lab::builder().gpus(1).driver(&new))?;
    lab.sh("mount --make-rshared /").ok();
    give(&lab, &root);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.create(101, rootfs.unprivileged());
    lab.nvidia().printer(101);
    lab.write("/root/printer.c", PRINTER);
    let at = format!("{LIBRARIES}/nvidia/current");
    let linked = format!("{at}/libcuda.so.1 {at}/libnvidia-ml.so.1 -ldl");
    lab.sh(&format!("gcc -o {ROOT}/root/driver-version /root/printer.c {linked}")).ok();
    let old = install(&lab, &debs);
    assert_ne!(old, new);
    Some((lab, old, new))
}

/// Runs a line with apt; nothing asks.
fn apt(ct: &Container<'_>, line: &str) {
    let line = format!("export DEBIAN_FRONTEND=noninteractive; {line}");
    ct.command("sh").args(["-c", &line]).timeout(Duration::from_secs(120)).run().ok();
}

/// The program's own print, now, and what process 1 saw.
#[track_caller]
fn finds(ct: &Container<'_>, wanted: &str) {
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, wanted);
    assert_eq!(ct.read("/at-boot"), wanted);
}

fn packages_of(ct: &Container<'_>) -> String {
    ct.sh("dpkg --audit; dpkg-query -W -f '${Package} ${Version} ${Status}\n'").ok().stdout
}

fn debians_own(host: &str, suite: &str, rootfs: Rootfs) {
    let Some((lab, old, new)) = with_apts(host, suite, rootfs) else { return };
    let ct = lab.container(101);
    let (theirs, ours) = (both(&format!("{LIBRARIES}/nvidia/current"), &old), both(HWCAPS, &new));
    assert_eq!(ct.exec(["/root/driver-version"]).ok().stdout, theirs);
    let installed = packages_of(&ct);

    // The command is the same wherever it is named, and nobody runs it.
    let attach = lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--inject"]).ok();
    let attach = attach.says(&format!("driver {old} is installed in the container too"));
    let fix = attach.stderr.lines().find_map(|line| line.split_once("fix: pct exec 101 -- apt-get purge "));
    let fix = format!("pct exec 101 -- apt-get purge {}", fix.map(|(_, names)| names).unwrap_or_default());
    assert!(fix.contains(" libcuda1:amd64 ") || fix.contains(" libcuda1 "), "{fix}");
    let told = |said: phoenix_lab::Output| {
        said.ok().says("a driver is installed in the container too (").says(&format!("fix: {fix}\n"));
    };
    // What runs before the first step inside finds the one that is installed; so it is restarted once.
    let first =
        again(&lab).says(&format!("found driver {old}, which is installed in it")).says("restarted once");
    told(first);
    let deadline = Instant::now() + Duration::from_secs(60);
    while ct.read("/at-boot") != ours {
        assert!(Instant::now() < deadline, "{}", ct.read("/at-boot"));
        std::thread::sleep(Duration::from_millis(50));
    }
    finds(&ct, &ours);
    told(again(&lab));
    finds(&ct, &ours);
    assert_eq!(packages_of(&ct), installed);

    // apt knows nothing of the host's: what it does again changes nothing of it.
    apt(
        &ct,
        "apt-get install -y --reinstall libcuda1 libnvidia-ml1 nvidia-smi nvidia-opencl-icd && /sbin/ldconfig",
    );
    finds(&ct, &ours);
    told(again(&lab));
    finds(&ct, &ours);
    assert_eq!(packages_of(&ct), installed);

    // As it is printed, answered. The real nvidia-smi finds no kernel driver here (9), and is the host's.
    lab.run([PROGRAM, "doctor", "101"]).says(&format!("fix: {fix}\n"));
    lab.sh(&fix.replace("purge", "purge -y")).code(5).says("the host's, mounted").says("exit code 9");
    ct.exec(["nvidia-smi", "-h"]).ok().says(&format!("-- v{new}"));
    again(&lab).ok().says("the host's, mounted").says_not("installed in the container too").says_not("fix:");
    finds(&ct, &ours);
    lab.run([PROGRAM, "doctor", "101"]).says_not("in the container too").says_not("links");
}

#[test]
#[ignore = "make test-all: 40 MB to download"]
fn debians_535_stays_and_programs_find_the_hosts_550() {
    debians_own("trixie", "bookworm", Rootfs::Debian12);
}

#[test]
#[ignore = "make test-all: 40 MB to download"]
fn debians_550_stays_and_programs_find_the_hosts_535() {
    debians_own("bookworm", "trixie", Rootfs::Debian13);
}

/// What is left of Debian's packages after the command that is named, and what they diverted, is in nobody's way: the
/// genuine installer looks for other drivers itself.
#[test]
#[ignore = "make test-all: 0.4 GB to download, 5 GB of space"]
fn nvidias_own_installer_installs_once_debians_packages_are_purged_as_told() {
    let Some(debs) = packages("bookworm", Rootfs::Debian12, &NAMES) else { return };
    let Some((version, file)) = runfile("590") else { return };
    let Some(lab) = lab(Lab::builder().gpus(1).driver(&version)) else { return };
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    node(&lab, &format!("NVIDIA_RUNFILE_URL={}", file.display()));
    let ct = lab.create(101, Rootfs::Debian12.unprivileged());
    let old = install(&lab, &debs);
    let installed = packages_of(&ct);
    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    let refused = again(&lab).says(&format!("container 101 has driver {old} from packages ("));
    let fix = refused.stdout.lines().find_map(|line| line.split_once("fix: pct exec 101 -- apt-get purge "));
    let fix = format!("pct exec 101 -- apt-get purge -y {}", fix.map(|(_, names)| names).unwrap_or_default());
    assert_eq!(packages_of(&ct), installed);
    // The real nvidia-smi finds no kernel driver here (9).
    let pasted = lab.command("sh").args(["-c", &fix]).timeout(Duration::from_secs(300)).run();
    pasted.code(5).says(&format!("driver: installed {version}")).says("exit code 9");
    ct.exec(["nvidia-smi", "-h"]).ok().says(&format!("-- v{version}"));
    for library in ["libcuda.so.1", "libnvidia-ml.so.1"] {
        ct.sh(&format!("readlink -f {LIBRARIES}/{library}")).ok().says(&format!(".so.{version}\n"));
    }
    // What apt calls no longer required takes nothing of it away.
    apt(&ct, "apt-get autoremove -y");
    again(&lab).ok().says(&format!("driver {version}: installed and right")).says_not("WARNING");
    ct.exec(["nvidia-smi", "-h"]).ok();
}
