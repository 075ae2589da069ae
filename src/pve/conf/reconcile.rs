//! Wanted devices and mounts against those that the conf has. Pure.

use crate::device::{Device, DevicePath, Number};
use crate::pve::conf::devices::{ENTRY, Flaw, Present, RULE, entry_value, find};
use crate::pve::conf::document::{Document, Form, Patch};
use crate::pve::conf::mounts::{self, Mount};
use crate::pve::passthrough::{self, DevLine};
use std::fmt;

/// An edited document and its changes.
#[derive(Clone, Debug)]
pub struct Edit {
    /// The new document.
    pub document: Document,
    /// At least one.
    pub changes: Vec<Change>,
}

impl AsRef<Document> for Edit {
    fn as_ref(&self) -> &Document {
        &self.document
    }
}

/// One change, to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A pair was added.
    Added(DevicePath, Number),
    /// An entry was removed, and its rule if it had one.
    Removed(DevicePath, Option<Number>),
    /// One of several entries for one device was removed.
    Doubled(DevicePath),
    /// An entry was rewritten in its place.
    Entry(DevicePath, Flaw),
    /// A rule was corrected (old and new) or added.
    Rule(DevicePath, Option<Number>, Number),
    /// A pair was moved to its place among the pairs.
    Moved(DevicePath),
    /// A mount was added.
    Mounted(Mount),
    /// A mount's entry was rewritten in its place.
    Remounted(Mount),
    /// A mount was removed.
    Unmounted(Mount),
}

impl Change {
    /// What it adds to the conf, if it does nothing else.
    pub fn added(&self) -> Option<String> {
        match self {
            Change::Added(path, number) => Some(format!("{path} ({number})")),
            Change::Mounted(mount) => Some(mount.to_string()),
            _ => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Added(..) | Change::Mounted(_) => {
                write!(f, "added {}", self.added().unwrap_or_default())
            }
            Change::Removed(path, Some(number)) => write!(f, "removed {path} ({number})"),
            Change::Removed(path, None) => write!(f, "removed {path}"),
            Change::Doubled(path) => write!(f, "removed a second entry for {path}"),
            Change::Entry(path, flaw) => write!(f, "repaired the entry of {path}: {flaw}"),
            Change::Rule(path, Some(old), new) => {
                write!(f, "repaired the device rule of {path}: {old} is now {new}")
            }
            Change::Rule(path, None, new) => write!(f, "added the missing device rule of {path} ({new})"),
            Change::Moved(path) => write!(f, "moved {path} to its place among the pairs"),
            Change::Remounted(mount) => write!(f, "repaired {mount}"),
            Change::Unmounted(mount) => write!(f, "removed {mount}"),
        }
    }
}

/// Edits the main section so that it has the pairs of `wanted`, in their order,
/// and our mounts are `mounts`; `None` if it has them already. Devices that a
/// `devN:` line of this document passes get no pair: LXC fails on a device that
/// comes twice.
pub fn reconcile(document: &Document, wanted: &[Device], mounts: &[Mount], form: Form) -> Option<Edit> {
    let wanted = in_order(without_passed(document, wanted));
    let there = find(document, &wanted, form);
    if are_right(&there, &wanted) && mounts::are_right(document, mounts, form) {
        return None;
    }
    let mut work = Work { patch: Patch::of(document), changes: Vec::new(), form };
    let behind = work.pairs(document, &there, &wanted);
    work.mounts(document, mounts, behind);
    Some(Edit { document: work.patch.apply(), changes: work.changes })
}

/// Whether the pairs of the main section are those of `wanted`, whatever the
/// mounts are: exactly if [`reconcile`] would change no pair.
pub fn pairs_are_right(document: &Document, wanted: &[Device], form: Form) -> bool {
    let wanted = in_order(without_passed(document, wanted));
    are_right(&find(document, &wanted, form), &wanted)
}

fn are_right(there: &[Present], wanted: &[Device]) -> bool {
    let right = |(present, wanted): (&Present, &Device)| {
        present.path == wanted.path && present.rule == Some(wanted.number()) && present.flaw.is_none()
    };
    there.len() == wanted.len() && there.iter().zip(wanted).all(right)
}

/// Those of `wanted` that no `devN:` line of `conf` passes from the next start
/// on. The generated config has no such lines: use the conf for it too.
pub fn without_passed(conf: &Document, wanted: &[Device]) -> Vec<Device> {
    let passed = passthrough::next(conf);
    wanted.iter().filter(|w| !is_passed(&passed, w.path)).copied().collect()
}

/// Whether an entry of this device would pass it a second time.
pub(super) fn is_passed(passed: &[DevLine], wanted: DevicePath) -> bool {
    let below = |path: DevicePath| wanted == DevicePath::Caps && matches!(path, DevicePath::CapFile(_));
    passed.iter().filter_map(DevLine::device).any(|path| path == wanted || below(path))
}

/// In the order of the pairs, each device once.
fn in_order(mut wanted: Vec<Device>) -> Vec<Device> {
    wanted.sort_by_key(|w| w.path);
    wanted.dedup_by(|later, first| later.path == first.path);
    wanted
}

/// What stays where it is: the index in the wanted list, and the lines from the
/// first to the one behind. All ascend.
type Kept = Vec<(usize, (usize, usize))>;

/// Where the `n`th of the wanted list goes: behind the last kept one before it,
/// or else before the first kept one after it.
fn place(kept: &Kept, n: usize) -> Option<usize> {
    let before = kept.iter().rev().find(|(other, _)| *other < n).map(|(_, (_, end))| *end);
    before.or_else(|| kept.iter().find(|(other, _)| *other > n).map(|(_, (start, _))| *start))
}

/// A reconciliation under way.
struct Work<'a> {
    patch: Patch<'a>,
    changes: Vec<Change>,
    form: Form,
}

impl Work<'_> {
    /// Reconciles the pairs; returns the line behind them.
    fn pairs(&mut self, document: &Document, there: &[Present], wanted: &[Device]) -> usize {
        let mut kept = Kept::new();
        let mut moved: Vec<DevicePath> = Vec::new();
        for present in there {
            let n = wanted.iter().position(|w| w.path == present.path);
            match n {
                Some(n) if kept.last().is_none_or(|(last, _)| n > *last) => {
                    kept.push((n, self.keep(present, &wanted[n])));
                    continue;
                }
                Some(n) if kept.iter().any(|(other, _)| *other == n) => {
                    self.changes.push(Change::Doubled(present.path));
                }
                Some(_) => moved.push(present.path),
                None => self.changes.push(Change::Removed(present.path, present.rule)),
            }
            self.remove(present);
        }
        for (n, new) in wanted.iter().enumerate() {
            if kept.iter().any(|(other, _)| *other == n) {
                continue;
            }
            let place = place(&kept, n).unwrap_or_else(|| document.end_of_lxc_lines());
            self.patch.insert(place, [self.entry(new), self.rule(new)]);
            let is_moved = moved.contains(&new.path);
            self.changes.push(if is_moved {
                Change::Moved(new.path)
            } else {
                Change::Added(new.path, new.number())
            });
        }
        kept.last().map_or_else(|| document.end_of_lxc_lines(), |(_, (_, end))| *end)
    }

    fn remove(&mut self, present: &Present) {
        self.patch.remove(present.index());
        if present.rule.is_some() {
            self.patch.remove(present.index() + 1);
        }
    }

    /// Keeps a pair in its place and repairs it; returns its lines.
    fn keep(&mut self, present: &Present, wanted: &Device) -> (usize, usize) {
        let (index, path, number) = (present.index(), present.path, wanted.number());
        if let Some(flaw) = present.flaw {
            self.patch.replace(index, self.entry(wanted));
            self.changes.push(Change::Entry(path, flaw));
        }
        if present.rule != Some(number) {
            match present.rule {
                Some(_) => self.patch.replace(index + 1, self.rule(wanted)),
                None => self.patch.insert(index + 1, [self.rule(wanted)]),
            }
            self.changes.push(Change::Rule(path, present.rule, number));
        }
        (index, index + 1 + usize::from(present.rule.is_some()))
    }

    fn entry(&self, wanted: &Device) -> String {
        self.form.write(ENTRY, &entry_value(wanted.path))
    }

    fn rule(&self, wanted: &Device) -> String {
        self.form.write(RULE, &format!("{} rwm", wanted.number()))
    }

    /// Reconciles the mounts. New ones go beside those that stay, or else to
    /// `behind`, which is never between an entry and its rule.
    fn mounts(&mut self, document: &Document, wanted: &[Mount], behind: usize) {
        let form = self.form;
        let line = |mount: &Mount| form.write(ENTRY, &mount.value());
        let mut kept = Kept::new();
        for there in mounts::find(document, form) {
            let n = wanted.iter().position(|mount| mount.target == there.mount.target);
            match n.filter(|n| kept.last().is_none_or(|(last, _)| n > last)) {
                Some(n) => {
                    if !there.right || there.mount != wanted[n] {
                        self.patch.replace(there.index, line(&wanted[n]));
                        self.changes.push(Change::Remounted(wanted[n].clone()));
                    }
                    kept.push((n, (there.index, there.index + 1)));
                }
                None => {
                    self.patch.remove(there.index);
                    self.changes.push(Change::Unmounted(there.mount));
                }
            }
        }
        for (n, mount) in wanted.iter().enumerate() {
            if !kept.iter().any(|(other, _)| *other == n) {
                self.patch.insert(place(&kept, n).unwrap_or(behind), [line(mount)]);
                self.changes.push(Change::Mounted(mount.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::conf::devices::present;
    use crate::pve::conf::mounts::RUN;

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
        String::from_utf8_lossy(after.as_bytes()).into_owned()
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
