//! The storages of `/etc/pve/storage.cfg` that are directories, and the one that is always there; and as much of
//! `pvesm` as shows and changes them.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::{die, say, warn};

const FILE: &str = "/etc/pve/storage.cfg";
/// Recorded: what `local` holds where the file does not say, or says what cannot be.
const IMPLIED: [&str; 6] = ["backup", "images", "iso", "rootdir", "snippets", "vztmpl"];
const HOME: &str = "/var/lib/vz";

/// One storage that is a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) id: String,
    pub(super) path: String,
    /// In alphabetical order.
    pub(super) content: Vec<String>,
    disabled: bool,
}

/// All of them, as the genuine one takes them.
pub(super) fn all() -> Vec<Storage> {
    parse(&fs::read_to_string(FILE).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Storage> {
    let mut found: Vec<Storage> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        let Some((key, value)) = line.trim().split_once([':', ' ', '\t']) else {
            if line.trim() == "disable" && inside {
                found.iter_mut().next_back().into_iter().for_each(|storage| storage.disabled = true);
            }
            continue;
        };
        let value = value.trim();
        if !indented {
            inside = key == "dir";
            if inside {
                let content = vec!["images".to_owned()];
                found.push(Storage { id: value.into(), path: String::new(), content, disabled: false });
            }
        } else if let Some(storage) = found.last_mut().filter(|_| inside) {
            match key {
                "path" => storage.path = value.to_owned(),
                "content" => storage.content = sorted(value),
                _ => {}
            }
        }
    }
    // `local` is the same on every node, whatever the file says; a restriction to nodes is dropped.
    found.retain(|storage| storage.id != "local" || ["", HOME].contains(&storage.path.as_str()));
    match found.iter_mut().find(|storage| storage.id == "local") {
        Some(local) => local.path = HOME.to_owned(),
        None => {
            let content = IMPLIED.map(str::to_owned).to_vec();
            found.push(Storage { id: "local".into(), path: HOME.into(), content, disabled: false });
        }
    }
    found
}

fn sorted(list: &str) -> Vec<String> {
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    let mut all: Vec<String> = words.map(str::to_owned).collect();
    all.sort();
    all
}

/// Where a volume id of type snippets is; what Proxmox says if that can't be. Neither the storage's content nor whether
/// it is switched on is asked for.
pub(super) fn snippet(volume: &str) -> Result<PathBuf, String> {
    let (id, rest) = volume.split_once(':').unwrap_or((volume, ""));
    let storage = all().into_iter().find(|storage| storage.id == id);
    let storage = storage.ok_or_else(|| format!("storage '{id}' does not exist"))?;
    match rest.strip_prefix("snippets/").filter(|name| !name.is_empty() && !name.contains('/')) {
        Some(name) => Ok(PathBuf::from(storage.path).join("snippets").join(name)),
        None => Err(format!("unable to parse directory volume name '{rest}'")),
    }
}

/// `pvesm status`, `pvesm list STORAGE`, `pvesm set STORAGE --content LIST`; `pvesm __config` shows what was read.
pub(super) fn pvesm(argv: &[String]) -> Result<u8> {
    let words: Vec<&str> = argv.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["status"] => status(),
        ["list", id, ..] => list(id)?,
        ["set", id, "--content", list] => set(id, list)?,
        ["__config"] => {
            for storage in all() {
                say(&format!("{}: {} path {}", storage.id, storage.content.join(","), storage.path));
            }
        }
        _ => {
            warn(&format!("ERROR: unknown command 'pvesm {}'", words.join(" ")));
            return Ok(255);
        }
    }
    Ok(0)
}

fn status() {
    let column = |name: &str| format!("{name:>16}");
    say(&format!(
        "Name         Type     Status{}{}{}        %",
        column("Total (KiB)"),
        column("Used (KiB)"),
        column("Available (KiB)")
    ));
    for storage in all() {
        let state = if storage.disabled { "disabled" } else { "active" };
        let zero = column("0");
        say(&format!("{:<5}{:>11}{state:>11}{zero}{zero}{zero}    0.00%", storage.id, "dir"));
    }
}

fn list(id: &str) -> Result<()> {
    let storage = all().into_iter().find(|storage| storage.id == id);
    let storage = storage.ok_or_else(|| die(format!("storage '{id}' does not exist")))?;
    say("Volid                         Format  Type      Size VMID");
    let files = fs::read_dir(format!("{}/snippets", storage.path)).into_iter().flatten().flatten();
    for file in files {
        let size = file.metadata().map_or(0, |found| found.len());
        let volume = format!("{id}:snippets/{}", file.file_name().to_string_lossy());
        say(&format!("{volume:<29} snippet snippets {size:>9} "));
    }
    Ok(())
}

/// Replaces the list: what is not in it, the storage no longer holds.
fn set(id: &str, list: &str) -> Result<()> {
    let storages = all();
    let known = storages.iter().find(|storage| storage.id == id);
    let known = known.ok_or_else(|| die(format!("storage '{id}' does not exist")))?;
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let others = text.split("\n\n").filter(|part| {
        let head = part.trim_start().lines().next().unwrap_or_default();
        head.split_once(':').is_none_or(|(_, name)| name.trim() != id) && !part.trim().is_empty()
    });
    let others: String = others.map(|part| format!("{}\n\n", part.trim_matches('\n'))).collect();
    let own = format!("dir: {id}\n\tpath {}\n\tcontent {}\n", known.path, sorted(list).join(","));
    Ok(fs::write(FILE, others + &own)?)
}
