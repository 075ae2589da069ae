//! The copy of a driver's user space: whole, or not there.

use super::find::{self, Found, Item};
use super::manifest::{self, Manifest, Origin};
use super::{prune, unpack};
use crate::sys::time::Deadline;
use crate::sys::{file, private, replace, signal};
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// What is copied between two looks at the clock, in bytes.
const PIECE: u64 = 4 << 20;

/// What a tree is made of.
#[derive(Clone, Debug)]
pub enum Source {
    /// The host's own files, below this root.
    Host(PathBuf),
    /// A verified runfile.
    Runfile(PathBuf),
}

impl Source {
    fn origin(&self) -> Origin {
        match self {
            Source::Host(_) => Origin::Host,
            Source::Runfile(_) => Origin::Runfile,
        }
    }
}

/// Makes the new directory `at` of the user space of `version`.
///
/// # Errors
/// What is missing or failed; there is no directory then.
pub fn make(source: &Source, version: &Version, at: &Path, deadline: &Deadline) -> anyhow::Result<()> {
    in_temp(at, version, |temp| {
        let found = match source {
            Source::Host(root) => copy_all(root, version, temp, deadline)?,
            Source::Runfile(file) => unpack::unpack(file, version, temp, deadline)?,
        };
        finish(temp, version, source.origin(), &found)?;
        Ok(replace::directory_whole(temp, at)?)
    })
}

/// Does it with a new directory beside a tree, which is gone afterwards.
pub(super) fn in_temp(
    tree: &Path,
    version: &Version,
    work: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let temp = tree.with_file_name(format!(".{version}.{}", std::process::id()));
    private::directory(&temp, 0o755)?;
    let done = work(&temp);
    let _ = std::fs::remove_dir_all(&temp);
    done
}

/// Copies the host's files.
fn copy_all(root: &Path, version: &Version, to: &Path, deadline: &Deadline) -> anyhow::Result<Found> {
    let found = find::find(root, version).map_err(|missing| anyhow::anyhow!("{missing}"))?;
    unpack::room(to, found.size())?;
    found.files.iter().try_for_each(|item| put(to, item, deadline))?;
    // An upgrade of the host's files meanwhile leaves a part of them.
    if find::find(root, version).as_ref() != Ok(&found) {
        bail!("the host's driver files changed while they were copied");
    }
    Ok(found)
}

/// Makes the links and the list of a tree whose files are there.
fn finish(tree: &Path, version: &Version, origin: Origin, found: &Found) -> anyhow::Result<()> {
    for (name, target) in &found.links {
        symlink(target, tree.join(name)).with_context(|| name.clone())?;
    }
    list(tree, &Manifest::of(version, origin, found))
}

/// Writes the list of a tree, and all directories of it to the disk.
///
/// # Errors
/// The file system's.
pub(super) fn list(tree: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    // The last: what has it has all the rest.
    replace::replace_own(&tree.join(manifest::NAME), manifest.text().as_bytes(), 0o644)?;
    sync_directories(tree, manifest)
}

fn sync_directories(tree: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    let mut directories: Vec<&Path> =
        manifest.files.iter().flat_map(|(name, _)| Path::new(name).ancestors().skip(1)).collect();
    directories.sort_unstable();
    directories.dedup();
    for directory in directories {
        File::open(tree.join(directory))?.sync_all()?;
    }
    Ok(())
}

/// Copies one file. Its owner is root, its mode none that anybody else chose.
fn put(tree: &Path, item: &Item, deadline: &Deadline) -> anyhow::Result<()> {
    let name = || item.from.display().to_string();
    unpack::directories(tree, &item.to)?;
    let mode = if item.to.starts_with("bin/") { 0o755 } else { 0o644 };
    let to = tree.join(&item.to);
    let (from, _) = file::open(&item.from).with_context(name)?;
    let new = OpenOptions::new().write(true).create_new(true).mode(mode).open(&to).with_context(name)?;
    copy(from, &new, deadline).with_context(name)?;
    // The umask took from it.
    new.set_permissions(Permissions::from_mode(mode))?;
    new.sync_all().with_context(name)
}

fn copy(from: File, mut to: &File, deadline: &Deadline) -> anyhow::Result<()> {
    loop {
        signal::check()?;
        deadline.allows("copied")?;
        if std::io::copy(&mut (&from).take(PIECE), &mut to)? == 0 {
            return Ok(to.flush()?);
        }
    }
}

/// Puts a tree that lacks nothing into the place of one that does, from what that was
/// made of: what it still has is the same on disk. Mounts go on to show the old one.
///
/// # Errors
/// The source does not have it any more, or a file could not be written; the tree is as
/// it was then.
pub fn repair(source: &Source, tree: &Path, lacking: &[String], deadline: &Deadline) -> anyhow::Result<()> {
    let manifest = Manifest::read(tree).context("no list of its files")?;
    let version = &manifest.version;
    let is_it = |found: &Found| {
        let now = Manifest { repairs: manifest.repairs, ..Manifest::of(version, source.origin(), found) };
        // What the host has lost meanwhile the tree may still have.
        let of_host = now.origin == Origin::Host && manifest.origin == Origin::Host;
        let other = lacking.iter().find(|name| now.entry(name) != manifest.entry(name));
        match other {
            None if of_host || now == manifest => Ok(()),
            Some(name) if of_host => bail!("the driver files are not those of which it was made: {name}"),
            _ => bail!("the driver files are not those of which it was made"),
        }
    };
    let new = Manifest { repairs: manifest.repairs.saturating_add(1), ..manifest.clone() };
    in_temp(tree, version, |temp| {
        match source {
            Source::Host(root) => {
                let found = find::find(root, version).map_err(|missing| anyhow::anyhow!("{missing}"))?;
                is_it(&found)?;
                let of_it = found.files.iter().filter(|file| lacking.contains(&file.to));
                unpack::room(temp, of_it.map(|file| file.size).sum())?;
                fill(temp, tree, (&manifest, &new), &found, deadline)?;
            }
            Source::Runfile(file) => {
                let found = unpack::unpack(file, version, temp, deadline)?;
                is_it(&found)?;
                found.links.iter().try_for_each(|(name, target)| symlink(target, temp.join(name)))?;
                let whole =
                    manifest.files.iter().map(|(name, _)| name).filter(|name| !lacking.contains(name));
                whole
                    .into_iter()
                    .try_for_each(|name| same(tree, temp, name).with_context(|| name.clone()))?;
                list(temp, &new)?;
            }
        }
        change_places(temp, tree)
    })
}

/// Has a file of a new tree be that of another.
fn same(tree: &Path, new: &Path, name: &str) -> io::Result<()> {
    std::fs::remove_file(new.join(name))?;
    std::fs::hard_link(tree.join(name), new.join(name))
}

/// Copies one file, or makes one link, of what was found.
pub(super) fn fetch(to: &Path, name: &str, found: &Found, deadline: &Deadline) -> anyhow::Result<()> {
    match (found.files.iter().find(|item| item.to == *name), found.links.get(name)) {
        (Some(item), _) => put(to, item, deadline),
        (None, Some(target)) => {
            unpack::directories(to, name)?;
            symlink(target, to.join(name)).with_context(|| name.to_owned())
        }
        (None, None) => bail!("{name}: not among the host's driver files"),
    }
}

/// Has a new directory change places with a tree, which is put aside.
///
/// # Errors
/// The file system's.
pub(super) fn change_places(temp: &Path, tree: &Path) -> anyhow::Result<()> {
    // From here on it has a name that nobody takes for a leftover: what bears it
    // next may be mounted.
    let aside = prune::aside_of(tree)?;
    replace::directory_whole(temp, &aside)?;
    Ok(replace::exchange(&aside, tree, &prune::aside_of(tree)?)?)
}

/// Fills the new directory: what the old tree has whole from there, the rest from
/// the host.
///
/// # Errors
/// The host does not have it, or the file system's.
pub(super) fn fill(
    new: &Path,
    tree: &Path,
    (old, all): (&Manifest, &Manifest),
    found: &Found,
    deadline: &Deadline,
) -> anyhow::Result<()> {
    let lacking = old.lacking(tree);
    let names = all.files.iter().map(|(name, _)| name).chain(all.links.iter().map(|(name, _)| name));
    for name in names {
        signal::check()?;
        if old.entry(name).is_none() || lacking.contains(name) {
            fetch(new, name, found, deadline)?;
            continue;
        }
        unpack::directories(new, name)?;
        let (from, to) = (tree.join(name), new.join(name));
        match all.entry(name) {
            Some((None, Some(target))) => symlink(target, &to),
            // Both trees are ours, and neither is ever written to.
            _ => std::fs::hard_link(&from, &to),
        }
        .with_context(|| name.clone())?;
    }
    list(new, all)
}
