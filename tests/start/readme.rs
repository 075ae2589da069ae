//! The lines of README that are there to be pasted, run as they stand.
#![allow(clippy::unwrap_used)] // a failing helper fails its test
use crate::changing::{OLD, ROOT};
use crate::support;

use phoenix_lab::{Lab, Output, Rootfs, Spec, rootfs};
use std::time::Duration;
use support::{lab, node};

const README: &str = include_str!("../../README.md");
const ENGINES: &str = "Docker and Podman inside";
/// Before a command in a block that shows what it prints.
const PROMPT: &str = "root@pve1:~# ";

/// Those that no lab runs, and why.
const LEFT_OUT: [(&str, &str); 3] = [
    (
        "apt install ./phoenix-nvidia_*_amd64.deb",
        "the package is built and installed by tests/ops/package.rs",
    ),
    ("make demo", "for the machine of a developer"),
    ("make test", "it runs this test"),
];

/// The command lines in README's blocks, each with the heading above it.
fn lines() -> Vec<(&'static str, &'static str)> {
    let (mut heading, mut block, mut all) = ("", None, Vec::new());
    for line in README.lines() {
        match (line.strip_prefix("```"), block) {
            (Some(kind), None) => block = Some(kind),
            (Some(_), Some(_)) => block = None,
            (None, None) => heading = line.strip_prefix("## ").unwrap_or(heading),
            (None, Some("sh")) => all.push((heading, line)),
            (None, Some("console")) => all.extend(line.strip_prefix(PROMPT).map(|line| (heading, line))),
            (None, Some(_)) => {}
        }
    }
    all
}

/// The line without its comment.
fn command(line: &str) -> &str {
    line.split("  #").next().unwrap_or(line).trim_end()
}

fn paste(lab: &Lab, line: &str) -> Output {
    lab.command("sh").args(["-c", line]).timeout(Duration::from_secs(150)).run()
}

/// In the order of the page; a line that is new there is run too.
fn all_but_those_for_engines(spec: Spec) {
    let Some(lab) = lab(Lab::builder().gpus(2).driver(OLD)) else { return };
    lab.sh("mount --make-rshared /").ok();
    lab.kmod();
    let kernel = lab.sh("uname -r").ok().stdout.trim().to_owned();
    lab.module(&format!("{kernel}/updates/dkms/nvidia.ko"), &[&format!("version={OLD}"), "name=nvidia"]);
    lab.nvidia().user_space(OLD);
    lab.web().standard(&[OLD]);
    // As the package has it.
    lab.write("/usr/share/phoenix-nvidia/phoenix-nvidia", include_str!("../../hooks/phoenix-nvidia"));
    let ct = lab.create(101, spec);
    lab.web().use_distribution(&ct);
    let (mut left_out, mut ran) = (Vec::new(), 0);
    for (_, line) in lines().into_iter().filter(|(heading, _)| *heading != ENGINES) {
        if LEFT_OUT.iter().any(|(left, _)| *left == command(line)) {
            left_out.push(command(line));
            continue;
        }
        if command(line) == "pct start 101" {
            lab.run(["pct", "stop", "101"]);
        }
        let run = paste(&lab, line);
        // Changes are pending (10), and something is wrong (1): the page shows that too.
        let more = match command(line).split(' ').nth(1) {
            Some("plan") => Some(10),
            Some("doctor") => Some(1),
            _ => None,
        };
        assert!(run.exit() == Some(0) || run.exit() == more && more.is_some(), "{run}");
        ran += 1;
    }
    assert_eq!(left_out, LEFT_OUT.map(|(line, _)| line), "in README, in this order");
    assert!(ran > 20, "{ran}");
}

#[test]
fn every_line_runs_as_it_stands_with_an_unprivileged_container() {
    all_but_those_for_engines(Rootfs::Debian12.unprivileged());
}

#[test]
#[ignore = "make test-all: the other kind of container"]
fn every_line_runs_as_it_stands_with_a_privileged_container() {
    all_but_those_for_engines(Rootfs::Debian12.privileged());
}

/// What a lab needs otherwise, in files of the engines that no line of README touches: images are copied whole, no
/// network, and for Podman no control groups of their own (the controllers are version 1's, outside).
const OTHERWISE: [(&str, &str); 3] = [
    (
        "/etc/systemd/system/docker.service.d/lab.conf",
        "[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd -H fd:// --iptables=false --bridge=none --storage-driver=vfs\n",
    ),
    (
        "/etc/containers/storage.conf",
        "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n",
    ),
    ("/etc/containers/containers.conf", "[containers]\nnetns = \"none\"\ncgroups = \"disabled\"\n"),
];

/// The container has the engines before the first line, and the image under its name: it reaches no archive and no
/// registry. The image is the root of a Debian 13 with what the driver shows in /proc, for the lab's nvidia-smi.
fn those_for_engines(spec: Spec) {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.sh("mount --make-rshared /").ok();
    lab.nvidia().user_space(OLD);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    let ct = lab.create(101, spec);
    let [debian, _] = rootfs::make(Rootfs::Debian13).unwrap();
    let image = format!(
        "set -e; mkdir -p /root/more/usr/lib/lab && cp -r /run/lab/nvidia/proc-driver /root/more/usr/lib/lab/driver
         tar -C /run/lab/cache/{debian} --exclude './dev/*' -cf {ROOT}/srv/image.tar .
         tar -C /root/more -rf {ROOT}/srv/image.tar ./usr/lib/lab/driver"
    );
    lab.sh(&image).ok();
    for (path, text) in OTHERWISE {
        ct.write(path, text);
    }
    lab.run(["pct", "start", "101"]).ok();
    let booted = "until [ -S /run/systemd/private ]; do sleep 0.05; done; systemctl start docker";
    ct.sh(booted).ok();
    ct.sh("docker import /srv/image.tar debian:13").ok();
    ct.sh("podman import /srv/image.tar docker.io/library/debian:13").ok();
    let lines: Vec<&str> =
        lines().into_iter().filter(|(heading, _)| *heading == ENGINES).map(|(_, line)| line).collect();
    // The second time a start has nothing to do, so that the line after the reboot comes before systemd answers.
    for _ in 0..2 {
        engines_show_the_card(&lab, &lines);
    }
}

#[track_caller]
fn engines_show_the_card(lab: &Lab, lines: &[&str]) {
    let runs: Vec<Output> = lines.iter().map(|line| paste(lab, line).ok()).collect();
    let shows: Vec<&Output> = runs
        .iter()
        .zip(lines)
        .filter(|(_, line)| line.ends_with(" nvidia-smi"))
        .map(|(run, _)| run)
        .collect();
    assert_eq!((lines.len(), shows.len()), (6, 2), "{lines:#?}");
    for run in shows {
        let table: Vec<&str> =
            run.stdout.lines().filter(|line| line.contains("NVIDIA GeForce RTX 4090")).collect();
        assert_eq!(table.len(), 1, "{run}");
        assert!(run.stdout.contains(&format!("Driver Version: {OLD}")), "{run}");
    }
}

#[test]
#[ignore = "make test-all: an image with engines"]
fn the_lines_for_engines_run_as_they_stand_with_an_unprivileged_container() {
    those_for_engines(Rootfs::Debian13EnginesSystemd.unprivileged());
}

#[test]
#[ignore = "make test-all: an image with engines"]
fn the_lines_for_engines_run_as_they_stand_with_a_privileged_container() {
    those_for_engines(Rootfs::Debian13EnginesSystemd.privileged());
}
