//! The findings of a conf, on texts.

use super::conf::*;
use super::finding::{Finding, Level};
use super::read::Container;
use super::seen::Inside;
use super::start::{hookscript, obstacles};
use crate::device::{Device, DevicePath};
use crate::guest::verify::Opened;
use crate::host::choose::Choice;
use crate::host::facts::Majors;
use crate::pve::hookscript::{Hookscript, Place};
use crate::pve::startable::Obstacle;
use crate::settings::{Call, Given, Origin, Places, Settings};

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

const DRM: &str = "lxc.mount.entry: /run/phoenix-nvidia/dev/dri/renderD128 dev/dri/renderD128 none bind,optional,create=file 0 0\nlxc.cgroup2.devices.allow: c 226:128 rwm\n";

/// A container that is assigned GPU 0 for graphics.
fn graphics(text: &str) -> Container {
    let device = |path: &str, major, minor| Device { path: path.parse().unwrap(), major, minor };
    let devices = vec![device("/dev/nvidia0", 195, 0), device("/dev/dri/renderD128", 226, 128)];
    Container { choice: Choice { devices, ..Choice::default() }, ..Container::plain(text) }
}

#[test]
fn a_guides_drm_nodes_over_ours_are_told_with_their_line() {
    let directory = "lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n";
    let node = "lxc.mount.entry: /dev/dri/renderD128 dev/dri/renderD128 none bind,optional,create=file\n";
    let told = |text: &str| {
        let found = covered(&graphics(text));
        found.into_iter().map(|f| (f.what, f.fix.unwrap())).collect::<Vec<_>>()
    };
    let at = |line: usize| {
        let what = "the container may not open /dev/dri/renderD128: line";
        vec![(
            format!("{what} {line} mounts the host's node over it"),
            "nano /etc/pve/lxc/101.conf".to_owned(),
        )]
    };
    for theirs in [directory, node] {
        // As it stands, and as the next start makes it: ours go among the kept pairs.
        assert_eq!(told(&format!("unprivileged: 1\n{PAIR}{DRM}{theirs}")), at(6), "{theirs}");
        assert_eq!(told(&format!("unprivileged: 1\n{PAIR}{theirs}")), at(4), "{theirs}");
        // Ours lie above.
        assert_eq!(told(&format!("unprivileged: 1\n{theirs}{PAIR}{DRM}")), []);
        assert_eq!(told(&format!("{PAIR}{DRM}{theirs}")), [], "root of a privileged one opens it");
        assert_eq!(told(&format!("unprivileged: 1\nlxc.idmap: u 0 100000 65536\n{PAIR}{theirs}")), []);
    }
    let other = "lxc.mount.entry: /dev/dri/renderD129 dev/dri/renderD129 none bind,optional,create=file\n";
    assert_eq!(told(&format!("unprivileged: 1\n{PAIR}{DRM}{other}")), []);
    assert_eq!(told(&format!("unprivileged: 1\n{PAIR}{DRM}[snap]\n{directory}")), []);
}

/// What the rules say of a DRM node that is closed by its mode.
fn closed(container: Container) -> (Option<String>, String) {
    let inside = Inside {
        differences: Ok(Vec::new()),
        host_directory: false,
        unseen: Vec::new(),
        installing: false,
        opened: vec![("/dev/dri/renderD128".parse().unwrap(), Opened::Mode)],
        software: None,
        smi: None,
        engines: None,
        services: Err(String::new()),
    };
    let container = Container { inside: Some(inside), ..container };
    assert_eq!(covered(&container), [], "told once");
    let finding = super::inside::rules(&container).remove(0);
    (finding.why, finding.fix.unwrap())
}

#[test]
fn a_restart_is_the_fix_only_where_it_helps() {
    let theirs = "lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n";
    let (why, fix) = closed(graphics(&format!("unprivileged: 1\n{PAIR}{DRM}{theirs}")));
    assert!(why.unwrap().starts_with("line 6 mounts the host's node over it"));
    assert_eq!(fix, "nano /etc/pve/lxc/101.conf");
    let right = || graphics(&format!("unprivileged: 1\n{PAIR}{DRM}"));
    assert_eq!(closed(right()), (None, "pct reboot 101".to_owned()));
    // NVreg_DeviceFileMode=0660: each start makes it so again, and no chmod holds.
    let drm: DevicePath = "/dev/dri/renderD128".parse().unwrap();
    let (_, fix) = closed(Container { closed: vec![drm], ..right() });
    assert!(fix.contains("NVreg_DeviceFileMode=0666"), "{fix}");
    let found = super::assigned::modes(&Container { closed: vec![drm], ..right() });
    let fixes: Vec<&str> = found.iter().filter_map(|f| f.fix.as_deref()).collect();
    assert_eq!(fixes, [fix.as_str()]);
}

#[test]
fn a_rule_that_may_be_another_devices_is_not_told_to_be_deleted() {
    let majors = || Majors::parse("Character devices:\n195 nvidia\n239 hidraw\n511 nvidia-uvm\n");
    let rule = "lxc.cgroup2.devices.allow: c 239:* rwm\n";
    let wide = |text: &str| {
        let conf = format!("{rule}{text}");
        let origin = Origin::File("/etc/pve/lxc/101.conf".into(), 1);
        let given = Given { key: "GPU_ASSIGNMENT".into(), value: "0".into(), origin };
        let none = || Ok(Vec::new());
        let places = Places { conf: vec![given], cluster: none(), node: none(), environment: Vec::new() };
        let settings = Settings::of(Call::ByHand, places, None);
        wide_rules(&Container { majors: majors(), settings, ..Container::plain(&conf) }).len()
    };
    assert_eq!(wide(PAIR), 1);
    // Guides list all rules first.
    let hidraw = "lxc.mount.entry: /dev/hidraw0 dev/hidraw0 none bind,optional,create=file\n";
    assert_eq!(wide(&format!("{PAIR}{hidraw}")), 0);
    assert_eq!(wide(&format!("{PAIR}dev0: /dev/kfd\n")), 0);
    assert_eq!(wide(&format!("{PAIR}[snap]\n{hidraw}")), 1);
}
