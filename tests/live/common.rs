//! What the tests of running containers share.
use crate::support::{lab, node};

use phoenix_lab::{Container, Errno, Lab, Spec};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";

/// A host with so many cards, mounted as systemd leaves it, and container 101 running with these.
pub fn running(gpus: u32, spec: Spec, assignment: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(gpus).driver("580.95.05"))?;
    lab.sh("mount --make-rshared /").ok();
    // What doctor asks inside has an answer where other programs keep the disk busy for seconds, too.
    node(&lab, "INSTALL=off\nCHECK_TIMEOUT=60");
    lab.create(101, spec);
    lab.run([PROGRAM, "attach", "101", "--gpus", assignment]).ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.container(101).wait_ready();
    Some(lab)
}

/// The settings change, as `attach` without --live or an editor changes them.
pub fn assign(lab: &Lab, assignment: &str) {
    let conf = lab.conf(101);
    let lines: Vec<String> = conf
        .lines()
        .map(|line| match line.strip_prefix("lxc.environment: GPU_ASSIGNMENT=") {
            Some(_) => format!("lxc.environment: GPU_ASSIGNMENT={assignment}"),
            None => line.to_owned(),
        })
        .collect();
    lab.write("/etc/pve/lxc/101.conf", format!("{}\n", lines.join("\n")));
}

/// The mount table of the container's process 1.
pub fn table(lab: &Lab, ct: &Container<'_>) -> String {
    lab.sh(&format!("cat /proc/{}/mountinfo", ct.init_pid().unwrap_or(0))).ok().stdout
}

/// The minors of the cards in a text with `nvidiaN` as a word of a path.
fn minors(text: &str, before: &str, after: &str) -> BTreeSet<u32> {
    let found = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(before)?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        rest[digits.len()..].starts_with(after).then(|| digits.parse().ok())?
    });
    found.collect()
}

/// Conf, config, rules, mounts, nodes and masks are those of exactly these cards of `all`.
#[track_caller]
pub fn agrees(lab: &Lab, gpus: &[u32], all: u32) {
    let ct = lab.container(101);
    let wanted: BTreeSet<u32> = gpus.iter().copied().collect();
    let (conf, config) = (lab.conf(101), lab.generated(101));
    assert_eq!(minors(&conf, "lxc.mount.entry: /dev/nvidia", " "), wanted, "{conf}");
    assert_eq!(minors(&conf, "devices.allow: c 195:", " rwm"), rules_of(&wanted), "{conf}");
    assert_eq!(minors(&config, "lxc.mount.entry = /dev/nvidia", " "), wanted, "{config}");
    assert_eq!(minors(&config, "devices.allow = c 195:", " rwm"), rules_of(&wanted), "{config}");
    let table = table(lab, &ct);
    assert_eq!(minors(&table, " /dev/nvidia", " "), wanted, "{table}");
    for mask in ["params", "gpus"] {
        let at = format!(" /proc/driver/nvidia/{mask} ");
        assert_eq!(table.lines().filter(|line| line.contains(&at)).count(), 1, "{table}");
    }
    let listed = ct.sh("cat /proc/driver/nvidia/gpus/*/information");
    let files = ct.sh("ls -l /dev").ok();
    // An unprivileged one may open every device by its rules, as Proxmox has it: what it lacks is a node.
    let privileged = !conf.contains("unprivileged: 1");
    for gpu in 0..all {
        let (node, made) = (format!("/dev/nvidia{gpu}"), format!("/dev/made{gpu}"));
        if privileged {
            ct.sh(&format!("[ -e {made} ] || mknod {made} c 195 {gpu}")).ok();
        }
        let own = wanted.contains(&gpu);
        assert_eq!(ct.open_node(&node), Err(if own { Errno::ENXIO } else { Errno::ENOENT }), "{files}");
        if privileged {
            assert_eq!(ct.open_node(&made), Err(if own { Errno::ENXIO } else { Errno::EPERM }), "{made}");
        }
        assert_eq!(listed.stdout.contains(&lab.nvidia().uuid(gpu)), own, "{listed}");
    }
    for node in ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"] {
        assert_eq!(ct.open_node(node), Err(Errno::ENXIO), "{node}");
    }
}

/// 255 is nvidiactl's.
fn rules_of(cards: &BTreeSet<u32>) -> BTreeSet<u32> {
    cards.iter().copied().chain([255]).collect()
}

/// `apply`, in the same start of the container.
#[track_caller]
pub fn apply(lab: &Lab, options: &[&str]) -> phoenix_lab::Output {
    let before = lab.container(101).init_pid();
    let out = lab.run([&[PROGRAM, "apply", "101"], options].concat());
    assert_eq!(lab.container(101).init_pid(), before, "it was restarted:\n{out}");
    out
}

/// What doctor cannot see in a lab whose host has no module on disk, and no kmod.
const UNSEEN: &str = "cannot check which driver the next boot loads: modinfo is not installed";

/// The findings of doctor that are not well, [`UNSEEN`] aside; what else it could not see is none of those that are.
#[track_caller]
pub fn bad(lab: &Lab) -> Vec<String> {
    let out = lab.run([PROGRAM, "doctor", "101"]);
    let of = |levels: &[&str]| -> Vec<String> {
        let is = |line: &&str| line.split_whitespace().next().is_some_and(|word| levels.contains(&word));
        out.stdout.lines().filter(is).map(str::to_owned).collect()
    };
    assert!(!of(&["ok"]).is_empty(), "it has looked at nothing: {out}");
    let mut bad = of(&["failure", "warning", "unknown"]);
    bad.retain(|line| !line.ends_with(UNSEEN));
    assert_eq!(out.exit(), Some(i32::from(!of(&["failure"]).is_empty())), "{out}");
    bad
}

/// Until something is so, 20 s at most.
#[track_caller]
pub fn wait(mut is: impl FnMut() -> bool, told: impl Fn() -> String) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < deadline, "{}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn reboot_from_inside(ct: &Container<'_>) {
    let before = ct.init_pid();
    ct.wait_ready();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    ct.wait_ready();
}
