//! Trees that nobody needs any more.

use super::manifest::Manifest;
use crate::sys::mount;
use crate::sys::mountinfo::{self, Mounted};
use crate::sys::time::Deadline;
use crate::types::Version;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest look at the mounts of all processes: 20 000 of them take 4 s.
const LOOK: Duration = Duration::from_secs(10);

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
pub fn make_way(tree: &Path, at: &Path, deadline: &Deadline) -> io::Result<()> {
    let why = match unused(vec![Tree::shown(tree, at)], deadline) {
        Ok(unused) if !unused.is_empty() => return remove(tree),
        Ok(_) => "a container uses it".to_owned(),
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

/// The one that is to be put back of those that were put aside, where the tree is gone: a run
/// was killed while the two changed places by way of a third name. It lacks the least, and
/// has the most.
pub fn to_put_back(tree: &Path, version: &Version) -> Option<PathBuf> {
    if tree.symlink_metadata().is_ok() {
        return None;
    }
    let entries = std::fs::read_dir(tree.parent()?).ok()?.flatten();
    let aside = entries.filter(|entry| {
        let of = entry.file_name().to_str().and_then(version_of);
        of.is_some_and(|(of, aside)| aside && of == *version)
    });
    let ranked = aside.filter_map(|entry| {
        let list = Manifest::read(&entry.path()).filter(|list| list.version == *version)?;
        let lacks = std::cmp::Reverse(list.lacking(&entry.path()).len());
        Some(((lacks, list.files.len() + list.links.len(), list.repairs), entry.path()))
    });
    ranked.max().map(|(_, path)| path)
}

/// The versions of the trees below `kept`, and of those that were put aside.
pub fn versions(kept: &Path) -> Vec<Version> {
    let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| version_of(entry.file_name().to_str()?));
    found.map(|(version, _)| version).collect()
}

/// Removes the trees below `kept` that no process has mounted, but for those of
/// `keep`; returns how many. `shown` is where the host has them mounted.
pub fn prune(kept: &Path, shown: &Path, keep: &[&Version], deadline: &Deadline) -> usize {
    let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
    let trees = entries.filter_map(|entry| {
        let (version, aside) = version_of(entry.file_name().to_str()?)?;
        let (tree, at) = (entry.path(), shown.join(version.as_str()));
        match aside {
            true => Some(Tree::aside(&tree, &kept.join(version.as_str()), &at)),
            false => (!keep.contains(&&version)).then(|| Tree::shown(&tree, &at)),
        }
    });
    let trees: Vec<Tree> = trees.collect();
    if trees.is_empty() {
        return 0;
    }
    let unused = unused(trees, deadline).unwrap_or_else(|error| {
        log::info!("copies of drivers in {} stay: cannot see who uses them: {error}", kept.display());
        Vec::new()
    });
    unused.iter().filter(|tree| tree.remove()).count()
}

/// A tree that goes when nobody has it mounted.
struct Tree {
    path: PathBuf,
    /// The name by which overlays of it are told.
    lower: String,
    /// Where the host shows it; `None` for one that was put aside.
    at: Option<PathBuf>,
    /// The device of an overlay of that name which is another's.
    other: String,
    /// Somebody has it mounted.
    used: bool,
    /// It is mounted where the host shows it, in whatever namespace.
    here: bool,
}

impl Tree {
    fn shown(path: &Path, at: &Path) -> Tree {
        let lower = path.to_string_lossy().into_owned();
        let other = String::new();
        Tree { path: path.to_owned(), lower, at: Some(at.to_owned()), other, used: false, here: false }
    }

    /// One that was put aside. Overlays of it are told with the name that it had, which is
    /// that of the overlay at `at` too.
    fn aside(path: &Path, tree: &Path, at: &Path) -> Tree {
        let list = |tree: &Path| Manifest::read(tree);
        // What the host has mounted may still be the one that was put aside.
        let is_other = list(at).is_some() && list(at) == list(tree) && list(at) != list(path);
        let device = std::fs::symlink_metadata(at).ok().filter(|_| is_other);
        let other = device.map(|meta| mountinfo::device(meta.dev())).unwrap_or_default();
        let lower = tree.to_string_lossy().into_owned();
        Tree { path: path.to_owned(), lower, at: None, other, used: false, here: false }
    }

    /// Notes who has it by a mount of somebody's.
    fn note(&mut self, mount: &Mounted<'_>) {
        let over = mount.is_over(&self.lower) && mount.device != self.other;
        if !over && !mount.root.ends_with(bound(&self.path.to_string_lossy())) {
            return;
        }
        match self.at.as_ref().is_some_and(|at| Path::new(mount.at) == at) {
            true => self.here = true,
            false => self.used = true,
        }
    }

    /// Removes it; false if that failed.
    fn remove(&self) -> bool {
        if let Err(error) = remove(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
            return false;
        }
        if let Some(at) = &self.at {
            let _ = std::fs::remove_dir(at);
        }
        let earlier = if self.at.is_none() { "earlier " } else { "" };
        let version = Path::new(&self.lower).file_name().unwrap_or_default().to_string_lossy();
        log::info!("driver {version}: removed its {earlier}copy, which no container uses");
        true
    }
}

/// The end of the path by which a mount table tells a tree that is bound itself,
/// without overlayfs. Any directory above it may be a file system of its own.
fn bound(tree: &str) -> &str {
    &tree[tree.rfind('/').unwrap_or_default()..]
}

/// Those among the trees that no process has, once the host's own mounts of them are gone.
/// Such a mount is removed only if it is the last: its removal reaches the namespaces that
/// have a copy of it at the same place.
fn unused(trees: Vec<Tree>, deadline: &Deadline) -> io::Result<Vec<Tree>> {
    let trees = look(trees, deadline)?;
    let (mut shown, mut free): (Vec<Tree>, Vec<Tree>) = trees.into_iter().partition(|tree| tree.here);
    shown.retain(|tree| match tree.at.as_deref().map_or(Ok(()), mount::unmount) {
        Ok(()) => true,
        Err(error) => {
            log::info!("{} stays: cannot unmount it: {error}", tree.path.display());
            false
        }
    });
    if !shown.is_empty() {
        let shown = shown.into_iter().map(|tree| Tree { here: false, ..tree }).collect();
        free.extend(look(shown, deadline)?.into_iter().filter(|tree| !tree.here));
    }
    Ok(free)
}

/// Those that nobody has but where the host shows them.
fn look(mut trees: Vec<Tree>, deadline: &Deadline) -> io::Result<Vec<Tree>> {
    mountinfo::all(&deadline.at_most(LOOK), |mount| trees.iter_mut().for_each(|tree| tree.note(mount)))?;
    trees.retain(|tree| {
        if tree.used {
            log::debug!("{}: used by a container", tree.path.display());
        }
        !tree.used
    });
    Ok(trees)
}
