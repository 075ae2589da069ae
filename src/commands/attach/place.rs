//! The snippet: its storage, and writing it there.

use crate::exit::{Code, Context as _, Fault};
use crate::job::undo::Undo;
use crate::pve::cluster;
use crate::pve::hookscript;
use crate::pve::hookscript::NAME;
use crate::pve::hookscript::Place;
use crate::pve::hookscript::SNIPPET;
use crate::pve::storage::{self, Storage};
use crate::sys::file;
use crate::sys::look::View;
use crate::sys::look::{Look, Seen};
use crate::sys::replace::replace_own;
use crate::sys::signal;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Where the snippets that `attach` placed are noted, one path a line, so that
/// removing the package finds them.
const PLACED: &str = "/var/lib/phoenix-nvidia/snippets";
/// No script is larger, in bytes.
const MAX: u64 = 64 << 20;

/// The storage for the snippet: the one that is asked for, or `local`, or else
/// the first that can hold it.
///
/// # Errors
/// [`Code::Input`] with the `pvesm set` line, when there is none.
pub fn choose<'a>(storages: &'a [Storage], wanted: Option<&str>, node: &str) -> anyhow::Result<&'a Storage> {
    let fits = |s: &&Storage| s.has_snippets() && s.is_on(node);
    let Some(id) = wanted else {
        let local = storages.iter().filter(fits).find(|s| s.id == "local");
        return local.or_else(|| storages.iter().find(fits)).ok_or_else(|| none_fits(storages, node).into());
    };
    let storage = storages.iter().find(|s| s.id == id).ok_or_else(|| {
        let names: Vec<&str> = storages.iter().map(|s| s.id.as_str()).collect();
        let message = format!("no storage {id} for snippets; this node has: {}", names.join(", "));
        Fault::new(Code::Input, message).remedy("pvesm status")
    })?;
    if fits(&storage) {
        return Ok(storage);
    }
    Err(unfit(storage, node).into())
}

fn unfit(storage: &Storage, node: &str) -> Fault {
    let id = &storage.id;
    if storage.disabled {
        let message = format!("storage {id} is disabled");
        return Fault::new(Code::Input, message).remedy(format!("pvesm set {id} --disable 0"));
    }
    if !storage.is_on(node) {
        let message = format!("storage {id} is not available on node {node}");
        return Fault::new(Code::Input, message).remedy("choose another storage with --storage");
    }
    let message = format!("storage {id} does not hold snippets");
    Fault::new(Code::Input, message).remedy(storage.allow_snippets())
}

fn none_fits(storages: &[Storage], node: &str) -> Fault {
    let local = storages.iter().find(|s| s.id == "local" && !s.disabled && s.is_on(node));
    let any = local.or_else(|| storages.iter().find(|s| !s.disabled && s.is_on(node)));
    let remedy = any.map_or_else(
        || "pvesm add dir snippets --path /var/lib/snippets --content snippets".to_owned(),
        Storage::allow_snippets,
    );
    Fault::new(Code::Input, "no storage of this node holds snippets, and hookscripts are snippets")
        .remedy(remedy)
}

/// Fails for a storage that is not mounted now.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn check_mounted(look: &Look, storages: &[Storage], place: &Place) -> anyhow::Result<()> {
    let id = id(place);
    match storages.iter().find(|storage| storage.id == id).map(|storage| storage.is_mounted(look)) {
        Some(Seen::Is(false)) => {
            let message = format!("storage {id} is not mounted");
            Err(Fault::new(Code::Passthrough, message).remedy(format!("pvesm status --storage {id}")).into())
        }
        Some(Seen::Unseen(why)) => Err(silent(place, &why)),
        _ => Ok(()),
    }
}

fn id(place: &Place) -> &str {
    storage::of_volume(&place.volume).unwrap_or_default()
}

/// The storage does not answer; unless a signal of ours ended the look.
pub fn silent(place: &Place, why: &str) -> anyhow::Error {
    if let Err(signal) = signal::check() {
        return signal.into();
    }
    let message = format!("cannot check {} on storage {}: {why}", place.path.display(), id(place));
    Fault::new(Code::Passthrough, message).remedy("choose another storage: --storage local").into()
}

/// A look at the storage and at what stands in the snippet's place, by a
/// process that can be left behind: the storage may be a dead server's.
pub fn look(storages: &[Storage], place: &Place) -> Look<'static> {
    let mut questions = hookscript::questions(&place.path);
    let storage = storages.iter().find(|storage| storage.id == id(place));
    questions.extend(storage.into_iter().flat_map(Storage::mount_questions));
    Look::at_files(View::host(), questions)
}

/// Fails when another file has its place.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn check(look: &Look, place: &Place) -> anyhow::Result<()> {
    let at = place.path.to_string_lossy();
    let ours = match look.stat_link(&at) {
        Seen::Is(stat) if stat.is_file() => hookscript::is_ours(look, &at),
        Seen::Is(stat) => Seen::Is(stat.is_link()),
        Seen::Absent => return Ok(()),
        Seen::Unseen(why) => Seen::Unseen(why),
    };
    match ours {
        Seen::Is(true) => return Ok(()),
        Seen::Unseen(why) => return Err(silent(place, &why)),
        Seen::Is(false) | Seen::Absent => {}
    }
    let path = place.path.display();
    let message = format!("{path} exists and is not the hookscript of phoenix-nvidia");
    Err(Fault::new(Code::Passthrough, message).remedy(format!("mv {path} {path}.old")).into())
}

/// Writes the snippet as a regular executable file; true if that changed
/// anything. A link is replaced: its target need not exist on the node that the
/// container moves to.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn put(place: &Place, storages: &[Storage], undo: &mut Undo) -> anyhow::Result<bool> {
    let look = look(storages, place);
    check_mounted(&look, storages, place)?;
    check(&look, place)?;
    let path = &place.path;
    if is_right(&look, path) {
        return Ok(false);
    }
    let before = old(path);
    let failed = || {
        Fault::new(Code::Passthrough, format!("cannot write hookscript {}", path.display()))
            .remedy("pvesm status")
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).fault(failed)?;
    replace_own(path, SNIPPET.as_bytes(), 0o755).fault(failed)?;
    note(path);
    let (again, storages) = (place.clone(), storages.to_vec());
    undo.push(format!("the file {}", path.display()), move || {
        restore_unless_named(&again, &storages, before)
    });
    Ok(true)
}

/// Restores what stood there, unless a guest of the cluster names the snippet:
/// that guest would not start without it.
fn restore_unless_named(place: &Place, storages: &[Storage], before: Old) -> anyhow::Result<bool> {
    let path = place.path.display();
    let named = || hookscript::named_by(Path::new(cluster::NODES), storages, place);
    match named() {
        Ok(confs) if confs.is_empty() => {}
        Ok(confs) => {
            let confs: Vec<String> = confs.iter().map(|conf| conf.display().to_string()).collect();
            log::info!("{path} stays: named in {}", confs.join(", "));
            return Ok(false);
        }
        Err(error) => {
            log::warn!("{path} stays: cannot check which containers name it: {error}");
            return Ok(false);
        }
    }
    restore(&place.path, before)?;
    // Somebody may have set it in the moment between.
    if !matches!(named(), Ok(confs) if confs.is_empty()) && !is_right(&Look::host(), &place.path) {
        replace_own(&place.path, SNIPPET.as_bytes(), 0o755)?;
        return Ok(false);
    }
    Ok(true)
}

/// What was there before.
enum Old {
    Nothing,
    Link(std::path::PathBuf),
    File(Vec<u8>, u32),
}

fn old(path: &Path) -> Old {
    if let Ok(target) = std::fs::read_link(path) {
        return Old::Link(target);
    }
    match (file::read(path, MAX), std::fs::metadata(path)) {
        (Ok(bytes), Ok(meta)) => Old::File(bytes, meta.permissions().mode() & 0o7777),
        _ => Old::Nothing,
    }
}

fn restore(path: &Path, old: Old) -> anyhow::Result<()> {
    match old {
        Old::File(bytes, mode) => replace_own(path, &bytes, mode)?,
        Old::Link(target) => {
            std::fs::remove_file(path)?;
            std::os::unix::fs::symlink(target, path)?;
        }
        Old::Nothing => std::fs::remove_file(path)?,
    }
    Ok(())
}

fn is_right(look: &Look, path: &Path) -> bool {
    let at = path.to_string_lossy();
    // A file system without modes of its own (CIFS) shows all as executable.
    let runs = look.stat_link(&at).value().is_some_and(|stat| stat.is_file() && stat.mode & 0o111 != 0);
    runs && look.head(&at).value().is_some_and(|bytes| bytes == SNIPPET.as_bytes())
}

/// Notes the path for the removal of the package. Losing a note only leaves a
/// small file behind.
fn note(path: &Path) {
    let line = format!("{}\n", path.display());
    let mut text = file::text(Path::new(PLACED), MAX).unwrap_or_default();
    if text.lines().any(|l| l == line.trim_end()) {
        return;
    }
    text.push_str(&line);
    let noted = std::fs::create_dir_all("/var/lib/phoenix-nvidia")
        .and_then(|()| replace_own(Path::new(PLACED), text.as_bytes(), 0o644));
    if let Err(error) = noted {
        log::debug!("{PLACED}: {error}");
    }
}

/// The snippet's place in a storage.
pub fn in_storage(storage: &Storage) -> Place {
    Place { volume: storage.volume(NAME), path: storage.snippets.join(NAME) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;
    use crate::pve::storage::parse;

    const CFG: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,backup\n\n\
        dir: far\n\tpath /srv/far\n\tcontent snippets\n\tnodes beta\n\n\
        dir: off\n\tpath /srv/off\n\tcontent snippets\n\tdisable\n";

    fn remedy(result: anyhow::Result<&Storage>) -> String {
        exit::remedy_of(&result.unwrap_err()).unwrap().to_owned()
    }

    #[test]
    fn without_snippets_anywhere_the_exact_line_is_named() {
        let all = parse(CFG);
        let line = "pvesm set local --content iso,vztmpl,backup,snippets";
        assert_eq!(remedy(choose(&all, None, "alpha")), line);
        assert_eq!(remedy(choose(&all, Some("local"), "alpha")), line);
        assert_eq!(remedy(choose(&all, Some("off"), "alpha")), "pvesm set off --disable 0");
        assert!(remedy(choose(&all, Some("far"), "alpha")).contains("--storage"));
        assert!(choose(&all, Some("none"), "alpha").is_err());
    }

    #[test]
    fn local_comes_first_and_then_the_first_that_fits() {
        assert_eq!(choose(&parse(CFG), None, "beta").unwrap().id, "far");
        let both = CFG.replace("iso,vztmpl,backup", "snippets");
        assert_eq!(choose(&parse(&both), None, "beta").unwrap().id, "local");
    }
}
