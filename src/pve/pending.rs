//! The settings of a conf now and at the next start: Proxmox applies pending
//! changes as soon as the container has ended, also in a reboot from inside,
//! before any hookscript runs. Pure.

use crate::pve::conf::document::Document;
use crate::pve::conf::document::Entry;
use std::collections::BTreeMap;

/// The section of pending changes.
const SECTION: &str = "pve:pending";

/// The settings `NAME` and a number of the next start, by their key. Of several
/// lines with one key the last counts.
pub fn numbered(conf: &Document, name: &str) -> BTreeMap<String, Entry> {
    next(conf, |key| is_numbered(key, name))
}

/// The same of now.
pub fn numbered_now(conf: &Document, name: &str) -> BTreeMap<String, Entry> {
    values(&conf.entries(), |entry| entry.section.is_none() && is_numbered(&entry.key, name))
}

/// Whether a key is `NAME` and a number.
fn is_numbered(key: &str, name: &str) -> bool {
    let number = key.strip_prefix(name).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// A setting of the next start.
pub fn get(conf: &Document, key: &str) -> Option<String> {
    next(conf, |other| other == key).remove(key).map(|entry| entry.value)
}

fn next(conf: &Document, meant: impl Fn(&str) -> bool) -> BTreeMap<String, Entry> {
    let entries = conf.entries();
    let pending = |e: &Entry| e.section.as_deref().is_some_and(|s| s.eq_ignore_ascii_case(SECTION));
    let mut found = values(&entries, |e| e.section.is_none() && meant(&e.key));
    let deleted = entries.iter().rfind(|e| pending(e) && e.key == "delete");
    for key in deleted.iter().flat_map(|e| deleted_keys(&e.value)) {
        found.remove(key);
    }
    found.extend(values(&entries, |e| pending(e) && meant(&e.key)));
    found
}

/// The last of each key.
fn values(entries: &[Entry], of: impl Fn(&Entry) -> bool) -> BTreeMap<String, Entry> {
    entries.iter().filter(|e| of(e)).map(|e| (e.key.clone(), e.clone())).collect()
}

/// The keys in `delete:`; a `!` before one means: its volume too.
fn deleted_keys(list: &str) -> impl Iterator<Item = &str> {
    let separator = |c: char| matches!(c, ',' | ';' | '\0') || c.is_ascii_whitespace();
    list.split(separator).map(|word| word.trim_start_matches('!')).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_counts_and_what_is_deleted_does_not() {
        let conf = Document::parse(
            b"mp0: /srv/a,mp=/a\nmp1: /srv/b,mp=/b\nmp2: /srv/c,mp=/c\nmp: x\nmpx: y\nmp2: /srv/d,mp=/d\n\
              hookscript: local:snippets/a\n\n[PVE:pending]\ndelete: !mp0,dev1\nmp3: /srv/e,mp=/e\n\
              mp1: /srv/f,mp=/b\n\n[snap]\nmp9: /srv/x,mp=/x\ndelete: mp2\n",
        );
        let all: Vec<_> =
            numbered(&conf, "mp").into_iter().map(|(k, v)| format!("{k}={}", v.value)).collect();
        assert_eq!(all, ["mp1=/srv/f,mp=/b", "mp2=/srv/d,mp=/d", "mp3=/srv/e,mp=/e"]);
        assert_eq!(get(&conf, "hookscript").as_deref(), Some("local:snippets/a"));
        assert_eq!(get(&conf, "mp0"), None);
    }
}
