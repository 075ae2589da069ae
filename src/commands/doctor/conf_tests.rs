//! The conf's findings, on texts.

use super::conf::*;
use super::finding::Finding;
use crate::commands::level::Level;
use crate::device::Device;
use crate::pve::conf::document::Document;
use crate::pve::hookscript::Hookscript;
use crate::pve::hookscript::Place;
use crate::types::Ctid;

fn ctid() -> Ctid {
    "101".parse().unwrap()
}

fn conf(text: &str) -> Document {
    Document::parse(text.as_bytes())
}

fn gpu() -> Device {
    Device { path: "/dev/nvidia0".parse().unwrap(), major: 195, minor: 0 }
}

/// All findings of a conf whose settings assign GPU 0.
fn all(text: &str) -> Vec<Finding> {
    let conf = conf(text);
    let mut found = absolute_targets(ctid(), &conf);
    found.extend(in_snapshots(ctid(), &conf));
    found.extend(double_pass(ctid(), &conf));
    found.extend(dev_lines(ctid(), &conf, &[gpu()]));
    found.extend(
        [allow_all(&conf), apparmor(&conf), template(ctid(), &conf), lock(ctid(), &conf)]
            .into_iter()
            .flatten(),
    );
    found
}

const PAIR: &str = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\nlxc.cgroup2.devices.allow: c 195:0 rwm\n";

#[test]
fn a_healthy_conf_has_no_findings() {
    let text = format!(
        "arch: amd64\ntemplate: 0\ndev0: /dev/net/tun\ndev1: /dev/nvidia0\n{PAIR}lxc.apparmor.profile: generated\n\n[pve:pending]\ndelete: dev1\n\n[snap]\narch: amd64\n{PAIR}"
    );
    assert_eq!(all(&text), []);
}

#[test]
fn each_old_habit_is_found_with_its_line_and_its_cure() {
    let one = |text: &str, check: &str| {
        let found = all(text);
        assert_eq!(found.iter().map(|f| f.check).collect::<Vec<_>>(), [check], "{text}");
        found.into_iter().next().unwrap()
    };
    let old = "lxc.mount.entry = /dev/nvidia0 /dev/nvidia0 none bind,optional,create=file 0 0\n";
    let finding = one(&format!("arch: amd64\n{old}"), "target");
    assert!(finding.what.contains("line 2") && finding.level == Level::Failure);
    let finding = one(&format!("arch: amd64\n[snap]\narch: amd64\n{old}{old}"), "snapshot");
    assert_eq!(finding.mend.as_deref(), Some("sed -i '4d;5d' /etc/pve/lxc/101.conf"));
    let finding = one(&format!("dev3: path=/dev/nvidia0,mode=0666\n{PAIR}"), "twice");
    assert!(finding.mend.unwrap().starts_with("pct set 101 --delete dev3"));
    one(&format!("dev3: gid=44,path=/dev//nvidia0\n{PAIR}"), "twice");
    one(&format!("{PAIR}[pve:pending]\ndev3: /dev/nvidia0\n"), "twice");
    let finding = one("dev3: /dev/nvidia0, gid=44\n", "dev-line");
    assert_eq!((finding.level, finding.mend.as_deref()), (Level::Failure, Some("pct set 101 --delete dev3")));
    let finding = one("dev3: /dev/nvidia0,deny-write=1\n", "dev-line");
    assert_eq!(finding.mend.as_deref(), Some("pct set 101 --dev3 /dev/nvidia0"));
    let finding = one("dev3: /dev/nvidia0\n[pve:pending]\ndelete: dev3\n", "pending");
    assert!(finding.what.contains("dev3") && finding.what.contains("/dev/nvidia0"), "{finding:?}");
    one("lxc.cgroup2.devices.allow: a\n", "allow-all");
    one("lxc.cgroup2.devices.allow = a *:* rwm\n", "allow-all");
    one("lxc.apparmor.profile: unconfined\n", "apparmor");
    one("template: 1\n", "template");
    one("lock: backup\n", "lock");
}

#[test]
fn a_hookscript_that_stops_starts_is_a_failure_and_none_is_a_warning() {
    let place =
        |name: &str| Place { volume: format!("local:snippets/{name}"), path: format!("/s/{name}").into() };
    let level = |hook: Hookscript| hookscript(ctid(), &hook).level;
    assert_eq!(level(Hookscript::Ours(place("x"))), Level::Ok);
    assert_eq!(level(Hookscript::None), Level::Warning);
    assert_eq!(level(Hookscript::Foreign(place("x"))), Level::Warning);
    assert_eq!(level(Hookscript::Missing(place("x"))), Level::Failure);
    assert_eq!(level(Hookscript::NotExecutable(place("x"))), Level::Failure);
    assert_eq!(level(Hookscript::NoStorage("a:snippets/x".into())), Level::Failure);
    let mend = |name: &str| hookscript(ctid(), &Hookscript::Missing(place(name))).mend.unwrap();
    assert_eq!(mend("phoenix-nvidia"), "phoenix-nvidia attach 101");
    assert_eq!(mend("mine"), "pct set 101 --delete hookscript");
}
