//! The `devN:` lines of a container's conf: devices that Proxmox itself passes.
//! As strict as pve-container's `PVE::LXC::Config::parse_device`.

use super::{pending, property};
use crate::device::DevicePath;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Entry;
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::str::FromStr;

/// The value of a `devN:` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevValue {
    /// Its path, on the host and in the container, with single slashes.
    pub path: String,
    /// The container may only read it.
    pub deny_write: bool,
}

impl FromStr for DevValue {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (mut path, mut deny_write) = (None, false);
        for (key, value) in property::parse(text, "path")? {
            match key {
                "path" if is_device_path(value) => path = Some(normal(value)),
                "deny-write" if property::boolean(value).is_some() => {
                    deny_write = property::boolean(value) == Some(true);
                }
                "mode" if is_mode(value) => {}
                "uid" | "gid" if is_id(value) => {}
                "path" | "deny-write" | "mode" | "uid" | "gid" => {
                    bail!("{key} cannot be '{}'", value.escape_debug())
                }
                _ => bail!("unknown key '{}'", key.escape_debug()),
            }
        }
        Ok(DevValue { path: path.context("has no path")?, deny_write })
    }
}

/// Proxmox's rule: below /dev, without `.` and `..`.
fn is_device_path(path: &str) -> bool {
    path.starts_with("/dev/") && !path.split('/').any(|part| matches!(part, "." | ".."))
}

/// `0` and three octal digits.
fn is_mode(mode: &str) -> bool {
    mode.len() == 4 && mode.starts_with('0') && mode.bytes().all(|b| matches!(b, b'0'..=b'7'))
}

/// A user or group, from 0.
fn is_id(id: &str) -> bool {
    let digits = id.strip_prefix('+').unwrap_or(id);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// A path with single slashes and none at its end.
pub fn normal(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    let joined: Vec<&str> = parts.collect();
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", joined.join("/"))
}

/// One `devN:` line.
#[derive(Debug)]
pub struct DevLine {
    /// `dev0`
    pub key: String,
    /// The line in the file, from 1.
    pub line: usize,
    /// Its value, or why Proxmox cannot read it and refuses each start.
    pub value: anyhow::Result<DevValue>,
}

impl DevLine {
    /// The path of its device.
    pub fn path(&self) -> Option<&str> {
        self.value.as_ref().ok().map(|value| value.path.as_str())
    }

    /// The NVIDIA device that it passes.
    pub fn device(&self) -> Option<DevicePath> {
        self.path()?.parse().ok()
    }
}

/// The lines of now: what a running container has.
pub fn now(conf: &Document) -> Vec<DevLine> {
    read(pending::numbered_now(conf, "dev"))
}

/// The lines of the next start, also a reboot from inside: with those that are
/// pending, without those pending deletion.
pub fn next(conf: &Document) -> Vec<DevLine> {
    read(pending::numbered(conf, "dev"))
}

/// The lines of now whose device no line passes at the next start.
pub fn going(conf: &Document) -> Vec<DevLine> {
    let next = next(conf);
    let stays = |line: &DevLine| next.iter().any(|other| other.path() == line.path());
    now(conf).into_iter().filter(|line| line.path().is_some() && !stays(line)).collect()
}

fn read(entries: BTreeMap<String, Entry>) -> Vec<DevLine> {
    let mut lines: Vec<DevLine> = entries
        .into_values()
        .map(|entry| DevLine { value: entry.value.parse(), key: entry.key, line: entry.line })
        .collect();
    lines.sort_by_key(|line| line.line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(lines: &[DevLine]) -> Vec<&str> {
        lines.iter().filter_map(DevLine::path).collect()
    }

    fn conf(text: &str) -> Document {
        Document::parse(text.as_bytes())
    }

    #[test]
    fn a_device_is_read_in_each_of_its_forms() {
        let table = [
            ("/dev/nvidia0", "/dev/nvidia0", false),
            ("path=/dev/nvidia0,gid=44", "/dev/nvidia0", false),
            ("gid=44,path=/dev/nvidia0", "/dev/nvidia0", false),
            ("gid=44,/dev/nvidia0", "/dev/nvidia0", false),
            ("/dev//nvidia0,mode=0666,uid=0", "/dev/nvidia0", false),
            ("/dev/nvidia0,deny-write=1", "/dev/nvidia0", true),
            ("deny-write=on,path=/dev/dri/card0", "/dev/dri/card0", true),
            ("/dev/nvidia0,deny-write=0", "/dev/nvidia0", false),
        ];
        for (text, path, deny_write) in table {
            let device: DevValue = text.parse().unwrap_or_else(|e| panic!("{text:?}: {e:#}"));
            assert_eq!((device.path.as_str(), device.deny_write), (path, deny_write), "{text:?}");
        }
    }

    #[test]
    fn a_line_that_proxmox_refuses_passes_nothing() {
        for text in [
            "",
            "gid=44",
            "nvidia0",
            "/etc/nvidia0",
            "/dev/../sda",
            "/dev/./sda",
            "/dev/nvidia0/..",
            "/dev/nvidia0,/dev/nvidia1",
            "/dev/nvidia0,gid",
            "/dev/nvidia0,gid=x",
            "/dev/nvidia0,gid=-1",
            "/dev/nvidia0, gid=44",
            "/dev/nvidia0,mode=666",
            "/dev/nvidia0,mode=0888",
            "/dev/nvidia0,deny-write=maybe",
            "/dev/nvidia0,other=1",
        ] {
            assert!(text.parse::<DevValue>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_pending_counts_from_the_next_start_on() {
        let conf = conf(
            "dev0: /dev/nvidia0\ndev1: /dev/nvidia1\ndev2: /dev/nvidia2\ndev3: /dev/x\ndev3: /dev/nvidia3\n\
             device: x\ndev: /dev/x\n\n[PVE:pending]\ndelete: !dev0,memory dev9\ndev1: /dev/nvidia7\n\
             dev4: gid=4\n\n[snap]\ndev5: /dev/nvidia5\ndelete: dev2\n",
        );
        assert_eq!(paths(&now(&conf)), ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2", "/dev/nvidia3"]);
        assert_eq!(paths(&next(&conf)), ["/dev/nvidia2", "/dev/nvidia3", "/dev/nvidia7"]);
        assert_eq!(paths(&going(&conf)), ["/dev/nvidia0", "/dev/nvidia1"]);
        let bad: Vec<String> =
            next(&conf).into_iter().filter(|l| l.value.is_err()).map(|line| line.key).collect();
        assert_eq!(bad, ["dev4"]);
    }

    #[test]
    fn a_device_that_only_moves_to_another_line_does_not_go() {
        let conf = conf("dev0: /dev/nvidia0\n[pve:pending]\ndelete: dev0\ndev1: /dev/nvidia0\n");
        assert!(going(&conf).is_empty());
    }
}
