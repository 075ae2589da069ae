//! Proxmox' files under /etc/pve, but for the container's own conf.

use phoenix_nvidia::pve::cluster::{parse_ha, parse_members, parse_replication};
use phoenix_nvidia::pve::conf::document::Document;
use phoenix_nvidia::pve::{sections, sharing, storage, vms};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What is read is in the text; volumes and files lead to each other; nothing
/// that a storage may hold is taken from it.
pub fn holds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let lines = text.lines().count();
    let all = sections::parse(&text);
    assert!(all.len() <= lines);
    for section in &all {
        assert!(!section.kind.contains(['\n', ':']) && section.id.trim() == section.id);
        assert!(section.list("content").is_none_or(|list| list.iter().all(|word| !word.is_empty())));
    }
    storages(&text);
    assert!(parse_ha(&text).len() <= lines && parse_replication(&text).len() <= lines);
    assert!(parse_replication(&text).iter().all(|(_, node)| !node.contains('\n') && node.trim() == node));
    for node in parse_members(&text) {
        assert!(node.address.is_none_or(|ip| ip.len() <= text.len()));
    }
    cards(&text);
}

fn storages(text: &str) {
    let all = storage::parse(text);
    for storage in &all {
        let volume = storage.volume("x");
        // Two storages of one name are nothing that Proxmox writes.
        if all.iter().filter(|other| other.id == storage.id).count() > 1 {
            continue;
        }
        if let Some(path) = storage::path_of(&all, &volume) {
            assert_eq!(path.file_name(), Some("x".as_ref()));
            assert_eq!(storage::volume_of(std::slice::from_ref(storage), &path), Some(volume));
        }
        for bad in ["../x", "a/b", "", "..", "."] {
            assert_eq!(storage::path_of(&all, &storage.volume(bad)), None, "{bad:?}");
        }
        let command = storage.allow_snippets();
        let words: BTreeSet<&str> = command.rsplit(' ').next().unwrap_or_default().split(',').collect();
        let kept = storage.content.iter().filter(|c| *c != "none").all(|c| words.contains(c.as_str()));
        assert!(kept && words.contains("snippets"), "{command}");
    }
    assert_eq!(storage::volume_of(&all, Path::new("/")), None);
}

fn cards(text: &str) {
    let passed = |text: &str| vms::passed(&Document::parse(text.as_bytes()), &BTreeMap::new());
    let slots = passed(text);
    assert!(slots.len() <= text.matches(':').count());
    for slots in vms::mappings(text, "pve1").values() {
        assert!(slots.len() <= text.matches(':').count());
    }
    let claim = |text: &str| sharing::claim(&Document::parse(text.as_bytes()));
    let claimed = claim(text);
    for number in claimed.gpus.iter().chain(&claimed.caps) {
        assert!(text.contains(&number.to_string()));
    }
    // What follows a header is a snapshot's or pending.
    assert_eq!(claim(&format!("{text}\n[s]\ndev0: /dev/nvidia77\n")), claimed);
    assert_eq!(passed(&format!("{text}\n[s]\nhostpci0: 01:00.0\n")), slots);
}
