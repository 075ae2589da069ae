//! A conf with every byte kept: sections, comments, forms, line endings,
//! invalid UTF-8, a missing last newline.

use crate::pve::conf::line;
use crate::pve::conf::line::Setting;
use crate::pve::conf::line::header;
use crate::pve::conf::line::setting;
use crate::pve::conf::line::trim;
use anyhow::bail;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A conf, or a config that Proxmox generated. What was parsed comes out of
/// [`Document::to_bytes`] byte for byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    bytes: Vec<u8>,
    /// The lines, each with its line ending.
    lines: Vec<Range<usize>>,
    /// How many of them are the main section.
    main: usize,
}

/// How settings are written: in Proxmox's conf, or in LXC's config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `key: value`
    Pve,
    /// `key = value`
    Lxc,
}

impl Form {
    /// The line, without its ending.
    pub fn write(self, key: &str, value: &str) -> String {
        match self {
            Form::Pve => format!("{key}: {value}"),
            Form::Lxc => format!("{key} = {value}"),
        }
    }
}

/// One `lxc.environment` line of the main section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvLine {
    /// What stands before the first `=`.
    pub key: String,
    /// What stands behind it; invalid UTF-8 replaced.
    pub value: String,
    /// The line in the file, from 1.
    pub line: usize,
}

/// A line of any section, for those that only look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The section's name; `None` in the main section.
    pub section: Option<String>,
    /// The key, `lxc.mount.entry` say.
    pub key: String,
    /// The value; invalid UTF-8 replaced.
    pub value: String,
    /// The line in the file, from 1.
    pub line: usize,
}

/// The name in an `lxc.environment` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvKey(String);

/// A value that can stand in one line of a conf and comes back the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfValue(String);

/// The key whose lines carry settings. Never `lxc.environment.runtime`, which
/// Proxmox lets ordinary users set.
const ENVIRONMENT: &str = "lxc.environment";

impl Document {
    /// Takes any bytes.
    pub fn parse(bytes: &[u8]) -> Document {
        Document::from(bytes.to_vec())
    }

    /// What was parsed, or what an edit made of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// The same, borrowed.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The value of `key` in the main section as Proxmox reads it: of several
    /// lines the last counts.
    pub fn get(&self, key: &str) -> Option<String> {
        let found = self.main_settings().filter(|(_, s)| s.key == key).last();
        found.map(|(_, s)| text(s.value))
    }

    /// The settings that travel with the container.
    pub fn environment(&self) -> Vec<EnvLine> {
        let assignment = |(index, s): (usize, Setting<'_>)| {
            let (key, value) = split_assignment(s)?;
            Some(EnvLine { key: text(key), value: text(value), line: index + 1 })
        };
        self.main_settings().filter_map(assignment).collect()
    }

    /// Sets or, with `None`, removes a `lxc.environment` assignment of the main
    /// section; `None` when it is already so. The last of several lines stays
    /// where it is, since its value is the one that counts.
    pub fn set_environment(&self, key: &EnvKey, value: Option<&ConfValue>) -> Option<Document> {
        let own = |s: Setting<'_>| split_assignment(s).is_some_and(|(k, _)| k == key.0.as_bytes());
        let there: Vec<usize> =
            self.main_settings().filter(|(_, s)| own(*s)).map(|(index, _)| index).collect();
        let wanted = value.map(|v| format!("{}={}", key.0, v.0));
        let right = |index: usize| {
            self.setting(index).is_some_and(|s| Some(s.value) == wanted.as_ref().map(|w| w.as_bytes()))
        };
        match (&wanted, there.as_slice()) {
            (None, []) => return None,
            (Some(_), [one]) if right(*one) => return None,
            _ => {}
        }
        let mut patch = Patch::of(self);
        let (keep, surplus) = match (&wanted, there.split_last()) {
            (Some(_), Some((last, others))) => (Some(*last), others),
            (_, _) => (None, there.as_slice()),
        };
        surplus.iter().for_each(|index| patch.remove(*index));
        if let Some(wanted) = &wanted {
            let line = Form::Pve.write(ENVIRONMENT, wanted);
            match keep {
                Some(index) if !right(index) => patch.replace(index, line),
                Some(_) => {}
                None => patch.insert(self.end_of_lxc_lines(), vec![line]),
            }
        }
        Some(patch.apply())
    }

    /// Every setting of every section.
    pub fn entries(&self) -> Vec<Entry> {
        let mut section = None;
        let mut found = Vec::new();
        for index in 0..self.lines.len() {
            if let Some(name) = header(self.line(index)) {
                section = Some(text(name));
            }
            if let Some(s) = self.setting(index) {
                let (key, value) = (s.key.to_owned(), text(s.value));
                found.push(Entry { section: section.clone(), key, value, line: index + 1 });
            }
        }
        found
    }

    /// How many lines the main section has.
    pub(super) fn main_len(&self) -> usize {
        self.main
    }

    /// A line with its ending.
    pub(super) fn line(&self, index: usize) -> &[u8] {
        self.lines.get(index).map_or(&[], |range| &self.bytes[range.clone()])
    }

    pub(super) fn setting(&self, index: usize) -> Option<Setting<'_>> {
        setting(self.line(index))
    }

    /// The settings of the main section, with the index of their line.
    pub(super) fn main_settings(&self) -> impl Iterator<Item = (usize, Setting<'_>)> {
        (0..self.main).filter_map(|index| Some((index, self.setting(index)?)))
    }

    /// The line before which a new `lxc.*` line goes: behind the last one of
    /// the main section, or else behind its last line that is not blank.
    pub(super) fn end_of_lxc_lines(&self) -> usize {
        let lxc = |index: &usize| self.setting(*index).is_some_and(|s| s.key.starts_with("lxc."));
        let filled = |index: &usize| !trim(self.line(*index)).is_empty();
        let last = (0..self.main).rev().find(lxc).or_else(|| (0..self.main).rev().find(filled));
        last.map_or(0, |index| index + 1)
    }
}

impl From<Vec<u8>> for Document {
    fn from(bytes: Vec<u8>) -> Self {
        let mut lines = Vec::new();
        let mut start = 0;
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            lines.push(start..start + piece.len());
            start += piece.len();
        }
        let first = lines.iter().position(|range| header(&bytes[range.clone()]).is_some());
        let main = first.unwrap_or(lines.len());
        Document { bytes, lines, main }
    }
}

impl AsRef<Document> for Document {
    fn as_ref(&self) -> &Document {
        self
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({:?})", String::from_utf8_lossy(&self.bytes))
    }
}

/// Key and value of an `lxc.environment` line. One without `=` makes LXC pass
/// on a variable of its own environment and is no setting.
fn split_assignment(s: Setting<'_>) -> Option<(&[u8], &[u8])> {
    if s.key != ENVIRONMENT {
        return None;
    }
    let sign = s.value.iter().position(|b| *b == b'=')?;
    Some((&s.value[..sign], &s.value[sign + 1..]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Changes to single lines; all others come out byte for byte.
pub(super) struct Patch<'a> {
    document: &'a Document,
    /// What a line becomes; an empty list removes it.
    instead: std::collections::BTreeMap<usize, Vec<String>>,
    /// What comes before a line.
    before: std::collections::BTreeMap<usize, Vec<String>>,
}

impl<'a> Patch<'a> {
    pub(super) fn of(document: &'a Document) -> Self {
        Patch { document, instead: Default::default(), before: Default::default() }
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.instead.insert(index, Vec::new());
    }

    pub(super) fn replace(&mut self, index: usize, line: String) {
        self.instead.insert(index, vec![line]);
    }

    /// Puts lines before the one at `index`, behind those already put there.
    pub(super) fn insert(&mut self, index: usize, lines: Vec<String>) {
        self.before.entry(index).or_default().extend(lines);
    }

    /// A line that ends without a newline gets one as soon as another follows.
    /// New lines end as the line before them does, or else the one after.
    pub(super) fn apply(&self) -> Document {
        let document = self.document;
        let mut out: Vec<u8> = Vec::with_capacity(document.bytes.len() + 1024);
        let fallback = ending(document.line(0)).unwrap_or(b"\n");
        let mut current = fallback;
        let push = |out: &mut Vec<u8>, line: &[u8], end: &[u8]| {
            let unended = out.last().is_some_and(|last| *last != b'\n');
            if unended && !line.is_empty() {
                out.extend_from_slice(end);
            }
            out.extend_from_slice(line);
        };
        for index in 0..=document.lines.len() {
            for new in self.before.get(&index).into_iter().flatten() {
                push(&mut out, new.as_bytes(), current);
                out.extend_from_slice(current);
            }
            let old = document.line(index);
            current = ending(old).unwrap_or(current);
            match self.instead.get(&index) {
                Some(new) => new.iter().for_each(|line| {
                    push(&mut out, line.as_bytes(), current);
                    out.extend_from_slice(current);
                }),
                None => push(&mut out, old, current),
            }
        }
        Document::from(out)
    }
}

/// How a line ends, if it does.
fn ending(line: &[u8]) -> Option<&'static [u8]> {
    match line {
        [.., b'\r', b'\n'] => Some(b"\r\n"),
        [.., b'\n'] => Some(b"\n"),
        _ => None,
    }
}

impl FromStr for EnvKey {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            bail!("{text:?} is no name of a variable: letters, digits and _ only");
        }
        Ok(EnvKey(text.to_owned()))
    }
}

impl fmt::Display for EnvKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ConfValue {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some(bad) = text.chars().find(|c| c.is_control()) {
            bail!("contains the control character {}", bad.escape_default());
        }
        if text.bytes().next_back().is_some_and(line::is_blank) {
            bail!("ends in a blank, which Proxmox cuts off");
        }
        Ok(ConfValue(text.to_owned()))
    }
}

impl fmt::Display for ConfValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
