//! Wanted devices against the pairs that are there. Pure.

use crate::device::Device;
use crate::device::DevicePath;
use crate::device::Number;
use crate::pve::conf::devices::ENTRY;
use crate::pve::conf::devices::Flaw;
use crate::pve::conf::devices::Present;
use crate::pve::conf::devices::RULE;
use crate::pve::conf::devices::entry_value;
use crate::pve::conf::devices::find;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::document::Patch;
use crate::pve::conf::mounts;
use crate::pve::conf::mounts::Mount;
use crate::pve::passthrough;
use crate::pve::passthrough::DevLine;
use std::fmt;

/// What a document becomes, and what was done to it.
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

/// One thing that was done, to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A pair was added.
    Added(DevicePath, Number),
    /// An entry was removed, and its rule where it had one.
    Removed(DevicePath, Option<Number>),
    /// One of several entries for one device was removed.
    Doubled(DevicePath),
    /// An entry was rewritten in its place.
    Entry(DevicePath, Flaw),
    /// A rule was put right (old and new), or added.
    Rule(DevicePath, Option<Number>, Number),
    /// A pair was put where it belongs among the pairs.
    Moved(DevicePath),
    /// A mount was added.
    Mounted(Mount),
    /// A mount's entry was rewritten in its place.
    Remounted(Mount),
    /// A mount was removed.
    Unmounted(Mount),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Added(source, number) => write!(f, "added {source} ({number})"),
            Change::Removed(source, Some(number)) => write!(f, "removed {source} ({number})"),
            Change::Removed(source, None) => write!(f, "removed {source}"),
            Change::Doubled(source) => write!(f, "removed a second entry for {source}"),
            Change::Entry(source, flaw) => write!(f, "repaired the entry of {source}: {flaw}"),
            Change::Rule(source, Some(old), new) => {
                write!(f, "repaired the device rule of {source}: {old} is now {new}")
            }
            Change::Rule(source, None, new) => {
                write!(f, "added the missing device rule of {source} ({new})")
            }
            Change::Moved(source) => write!(f, "moved {source} to its place among the pairs"),
            Change::Mounted(mount) => write!(f, "added {mount}"),
            Change::Remounted(mount) => write!(f, "repaired {mount}"),
            Change::Unmounted(mount) => write!(f, "removed {mount}"),
        }
    }
}

/// Makes the pairs of the main section those of `wanted`, in their order, and
/// the mounts of ours those of `mounts`; `None` when they are already so.
/// Devices that a `devN:` line of this document passes on get no pair: both
/// at once make LXC fail.
pub fn reconcile(document: &Document, wanted: &[Device], mounts: &[Mount], form: Form) -> Option<Edit> {
    let wanted = in_order(without_passed(document, wanted));
    let there = find(document, &wanted, form);
    if are_right(&there, &wanted) && mounts::are_right(document, mounts, form) {
        return None;
    }
    let mut work = Work { patch: Patch::of(document), kept: Vec::new(), changes: Vec::new(), form };
    let moved: Vec<DevicePath> = there.iter().filter_map(|p| work.settle(p, &wanted)).collect();
    for (n, new) in wanted.iter().enumerate() {
        if !work.kept.iter().any(|(kept, _)| *kept == n) {
            let is_moved = moved.contains(&new.path);
            work.add(document, &wanted, n, is_moved);
        }
    }
    // Behind the last pair: no mount comes between an entry and its rule.
    let behind = work.kept.last().map_or_else(|| document.end_of_lxc_lines(), |(_, (_, end))| *end);
    let more = mounts::settle(document, mounts, form, behind, &mut work.patch);
    work.changes.extend(more);
    Some(Edit { document: work.patch.apply(), changes: work.changes })
}

/// Whether the pairs of the main section are those of `wanted`, whatever the
/// mounts are: exactly when [`reconcile`] would change no pair.
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

/// Those of `wanted` that no `devN:` line of `conf` passes on from the next
/// start on. The generated config has no such lines: what it is to have is
/// worked out with the conf's.
pub fn without_passed(conf: &Document, wanted: &[Device]) -> Vec<Device> {
    let passed = passthrough::next(conf);
    let is_passed = |wanted: DevicePath| {
        let below = |path: DevicePath| wanted == DevicePath::Caps && matches!(path, DevicePath::CapFile(_));
        passed.iter().filter_map(DevLine::device).any(|path| path == wanted || below(path))
    };
    wanted.iter().filter(|w| !is_passed(w.path)).copied().collect()
}

/// In the order of the pairs, each device once.
fn in_order(mut wanted: Vec<Device>) -> Vec<Device> {
    wanted.sort_by_key(|w| w.path);
    wanted.dedup_by(|later, first| later.path == first.path);
    wanted
}

/// A reconciliation under way.
struct Work<'a> {
    patch: Patch<'a>,
    /// What stays where it is: the index in the wanted list and the line
    /// behind the pair. Both ascend.
    kept: Vec<(usize, (usize, usize))>,
    changes: Vec<Change>,
    form: Form,
}

impl Work<'_> {
    /// Keeps (and repairs) or removes what is there; returns the device when
    /// it has to come back in another place.
    fn settle(&mut self, present: &Present, wanted: &[Device]) -> Option<DevicePath> {
        let place = wanted.iter().position(|w| w.path == present.path);
        let last = self.kept.last().map(|(n, _)| *n);
        match place {
            Some(n) if last.is_none_or(|last| n > last) => {
                self.keep(present, n, &wanted[n]);
                return None;
            }
            Some(n) if self.kept.iter().any(|(kept, _)| *kept == n) => {
                self.changes.push(Change::Doubled(present.path));
            }
            Some(_) => {
                self.remove(present);
                return Some(present.path);
            }
            None => {
                let change = Change::Removed(present.path, present.rule);
                self.changes.push(change);
            }
        }
        self.remove(present);
        None
    }

    fn remove(&mut self, present: &Present) {
        self.patch.remove(present.index());
        if present.rule.is_some() {
            self.patch.remove(present.index() + 1);
        }
    }

    fn keep(&mut self, present: &Present, n: usize, wanted: &Device) {
        let index = present.index();
        let path = present.path;
        if let Some(flaw) = present.flaw {
            self.patch.replace(index, self.entry(wanted));
            self.changes.push(Change::Entry(path, flaw));
        }
        let number = wanted.number();
        if present.rule != Some(number) {
            match present.rule {
                Some(_) => self.patch.replace(index + 1, self.rule(wanted)),
                None => self.patch.insert(index + 1, vec![self.rule(wanted)]),
            }
            self.changes.push(Change::Rule(path, present.rule, number));
        }
        let end = index + 1 + usize::from(present.rule.is_some());
        self.kept.push((n, (index, end)));
    }

    /// Puts a pair behind the last kept one that comes before it, or else
    /// before the first that comes after it, or else where new lines go.
    fn add(&mut self, document: &Document, wanted: &[Device], n: usize, moved: bool) {
        let before = self.kept.iter().rev().find(|(kept, _)| *kept < n);
        let after = self.kept.iter().find(|(kept, _)| *kept > n);
        let place = match (before, after) {
            (Some((_, (_, end))), _) => *end,
            (None, Some((_, (start, _)))) => *start,
            (None, None) => document.end_of_lxc_lines(),
        };
        let new = &wanted[n];
        self.patch.insert(place, vec![self.entry(new), self.rule(new)]);
        let change = if moved { Change::Moved(new.path) } else { Change::Added(new.path, new.number()) };
        self.changes.push(change);
    }

    fn entry(&self, wanted: &Device) -> String {
        self.form.write(ENTRY, &entry_value(wanted.path))
    }

    fn rule(&self, wanted: &Device) -> String {
        self.form.write(RULE, &format!("{} rwm", wanted.number()))
    }
}
