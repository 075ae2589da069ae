//! The findings of a conf, on texts.

use super::conf::*;
use super::finding::{Finding, Level};
use super::read::Container;
use super::start::{hookscript, obstacles};
use crate::device::Device;
use crate::host::choose::Choice;
use crate::pve::hookscript::{Hookscript, Place};
use crate::pve::startable::Obstacle;

/// All findings of a conf whose settings assign GPU 0.
fn all(text: &str) -> Vec<Finding> {
    let gpu = Device { path: "/dev/nvidia0".parse().unwrap(), major: 195, minor: 0 };
    let choice = Choice { devices: vec![gpu], ..Choice::default() };
    let container = Container { choice, ..Container::plain(text) };
    let checks = [absolute_targets, in_snapshots, double_pass, dev_lines, allow_all, apparmor, template];
    checks.iter().flat_map(|check| check(&container)).collect()
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
fn each_old_habit_is_found_with_its_line_and_its_remedy() {
    let one = |text: &str, check: &str| {
        let found = all(text);
        assert_eq!(found.iter().map(|f| f.check).collect::<Vec<_>>(), [check], "{text}");
        found.into_iter().next().unwrap()
    };
    let old = "lxc.mount.entry = /dev/nvidia0 /dev/nvidia0 none bind,optional,create=file 0 0\n";
    let finding = one(&format!("arch: amd64\n{old}"), "target");
    assert!(finding.what.contains("line 2") && finding.level == Level::Failure);
    let finding = one(&format!("arch: amd64\n[snap]\narch: amd64\n{old}"), "snapshot");
    assert!(
        finding.what.ends_with(&format!("`{}` (line 4)", old.trim().replace(" = ", ": "))),
        "{finding:?}"
    );
    // No line numbers: the conf may change before it is pasted.
    assert_eq!(finding.fix.as_deref(), Some("nano /etc/pve/lxc/101.conf"));
    let finding = one(&format!("dev3: path=/dev/nvidia0,mode=0666\n{PAIR}"), "twice");
    assert!(finding.fix.unwrap().starts_with("pct set 101 --delete dev3"));
    one(&format!("dev3: gid=44,path=/dev//nvidia0\n{PAIR}"), "twice");
    one(&format!("{PAIR}[pve:pending]\ndev3: /dev/nvidia0\n"), "twice");
    let finding = one("dev3: /dev/nvidia0,deny-write=1\n", "dev-line");
    assert_eq!(finding.fix.as_deref(), Some("pct set 101 --dev3 /dev/nvidia0"));
    let finding = one("dev3: /dev/nvidia0\n[pve:pending]\ndelete: dev3\n", "pending");
    assert!(finding.what.contains("dev3") && finding.what.contains("/dev/nvidia0"), "{finding:?}");
    one("lxc.cgroup2.devices.allow: a\n", "allow-all");
    one("lxc.cgroup2.devices.allow = a *:* rwm\n", "allow-all");
    one("lxc.apparmor.profile: unconfined\n", "apparmor");
    one("template: 1\n", "template");
}

#[test]
fn a_hookscript_that_stops_starts_is_a_failure_and_none_is_a_warning() {
    let place =
        |name: &str| Place { volume: format!("local:snippets/{name}"), path: format!("/s/{name}").into() };
    let found = |hook| hookscript(&Container { hook, ..Container::plain("") }).remove(0);
    let level = |hook| found(hook).level;
    assert_eq!(level(Hookscript::Ours(place("x"))), Level::Ok);
    assert_eq!(level(Hookscript::None), Level::Warning);
    assert_eq!(level(Hookscript::Foreign(place("x"))), Level::Warning);
    assert_eq!(level(Hookscript::Missing(place("x"))), Level::Failure);
    assert_eq!(level(Hookscript::NotExecutable(place("x"))), Level::Failure);
    assert_eq!(level(Hookscript::NoStorage("a:snippets/x".into())), Level::Failure);
    let fix = |name: &str| found(Hookscript::Missing(place(name))).fix.unwrap();
    assert_eq!(fix("phoenix-nvidia"), "phoenix-nvidia attach 101");
    assert_eq!(fix("mine"), "pct set 101 --delete hookscript");
}

#[test]
fn what_refuses_the_next_start_is_told_once_and_what_passes_is_a_warning() {
    let found = |obstacle, running| {
        let container = Container { obstacles: vec![obstacle], running, ..Container::plain("") };
        obstacles(&container).into_iter().next().map(|f| (f.check, f.level, f.what))
    };
    let device = Obstacle::Device { key: "dev0".into(), path: "/dev/gone".into(), made: false };
    let what = "dev0 passes /dev/gone, which does not exist";
    let again = format!("would not start again: {what}");
    assert_eq!(found(device.clone(), true), Some(("start", Level::Failure, again)));
    let not = format!("does not start: {what}");
    assert_eq!(found(device, false), Some(("start", Level::Failure, not)));
    let line = Obstacle::DeviceLine { key: "dev3".into(), why: "x".into() };
    let container = Container { obstacles: vec![line], ..Container::plain("") };
    assert_eq!(obstacles(&container).remove(0).fix.as_deref(), Some("pct set 101 --delete dev3"));
    let lock = found(Obstacle::Lock { owner: "backup".into() }, true).unwrap();
    assert_eq!((lock.0, lock.1), ("lock", Level::Warning));
    assert_eq!(found(Obstacle::Template, false), None);
    assert_eq!(found(Obstacle::NoQuorum, true), None);
}
