//! The copy of a driver's user space: whole, or not there.

use super::find::{self, Found, Item};
use super::manifest::{self, Manifest};
use crate::sys::text::size;
use crate::sys::time::{Deadline, human};
use crate::sys::{file, private, replace, signal};
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Space that a copy leaves free, in bytes.
const RESERVE: u64 = 64 << 20;
/// What is copied between two looks at the clock, in bytes.
const PIECE: u64 = 4 << 20;

/// Copies the host's user space of `version`, found below `root`, to the new
/// directory `at`.
///
/// # Errors
/// What is missing or failed; there is no directory then.
pub fn make(root: &Path, version: &Version, at: &Path, deadline: &Deadline) -> anyhow::Result<()> {
    let found = find::find(root, version).map_err(|missing| anyhow::anyhow!("{missing}"))?;
    let above = at.parent().unwrap_or(Path::new("/"));
    room(above, found.size())?;
    let temp = above.join(format!(".{version}.{}", std::process::id()));
    private::directory(&temp, 0o755)?;
    let done = fill(&temp, version, &found, deadline).and_then(|()| {
        // An upgrade of the host's files meanwhile leaves a part of them.
        if find::find(root, version).as_ref() != Ok(&found) {
            bail!("the host's driver files changed while they were copied");
        }
        Ok(replace::directory_whole(&temp, at)?)
    });
    done.inspect_err(|_| drop(std::fs::remove_dir_all(&temp)))
}

fn room(above: &Path, bytes: u64) -> anyhow::Result<()> {
    let free = file::free_space(above).with_context(|| above.display().to_string())?;
    if free < bytes.saturating_add(RESERVE) {
        bail!("{} needed in {}, {} free", size(bytes + RESERVE), above.display(), size(free));
    }
    Ok(())
}

fn fill(tree: &Path, version: &Version, found: &Found, deadline: &Deadline) -> anyhow::Result<()> {
    for item in &found.files {
        put(tree, item, deadline)?;
    }
    for (name, target) in &found.links {
        std::os::unix::fs::symlink(target, tree.join(name)).with_context(|| name.clone())?;
    }
    // The last: what has it has all the rest.
    let text = Manifest::of(version, found).text();
    replace::replace_own(&tree.join(manifest::NAME), text.as_bytes(), 0o644)?;
    sync_directories(tree, found)
}

fn sync_directories(tree: &Path, found: &Found) -> anyhow::Result<()> {
    let mut directories: Vec<&Path> =
        found.files.iter().flat_map(|item| Path::new(&item.to).ancestors().skip(1)).collect();
    directories.sort_unstable();
    directories.dedup();
    for directory in directories {
        File::open(tree.join(directory))?.sync_all()?;
    }
    Ok(())
}

/// Makes the directories of a name in a tree.
fn directories(tree: &Path, name: &str) -> anyhow::Result<()> {
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

/// Puts what a tree lacks into it, from the host's files: each whole.
///
/// # Errors
/// The host does not have it any more, or a file could not be written.
pub fn repair(root: &Path, tree: &Path, lacking: &[String], deadline: &Deadline) -> anyhow::Result<()> {
    let manifest = Manifest::read(tree).context("no list of its files")?;
    let found = find::find(root, &manifest.version).map_err(|missing| anyhow::anyhow!("{missing}"))?;
    if Manifest::of(&manifest.version, &found) != manifest {
        bail!("the host's driver files are not those of which it was made");
    }
    room(tree, found.files.iter().filter(|file| lacking.contains(&file.to)).map(|file| file.size).sum())?;
    let temp = tree.with_file_name(format!(".{}.{}", manifest.version, std::process::id()));
    private::directory(&temp, 0o755)?;
    // All are there before the first is put into its place.
    let all = lacking.iter().try_for_each(|name| fetch(&temp, name, &found, deadline));
    let done = all.and_then(|()| {
        lacking.iter().try_for_each(|name| place(&temp, tree, name).with_context(|| name.clone()))?;
        sync_directories(tree, &found)
    });
    let _ = std::fs::remove_dir_all(&temp);
    done
}

/// Copies one file, or makes one link, of what was found.
fn fetch(to: &Path, name: &str, found: &Found, deadline: &Deadline) -> anyhow::Result<()> {
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
