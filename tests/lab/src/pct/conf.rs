//! `/etc/pve/lxc/N.conf`: read and written back as Proxmox does, which is not lossless.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{die_with, schema, text, warn};
use crate::ns::NODE;

/// One section: the current configuration, what is pending, or a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    pub(super) keys: BTreeMap<String, String>,
    pub(super) lxc: Vec<(String, String)>,
}

/// A whole conf.
#[derive(Clone, Debug, Default)]
pub(super) struct Conf {
    pub(super) current: Section,
    pub(super) pending: Option<Section>,
    pub(super) snapshots: BTreeMap<String, Section>,
}

/// Where a container's conf is.
pub(super) fn path(id: u32) -> PathBuf {
    PathBuf::from(format!("/etc/pve/lxc/{id}.conf"))
}

impl Section {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        self.keys.insert(key.to_owned(), value.to_owned());
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }

    /// `KEY: value` lines as `pct config` prints them.
    pub(super) fn lines(&self) -> Vec<String> {
        let shown = |(key, value): (&String, &String)| {
            let value = if key == "description" { text::encode(value) } else { value.clone() };
            format!("{key}: {value}")
        };
        self.keys.iter().map(shown).collect()
    }

    /// The `lxc.*` lines as they are written.
    pub(super) fn raw_lines(&self) -> Vec<String> {
        self.lxc.iter().map(|(key, value)| format!("{key}: {value}")).collect()
    }

    /// Settings of the form `nameN`, in the order of N.
    pub(super) fn numbered(&self, name: &str) -> Vec<(u32, &str)> {
        let numbers = self
            .keys
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(name)?.parse().ok()?, value.as_str())));
        let mut found: Vec<(u32, &str)> = numbers.collect();
        found.sort_unstable();
        found
    }

    fn render(&self) -> String {
        let mut out = String::new();
        for line in self.get("description").unwrap_or_default().lines() {
            out.push_str(&format!("#{}\n", text::encode(line)));
        }
        for (key, value) in self.keys.iter().filter(|(key, _)| *key != "description") {
            out.push_str(&format!("{key}: {value}\n"));
        }
        for line in self.raw_lines() {
            out.push_str(&format!("{line}\n"));
        }
        out
    }
}

impl Conf {
    /// Reads a container's conf; what can't be parsed is warned of and lost.
    pub(super) fn load(id: u32) -> Result<Conf> {
        let raw = match fs::read_to_string(path(id)) {
            Ok(raw) => raw,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(die_with(
                    2,
                    format!("Configuration file 'nodes/{NODE}/lxc/{id}.conf' does not exist"),
                ));
            }
            Err(e) => return Err(e).context(path(id).display().to_string()),
        };
        let mut warnings = Vec::new();
        let conf = Conf::parse(&raw, &mut warnings);
        for warning in warnings {
            warn(&format!("vm {id} - {warning}"));
        }
        Ok(conf)
    }

    /// Parses a conf's text.
    pub(super) fn parse(raw: &str, warnings: &mut Vec<String>) -> Conf {
        let mut conf = Conf::default();
        let mut name = String::new();
        let mut section = Section::default();
        let mut description = String::new();
        for line in raw.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(next) = header(line) {
                conf.close(&name, std::mem::take(&mut section), std::mem::take(&mut description));
                name = next;
            } else if let Some(comment) = line.strip_prefix('#') {
                description.push_str(&text::decode(comment.trim_end_matches('\r')));
                description.push('\n');
            } else {
                section.add(line, warnings);
            }
        }
        conf.close(&name, section, description);
        conf
    }

    fn close(&mut self, name: &str, mut section: Section, description: String) {
        if !description.is_empty() {
            section.set("description", &description);
        }
        match name {
            "" => self.current = section,
            "pve:pending" => self.pending = Some(section),
            name => {
                self.snapshots.insert(name.to_owned(), section);
            }
        }
    }

    /// What was waiting becomes current.
    pub(super) fn apply_pending(&mut self) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        for (key, value) in pending.keys {
            if key == "delete" {
                for gone in value.split(',') {
                    self.current.keys.remove(gone.trim());
                }
            } else {
                self.current.keys.insert(key, value);
            }
        }
        true
    }

    /// What waits for this key waits no more.
    pub(super) fn revert(&mut self, key: &str) {
        let Some(pending) = &mut self.pending else { return };
        pending.keys.remove(key);
        let gone = pending.keys.remove("delete").unwrap_or_default();
        let others: Vec<&str> = gone.split(',').filter(|other| !other.is_empty() && *other != key).collect();
        if !others.is_empty() {
            pending.set("delete", &others.join(","));
        }
    }

    pub(super) fn render(&self) -> String {
        let mut out = self.current.render();
        if let Some(pending) = self.pending.as_ref().filter(|pending| !pending.keys.is_empty()) {
            out.push_str(&format!("\n[pve:pending]\n{}", pending.render()));
        }
        for (name, snapshot) in &self.snapshots {
            out.push_str(&format!("\n[{name}]\n{}", snapshot.render()));
        }
        out
    }

    /// Replaces the file, by Proxmox' own name for the temporary one.
    pub(super) fn store(&self, id: u32) -> Result<()> {
        let target = path(id);
        let temporary = PathBuf::from(format!("{}.tmp.{}", target.display(), std::process::id()));
        fs::write(&temporary, self.render()).map_err(|error| match error.kind() {
            // Recorded without quorum; the genuine one goes by the node's own directory.
            std::io::ErrorKind::PermissionDenied => {
                let name = format!("{id}.conf.tmp.{}", std::process::id());
                let path = format!("/etc/pve/nodes/{NODE}/lxc/{name}");
                die_with(2, format!("unable to open file '{path}' - Permission denied"))
            }
            _ => anyhow::Error::from(error).context(format!("writing {}", temporary.display())),
        })?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o640))?;
        std::os::unix::fs::chown(&temporary, Some(0), Some(33))?;
        Ok(fs::rename(&temporary, &target)?)
    }
}

impl Section {
    fn add(&mut self, line: &str, warnings: &mut Vec<String>) {
        let line = line.trim_end_matches('\r');
        if let Some((key, value)) = lxc_line(line) {
            if schema::lxc_key(key) {
                self.lxc.push((key.to_owned(), value.to_owned()));
            } else {
                warnings.push(format!("unable to parse config: {line}"));
            }
            return;
        }
        match line.split_once(':').filter(|(key, value)| plain_key(key) && !value.trim().is_empty()) {
            None => warnings.push(format!("unable to parse config: {line}")),
            Some((key, value)) => {
                let value = value.trim();
                if let Some(fault) = schema::fault(key, value).filter(|_| key != "delete") {
                    warnings.push(format!("unable to parse value of '{key}' - {fault}"));
                }
                let value = if key == "description" { text::decode(value) } else { value.to_owned() };
                self.keys.insert(key.to_owned(), value);
            }
        }
    }
}

/// `[NAME]`, of the names that Proxmox takes.
fn header(line: &str) -> Option<String> {
    let name = line.trim_end().strip_prefix('[')?.strip_suffix(']')?;
    if name.eq_ignore_ascii_case("pve:pending") {
        return Some("pve:pending".into());
    }
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    good.then(|| name.to_owned())
}

/// `lxc.KEY: value` or `lxc.KEY = value`, with no blank before the key, nor before a colon.
fn lxc_line(line: &str) -> Option<(&str, &str)> {
    let end = line.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c)))?;
    let (key, rest) = line.split_at(end);
    let value = rest.strip_prefix(':').or_else(|| rest.trim_start().strip_prefix('='))?;
    (key.starts_with("lxc.") && key.len() > 4).then(|| (key, value.trim()))
}

/// Letters and `_`, then digits.
fn plain_key(key: &str) -> bool {
    let name = key.trim_end_matches(|c: char| c.is_ascii_digit());
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}
