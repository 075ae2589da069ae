//! The mount entries of ours that pass no device: files and directories of
//! this boot, bound into the container. What is ours stands in the line
//! itself: its source lies below [`RUN`].

use crate::pve::conf::devices::ENTRY;
use crate::pve::conf::devices::words;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::document::Patch;
use crate::pve::conf::line::Separator;
use crate::pve::conf::line::Setting;
use crate::pve::conf::reconcile::Change;
use crate::pve::passthrough::normal;
use std::fmt;

/// Where the sources lie.
pub const RUN: &str = "/run/phoenix-nvidia";

/// A bind mount that the container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is bound, below [`RUN`].
    pub source: String,
    /// Where to, relative to the container's root: LXC ignores an absolute
    /// target.
    pub target: String,
    /// As in fstab(5), with LXC's own `optional` and `create=`.
    pub options: String,
}

impl Mount {
    /// The value of the entry.
    fn value(&self) -> String {
        format!("{} {} none {} 0 0", self.source, self.target, self.options)
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the mount over /{}", self.target)
    }
}

/// An entry of ours in the main section.
struct There {
    mount: Mount,
    index: usize,
    /// It is written as we write it.
    right: bool,
}

/// The mounts of ours that are there now, in the order of their lines.
pub fn mounts(document: &Document) -> Vec<Mount> {
    find(document, Form::Pve).into_iter().map(|there| there.mount).collect()
}

/// The lines of the mounts of ours, from 1.
pub fn mount_lines(document: &Document) -> Vec<usize> {
    find(document, Form::Pve).iter().map(|there| there.index + 1).collect()
}

fn find(document: &Document, form: Form) -> Vec<There> {
    let entry = |(index, setting): (usize, Setting<'_>)| {
        let (mount, plain) = read(&setting)?;
        let separator = match form {
            Form::Pve => Separator::Colon,
            Form::Lxc => Separator::Equals,
        };
        Some(There { mount, index, right: plain && setting.separator == separator })
    };
    document.main_settings().filter_map(entry).collect()
}

/// The mount of an entry that is ours, and whether it says no more than that.
fn read(setting: &Setting<'_>) -> Option<(Mount, bool)> {
    if setting.key != ENTRY {
        return None;
    }
    let fields: Vec<&str> = words(setting.value).map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let source = normal(fields.first()?);
    let below = source.strip_prefix(RUN).is_some_and(|rest| rest.starts_with('/'));
    if !below || source.split('/').any(|part| part == "..") {
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

/// Makes the mounts those of `wanted`. A new one goes behind the one that
/// comes before it, or else before the one behind it, or else to `place`,
/// which is never between a device's entry and its rule.
pub(super) fn settle(
    document: &Document,
    wanted: &[Mount],
    form: Form,
    place: usize,
    patch: &mut Patch<'_>,
) -> Vec<Change> {
    let line = |mount: &Mount| form.write(ENTRY, &mount.value());
    let mut kept: Vec<(usize, usize)> = Vec::new();
    let mut changes = Vec::new();
    for there in find(document, form) {
        let n = wanted.iter().position(|mount| mount.target == there.mount.target);
        match n.filter(|n| kept.last().is_none_or(|(last, _)| n > last)) {
            Some(n) => {
                if !there.right || there.mount != wanted[n] {
                    patch.replace(there.index, line(&wanted[n]));
                    changes.push(Change::Remounted(wanted[n].clone()));
                }
                kept.push((n, there.index));
            }
            None => {
                patch.remove(there.index);
                changes.push(Change::Unmounted(there.mount));
            }
        }
    }
    for (n, mount) in wanted.iter().enumerate() {
        if kept.iter().any(|(kept, _)| *kept == n) {
            continue;
        }
        let before = kept.iter().rev().find(|(kept, _)| *kept < n).map(|(_, index)| index + 1);
        let after = kept.iter().find(|(kept, _)| *kept > n).map(|(_, index)| *index);
        patch.insert(before.or(after).unwrap_or(place), vec![line(mount)]);
        changes.push(Change::Mounted(mount.clone()));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::pve::conf::devices::present;
    use crate::pve::conf::reconcile::reconcile;

    const PAIR: &str = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
        lxc.cgroup2.devices.allow: c 195:0 rwm\n";
    const A: &str = "lxc.mount.entry: /run/phoenix-nvidia/a proc/a none bind,ro,optional 0 0\n";
    const B: &str = "lxc.mount.entry: /run/phoenix-nvidia/b proc/b none bind,ro,optional 0 0\n";

    fn mount(name: &str) -> Mount {
        Mount {
            source: format!("{RUN}/{name}"),
            target: format!("proc/{name}"),
            options: "bind,ro,optional".into(),
        }
    }

    fn both() -> [Mount; 2] {
        [mount("a"), mount("b")]
    }

    fn gpu() -> [Device; 1] {
        [Device { path: "/dev/nvidia0".parse().unwrap(), major: 195, minor: 0 }]
    }

    fn after(text: &str, wanted: &[Device], mounts: &[Mount]) -> String {
        let document = Document::parse(text.as_bytes());
        let edit = reconcile(&document, wanted, mounts, Form::Pve);
        let after = edit.map_or(document, |edit| edit.document);
        assert!(reconcile(&after, wanted, mounts, Form::Pve).is_none(), "{after:?}");
        String::from_utf8(after.to_bytes()).unwrap()
    }

    #[test]
    fn they_stand_behind_the_pairs_and_go_without_a_trace() {
        let bare = "memory: 1\nlxc.tty.max: 2\n\n[snap]\nmemory: 1\n";
        let with = format!("memory: 1\nlxc.tty.max: 2\n{PAIR}{A}{B}\n[snap]\nmemory: 1\n");
        assert_eq!(after(bare, &gpu(), &both()), with);
        assert_eq!(after(&with, &[], &[]), bare);
        // As they were added to a conf that has the pairs already.
        assert_eq!(
            after(&format!("{PAIR}lxc.tty.max: 2\n"), &gpu(), &both()),
            format!("{PAIR}{A}{B}lxc.tty.max: 2\n")
        );
        // Where none is a pair any more.
        assert_eq!(after(&format!("{PAIR}{A}{B}"), &[], &both()), format!("{A}{B}"));
    }

    #[test]
    fn the_rule_behind_one_is_the_users_and_none_comes_between_a_pair() {
        let rule = "lxc.cgroup2.devices.allow: c 195:0 rwm\n";
        let text = format!("{A}{B}{rule}");
        assert_eq!(after(&text, &[], &both()), text);
        assert_eq!(after(&text, &[], &[]), rule);
        let missing = format!("{}\n", PAIR.lines().next().unwrap());
        assert_eq!(after(&missing, &gpu(), &both()), format!("{PAIR}{A}{B}"));
        assert_eq!(after(&format!("{A}{missing}"), &gpu(), &both()), format!("{A}{B}{PAIR}"));
        assert_eq!(present(&Document::parse(text.as_bytes())), []);
    }

    #[test]
    fn one_that_is_not_as_it_should_be_is_repaired_in_its_place() {
        for wrong in [
            "lxc.mount.entry = /run/phoenix-nvidia/a proc/a none bind,ro,optional 0 0\n",
            "lxc.mount.entry: /run//phoenix-nvidia/a proc/a none bind,ro,optional 0 0\n",
            "lxc.mount.entry: /run/phoenix-nvidia/7/a proc/a none bind,ro,optional 0 0\n",
            "lxc.mount.entry: /run/phoenix-nvidia/a proc/a none bind,optional 0 0\n",
            "lxc.mount.entry: /run/phoenix-nvidia/a proc/a none bind,ro,optional\n",
        ] {
            assert_eq!(
                after(&format!("{wrong}{B}lxc.tty.max: 2\n"), &[], &both()),
                format!("{A}{B}lxc.tty.max: 2\n")
            );
        }
        assert_eq!(after(&format!("{B}{A}{A}"), &[], &both()), format!("{A}{B}"));
    }

    #[test]
    fn a_mount_from_elsewhere_is_the_users() {
        for theirs in [
            "lxc.mount.entry: /run/phoenix-nvidia proc/a none bind 0 0\n",
            "lxc.mount.entry: /run/phoenix-nvidia-x/a proc/a none bind 0 0\n",
            "lxc.mount.entry: /run/phoenix-nvidia/../a proc/a none bind 0 0\n",
            "lxc.mount.entry: /srv/run/phoenix-nvidia/a proc/a none bind 0 0\n",
            "lxc.mount.entry: run/phoenix-nvidia/a proc/a none bind 0 0\n",
        ] {
            assert_eq!(after(theirs, &[], &[]), theirs);
        }
    }
}
