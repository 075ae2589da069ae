//! Files that the host gains after a tree was made of its own, an encoder's package
//! say, and how a tree changes places with one that has more.
//!
//! What lies below an overlay is not changed while the overlay is mounted: the
//! kernel says of that only that it is undefined. So the tree is made anew beside
//! the old one, the files that both have being the same on disk, and the two change
//! their names at once. A container that runs keeps the old one, which goes when
//! nobody has it mounted any more ([`super::prune`]).

use super::find::{self, Found};
use super::manifest::{Manifest, Origin};
use super::{Trees, copy, prune, unpack};
use crate::exit;
use crate::sys::mount::{self, Holds};
use crate::sys::time::Deadline;
use crate::sys::{private, replace, text};
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// The name of the mount to which `current` leads while the other is replaced.
const NEXT: &str = ".next";
/// So many files that came later are named.
const NAMED: usize = 4;

impl Trees {
    /// The files of `version` that the host has, and the list of its tree has not:
    /// they came after it was made of the host's. Reads the heads of its libraries.
    pub fn gained(&self, version: &Version) -> Vec<String> {
        match (Manifest::read(&self.kept(version)), find::find(&self.root, version)) {
            (Some(manifest), Ok(found)) => gained(&manifest, &found),
            _ => Vec::new(),
        }
    }

    /// Whether the host has files of `version` that its tree lacks, be it all of them.
    pub fn can_gain(&self, version: &Version) -> bool {
        let kept = self.kept(version);
        match (find::find(&self.root, version), Manifest::read(&kept)) {
            (Err(_), _) => false,
            (Ok(_), None) => true,
            (Ok(found), Some(manifest)) => {
                let lacks = manifest.origin == Origin::Host && !manifest.lacking(&kept).is_empty();
                lacks || !gained(&manifest, &found).is_empty()
            }
        }
    }

    /// Adds what the host has gained; under the lock. What is mounted stays the old one.
    /// False where that failed: the tree is what it was, and what it lacks may come back
    /// without that.
    ///
    /// # Errors
    /// A signal came.
    pub(super) fn grow(
        &self,
        version: &Version,
        gained: Vec<String>,
        deadline: &Deadline,
    ) -> anyhow::Result<bool> {
        let grown = grow(&self.root, &self.kept(version), deadline);
        let names = text::few(gained, NAMED).join(", ");
        match &grown {
            Ok(()) => log::info!("driver {version}: added {names} to its copy for containers"),
            Err(error) if exit::interrupted(error) => return grown.map(|()| false),
            Err(error) => log::warn!("driver {version}: cannot add {names}: {error:#}"),
        }
        Ok(grown.is_ok())
    }

    /// Whether what containers bind has the list of the tree: it may show one that
    /// was there before.
    pub(super) fn shows(&self, version: &Version) -> bool {
        let list = Manifest::read(&self.kept(version));
        list.is_some() && list == Manifest::read(&self.mount_point(version))
    }

    /// Where a tree is mounted too while its mount is replaced.
    pub(super) fn next(&self) -> PathBuf {
        self.run().join(NEXT)
    }

    /// Has `current` lead to a second mount of the tree while the first is replaced,
    /// so that no start finds nothing there. It may fail: a start looks before.
    pub(super) fn bridge(&self, version: &Version, empty: &Path) {
        let (next, current) = (self.next(), self.current());
        let leads_here = fs::read_link(&current).is_ok_and(|to| to == Path::new(version.as_str()));
        if !leads_here || !mount::is_mounted(&self.mount_point(version)) {
            return;
        }
        let bridged = mount::unmount(&next).and_then(|()| {
            private::directory(&next, 0o755).map_err(std::io::Error::other)?;
            mount::read_only(&self.kept(version), empty, &next, Holds::Programs)?;
            replace::link_own(&current, Path::new(NEXT))
        });
        if let Err(error) = bridged {
            log::debug!("{}: {error}", next.display());
        }
    }

    /// Puts a tree back into its place, of what a killed run left; under the lock.
    pub(super) fn put_back(&self, version: &Version) {
        let tree = self.kept(version);
        let Some(aside) = prune::to_put_back(&tree, version) else { return };
        match replace::directory_whole(&aside, &tree) {
            Ok(()) => log::info!("driver {version}: put its copy back, which a killed run left aside"),
            Err(error) => log::warn!("{}: cannot be put back: {error}", aside.display()),
        }
    }

    /// Takes that mount away where a run that was killed left it, and nobody is led
    /// there.
    pub(super) fn unbridge(&self) {
        if fs::read_link(self.current()).is_ok_and(|to| to != Path::new(NEXT)) {
            let _ = mount::unmount(&self.next());
        }
    }
}

/// The names among `found` that a tree's list has not. One that it has stays as it
/// is: the tree is of this version, whatever became of the host's files. A runfile's
/// tree is whole without them.
fn gained(manifest: &Manifest, found: &Found) -> Vec<String> {
    if manifest.origin != Origin::Host {
        return Vec::new();
    }
    let files = found.files.iter().map(|file| &file.to);
    let all = files.chain(found.links.keys());
    all.filter(|name| manifest.entry(name).is_none()).cloned().collect()
}

/// Puts a tree with what the host has gained into the place of `tree`. Mounts go on to
/// show the old one.
///
/// # Errors
/// What is missing or failed; the tree is as it was then.
fn grow(root: &Path, tree: &Path, deadline: &Deadline) -> anyhow::Result<()> {
    let old = Manifest::read(tree).context("no list of its files")?;
    let found = find::find(root, &old.version).map_err(|missing| anyhow::anyhow!("{missing}"))?;
    let new = joined(&old, &found);
    let fresh = |(name, _): &&(String, u64)| old.entry(name).is_none();
    copy::in_temp(tree, &old.version, |temp| {
        unpack::room(temp, new.files.iter().filter(fresh).map(|(_, size)| size).sum())?;
        copy::fill(temp, tree, (&old, &new), &found, deadline)?;
        // An upgrade of the host's files meanwhile leaves a part of them.
        if find::find(root, &old.version).as_ref() != Ok(&found) {
            bail!("the host's driver files changed while they were copied");
        }
        copy::change_places(temp, tree)
    })
}

/// The list of both.
fn joined(old: &Manifest, found: &Found) -> Manifest {
    let mut all = old.clone();
    let now = Manifest::of(&old.version, old.origin, found);
    all.files.extend(now.files.into_iter().filter(|(name, _)| old.entry(name).is_none()));
    all.links.extend(now.links.into_iter().filter(|(name, _)| old.entry(name).is_none()));
    all
}
