//! The device pairs of a conf: a mount entry, directly followed by its device
//! rule. What is ours stands in the lines themselves, since Proxmox moves
//! comments away and rewrites forms.

use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::line::Separator;
use crate::pve::conf::line::Setting;
use crate::pve::passthrough::normal;
use anyhow::bail;
use std::fmt;
use std::str::FromStr;

pub use crate::pve::conf::reconcile::Change;
pub use crate::pve::conf::reconcile::Edit;
pub use crate::pve::conf::reconcile::pairs_are_right;
pub use crate::pve::conf::reconcile::reconcile;
pub use crate::pve::conf::reconcile::without_passed;

pub(super) const ENTRY: &str = "lxc.mount.entry";
pub(super) const RULE: &str = "lxc.cgroup2.devices.allow";

/// What a device is for; the order is that of the pairs in the conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `/dev/nvidiaN`
    Gpu,
    /// A DRM node of a GPU: `/dev/dri/cardN`, `/dev/dri/renderDN`
    Dri,
    /// `/dev/nvidiactl`
    Control,
    /// `/dev/nvidia-modeset`
    Modeset,
    /// `/dev/nvidia-uvm`
    Uvm,
    /// `/dev/nvidia-uvm-tools`
    UvmTools,
    /// `/dev/nvidia-caps`, the directory; its rule is the monitor capability's.
    Caps,
    /// `/dev/nvidia-caps/nvidia-capN`
    CapFile,
}

/// The path of a device that we pass on, in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DevicePath {
    path: String,
    kind: Kind,
    number: u32,
}

impl DevicePath {
    /// The absolute path on the host.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The N in its name, 0 where there is none.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What it is for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where its pair stands among the pairs.
    pub(super) fn rank(&self) -> (Kind, bool, u32) {
        (self.kind, self.path.contains("renderD"), self.number)
    }

    /// The value of the mount entry. The target is relative: LXC ignores an
    /// absolute one. It is optional, so that a node that vanishes between our
    /// look and the mount does not fail the start.
    pub(super) fn entry_value(&self) -> String {
        let options = match self.kind {
            Kind::Caps => "bind,optional,create=dir",
            // In an order that nobody uses: by it we know our own again, since
            // a DRM node may belong to any card and its entry be the user's.
            Kind::Dri => "create=file,optional,bind",
            _ => "bind,optional,create=file",
        };
        let target = self.path.trim_start_matches('/');
        format!("{} {target} none {options} 0 0", self.path)
    }

    /// Whether a rule for this number can be the rule of this device, be it
    /// stale: from another boot, another node, a rolled back snapshot.
    fn may_have(&self, major: u32, minor: u32) -> bool {
        let dynamic = matches!(major, 234..=254 | 384..=511);
        match self.kind {
            Kind::Gpu => (major, minor) == (195, self.number),
            Kind::Control => (major, minor) == (195, 255),
            Kind::Modeset => (major, minor) == (195, 254),
            Kind::Uvm | Kind::UvmTools => dynamic && minor <= 1,
            Kind::Caps | Kind::CapFile => dynamic,
            Kind::Dri => major == 226,
        }
    }
}

impl FromStr for DevicePath {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let number = |tail: &str| -> Option<u32> {
            let plain = tail == "0" || !tail.starts_with('0');
            (plain && tail.bytes().all(|b| b.is_ascii_digit())).then(|| tail.parse().ok())?
        };
        let numbered = |prefix: &str| text.strip_prefix(prefix).and_then(number);
        let fixed = match text {
            "/dev/nvidiactl" => Some(Kind::Control),
            "/dev/nvidia-modeset" => Some(Kind::Modeset),
            "/dev/nvidia-uvm" => Some(Kind::Uvm),
            "/dev/nvidia-uvm-tools" => Some(Kind::UvmTools),
            "/dev/nvidia-caps" => Some(Kind::Caps),
            _ => None,
        };
        let of = |kind| move |number| (kind, number);
        let found = fixed
            .map(|kind| (kind, 0))
            .or_else(|| numbered("/dev/nvidia").map(of(Kind::Gpu)))
            .or_else(|| numbered("/dev/nvidia-caps/nvidia-cap").map(of(Kind::CapFile)))
            .or_else(|| numbered("/dev/dri/card").map(of(Kind::Dri)))
            .or_else(|| numbered("/dev/dri/renderD").map(of(Kind::Dri)));
        let Some((kind, number)) = found else {
            bail!("{text:?} is no device of an NVIDIA GPU");
        };
        Ok(DevicePath { path: text.to_owned(), kind, number })
    }
}

impl fmt::Display for DevicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.path)
    }
}

/// A device that the container is to have, and the number of its rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The node on the host.
    pub source: DevicePath,
    /// The exact major number, never a range.
    pub major: u32,
    /// The exact minor number; for the caps directory that of the monitor
    /// capability.
    pub minor: u32,
}

impl Wanted {
    /// `c 195:0`
    pub(super) fn number(&self) -> Number {
        Number { major: self.major, minor: self.minor }
    }
}

/// The device number in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c {}:{}", self.major, self.minor)
    }
}

/// An entry of ours in the main section, and its rule if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The device.
    pub source: DevicePath,
    /// The number in the rule that stands directly after the entry.
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

/// Why an entry does not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// LXC ignores an absolute target.
    AbsoluteTarget,
    /// The target is another path than the source's.
    OtherTarget,
    /// Not `none bind,optional,create=…`.
    Options,
    /// Written `key = value` where Proxmox writes `key: value`, or the other
    /// way round in LXC's own config.
    Form,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flaw::AbsoluteTarget => "its target was absolute, which LXC ignores",
            Flaw::OtherTarget => "its target was another path",
            Flaw::Options => "its options were not bind,optional,create=…",
            Flaw::Form => "it was written in the other form",
        })
    }
}

/// The pairs of ours that are there now, in the order of their lines.
pub fn present(document: &Document) -> Vec<Present> {
    find(document, &[], Form::Pve)
}

/// Also takes a rule for ours that is exactly the wanted one: a kernel may
/// hand out a number that the ownership rule does not expect, and what we
/// wrote has to be known again.
pub(super) fn find(document: &Document, wanted: &[Wanted], form: Form) -> Vec<Present> {
    let pair = |(index, setting): (usize, Setting<'_>)| {
        let source = source_of(&setting)?;
        let rule = rule_after(document, index, &source, wanted);
        let flaw = flaw_of(&setting, &source, form);
        Some(Present { source, rule, flaw, line: index + 1 })
    };
    document.main_settings().filter_map(pair).collect()
}

/// The NVIDIA devices that mount entries of the main section pass on,
/// whoever wrote them.
pub fn passed_by_entries(document: &Document) -> Vec<DevicePath> {
    let entries = document.main_settings().filter(|(_, setting)| setting.key == ENTRY);
    entries.filter_map(|(_, setting)| device_in(&setting)).collect()
}

/// The device that is the source of a mount entry.
fn device_in(entry: &Setting<'_>) -> Option<DevicePath> {
    let source = std::str::from_utf8(words(entry.value).next()?).ok()?;
    normal(source).parse().ok()
}

/// The NVIDIA device of a mount entry that is ours to reconcile.
fn source_of(setting: &Setting<'_>) -> Option<DevicePath> {
    if setting.key != ENTRY {
        return None;
    }
    let source = device_in(setting)?;
    // Any card has DRM nodes, so a mount of one may well be the user's.
    let ours = source.kind != Kind::Dri || words(setting.value).eq(words(source.entry_value().as_bytes()));
    ours.then_some(source)
}

/// The rule directly after an entry, if it can be its device's.
fn rule_after(document: &Document, index: usize, source: &DevicePath, wanted: &[Wanted]) -> Option<Number> {
    if index + 1 >= document.main_len() {
        return None;
    }
    let number = rule_number(&document.setting(index + 1)?)?;
    let exact = || wanted.iter().any(|w| w.source == *source && w.number() == number);
    (source.may_have(number.major, number.minor) || exact()).then_some(number)
}

/// The number of a rule of the form `c MAJOR:MINOR rwm`, and of no other.
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

fn flaw_of(setting: &Setting<'_>, source: &DevicePath, form: Form) -> Option<Flaw> {
    let separator = match form {
        Form::Pve => Separator::Colon,
        Form::Lxc => Separator::Equals,
    };
    let mut fields = words(setting.value).skip(1);
    let target = fields.next().unwrap_or_default();
    let kind = fields.next().unwrap_or_default();
    let mut options: Vec<&[u8]> = fields.next().unwrap_or_default().split(|b| *b == b',').collect();
    options.sort_unstable();
    let create: &[u8] = if source.kind == Kind::Caps { b"create=dir" } else { b"create=file" };
    let path = source.path.as_bytes();
    // The two numbers at the end of an fstab line may be left out.
    let rest_is_zero = fields.all(|number| number == b"0");
    if target.starts_with(b"/") {
        Some(Flaw::AbsoluteTarget)
    } else if Some(target) != path.strip_prefix(b"/") {
        Some(Flaw::OtherTarget)
    } else if kind != b"none" || options != [&b"bind"[..], create, b"optional"] || !rest_is_zero {
        Some(Flaw::Options)
    } else if setting.separator != separator {
        Some(Flaw::Form)
    } else {
        None
    }
}

/// The words of a value.
pub(super) fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| super::line::is_blank(*b)).filter(|word| !word.is_empty())
}
