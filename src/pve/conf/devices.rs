//! The device pairs of a conf: a mount entry, directly followed by its device
//! rule. The lines themselves show which are ours: Proxmox moves comments and
//! rewrites separators.

use crate::device::Device;
use crate::device::DevicePath;
use crate::device::Number;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Entry;
use crate::pve::conf::document::Form;
use crate::pve::conf::line::Setting;
use crate::pve::passthrough::{self, normal};
use std::fmt;

pub(super) const ENTRY: &str = "lxc.mount.entry";
pub(super) const RULE: &str = "lxc.cgroup2.devices.allow";

/// The value of the mount entry. The target is relative: LXC ignores absolute
/// ones. `optional`: a node that vanishes before the mount does not fail the
/// start.
pub(super) fn entry_value(path: DevicePath) -> String {
    let options = match path {
        // To know it again, and for the config of a container that runs with it.
        DevicePath::Caps => "bind,optional,create=dir",
        _ => "bind,optional,create=file",
    };
    format!("{} {} none {options} 0 0", path.on_host(), target(path))
}

/// The value that version 0.2.0 wrote for a DRM node, with udev's node. The
/// unusual order of the options marks it as ours.
fn old_drm_value(path: DevicePath) -> String {
    format!("{path} {} none create=file,optional,bind 0 0", target(path))
}

/// Its path below the container's root.
fn target(path: DevicePath) -> String {
    path.to_string().trim_start_matches('/').to_owned()
}

/// An entry of ours in the main section, and its rule if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The device.
    pub path: DevicePath,
    /// The number in the rule directly after the entry.
    pub rule: Option<Number>,
    /// What is wrong with the entry itself, if anything.
    pub flaw: Option<Flaw>,
    /// The entry's line in the file, from 1.
    pub line: usize,
}

impl Present {
    /// The entry's index in the document.
    pub(super) fn index(&self) -> usize {
        self.line - 1
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// LXC ignores an absolute target.
    AbsoluteTarget,
    /// The target is not the source's path.
    OtherTarget,
    /// A DRM node of udev's.
    Source,
    /// Not `none bind,optional,create=…`.
    Options,
    /// `key = value` in a conf, or `key: value` in a generated config.
    Form,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flaw::AbsoluteTarget => "its target was absolute, which LXC ignores",
            Flaw::OtherTarget => "its target was another path",
            Flaw::Source => "its source was the host's node, which an unprivileged container may not open",
            Flaw::Options => "its options were not bind,optional,create=…",
            Flaw::Form => "key and value had the wrong separator",
        })
    }
}

/// Our pairs, in the order of their lines.
pub fn present(document: &Document) -> Vec<Present> {
    find(document, &[], Form::Pve)
}

/// The same for a document of this form.
pub fn present_in(document: &Document, form: Form) -> Vec<Present> {
    find(document, &[], form)
}

/// The same for a document of this form. A rule that equals the wanted one is
/// ours as well: a kernel may assign a major outside the known ranges.
pub(super) fn find(document: &Document, wanted: &[Device], form: Form) -> Vec<Present> {
    let pair = |(index, setting): (usize, Setting<'_>)| {
        let path = path_of(&setting)?;
        let rule = rule_after(document, index, path, wanted);
        let flaw = flaw_of(&setting, path, form);
        Some(Present { path, rule, flaw, line: index + 1 })
    };
    document.main_settings().filter_map(pair).collect()
}

/// The NVIDIA devices in mount entries of the main section, whoever wrote them.
pub fn passed_by_entries(document: &Document) -> Vec<DevicePath> {
    let entries = document.main_settings().filter(|(_, setting)| setting.key == ENTRY);
    entries.filter_map(|(_, setting)| device_in(setting.value)).collect()
}

/// Whether a mount entry passes DRM nodes, of any card, whoever wrote it.
pub fn passes_drm(document: &Document) -> bool {
    let entries = document.main_settings().filter(|(_, setting)| setting.key == ENTRY);
    let mut sources = entries.map(|(_, setting)| source(&setting));
    sources.any(|source| source == "/dev/dri" || source.starts_with("/dev/dri/") || is_our_node(&source))
}

/// The NVIDIA devices whose nodes on the host a conf names, by `devN:` lines of
/// now and the next start or by mount entries, whoever wrote them. DRM nodes of
/// udev's are the kernel's.
pub fn named_nodes(document: &Document) -> Vec<DevicePath> {
    let lines = passthrough::now(document).into_iter().chain(passthrough::next(document));
    let lines = lines.filter_map(|line| line.device()).filter(|path| !path.is_drm());
    let entries = document.main_settings().filter(|(_, setting)| setting.key == ENTRY);
    let entries = entries.filter_map(|(_, setting)| {
        let path = device_in(setting.value)?;
        (!path.is_drm() || is_our_node(&source(&setting))).then_some(path)
    });
    lines.chain(entries).collect()
}

/// The entries for NVIDIA devices below the main section with an absolute
/// target: scripts append them to the end of the file, to the last snapshot. Any
/// card has DRM nodes: theirs may be the user's.
pub fn appended(document: &Document) -> Vec<Entry> {
    let is_absolute = |value: &[u8]| words(value).nth(1).is_some_and(|target| target.starts_with(b"/"));
    let is_stray = |entry: &Entry| {
        let value = entry.value.as_bytes();
        entry.section.is_some()
            && entry.key == ENTRY
            && is_absolute(value)
            && device_in(value).is_some_and(|path| !path.is_drm())
    };
    document.entries().into_iter().filter(is_stray).collect()
}

/// The device that is the source of a mount entry.
pub(super) fn device_in(entry: &[u8]) -> Option<DevicePath> {
    let source = std::str::from_utf8(words(entry).next()?).ok()?;
    DevicePath::of_node(&normal(source))
}

/// Whether the source of a mount entry is a DRM node of ours.
pub(super) fn is_our_node(source: &str) -> bool {
    DevicePath::of_node(source).is_some_and(|path| path.on_host() == source && path.is_drm())
}

fn source(setting: &Setting<'_>) -> String {
    normal(&String::from_utf8_lossy(words(setting.value).next().unwrap_or_default()))
}

/// The NVIDIA device of a mount entry that is ours to reconcile.
fn path_of(setting: &Setting<'_>) -> Option<DevicePath> {
    if setting.key != ENTRY {
        return None;
    }
    let path = device_in(setting.value)?;
    // Any card has DRM nodes: an entry for udev's may be the user's.
    let old = || words(setting.value).eq(words(old_drm_value(path).as_bytes()));
    let ours = !path.is_drm() || is_our_node(&source(setting)) || old();
    ours.then_some(path)
}

/// The rule directly after an entry, if it can be its device's.
fn rule_after(document: &Document, index: usize, path: DevicePath, wanted: &[Device]) -> Option<Number> {
    if index + 1 >= document.main_len() {
        return None;
    }
    let number = rule_number(&document.setting(index + 1)?)?;
    let exact = || wanted.iter().any(|w| w.path == path && w.number() == number);
    (path.may_have(number) || exact()).then_some(number)
}

/// The number of a rule `c MAJOR:MINOR rwm`; none for other forms.
fn rule_number(setting: &Setting<'_>) -> Option<Number> {
    if setting.key != RULE {
        return None;
    }
    let mut words = words(setting.value);
    let (kind, number, access) = (words.next()?, words.next()?, words.next()?);
    if kind != b"c" || access != b"rwm" || words.next().is_some() {
        return None;
    }
    let (major, minor) = std::str::from_utf8(number).ok()?.split_once(':')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?;
    Some(Number { major: digits(major)?, minor: digits(minor)? })
}

fn flaw_of(setting: &Setting<'_>, path: DevicePath, form: Form) -> Option<Flaw> {
    let mut fields = words(setting.value).skip(1);
    let target = fields.next().unwrap_or_default();
    let kind = fields.next().unwrap_or_default();
    let mut options: Vec<&[u8]> = fields.next().unwrap_or_default().split(|b| *b == b',').collect();
    options.sort_unstable();
    let create: &[u8] = if path == DevicePath::Caps { b"create=dir" } else { b"create=file" };
    // The two numbers at the end of an fstab line are optional.
    let rest_is_zero = fields.all(|number| number == b"0");
    if target.starts_with(b"/") {
        Some(Flaw::AbsoluteTarget)
    } else if target != self::target(path).as_bytes() {
        Some(Flaw::OtherTarget)
    } else if path.is_drm() && !is_our_node(&source(setting)) {
        Some(Flaw::Source)
    } else if kind != b"none" || options != [&b"bind"[..], create, b"optional"] || !rest_is_zero {
        Some(Flaw::Options)
    } else if setting.form != form {
        Some(Flaw::Form)
    } else {
        None
    }
}

/// The words of a value.
pub(super) fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| super::line::is_blank(*b)).filter(|word| !word.is_empty())
}
