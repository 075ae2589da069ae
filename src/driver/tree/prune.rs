//! Trees that nobody needs any more.

use super::manifest::Manifest;
use crate::sys::{mount, mountinfo};
use crate::types::Version;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Removes what a killed run left; under the lock.
pub fn leftovers(kept: &Path) {
    for entry in std::fs::read_dir(kept).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with('.') {
            match remove(&entry.path()) {
                Ok(()) => log::info!("removed {}, left by a killed run", entry.path().display()),
                Err(error) => log::debug!("cannot remove {}: {error}", entry.path().display()),
            }
        }
    }
}

/// Removes a tree, or what is in its place.
///
/// # Errors
/// The file system's.
pub fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() && !path.is_symlink() {
        return std::fs::remove_dir_all(path);
    }
    std::fs::remove_file(path)
}

/// Takes what is in the place of a tree out of the way. What somebody has mounted,
/// or may have, is put aside: a mount outlives the move, and [`prune`] removes it
/// when nobody has it any more.
///
/// # Errors
/// The file system's.
#[allow(clippy::disallowed_methods)] // nothing is at the new name
pub fn make_way(tree: &Path, at: &Path) -> io::Result<()> {
    let why = match unused(tree, at) {
        Ok(true) => return remove(tree),
        Ok(false) => "a container uses it".to_owned(),
        Err(error) => format!("cannot see who uses it: {error}"),
    };
    let aside = aside_of(tree)?;
    std::fs::rename(tree, &aside)?;
    log::warn!("{}: no list of its files; put aside as {}, since {why}", tree.display(), aside.display());
    Ok(())
}

/// What was put aside is named like `old-1-580.95.05`.
const ASIDE: &str = "old-";

/// A name that is free for a tree that is put aside.
///
/// # Errors
/// There is none.
pub fn aside_of(tree: &Path) -> io::Result<PathBuf> {
    let version = tree.file_name().unwrap_or_default().to_string_lossy();
    let mut names = (1..10_000).map(|number| tree.with_file_name(format!("{ASIDE}{number}-{version}")));
    let aside = names.find(|name| name.symlink_metadata().is_err());
    aside.ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))
}

/// The version of a tree's directory, and whether it was put aside.
fn version_of(name: &str) -> Option<(Version, bool)> {
    match name.strip_prefix(ASIDE) {
        Some(rest) => Some((rest.split_once('-')?.1.parse().ok()?, true)),
        None => Some((name.parse().ok()?, false)),
    }
}

/// The versions of the trees below `kept`.
pub fn versions(kept: &Path) -> Vec<Version> {
    let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| version_of(entry.file_name().to_str()?));
    found.filter(|(_, aside)| !aside).map(|(version, _)| version).collect()
}

/// Removes the trees below `kept` that are mounted in no namespace, but for
/// those of `keep`; returns how many. `shown` is where the host has them mounted.
pub fn prune(kept: &Path, shown: &Path, keep: &[&Version]) -> usize {
    let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
    let trees = entries.filter_map(|entry| {
        let (version, aside) = version_of(entry.file_name().to_str()?)?;
        Some((entry.path(), version, aside))
    });
    let mut removed = 0;
    for (tree, version, aside) in trees.filter(|(_, version, aside)| *aside || !keep.contains(&version)) {
        let at = shown.join(version.as_str());
        let free = match aside {
            true => forgotten(&tree, &kept.join(version.as_str()), &at),
            false => unused(&tree, &at),
        };
        match free {
            Ok(true) => {}
            Ok(false) => {
                log::debug!("{}: used by a container", tree.display());
                continue;
            }
            Err(error) => {
                log::debug!("{}: cannot see who uses it: {error}", tree.display());
                continue;
            }
        }
        match remove(&tree) {
            Ok(()) => {
                if !aside {
                    let _ = std::fs::remove_dir(&at);
                }
                let earlier = if aside { "earlier " } else { "" };
                log::info!("driver {version}: removed its {earlier}copy, which no container uses");
                removed += 1;
            }
            Err(error) => log::warn!("cannot remove {}: {error}", tree.display()),
        }
    }
    removed
}

/// The end of the path by which a mount table tells a tree that is bound itself,
/// without overlayfs. Any directory above it may be a file system of its own.
fn bound(tree: &str) -> &str {
    &tree[tree.rfind('/').unwrap_or_default()..]
}

/// Whether no process sees a tree that was put aside. Overlays of it are told
/// with the name that it had, which is that of the overlay at `at` too.
fn forgotten(aside: &Path, tree: &Path, at: &Path) -> io::Result<bool> {
    let list = |tree: &Path| Manifest::read(tree);
    // What the host has mounted may still be the one that was put aside.
    let is_other = list(at).is_some() && list(at) == list(tree) && list(at) != list(aside);
    let device = std::fs::symlink_metadata(at).ok().filter(|_| is_other);
    let shown = device.map(|meta| mountinfo::device(meta.dev())).unwrap_or_default();
    let (aside, tree) = (aside.to_string_lossy(), tree.to_string_lossy());
    let is_it = |mount: mountinfo::Mounted<'_>| {
        (mount.is_over(&tree) && mount.device != shown) || mount.root.ends_with(bound(&aside))
    };
    let tables = mountinfo::all()?;
    Ok(!tables.iter().flat_map(|table| mountinfo::mounts(table)).any(is_it))
}

/// Whether no process sees the tree, once the host's own mount is gone. That is
/// removed only if it is the last: its removal reaches the namespaces that have
/// a copy of it at the same place.
fn unused(tree: &Path, at: &Path) -> io::Result<bool> {
    let tree = tree.to_string_lossy();
    let is_it = |mount: &mountinfo::Mounted<'_>| mount.is_over(&tree) || mount.root.ends_with(bound(&tree));
    let places = |tables: &[String]| -> Vec<String> {
        let mounts = tables.iter().flat_map(|table| mountinfo::mounts(table));
        mounts.filter(is_it).map(|mount| mount.at.to_owned()).collect()
    };
    let here = at.to_string_lossy();
    if places(&mountinfo::all()?).iter().any(|place| *place != here) {
        return Ok(false);
    }
    mount::unmount(at)?;
    Ok(places(&mountinfo::all()?).is_empty())
}
