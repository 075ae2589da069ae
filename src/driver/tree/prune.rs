//! Trees that nobody needs any more.

use crate::sys::{mount, mountinfo};
use crate::types::Version;
use std::io;
use std::path::Path;

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

/// Removes the trees below `kept` that are mounted in no namespace, but for
/// those of `keep`; returns how many. `shown` is where the host has them mounted.
pub fn prune(kept: &Path, shown: &Path, keep: &[&Version]) -> usize {
    let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
    let versions = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Version>().ok());
    let mut removed = 0;
    for version in versions.filter(|version| !keep.contains(&version)) {
        let (tree, at) = (kept.join(version.as_str()), shown.join(version.as_str()));
        match unused(&tree, &at) {
            Ok(true) => {}
            Ok(false) => {
                log::debug!("driver {version}: its copy is used by a container");
                continue;
            }
            Err(error) => {
                log::debug!("driver {version}: cannot see who uses its copy: {error}");
                continue;
            }
        }
        match remove(&tree) {
            Ok(()) => {
                let _ = std::fs::remove_dir(&at);
                log::info!("driver {version}: removed its copy, which no container uses");
                removed += 1;
            }
            Err(error) => log::warn!("cannot remove {}: {error}", tree.display()),
        }
    }
    removed
}

/// Whether no process sees the tree, once the host's own mount is gone. That is
/// removed only if it is the last: its removal reaches the namespaces that have
/// a copy of it at the same place.
fn unused(tree: &Path, at: &Path) -> io::Result<bool> {
    let tree = tree.to_string_lossy();
    // Without overlayfs it is bound itself; what is above it may be a file system.
    let bound = tree.split_once("/phoenix-nvidia/").map_or(&*tree, |(_, below)| below);
    let is_it = |mount: &mountinfo::Mounted<'_>| mount.is_over(&tree) || mount.root.ends_with(bound);
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
