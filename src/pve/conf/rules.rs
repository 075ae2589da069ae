//! The device rules of a conf that belong to no pair of ours: the user's.

use crate::device::{DevicePath, NVIDIA_MAJOR, Number};
use crate::pve::conf::devices::{ENTRY, RULE, present, words};
use crate::pve::conf::document::Document;
use crate::pve::conf::line::Setting;
use crate::pve::passthrough::{self, normal};
use std::path::Path;

/// What a rule lets a container open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// Every device of the host: `a`, `c *:* rwm`.
    Everything,
    /// Every device of a major: `c 195:* rwm`.
    Major(u32),
    /// One device.
    One(Number),
}

/// A rule that lets a container open devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it opens.
    pub opens: Opens,
    /// The line in the file, from 1.
    pub line: usize,
}

/// The rules of the main section that belong to no pair of ours.
pub fn rules(document: &Document) -> Vec<Rule> {
    let pairs = present(document);
    let in_pair = |index: usize| pairs.iter().any(|pair| pair.rule.is_some() && pair.line == index);
    let rule = |(index, setting): (usize, Setting<'_>)| {
        let opens = opens(&setting).filter(|_| !in_pair(index))?;
        Some(Rule { opens, line: index + 1 })
    };
    document.main_settings().filter_map(rule).collect()
}

/// The line of the first rule with which a privileged container may open every
/// NVIDIA card. An unprivileged one makes no nodes.
pub fn opens_every_card(document: &Document) -> Option<usize> {
    let every = |rule: &&Rule| matches!(rule.opens, Opens::Everything | Opens::Major(NVIDIA_MAJOR));
    let privileged = document.get("unprivileged").as_deref() != Some("1");
    rules(document).iter().find(every).map(|rule| rule.line).filter(|_| privileged)
}

fn opens(setting: &Setting<'_>) -> Option<Opens> {
    if setting.key != RULE {
        return None;
    }
    let text = std::str::from_utf8(setting.value).ok()?;
    let mut words = text.split_ascii_whitespace();
    let (kind, number, access) = (words.next()?, words.next(), words.next());
    if kind == "a" {
        return Some(Opens::Everything);
    }
    // `m` alone makes nodes and opens none.
    if kind != "c" || !access?.contains(['r', 'w']) {
        return None;
    }
    match number?.split_once(':')? {
        ("*", _) => Some(Opens::Everything),
        (major, "*") => Some(Opens::Major(major.parse().ok()?)),
        (major, minor) => Some(Opens::One(Number { major: major.parse().ok()?, minor: minor.parse().ok()? })),
    }
}

/// Whether the container gets a device that is not NVIDIA's, whose number may be
/// a dynamic one: a rule may be for that, wherever it stands. A directory counts
/// too. What always has the same number does not: `/dev/dri`, `/dev/net/tun`.
pub fn passes_other_devices(document: &Document) -> bool {
    let entries = document.main_settings().filter(|(_, setting)| setting.key == ENTRY);
    let sources = entries
        .filter_map(|(_, setting)| Some(String::from_utf8_lossy(words(setting.value).next()?).into_owned()));
    let lines = passthrough::now(document).into_iter().chain(passthrough::next(document));
    sources.chain(lines.filter_map(|line| line.path().map(str::to_owned))).any(|source| {
        let source = normal(&source);
        let fixed = ["/dev/dri", "/dev/net"].iter().any(|fixed| Path::new(&source).starts_with(fixed));
        Path::new(&source).starts_with("/dev") && DevicePath::of_node(&source).is_none() && !fixed
    })
}

impl Opens {
    /// The major; none for everything.
    pub fn major(self) -> Option<u32> {
        match self {
            Opens::Everything => None,
            Opens::Major(major) | Opens::One(Number { major, .. }) => Some(major),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<Opens> {
        let text = format!("lxc.cgroup2.devices.allow: {line}\n");
        rules(&Document::parse(text.as_bytes())).first().map(|rule| rule.opens)
    }

    #[test]
    fn a_rule_is_read_in_each_of_its_forms() {
        for (line, opens) in [
            ("a", Some(Opens::Everything)),
            ("a *:* rwm", Some(Opens::Everything)),
            ("c *:* rwm", Some(Opens::Everything)),
            ("c *:* m", None),
            ("b *:* rwm", None),
            ("c 195:* rwm", Some(Opens::Major(195))),
            ("c 195:* r", Some(Opens::Major(195))),
            ("c 195:1 rw", Some(Opens::One(Number { major: 195, minor: 1 }))),
            ("c 195", None),
            ("c x:* rwm", None),
            ("c 195:*", None),
            ("", None),
        ] {
            assert_eq!(of(line), opens, "{line:?}");
        }
    }

    #[test]
    fn the_rule_of_a_pair_is_none_of_the_users() {
        let text = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
            lxc.cgroup2.devices.allow: c 195:0 rwm\n\
            lxc.mount.entry: /dev/kfd dev/kfd none bind,optional,create=file\n\
            lxc.cgroup2.devices.allow: c 506:0 rwm\n\
            lxc.cgroup2.devices.allow: c 507:0 rwm\n\
            [snap]\nlxc.cgroup2.devices.allow: a\n";
        let found = rules(&Document::parse(text.as_bytes()));
        let seen: Vec<usize> = found.iter().map(|rule| rule.line).collect();
        assert_eq!(seen, [4, 5]);
    }

    #[test]
    fn a_device_that_is_not_nvidias_is_found_wherever_it_stands() {
        let rule = "lxc.cgroup2.devices.allow: c 239:* rwm\n";
        let other = |text: &str| passes_other_devices(&Document::parse(format!("{rule}{text}").as_bytes()));
        for text in [
            "lxc.mount.entry: /dev/hidraw0 dev/hidraw0 none bind,optional,create=file\n",
            "lxc.mount.entry = /dev//bus/usb dev/bus/usb none bind,optional,create=dir\n",
            "lxc.mount.entry: /dev dev/host none bind\n",
            "dev3: path=/dev/kfd,mode=0666\n",
            "dev3: /dev/lirc0\n",
        ] {
            assert!(other(text), "{text}");
        }
        for text in [
            "",
            "lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file\n",
            "lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n",
            "lxc.mount.entry: /dev/net/tun dev/net/tun none bind,create=file\ndev0: /dev/nvidia0\n",
            "lxc.mount.entry: /devices srv none bind\n",
            "[snap]\ndev0: /dev/kfd\nlxc.mount.entry: /dev/kfd dev/kfd none bind,create=file\n",
        ] {
            assert!(!other(text), "{text}");
        }
    }

    #[test]
    fn only_a_privileged_container_opens_cards_by_a_wide_rule() {
        let line = |text: &str| opens_every_card(&Document::parse(text.as_bytes()));
        let rule = "lxc.cgroup2.devices.allow: c 195:* rwm\n";
        assert_eq!(line(&format!("memory: 5\n{rule}")), Some(2));
        assert_eq!(line("lxc.cgroup2.devices.allow = a\n"), Some(1));
        assert_eq!(line("lxc.cgroup2.devices.allow: c 195:0 rwm\n"), None);
        assert_eq!(line(&format!("unprivileged: 1\n{rule}")), None);
    }
}
