//! What the tests of the conf share: which lines are ours, and what Proxmox
//! makes of a conf when it rewrites it.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(dead_code)] // each test file uses a part

use phoenix_nvidia::device::{Device, DevicePath};
use phoenix_nvidia::pve::conf::devices::present;
use phoenix_nvidia::pve::conf::document::Document;
use phoenix_nvidia::pve::conf::mounts::{mount_lines, mounts};
use std::collections::{BTreeMap, BTreeSet};

/// A wanted device: `wanted("/dev/nvidia0", 195, 0)`.
pub fn wanted(path: &str, major: u32, minor: u32) -> Device {
    Device { path: path.parse().unwrap(), major, minor }
}

/// The lines of `bytes` without their endings: a last line may gain one.
pub fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    let ended = bytes.split_inclusive(|b| *b == b'\n');
    let end = |line: &&[u8]| line.iter().rposition(|b| !b"\r\n".contains(b)).map_or(0, |last| last + 1);
    ended.map(|line| line[..end(&line)].to_vec()).collect()
}

/// The places of the lines that are ours, from 0.
fn our_places(document: &Document) -> BTreeSet<usize> {
    let mut own = BTreeSet::new();
    for pair in present(document) {
        own.insert(pair.line - 1);
        own.extend(pair.rule.map(|_| pair.line));
    }
    own.extend(mount_lines(document).iter().map(|line| line - 1));
    own
}

/// Whether the last line is ours.
pub fn ends_in_ours(document: &Document) -> bool {
    our_places(document).last() == lines(document.as_bytes()).len().checked_sub(1).as_ref()
}

/// The lines that are ours, and all others.
pub fn ours_and_theirs(document: &Document) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let own = our_places(document);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (index, line) in lines(document.as_bytes()).into_iter().enumerate() {
        if own.contains(&index) { ours.push(line) } else { theirs.push(line) }
    }
    (ours, theirs)
}

/// Device and rule of each pair, in order, then the other mounts of ours.
pub fn pairs_and_mounts(document: &Document) -> Vec<String> {
    let mount =
        |m: &phoenix_nvidia::pve::conf::mounts::Mount| format!("{} {} {}", m.source, m.target, m.options);
    pairs(document).into_iter().chain(mounts(document).iter().map(mount)).collect()
}

/// Device and rule of each pair, in order.
pub fn pairs(document: &Document) -> Vec<String> {
    let rule = |p: &phoenix_nvidia::pve::conf::devices::Present| match p.rule {
        Some(number) => format!("{} {number}", p.path),
        None => format!("{} no rule", p.path),
    };
    present(document).iter().map(rule).collect()
}

/// The kinds that a document holds, for tests that only count.
pub fn devices(document: &Document) -> Vec<DevicePath> {
    present(document).iter().map(|p| p.path).collect()
}

/// Proxmox's rewriting, as recorded: comments of a section go to its top,
/// blank lines and what it can't parse vanish, keys are sorted (the last of
/// several counts), `lxc.*` lines come last in their order, as `key: value`.
pub fn rewritten_by_proxmox(bytes: &[u8]) -> Vec<u8> {
    #[derive(Default)]
    struct Section {
        comments: Vec<Vec<u8>>,
        keys: BTreeMap<Vec<u8>, Vec<u8>>,
        raw: Vec<(Vec<u8>, Vec<u8>)>,
    }
    let mut sections: Vec<(Vec<u8>, Section)> = vec![(Vec::new(), Section::default())];
    for line in lines(bytes) {
        let text = line.trim_ascii();
        if line.starts_with(b"[") && text.ends_with(b"]") {
            sections.push((text.to_vec(), Section::default()));
            continue;
        }
        let section = &mut sections.last_mut().unwrap().1;
        if line.starts_with(b"#") {
            section.comments.push(line);
        } else if let Some((key, value)) = split(&line) {
            if key.starts_with(b"lxc.") {
                section.raw.push((key, value));
            } else {
                section.keys.insert(key, value);
            }
        }
    }
    let mut out = Vec::new();
    for (n, (name, section)) in sections.iter().enumerate() {
        if n > 0 {
            out.extend([b"\n", &name[..], b"\n"].concat());
        }
        section.comments.iter().for_each(|line| out.extend([&line[..], b"\n"].concat()));
        let all = section.keys.iter().chain(section.raw.iter().map(|(k, v)| (k, v)));
        all.for_each(|(key, value)| out.extend([&key[..], b": ", &value[..], b"\n"].concat()));
    }
    out
}

fn split(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let raw = line.starts_with(b"lxc.");
    let end =
        line.iter().position(|b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(b)))?;
    let (key, rest) = line.split_at(end);
    if key == b"lxc.notakey.foo" {
        return None; // not on Proxmox's list of keys
    }
    let value = match rest.strip_prefix(b":") {
        Some(value) => value,
        None if raw => rest.trim_ascii_start().strip_prefix(b"=")?,
        None => return None,
    };
    let value = value.trim_ascii().to_vec();
    (raw || (!value.is_empty() && !key.is_empty())).then(|| (key.to_vec(), value))
}
