//! One apt source for one repository, whoever came first, and what detach leaves of
//! our files in a container.
#![allow(clippy::unwrap_used)] // a failing helper fails its test
use crate::support;

use phoenix_lab::repo::{Package, Repo, catalogue};
use phoenix_lab::{Container, Lab, Output, Rootfs};
use std::time::Duration;
use support::{lab, node};

const V: &str = "580.95.05";
const SOURCE: &str = "/etc/apt/sources.list.d/phoenix-nvidia.sources";
const PREFERENCES: &str = "/etc/apt/preferences.d/phoenix-nvidia";
const SHARED: &str = "/usr/share/keyrings/cuda-archive-keyring.gpg";
const OWN: &str = "/usr/share/keyrings/phoenix-nvidia.gpg";
const OLD: &str = "/usr/share/keyrings/phoenix-nvidia.asc";
const MARKS: &str = "/var/lib/phoenix-nvidia";
const LIST: &str = "/etc/apt/sources.list.d/cuda-debian12-x86_64.list";
const URL: &str = "mirror.lab/compute/cuda/repos/debian12/x86_64";
const UPDATE: &str = "apt-get update -o APT::Update::Error-Mode=any";

/// An attached container that has not started yet.
fn ready(lines: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver(V))?;
    lab.replace_program("/usr/sbin/modinfo", format!("#!/bin/sh\necho {V}\n"));
    node(&lab, &format!("AFTER_INSTALL=none\nNETWORK_TIMEOUT=5\nUTILITY_PACKAGES=none\n{lines}"));
    lab.web().standard(&[V]);
    let ct = lab.create(101, Rootfs::Debian12.unprivileged());
    lab.web().use_distribution(&ct);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    Some(lab)
}

/// The same with driver and CUDA.
fn complete() -> Option<Lab> {
    let lab = ready("")?;
    start(&lab).ok().says("cuda: installed cuda-toolkit-13-0").says_not("WARNING");
    Some(lab)
}

fn start(lab: &Lab) -> Output {
    lab.command("pct").args(["start", "101"]).timeout(Duration::from_secs(150)).run()
}

fn again(lab: &Lab) -> Output {
    lab.run(["pct", "stop", "101"]).ok();
    start(lab)
}

/// The repository's key as it is published.
fn key(lab: &Lab) -> Vec<u8> {
    std::fs::read(lab.web().site().www().join("compute/cuda/repos/debian12/x86_64/3bf863cc.pub")).unwrap()
}

/// NVIDIA's package: its source and its keyring.
fn cuda_keyring(lab: &Lab, keyring: Vec<u8>) {
    let ct = lab.container(101);
    let package = Package::new("cuda-keyring", "1.1-1").file(SHARED, 0o644, keyring).file(
        LIST,
        0o644,
        format!("deb [signed-by={SHARED}] http://{URL}/ /\n"),
    );
    ct.write("/root/cuda-keyring.deb", std::fs::read(package.build().unwrap()).unwrap());
    ct.sh("dpkg -i /root/cuda-keyring.deb").ok();
}

#[test]
fn nvidias_keyring_package_after_ours_breaks_nothing_and_ours_goes() {
    let Some(lab) = complete() else { return };
    let ct = lab.container(101);
    cuda_keyring(&lab, ct.files().bytes(SHARED));
    ct.sh(UPDATE).ok();
    let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]).ok();
    doctor.says(&format!("{SOURCE} and {LIST} have the same repository")).says("fix: phoenix-nvidia 101");
    lab.run(["phoenix-nvidia", "plan", "101"]).code(10).says(&format!("{LIST} has the same repository"));
    again(&lab).ok().says(&format!("already in {LIST}: removed {SOURCE}")).says_not("WARNING");
    assert!(!ct.exists(SOURCE) && ct.exists(LIST) && ct.exists(SHARED));
    ct.sh(UPDATE).ok().says_not("multiple times");
    again(&lab).ok().says("installed and right").says_not("repository:");
    // Detaching leaves what is NVIDIA's.
    lab.run(["phoenix-nvidia", "detach", "101"]).ok();
    assert!(ct.exists(LIST) && ct.exists(SHARED) && !ct.exists(MARKS));
    ct.sh(UPDATE).ok();
}

#[test]
fn nvidias_keyring_package_before_ours_is_used() {
    let Some(lab) = ready("INSTALL=off") else { return };
    start(&lab).ok();
    let text = String::from_utf8(key(&lab)).unwrap();
    let ct = lab.container(101);
    ct.write("/root/key.asc", text);
    ct.sh("sed -e '1,/^$/d' -e '/^[=-]/d' /root/key.asc | base64 -d >/root/key.gpg").ok();
    cuda_keyring(&lab, ct.files().bytes("/root/key.gpg"));
    node(&lab, "INSTALL=on");
    again(&lab).ok().says(&format!("already in {LIST}")).says("cuda: installed").says_not("WARNING");
    assert!(!ct.exists(SOURCE) && !ct.exists(OWN));
    ct.sh(UPDATE).ok();
}

/// A source of the owner's. With another key apt reads nothing until ours is gone.
fn of_the_owner(lab: &Lab, name: &str, text: &str) -> String {
    let ct = lab.container(101);
    ct.write("/usr/share/keyrings/mine.asc", key(lab));
    let file = format!("/etc/apt/sources.list.d/{name}");
    ct.write(&file, text);
    if text.contains("mine.asc") {
        ct.sh("apt-get check").code(100).says("could not be read");
    }
    file
}

#[test]
fn a_source_of_the_owners_in_any_form_takes_the_place_of_ours() {
    let Some(lab) = complete() else { return };
    let ct = lab.container(101);
    let right = ct.read(SOURCE);
    let keyring = ct.files().bytes(SHARED);
    for (name, text) in [
        (
            "mine.sources",
            format!("Types: deb\nURIs: http://{URL}\nSuites: /\nSigned-By: /usr/share/keyrings/mine.asc\n"),
        ),
        (
            "a.list",
            format!("# mine\n\ndeb [ signed-by=/usr/share/keyrings/mine.asc ] https://{URL}/ / # end"),
        ),
        ("cuda.list", format!("deb http://me:x@{URL}// /\n")),
        (
            "two.sources",
            format!(
                "Enabled: no\nTypes: deb\nURIs: http://{URL}\nSuites: /\n\nTypes: deb\nURIs:\n http://other.lab/ http://{URL}/\nSuites: /\n"
            ),
        ),
    ] {
        let file = of_the_owner(&lab, name, &text);
        let broken = ct.sh("apt-get check").exit() != Some(0);
        let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]).code(i32::from(broken));
        doctor.says(&format!("{SOURCE} and {file} have the same repository"));
        match name {
            "mine.sources" => again(&lab).ok().says(&format!("already in {file}: removed")),
            _ => lab.run(["phoenix-nvidia", "101"]).ok().says(&format!("already in {file}: removed")),
        };
        ct.sh("apt-get check").ok();
        assert!(!ct.exists(SOURCE) && !ct.exists(SHARED), "{name}");
        assert_eq!(ct.read(&file), text);
        ct.files().remove(&file);
        ct.write(SOURCE, &right);
        ct.write(SHARED, &keyring);
        ct.write(format!("{MARKS}/keyring"), "");
    }
    // What apt does not read, and another repository, are none of that.
    ct.write(
        "/etc/apt/sources.list.d/off.sources",
        format!("Types: deb\nURIs: http://{URL}\nSuites: /\nEnabled: no\n"),
    );
    ct.write("/etc/apt/sources.list.d/cuda.list.save", format!("deb http://{URL} /\n"));
    ct.write(
        "/etc/apt/sources.list.d/more.list",
        format!("# deb http://{URL} /\ndeb [trusted=yes] http://{URL}/more /\n"),
    );
    // Nor is one without packages for it, which may stand beside ours.
    ct.write("/etc/apt/sources.list.d/src.list", format!("deb-src [signed-by={SHARED}] http://{URL}/ /\n"));
    let arm = format!("deb [ signed-by={SHARED} arch=arm64 ] http://{URL}/ bookworm main\n");
    ct.write("/etc/apt/sources.list.d/arm.list", arm);
    for (value, n) in ["Off", "0", "disable", "without", "FALSE"].iter().zip(0..) {
        ct.write(
            format!("/etc/apt/sources.list.d/off{n}.sources"),
            format!("types: deb\nuris: http://{URL}\nSuites: /\nenabled: {value}\n"),
        );
    }
    again(&lab).ok().says("installed and right").says_not("repository:");
    assert_eq!(ct.read(SOURCE), right);
    // The CUDA step says the same as apt does.
    ct.sh("apt-get -y purge 'cuda-*'").ok();
    lab.run(["phoenix-nvidia", "101"]).ok().says("cuda: installed").says_not("already in");
    assert_eq!(ct.read(SOURCE), right);
    // With another key it makes apt unreadable, packages or not.
    ct.write("/etc/apt/sources.list.d/src.list", format!("deb-src http://{URL}/ /\n"));
    ct.sh("apt-get check").code(100);
    again(&lab).ok().says("already in /etc/apt/sources.list.d/src.list: removed");
    ct.sh("apt-get check").ok();
    // A flat repository has no architectures: apt reads all of its packages.
    ct.files().remove("/etc/apt/sources.list.d/src.list");
    ct.write(
        "/etc/apt/sources.list.d/arm.list",
        format!("deb [arch=arm64 signed-by={SHARED}] http://{URL}/ /\n"),
    );
    ct.write(SOURCE, &right);
    again(&lab).ok().says("already in /etc/apt/sources.list.d/arm.list: removed");
}

#[test]
fn an_unreadable_apt_is_healed_before_the_cuda_step_and_by_detach() {
    let Some(lab) = complete() else { return };
    let ct = lab.container(101);
    ct.sh("apt-get -y purge 'cuda-*'").ok();
    let text = format!("deb [signed-by=/usr/share/keyrings/mine.asc] http://{URL}/ /\n");
    let file = of_the_owner(&lab, "mine.list", &text);
    lab.run(["phoenix-nvidia", "101"]).ok().says(&format!("already in {file}")).says("cuda: installed");
    assert!(!ct.exists(SOURCE));
    ct.sh(UPDATE).ok();
    // deb-src has no packages of ours, and its key is in the way: ours does not stay.
    ct.sh("apt-get -y purge 'cuda-*'").ok();
    ct.write(&file, text.replace("deb ", "deb-src "));
    let run = lab.run(["phoenix-nvidia", "101"]).ok();
    run.says("CUDA packages are missing").says("cannot read its sources: E: Conflicting values");
    assert!(!ct.exists(SOURCE));
    ct.sh("apt-get check").ok();
    ct.files().remove(&file);
    lab.run(["phoenix-nvidia", "101"]).ok().says("cuda: installed");
    of_the_owner(&lab, "mine.list", &text);
    lab.run(["phoenix-nvidia", "detach", "101", "--keep-driver"]).ok();
    ct.sh(UPDATE).ok();
}

/// What 0.2.0 left: the key by another path and armoured.
fn as_of_0_2_0(lab: &Lab) {
    let ct = lab.container(101);
    ct.write(SOURCE, ct.read(SOURCE).replace(SHARED, OLD));
    ct.write(OLD, key(lab));
    ct.files().remove(SHARED);
    ct.files().remove(format!("{MARKS}/keyring"));
    ct.sh(UPDATE).ok();
}

#[test]
fn the_source_of_an_older_version_goes_the_same_way() {
    let Some(lab) = complete() else { return };
    let ct = lab.container(101);
    let keyring = ct.files().bytes(SHARED);
    as_of_0_2_0(&lab);
    again(&lab).ok().says("installed and right").says_not("repository:");
    // The next CUDA step brings it to what a new one is.
    ct.sh("apt-get -y purge 'cuda-*'").ok();
    lab.run(["phoenix-nvidia", "101"]).ok().says("cuda: installed");
    assert!(ct.read(SOURCE).contains(SHARED) && ct.exists(SHARED) && !ct.exists(OLD));
    as_of_0_2_0(&lab);
    cuda_keyring(&lab, keyring);
    ct.sh("apt-get check").code(100);
    again(&lab).ok().says(&format!("already in {LIST}: removed"));
    assert!(!ct.exists(SOURCE) && !ct.exists(OLD));
    ct.sh(UPDATE).ok();
}

#[test]
fn a_keyring_of_somebody_else_is_left_alone() {
    let Some(lab) = ready("") else { return };
    let ct = lab.container(101);
    ct.write(SHARED, "an older one");
    start(&lab).ok().says("cuda: installed").says_not("WARNING");
    assert!(ct.read(SOURCE).contains(OWN) && ct.exists(OWN));
    ct.sh(UPDATE).ok();
    lab.run(["phoenix-nvidia", "detach", "101"]).ok();
    assert_eq!(ct.read(SHARED), "an older one");
    assert!(!ct.exists(OWN) && !ct.exists(SOURCE));
}

/// The distribution has driver packages, as Debian's non-free.
fn offer_drivers(lab: &Lab) -> Container<'_> {
    let libraries = catalogue::libraries("535.261.03", catalogue::Names::Debian);
    let repo = Repo::dists("bookworm", "main").packages(libraries).key_file("archive.asc");
    lab.web().repo("/debian", &repo);
    let ct = lab.container(101);
    lab.web().use_distribution(&ct);
    ct
}

#[test]
fn detaching_a_running_container_leaves_nothing_of_ours_in_apts_way() {
    let Some(lab) = complete() else { return };
    let ct = offer_drivers(&lab);
    ct.sh(UPDATE).ok();
    ct.sh("apt-get -s install libnvidia-ml1").code(100);
    let detach = lab.run(["phoenix-nvidia", "detach", "101"]).ok();
    for file in [PREFERENCES, SOURCE, SHARED, MARKS] {
        detach.clone().says(file);
        assert!(!ct.exists(file), "{file}");
    }
    let commands: Vec<&str> = detach.stdout.lines().filter(|line| line.starts_with("  pct exec")).collect();
    assert_eq!(commands.len(), 2, "{detach}");
    for command in commands {
        lab.sh(&command.replace("purge", "purge -y").replace("autoremove", "autoremove -y")).ok();
    }
    ct.sh(UPDATE).ok();
    ct.sh("apt-get -s install libnvidia-ml1").ok();
    // Which devices it may open, until it stops: no other may have them alone meanwhile.
    let left = || lab.sh("ls -A /run/phoenix-nvidia/state /var/lib/phoenix-nvidia/state | grep 101").stdout;
    assert_eq!(left(), "101.rules\n");
    lab.run(["phoenix-nvidia", "doctor", "101"]).says_not("files of phoenix-nvidia");
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("nothing to remove");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("nothing to remove");
    assert_eq!(left(), "");
}

#[test]
fn detaching_a_stopped_container_names_the_files_and_the_command() {
    let Some(lab) = complete() else { return };
    let ct = offer_drivers(&lab);
    lab.run(["pct", "stop", "101"]).ok();
    let detach = lab.run(["phoenix-nvidia", "detach", "101"]).ok();
    let detach = detach.says(PREFERENCES).says(SOURCE).says(MARKS);
    let detach = detach.says("fix: pct start 101 && phoenix-nvidia detach 101");
    detach.says("once it runs");
    start(&lab).ok();
    let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]);
    doctor
        .says("files of phoenix-nvidia in the container")
        .says(PREFERENCES)
        .says("phoenix-nvidia detach 101");
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("removed in it").says_not("nothing to remove");
    for file in [PREFERENCES, SOURCE, SHARED, MARKS] {
        assert!(!ct.exists(file), "{file}");
    }
    ct.sh(UPDATE).ok();
    lab.run(["phoenix-nvidia", "doctor", "101"]).says_not("files of phoenix-nvidia");
}

#[test]
fn a_driver_that_is_kept_keeps_its_preferences() {
    let Some(lab) = complete() else { return };
    let ct = offer_drivers(&lab);
    let detach = lab.run(["phoenix-nvidia", "detach", "101", "--keep-driver"]).ok();
    detach.says(&format!("{PREFERENCES} keeps apt from replacing the driver")).says_not("nvidia-uninstall");
    for file in [SOURCE, SHARED, MARKS] {
        assert!(!ct.exists(file), "{file}");
    }
    ct.sh(UPDATE).ok();
    ct.sh("apt-get -s install libnvidia-ml1").code(100);
    lab.run(["phoenix-nvidia", "doctor", "101"]).says_not("files of phoenix-nvidia");
}
