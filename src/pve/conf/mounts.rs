//! Our mount entries that pass no device: files and directories of this boot,
//! bound into the container. Ours are those with a source below [`RUN`].

use crate::device::DevicePath;
use crate::pve::conf::devices::ENTRY;
use crate::pve::conf::devices::is_our_node;
use crate::pve::conf::devices::present;
use crate::pve::conf::devices::words;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::line::Setting;
use crate::pve::passthrough::normal;
use crate::pve::property;
use std::fmt;
use std::path::Path;

/// The directory of the sources.
pub const RUN: &str = "/run/phoenix-nvidia";

/// A bind mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The source, below [`RUN`].
    pub source: String,
    /// The target, relative to the container's root: LXC ignores absolute ones.
    pub target: String,
    /// As in fstab(5), with LXC's own `optional` and `create=`.
    pub options: String,
}

impl Mount {
    /// The value of the entry.
    pub(super) fn value(&self) -> String {
        format!("{} {} none {} 0 0", self.source, self.target, self.options)
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the mount over /{}", self.target)
    }
}

/// An entry of ours in the main section.
pub(super) struct There {
    pub mount: Mount,
    /// Its line in the document.
    pub index: usize,
    /// Whether it is written as we write it.
    pub right: bool,
}

/// Our mounts, in the order of their lines.
pub fn mounts(document: &Document) -> Vec<Mount> {
    find(document, Form::Pve).into_iter().map(|there| there.mount).collect()
}

/// The lines of our mounts, from 1.
pub fn mount_lines(document: &Document) -> Vec<usize> {
    find(document, Form::Pve).iter().map(|there| there.index + 1).collect()
}

/// Where the main section mounts what is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The line, from 1.
    pub line: usize,
    /// The place, relative to the container's root.
    pub at: String,
    /// By a mount entry, as ours are; Proxmox's mount points are there before.
    pub entry: bool,
}

/// The targets of mount entries and mount points that are not ours.
pub fn targets(document: &Document) -> Vec<Target> {
    let target = |(index, setting): (usize, Setting<'_>)| {
        let value = std::str::from_utf8(setting.value).ok()?;
        let target = match setting.key.strip_prefix("mp") {
            Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => {
                property::get(value, "mp", "volume")?
            }
            _ if setting.key == ENTRY && read(&setting).is_none() => {
                value.split_ascii_whitespace().nth(1)?.to_owned()
            }
            _ => return None,
        };
        let at = normal(&target).trim_start_matches('/').to_owned();
        Some(Target { line: index + 1, at, entry: setting.key == ENTRY })
    };
    document.main_settings().filter_map(target).collect()
}

/// The line, from 1, that mounts something over the node of our entry for this
/// device: what comes later in the conf lies above.
pub fn over(document: &Document, path: DevicePath) -> Option<usize> {
    let ours = present(document).into_iter().rfind(|pair| pair.path == path)?;
    let node = path.to_string();
    let covers = |target: &str| Path::new(node.trim_start_matches('/')).starts_with(target);
    let behind = |target: &Target| target.entry && target.line > ours.line && covers(&target.at);
    targets(document).into_iter().find(behind).map(|target| target.line)
}

pub(super) fn find(document: &Document, form: Form) -> Vec<There> {
    let entry = |(index, setting): (usize, Setting<'_>)| {
        let (mount, plain) = read(&setting)?;
        Some(There { mount, index, right: plain && setting.form == form })
    };
    document.main_settings().filter_map(entry).collect()
}

/// The mount of an entry of ours, and whether the line has just that.
fn read(setting: &Setting<'_>) -> Option<(Mount, bool)> {
    if setting.key != ENTRY {
        return None;
    }
    let fields: Vec<&str> = words(setting.value).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let source = normal(fields.first()?);
    let below = source.strip_prefix(RUN).is_some_and(|rest| rest.starts_with('/'));
    // A DRM node of ours belongs to a device pair.
    if !below || is_our_node(&source) || source.split('/').any(|part| part == "..") {
        return None;
    }
    let field = |n: usize| fields.get(n).copied().unwrap_or_default().to_owned();
    let mount = Mount { source, target: field(1), options: field(3) };
    let plain = fields.len() == 6 && fields.join(" ") == mount.value();
    Some((mount, plain))
}

/// Whether the mounts are those of `wanted`, in their order.
pub fn are_right(document: &Document, wanted: &[Mount], form: Form) -> bool {
    let there = find(document, form);
    there.len() == wanted.len()
        && there.iter().zip(wanted).all(|(there, wanted)| there.right && there.mount == *wanted)
}
