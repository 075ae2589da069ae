//! The driver depends on nothing that comes after it: where no CUDA package can
//! be had, it is installed and verified all the same.
use crate::support;

use phoenix_lab::{Lab, Output, Rootfs};
use support::{again, start};

/// A host with this driver; a container at the defaults that starts for the
/// first time.
fn host(driver: &str, lines: &str) -> Option<Lab> {
    let builder = Lab::builder().gpus(1).proprietary();
    support::ready(
        builder,
        driver,
        Rootfs::Debian12.unprivileged(),
        &format!("UTILITY_PACKAGES=none\n{lines}"),
    )
}

fn warnings(output: &Output) -> usize {
    let lines = || output.stdout.lines().chain(output.stderr.lines());
    lines().filter(|line| line.contains("WARNING") && !line.contains("fix: ")).count()
}

/// The driver is there, and CUDA is one warning with these words and its remedy,
/// told once.
#[track_caller]
fn one_warning(lab: &Lab, driver: &str, words: &str) {
    let first = start(lab).ok().says(&format!("driver: installed {driver}")).says(words);
    let first = first.says("fix: phoenix-nvidia attach 101 --cuda none");
    let first = first.says_not("exit code").says_not("ERROR").says_not("failed");
    assert_eq!(warnings(&first), 1, "{first}");
    lab.container(101).exec(["nvidia-smi"]).ok().says(driver);
    again(lab).ok().says(&format!("driver {driver}: installed")).says_not("WARNING");
    let hand = lab.run(["phoenix-nvidia", "101"]).ok().says("NVIDIA configuration completed");
    assert!(warnings(&hand) <= 1, "{hand}");
    lab.run(["phoenix-nvidia", "attach", "101", "--cuda", "none"]).ok();
    lab.run(["phoenix-nvidia", "101"]).ok().says_not("WARNING");
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do.").says_not("CUDA");
}

#[test]
fn a_legacy_branch_gets_its_driver_where_no_repository_has_its_toolkit() {
    let Some(lab) = host("470.256.02", "") else { return };
    one_warning(&lab, "470.256.02", "cuda-toolkit-11-4 not found in ");
}

#[test]
fn a_branch_without_a_known_cuda_version_gets_its_driver_and_is_told_beforehand() {
    let Some(lab) = host("340.108", "") else { return };
    let why = "cannot install CUDA packages: no CUDA version known for driver branch 340";
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok().says(why).says("--cuda none");
    lab.run(["phoenix-nvidia", "plan", "101"]).code(10).says(why).says("--cuda none");
    lab.run(["phoenix-nvidia", "doctor", "101"]).says(why).says("--cuda none").says_not("unknown version");
    one_warning(&lab, "340.108", why);
}

#[test]
fn a_newer_branch_than_those_known_says_that_its_cuda_version_is_assumed() {
    let Some(lab) = host("620.11.02", "") else { return };
    one_warning(&lab, "620.11.02", "CUDA version of driver branch 620 unknown: newest known one assumed");
}

#[test]
fn a_container_with_a_newer_driver_gets_the_one_of_a_host_with_a_legacy_one() {
    let Some(lab) = host("580.95.05", "") else { return };
    start(&lab).ok().says("driver: installed 580.95.05");
    for driver in ["470.256.02", "340.108"] {
        lab.web().standard(&[driver]);
        lab.nvidia().set_driver(driver);
        // A toolkit of any version is one.
        again(&lab).ok().says(&format!("→ {driver}")).says_not("WARNING");
        lab.container(101).exec(["nvidia-smi"]).ok().says(driver);
    }
}

#[test]
fn packages_that_somebody_named_are_a_fault_by_hand_and_a_warning_at_a_start() {
    let Some(lab) = host("340.108", "CUDA_PACKAGES=cuda-toolkit-{cuda}") else { return };
    let words = "driver 340.108 is right, CUDA packages are missing";
    start(&lab).ok().says("driver: installed 340.108").says(words).says_not("exit code 5");
    for _ in 0..2 {
        let hand = lab.run(["phoenix-nvidia", "101"]).code(5).says(words).says_not("completed");
        hand.says("fix: phoenix-nvidia attach 101 --cuda none").says_not("driver install");
    }
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(5)
        .says("no CUDA version known")
        .says_not("Nothing to do");
    again(&lab).ok().says("WARNING").says("CUDA packages failed earlier");
    lab.run(["phoenix-nvidia", "status", "101"]).says("340.108");
}

/// Fedora's container as far as it matters: no apt, no dpkg.
fn fedora(lab: &Lab) {
    let files = lab.container(101).files();
    for program in ["apt", "apt-get", "apt-cache", "dpkg"] {
        files.remove(format!("/usr/bin/{program}"));
    }
    let release = "ID=fedora\nVERSION_ID=42\nPRETTY_NAME=\"Fedora Linux 42 (Container Image)\"\n";
    files.remove("/etc/os-release");
    files.write("/etc/os-release", release);
}

#[test]
fn a_container_without_apt_gets_the_driver_and_no_packages_by_default() {
    let Some(lab) = host("580.95.05", "") else { return };
    fedora(&lab);
    one_warning(
        &lab,
        "580.95.05",
        "cannot install CUDA packages: Fedora Linux 42 (Container Image) has no apt-get",
    );
}

#[test]
fn a_container_without_apt_lacks_what_somebody_named() {
    let Some(lab) = host("580.95.05", "CUDA_PACKAGES=cuda-toolkit-13-0") else { return };
    fedora(&lab);
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("ostype: debian", "ostype: fedora"));
    lab.run(["phoenix-nvidia", "plan", "101"]).code(5).says("fedora has no apt-get");
    start(&lab).ok().says("driver: installed").says("CUDA packages are missing").says_not("exit code 5");
    lab.run(["phoenix-nvidia", "101"]).code(5).says("has no apt-get").says("--cuda none");
    lab.container(101).exec(["nvidia-smi"]).ok();
}
