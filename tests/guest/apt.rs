//! The CUDA step with real apt in real containers: it never costs the
//! container its driver, and never leaves apt broken.
#![allow(clippy::unwrap_used)] // a failing helper fails its test
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::repo::{Package, Repo, Signing, catalogue};
use phoenix_lab::web::Fault;
use phoenix_lab::{Container, Lab, Output, Rootfs, Spec};
use std::time::Duration;
use support::{again, lab, node, setting, start};

const V: &str = "580.95.05";
const SOURCE: &str = "/etc/apt/sources.list.d/phoenix-nvidia.sources";

fn ready(rootfs: Spec, lines: &str) -> Option<Lab> {
    support::ready(Lab::builder().gpus(1), V, rootfs, lines)
}

/// Driver as it should be, apt without a complaint.
#[track_caller]
fn sound(ct: &Container<'_>) {
    ct.exec(["nvidia-smi", "--version"]).ok().says(&format!("NVIDIA-SMI version  : {V}"));
    ct.exec(["apt-get", "check"]).ok();
    assert_eq!(ct.sh("dpkg --audit").ok().stdout, "");
    assert!(!ct.exists("/var/lib/phoenix-nvidia/software.installing"));
}

fn the_first_start_brings_cuda_and_nvtop(rootfs: Spec) {
    let Some(lab) = ready(rootfs, "") else { return };
    let first = start(&lab).ok();
    let first = first.says("driver: installed 580.95.05").says("cuda: installed cuda-toolkit-13-0");
    let first = first.says("utilities: installed nvtop").says_not("WARNING");
    let lines = first.stdout.lines().count();
    assert!(lines <= 14, "{lines} lines:\n{first}");
    let ct = lab.container(101);
    sound(&ct);
    ct.exec(["/usr/local/cuda/bin/nvcc"]).ok().says("release 13.0");
    assert!(ct.read(SOURCE).contains("Suites: /\n"));
    ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
    // What the runfile owns, apt can no longer bring.
    ct.sh("apt-get -s install libnvidia-ml1").code(100);
    ct.sh("apt-get -s install cuda-drivers-580").code(100);
    let before = lab.web().requests().ending(".deb").len();
    again(&lab).ok().says("installed and right").says_not("cuda:");
    assert_eq!(lab.web().requests().ending(".deb").len(), before);
}

#[test]
fn debian_12_gets_cuda_and_nvtop() {
    the_first_start_brings_cuda_and_nvtop(Rootfs::Debian12.unprivileged());
}

#[test]
#[ignore = "make test-all: another release"]
fn debian_13_gets_cuda_and_nvtop() {
    the_first_start_brings_cuda_and_nvtop(Rootfs::Debian13.unprivileged());
}

#[test]
#[ignore = "make test-all: another release"]
fn ubuntu_24_04_gets_cuda_from_its_own_repository() {
    if let Err(why) = Rootfs::Ubuntu2404.obtainable() {
        phoenix_lab::skipped(&format!("no image of Ubuntu 24.04: {why:#}"));
        return;
    }
    let Some(lab) = lab(Lab::builder().gpus(1).driver(V)) else { return };
    node(&lab, "AFTER_INSTALL=none\nNETWORK_TIMEOUT=5\nUTILITY_PACKAGES=none");
    lab.web().standard(&[V]);
    lab.web().cuda_repo(
        "ubuntu2404",
        &Repo::flat().packages(catalogue::cuda_toolkit("13-0")).key_file("3bf863cc.pub"),
    );
    let ct = lab.create(101, Rootfs::Ubuntu2404.unprivileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    start(&lab)
        .ok()
        .says("driver: installed 580.95.05")
        .says("cuda: installed cuda-toolkit-13-0")
        .says_not("WARNING");
    sound(&ct);
    assert!(ct.read(SOURCE).contains("/compute/cuda/repos/ubuntu2404/"));
    again(&lab).ok().says("installed and right");
}

#[test]
fn a_toolkit_of_any_version_satisfies_a_driver_upgrade() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "") else { return };
    lab.web().runfile(&Runfile::new("590.48.01"));
    start(&lab).ok();
    let before = lab.web().requests().ending(".deb").len();
    lab.nvidia().set_driver("590.48.01");
    again(&lab).ok().says("580.95.05 → 590.48.01").says_not("cuda:");
    assert_eq!(lab.web().requests().ending(".deb").len(), before);
}

#[test]
fn the_source_of_an_older_release_is_rewritten() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    start(&lab).ok();
    let ct = lab.container(101);
    let right = ct.read(SOURCE);
    ct.write(SOURCE, right.replace("debian12", "debian11"));
    let before = lab.web().requests().ending(".deb").len();
    again(&lab).ok().says("/compute/cuda/repos/debian12/").says_not("cuda: installed");
    assert_eq!(ct.read(SOURCE), right);
    assert_eq!(lab.web().requests().ending(".deb").len(), before);
    again(&lab).ok().says("installed and right").says_not("repository:");
}

/// The CUDA step fails with these words, and nothing else suffers.
#[track_caller]
fn refused(lab: &Lab, words: &[&str]) -> Output {
    let output = start(lab).ok().says("driver: installed 580.95.05").says_not("exit code");
    let mut output = output.says("WARNING: driver 580.95.05 is right, CUDA packages are missing");
    for word in words {
        output = output.says(word);
    }
    sound(&lab.container(101));
    lab.container(101).sh("apt-get update -o APT::Update::Error-Mode=any").ok();
    output
}

#[test]
fn the_full_driver_of_a_newer_build_is_refused_with_its_packages() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=cuda-drivers-{branch}") else {
        return;
    };
    refused(&lab, &["would install kernel modules", "nvidia-kernel", "cuda-toolkit-{cuda}"]);
}

#[test]
fn driver_libraries_of_a_newer_build_are_refused() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=cuda-drivers-{branch}") else {
        return;
    };
    let (kind, names) = (catalogue::Drivers::Libraries, catalogue::Names::Debian);
    lab.web()
        .cuda_repo("debian12", &Repo::flat().packages(catalogue::cuda_drivers("580.126.09", kind, names)));
    refused(&lab, &["would install another driver", "580.126.09", "over the runfile's 580.95.05"]);
}

#[test]
fn a_harmless_cuda_drivers_is_accepted() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=cuda-drivers-{branch}") else {
        return;
    };
    let (kind, names) = (catalogue::Drivers::Alone, catalogue::Names::Debian);
    lab.web().cuda_repo("debian12", &Repo::flat().packages(catalogue::cuda_drivers(V, kind, names)));
    start(&lab).ok().says("cuda: installed cuda-drivers-580");
    sound(&lab.container(101));
    again(&lab).ok().says("installed and right");
}

#[test]
fn a_package_that_pulls_a_dkms_is_refused() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=gpu-tools") else { return };
    let dkms = Package::new("something-dkms", "1.0");
    let tools = Package::new("gpu-tools", "1.0").depends("something-dkms");
    lab.web().cuda_repo("debian12", &Repo::flat().package(dkms).package(tools));
    refused(&lab, &["gpu-tools refused", "something-dkms"]);
}

#[test]
fn a_repository_that_is_not_rightly_signed_is_refused_and_taken_away_again() {
    for rootfs in Rootfs::releases() {
        let distro = rootfs.name().replace('-', "");
        let Some(lab) = ready(rootfs.unprivileged(), "UTILITY_PACKAGES=none") else { return };
        let mut kinds = vec![Signing::Unsigned, Signing::OtherKey, Signing::Sha1, Signing::Altered];
        if distro == "debian13" {
            // NVIDIA's older key: only SHA-1 binds it to its owner.
            kinds.push(Signing::Sha1Bound);
        }
        let key = if distro == "debian13" { "8793F200.pub" } else { "3bf863cc.pub" };
        for (n, signing) in kinds.into_iter().enumerate() {
            let repo = Repo::flat().packages(catalogue::cuda_toolkit("13-0")).signing(signing).key_file(key);
            lab.web().cuda_repo(&distro, &repo);
            // By hand, since a hook tries a failed step once a boot.
            let output = match n {
                0 => start(&lab).ok(),
                _ => lab.run(["phoenix-nvidia", "101"]).ok(),
            };
            let output = output.says("repository: cannot use http://mirror.lab/compute/cuda/repos/");
            let ct = lab.container(101);
            sound(&ct);
            assert!(!ct.exists(SOURCE), "{signing:?}: {output}");
            ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
        }
    }
}

#[test]
fn a_repository_with_dists_is_found_by_its_index() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    node(
        &lab,
        "NVIDIA_REPO_URL=http://mirror.lab/nvidia\nNVIDIA_REPO_KEY_URL=https://mirror.lab/nvidia/3bf863cc.pub",
    );
    let repo =
        Repo::dists("bookworm", "main").packages(catalogue::cuda_toolkit("13-0")).key_file("3bf863cc.pub");
    lab.web().repo("/nvidia", &repo);
    start(&lab).ok().says("cuda: installed cuda-toolkit-13-0");
    let ct = lab.container(101);
    sound(&ct);
    assert!(ct.read(SOURCE).contains("Suites: bookworm\nComponents: main\n"));
}

#[test]
fn a_missing_repository_costs_only_the_cuda_step_and_is_not_tried_at_every_start() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    lab.web().fail("/compute/*", Fault::Status(404));
    refused(&lab, &["no index at http://mirror.lab/compute/cuda/repos/debian12/"]);
    let asked = lab.web().requests().ending("InRelease").len();
    again(&lab).ok().says("CUDA packages failed earlier").says_not("WARNING");
    assert_eq!(lab.web().requests().ending("InRelease").len(), asked, "once a boot with the same inputs");
    lab.web().heal();
    lab.run(["phoenix-nvidia", "101"]).ok().says("cuda: installed");
    sound(&lab.container(101));
}

#[test]
fn a_package_that_is_not_there_is_named() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=cuda-toolkit-99-0") else { return };
    refused(&lab, &["cuda-toolkit-99-0 not found in http://mirror.lab/"]);
}

#[test]
fn a_key_over_plain_http_is_refused() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    node(&lab, "NVIDIA_REPO_KEY_URL=http://mirror.lab/compute/cuda/repos/{distro}/{arch}/");
    refused(&lab, &["is not trusted", "NVIDIA_REPO_KEY_URL"]);
}

#[test]
fn a_failed_utility_is_a_warning() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=nvtop,nosuchtool") else {
        return;
    };
    let output = start(&lab).ok();
    output
        .says("WARNING: cannot install nosuchtool")
        .says("utilities: installed nvtop")
        .says_not("exit code 5");
    sound(&lab.container(101));
    again(&lab).ok().says("installed and right");
}

#[test]
fn nvtop_that_wants_apts_own_driver_library_is_left_out() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=none\nUTILITY_PACKAGES=nvtop")
    else {
        return;
    };
    let repo = Repo::dists("bookworm", "main")
        .package(catalogue::nvtop_with_library())
        .packages(catalogue::libraries("525.147.05", catalogue::Names::Debian))
        .key_file("archive.asc");
    lab.web().repo("/debian", &repo);
    lab.web().use_distribution(&lab.container(101));
    start(&lab).ok().says("would install a driver (libnvidia-ml1");
    sound(&lab.container(101));
}

#[test]
fn the_older_scripts_wrong_sources_are_moved_aside_and_an_interrupted_dpkg_completed() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    let ct = lab.container(101);
    let line = "deb http://mirror.lab/compute/cuda/repos/debian12/x86_64 bookworm main\n";
    ct.write("/etc/apt/sources.list.d/nvidia.conf", line);
    ct.write("/etc/apt/sources.list.d/nvidia.list", line);
    ct.write("/etc/apt/sources.list.d/other.list", "# not ours\n");
    // A package that is unpacked and not configured.
    lab.sh("true");
    node(&lab, "INSTALL=off");
    start(&lab).ok();
    let half = Package::new("half-done", "1.0").build().unwrap();
    ct.write("/root/half.deb", std::fs::read(half).unwrap());
    ct.sh("dpkg --unpack /root/half.deb").ok();
    assert_ne!(ct.sh("dpkg --audit").stdout, "");
    node(&lab, "INSTALL=on");
    let output = again(&lab).ok();
    let output = output.says("/etc/apt/sources.list.d/nvidia.conf, now");
    let output =
        output.says("/etc/apt/sources.list.d/nvidia.list, now /etc/apt/sources.list.d/nvidia.list.disabled");
    output.says("completed an interrupted dpkg run").says("cuda: installed");
    assert!(ct.exists("/etc/apt/sources.list.d/other.list"));
    for name in ["nvidia.conf", "nvidia.list"] {
        assert!(!ct.exists(format!("/etc/apt/sources.list.d/{name}")));
        assert_eq!(ct.read(format!("/etc/apt/sources.list.d/{name}.disabled")), line);
    }
    sound(&ct);
    // apt says nothing about what was put aside.
    let apt = ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
    apt.says_not("disabled").says_not("Ignoring");
}

/// A container whose owner wrote a source himself, with the key that it needs.
fn with_own_source(lab: &Lab, name: &str, line: &str) {
    let ct = lab.container(101);
    let key = std::fs::read(lab.web().site().www().join("compute/cuda/repos/debian12/x86_64/3bf863cc.pub"));
    ct.write("/usr/share/keyrings/cuda.asc", key.unwrap());
    ct.write(format!("/etc/apt/sources.list.d/{name}"), line);
}

#[test]
fn a_valid_source_of_the_owners_stays_however_it_is_written() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    let ct = lab.container(101);
    let uri = "[signed-by=/usr/share/keyrings/cuda.asc] http://mirror.lab/compute/cuda/repos/debian12/x86_64";
    let own = "/etc/apt/sources.list.d/nvidia.list";
    start(&lab).ok().says("cuda: installed");
    ct.sh("rm /etc/apt/sources.list.d/* && apt-get -y purge 'cuda-*'").ok();
    for line in [
        format!("deb {uri} /\n"),
        format!("deb {uri}/ ./\n"),
        format!("deb {uri}/ / # ours since 2021\n"),
        format!("  deb\t{}\t/\n", uri.replace("[", "[ arch=amd64 ").replace("] ", " ]\t")),
        format!("# deb {uri} bookworm main\ndeb {uri}/ /\n"),
    ] {
        with_own_source(&lab, "nvidia.list", &line);
        ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
        let run = lab.run(["phoenix-nvidia", "101"]).ok();
        run.says("already in /etc/apt/sources.list.d/nvidia.list").says("cuda: installed").says_not("aside");
        assert_eq!(ct.read(own), line);
        assert_eq!(ct.files().list("/etc/apt/sources.list.d"), ["nvidia.list"], "{line}");
        ct.sh("apt-get -y purge 'cuda-*'").ok();
    }
    // Another repository's: none of our business, not even under this name.
    let other = "deb [trusted=yes] http://mirror.lab/compute/cuda/repos/debian13/x86_64 / # mine\n";
    ct.write(own, other);
    lab.run(["phoenix-nvidia", "101"]).ok().says("cuda: installed").says_not("aside");
    assert_eq!(ct.read(own), other);
    sound(&ct);
}

#[test]
fn a_source_that_apt_cannot_read_is_moved_aside_and_nothing_is_overwritten() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    let ct = lab.container(101);
    let line = "deb http://mirror.lab/compute/cuda/repos/debian12/x86_64/ / main\n";
    let own = "/etc/apt/sources.list.d/nvidia.list";
    ct.write(own, line);
    ct.write(format!("{own}.disabled"), "an older one\n");
    // What is not under that name is not touched, though it breaks apt too.
    start(&lab).ok().says("moved aside, since apt cannot read it").says("cuda: installed");
    assert_eq!(ct.read(format!("{own}.disabled")), "an older one\n");
    assert_eq!(ct.read(format!("{own}.1.disabled")), line);
    assert!(!ct.exists(own));
    sound(&ct);
    ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
}

#[test]
fn a_repository_that_is_there_under_another_name_is_not_added_twice() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else { return };
    let ct = lab.container(101);
    let key = std::fs::read(lab.web().site().www().join("compute/cuda/repos/debian12/x86_64/3bf863cc.pub"));
    ct.write("/usr/share/keyrings/cuda.asc", key.unwrap());
    let line = "deb [signed-by=/usr/share/keyrings/cuda.asc] http://mirror.lab/compute/cuda/repos/debian12/x86_64/ /\n";
    ct.write("/etc/apt/sources.list.d/cuda.list", line);
    start(&lab).ok().says("already in /etc/apt/sources.list.d/cuda.list").says("cuda: installed");
    assert!(!ct.exists(SOURCE));
    sound(&ct);
}

#[test]
fn kmod_is_installed_where_it_is_missing() {
    let Some(lab) =
        ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nINSTALL=off")
    else {
        return;
    };
    let kmod = Package::new("kmod", "30+lab").file("/usr/sbin/modprobe", 0o755, "#!/bin/sh\n");
    lab.web().repo("/debian", &Repo::dists("bookworm", "main").package(kmod).key_file("archive.asc"));
    let ct = lab.container(101);
    lab.web().use_distribution(&ct);
    start(&lab).ok();
    ct.sh("dpkg --purge --force-depends kmod").ok();
    node(&lab, "INSTALL=on");
    again(&lab).ok().says("driver: installed kmod").says("driver: installed 580.95.05");
    ct.exec(["nvidia-smi", "--version"]).ok();
}

#[test]
fn a_dpkg_that_is_stopped_in_the_middle_dies_with_us_and_is_completed_by_the_next_run() {
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "CUDA_PACKAGES=slow-tools\nUTILITY_PACKAGES=none")
    else {
        return;
    };
    let slow = "[ -e /root/once ] || { touch /root/once; sleep 120; }\n";
    let package = Package::new("slow-tools", "1.0").script("postinst", &format!("#!/bin/sh\n{slow}"));
    lab.web().cuda_repo("debian12", &Repo::flat().package(package));
    node(&lab, "INSTALL=off");
    start(&lab).ok();
    node(&lab, "INSTALL=on");
    let ct = lab.container(101);
    let run = lab.command("phoenix-nvidia").arg("101").timeout(Duration::from_secs(100)).spawn();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !ct.exists("/root/once") {
        assert!(std::time::Instant::now() < deadline, "the package is not being configured");
        std::thread::sleep(Duration::from_millis(50));
    }
    lab.sh("pkill -TERM -x phoenix-nvidia").ok();
    run.wait().says("interrupted by SIGTERM");
    // What was killed may wait for the container's init to take notice.
    let alive = "for p in /proc/[0-9]*; do read -r _ name state _ <$p/stat || continue
        case $name$state in '(dpkg)Z' | '(apt-get)Z') ;; '(dpkg)'* | '(apt-get)'*) exit 0 ;; esac
        done; exit 1";
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while ct.sh(alive).exit() == Some(0) {
        assert!(std::time::Instant::now() < deadline, "{}", ct.sh("cat /proc/[0-9]*/stat"));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_ne!(ct.sh("dpkg --audit").stdout, "");
    lab.run(["phoenix-nvidia", "101"]).ok().says("completed an interrupted dpkg run");
    sound(&ct);
    ct.exec(["nvidia-smi"]).ok();
}

#[test]
fn a_plan_installs_nothing_by_itself() {
    // Alone and without dependencies: apt would not ask about it.
    let Some(lab) = ready(Rootfs::Debian12.unprivileged(), "UTILITY_PACKAGES=none") else {
        return;
    };
    let alone = Package::new("nvidia-fs-dkms", "1.0").file("/usr/share/alone", 0o644, "x");
    lab.web().cuda_repo("debian12", &Repo::flat().package(alone));
    node(&lab, "CUDA_PACKAGES=nvidia-fs-dkms");
    refused(&lab, &["nvidia-fs-dkms"]);
    assert!(!lab.container(101).exists("/usr/share/alone"));
}
