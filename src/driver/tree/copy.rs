//! The copy of a driver's user space: whole, or not there.

use super::find::{self, Found, Item};
use super::manifest::{self, Manifest, Origin};
use super::unpack;
use crate::sys::time::{Deadline, human};
use crate::sys::{file, private, replace, signal};
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
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
        std::os::unix::fs::symlink(target, tree.join(name)).with_context(|| name.clone())?;
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

/// Makes the directories of a name in a tree.
pub(super) fn directories(tree: &Path, name: &str) -> anyhow::Result<()> {
    for directory in Path::new(name).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
        private::directory(&tree.join(directory), 0o755)?;
    }
    Ok(())
}

/// Copies one file. Its owner is root, its mode none that anybody else chose.
fn put(tree: &Path, item: &Item, deadline: &Deadline) -> anyhow::Result<()> {
    let name = || item.from.display().to_string();
    directories(tree, &item.to)?;
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
        if deadline.passed() {
            bail!("not copied within {}", human(deadline.span()));
        }
        if std::io::copy(&mut (&from).take(PIECE), &mut to)? == 0 {
            return Ok(to.flush()?);
        }
    }
}

/// Puts what a tree lacks into it, from what it was made of: each file whole.
///
/// # Errors
/// The source does not have it any more, or a file could not be written.
pub fn repair(source: &Source, tree: &Path, lacking: &[String], deadline: &Deadline) -> anyhow::Result<()> {
    let manifest = Manifest::read(tree).context("no list of its files")?;
    let version = &manifest.version;
    let is_it = |found: &Found| {
        let now = Manifest::of(version, source.origin(), found);
        // What the host has lost meanwhile the tree may still have.
        let of_host = now.origin == Origin::Host && manifest.origin == Origin::Host;
        let other = lacking.iter().find(|name| now.entry(name) != manifest.entry(name));
        match other {
            None if of_host || now == manifest => Ok(()),
            Some(name) if of_host => bail!("the driver files are not those of which it was made: {name}"),
            _ => bail!("the driver files are not those of which it was made"),
        }
    };
    // All are there before the first is put into its place.
    in_temp(tree, version, |temp| {
        match source {
            Source::Host(root) => {
                let found = find::find(root, version).map_err(|missing| anyhow::anyhow!("{missing}"))?;
                is_it(&found)?;
                let of_it = found.files.iter().filter(|file| lacking.contains(&file.to));
                unpack::room(temp, of_it.map(|file| file.size).sum())?;
                lacking.iter().try_for_each(|name| fetch(temp, name, &found, deadline))?;
            }
            Source::Runfile(file) => {
                let found = unpack::unpack(file, version, temp, deadline)?;
                is_it(&found)?;
                finish(temp, version, source.origin(), &found)?;
            }
        }
        lacking.iter().try_for_each(|name| place(temp, tree, name).with_context(|| name.clone()))?;
        sync_directories(tree, &manifest)
    })
}

/// Copies one file, or makes one link, of what was found.
pub(super) fn fetch(to: &Path, name: &str, found: &Found, deadline: &Deadline) -> anyhow::Result<()> {
    match (found.files.iter().find(|item| item.to == *name), found.links.get(name)) {
        (Some(item), _) => put(to, item, deadline),
        (None, Some(target)) => {
            directories(to, name)?;
            std::os::unix::fs::symlink(target, to.join(name)).with_context(|| name.to_owned())
        }
        (None, None) => bail!("{name}: not among the host's driver files"),
    }
}

/// Moves one from the new directory into a tree, over what is there.
#[allow(clippy::disallowed_methods)] // the file is synced, and so is its directory afterwards
fn place(from: &Path, tree: &Path, name: &str) -> anyhow::Result<()> {
    directories(tree, name)?;
    let to = tree.join(name);
    if to.is_dir() && !to.is_symlink() {
        std::fs::remove_dir_all(&to)?;
    }
    Ok(std::fs::rename(from.join(name), &to)?)
}
