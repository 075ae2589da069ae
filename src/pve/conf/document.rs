//! A conf with every byte kept: sections, comments, forms, line endings,
//! invalid UTF-8, a missing last newline.

use crate::pve::conf::line::{self, Setting, header, setting, trim};
use crate::types::Line;
use anyhow::bail;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

pub use crate::pve::conf::line::Form;

/// A conf, or a config that Proxmox generated. [`Document::as_bytes`] returns
/// what was parsed, byte for byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    bytes: Vec<u8>,
    /// The lines, each with its line ending.
    lines: Vec<Range<usize>>,
    /// How many of them are the main section.
    main: usize,
}

/// One `lxc.environment` line of the main section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvLine {
    /// The text before the first `=`.
    pub key: String,
    /// The text after it; invalid UTF-8 replaced.
    pub value: String,
    /// The line in the file, from 1.
    pub line: usize,
}

/// A setting of any section.
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

/// A value that a conf line can hold unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfValue(String);

/// The key of the settings' lines. Never `lxc.environment.runtime`, which
/// Proxmox lets ordinary users set.
const ENVIRONMENT: &str = "lxc.environment";
/// What Proxmox makes of `env`, and of an OCI image's environment.
const RUNTIME: &str = "lxc.environment.runtime";

impl Document {
    /// Takes any bytes.
    pub fn parse(bytes: &[u8]) -> Document {
        Document::from(bytes.to_vec())
    }

    /// What was parsed, or what an edit made of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The value of `key` in the main section as Proxmox reads it: of several
    /// lines the last counts.
    pub fn get(&self, key: &str) -> Option<String> {
        let found = self.main_settings().filter(|(_, s)| s.key == key).last();
        found.map(|(_, s)| text(s.value))
    }

    /// Whether it is a template's.
    pub fn is_template(&self) -> bool {
        self.get("template").as_deref() == Some("1")
    }

    /// The `lxc.environment` assignments of the main section.
    pub fn environment(&self) -> Vec<EnvLine> {
        let assignment = |(index, s): (usize, Setting<'_>)| {
            let (key, value) = split_assignment(s)?;
            Some(EnvLine { key: text(key), value: text(value), line: index + 1 })
        };
        self.main_settings().filter_map(assignment).collect()
    }

    /// The environment that Proxmox gives the container's own program, of an OCI
    /// image say. Ordinary users may set it: never a setting of ours.
    pub fn of_program(&self) -> BTreeMap<String, String> {
        let pair = |text: &str| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut all = BTreeMap::new();
        for (_, setting) in self.main_settings() {
            match setting.key {
                RUNTIME => all.extend(pair(&text(setting.value))),
                // The same as one value, whose parts NUL parts.
                "env" => all.extend(text(setting.value).split('\0').filter_map(pair)),
                _ => {}
            }
        }
        all
    }

    /// Sets or removes several assignments. Returns `None` if nothing changes.
    pub fn set_all(&self, settings: &[(EnvKey, Option<ConfValue>)]) -> Option<Document> {
        settings.iter().fold(None, |changed: Option<Document>, (key, value)| {
            let new = changed.as_ref().unwrap_or(self).set_environment(key, value.as_ref());
            new.or(changed)
        })
    }

    /// Sets an `lxc.environment` assignment of the main section, or removes it
    /// (`None`). Returns `None` if nothing changes. Of several lines the last
    /// keeps its place: its value is the one that counts.
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
                None => patch.insert(self.end_of_lxc_lines(), [line]),
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

    /// The lines `NAME=VALUE` of these names that [`Document::environment`] does
    /// not read: of another `lxc.` key or of none, or below the main section.
    pub fn unread(&self, is_name: impl Fn(&str) -> bool) -> Vec<Entry> {
        let mut section = None;
        let mut found = Vec::new();
        for index in 0..self.lines.len() {
            let line = self.line(index);
            if let Some(name) = header(line) {
                section = Some(text(name));
            }
            let (key, value, signs) = match self.setting(index) {
                Some(s) if s.key.starts_with("lxc.") => (s.key, s.value, &b"="[..]),
                Some(_) => continue,
                None => ("", trim(line), &b"=:"[..]),
            };
            let Some(sign) = value.iter().position(|b| signs.contains(b)) else { continue };
            let is_read = section.is_none() && key == ENVIRONMENT;
            if !is_read && std::str::from_utf8(trim(&value[..sign])).is_ok_and(&is_name) {
                let (section, key, value) = (section.clone(), key.to_owned(), text(value));
                found.push(Entry { section, key, value, line: index + 1 });
            }
        }
        found
    }

    /// The number of lines in the main section.
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

    /// Where a new `lxc.*` line goes: after the last one of the main section, or
    /// else after its last line that is not blank.
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

/// Key and value of an `lxc.environment` line. A line without `=` is not a
/// setting: it makes LXC pass on a variable of its own environment.
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

/// Changes to single lines; all others stay byte for byte.
pub(super) struct Patch<'a> {
    document: &'a Document,
    /// The new text of a line; `None` removes it.
    instead: BTreeMap<usize, Option<String>>,
    /// New lines before a line.
    before: BTreeMap<usize, Vec<String>>,
}

impl<'a> Patch<'a> {
    pub(super) fn of(document: &'a Document) -> Self {
        Patch { document, instead: Default::default(), before: Default::default() }
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.instead.insert(index, None);
    }

    pub(super) fn replace(&mut self, index: usize, line: String) {
        self.instead.insert(index, Some(line));
    }

    /// Puts lines before the one at `index`, after those already put there.
    pub(super) fn insert(&mut self, index: usize, lines: impl IntoIterator<Item = String>) {
        self.before.entry(index).or_default().extend(lines);
    }

    /// A last line without a newline gets one if another line follows. New lines
    /// end as the line before them does, or else as the one after.
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
                Some(Some(new)) => {
                    push(&mut out, new.as_bytes(), current);
                    out.extend_from_slice(current);
                }
                Some(None) => {}
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
            bail!("{text:?} is not a variable name: use letters, digits and _");
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
        text.parse::<Line>()?;
        if text.bytes().next_back().is_some_and(line::is_blank) {
            bail!("ends with a blank, which Proxmox removes");
        }
        Ok(ConfValue(text.to_owned()))
    }
}

impl fmt::Display for ConfValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
