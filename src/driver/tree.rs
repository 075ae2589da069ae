//! Driver trees: the user space of one driver version, bound into containers. It is
//! copied once of the host's own files, or unpacked from NVIDIA's runfile where the
//! host has none.
//!
//! | path | what |
//! | --- | --- |
//! | `/var/lib/phoenix-nvidia/driver/VERSION` | the copy: libraries at the top, `bin/` and `share/` below |
//! | `/run/phoenix-nvidia/driver/VERSION` | the same behind a read-only overlay, which no container can write through |
//! | `/run/phoenix-nvidia/driver/current` | a link to the version that the loaded kernel driver has |

mod bound;
mod copy;
mod elf;
mod find;
mod gap;
mod manifest;
mod material;
mod prune;
mod refresh;
mod unpack;

pub use bound::{HWCAPS, OWN, is_place, mounted, version_of};
pub use elf::Glibc;
pub use gap::{Gap, Looked, Possible, Shown, source};
pub use manifest::{Manifest, NAME as MARK};

use crate::driver::supply::{self, Supply};
use crate::exit::{self, Code, Fault};
use crate::pve::conf::mounts::RUN;
use crate::sys::lock::{self, Lock};
use crate::sys::mount::{self, Holds};
use crate::sys::time::{Deadline, human};
use crate::sys::{mountinfo, private, replace};
use crate::types::Version;
use bound::KEPT;
use copy::Source;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest wait for another process that makes a tree; the caller's deadline
/// applies too.
const LOCK: Duration = Duration::from_secs(300);

/// The trees of a host.
#[derive(Clone, Debug)]
pub struct Trees {
    root: PathBuf,
    supply: Supply,
}

impl Trees {
    /// Those of this host. Where its own files are missing, a runfile in the cache
    /// will do.
    pub fn host() -> Trees {
        Trees { root: "/".into(), supply: Supply::default() }
    }

    /// The same with runfiles from here.
    #[must_use]
    pub fn with(self, supply: Supply) -> Trees {
        Trees { supply, ..self }
    }

    fn kept(&self, version: &Version) -> PathBuf {
        self.root.join(KEPT).join(version.as_str())
    }

    fn run(&self) -> PathBuf {
        self.root.join(RUN.trim_start_matches('/')).join("driver")
    }

    fn mount_point(&self, version: &Version) -> PathBuf {
        self.run().join(version.as_str())
    }

    fn current(&self) -> PathBuf {
        self.run().join("current")
    }

    fn lock(&self, deadline: &Deadline) -> anyhow::Result<Lock> {
        let path = self.root.join("run/lock/phoenix-nvidia/driver.lock");
        let taken = lock::take(&path, &deadline.at_most(LOCK), |holder| {
            let who = holder.map(|h| format!(" ({h})")).unwrap_or_default();
            log::info!("another process copies the driver{who}; waiting for it");
        });
        Ok(taken?)
    }

    /// Whether containers can bind the tree of `version`, and how: what a start
    /// asks. It looks at four names and no file.
    ///
    /// # Errors
    /// What is lacking.
    pub fn shown(&self, version: &Version) -> Result<Shown, Gap> {
        let device = |path: &Path| std::fs::symlink_metadata(path).ok().map(|meta| meta.dev());
        let kept = device(&self.kept(version)).ok_or(Gap::Tree)?;
        let at = self.mount_point(version);
        let shown = device(&at).ok_or(Gap::Mount)?;
        // Below a mount that is gone lies an empty directory.
        device(&at.join(MARK)).ok_or(Gap::Mount)?;
        match std::fs::read_link(self.current()) {
            Ok(target) if target == Path::new(version.as_str()) => {}
            _ => return Err(Gap::Current),
        }
        Ok(if shown == kept { Shown::Bind } else { Shown::Overlay })
    }

    /// The same, and whether all of its files are there.
    ///
    /// # Errors
    /// What is lacking.
    pub fn check(&self, version: &Version) -> Result<Shown, Gap> {
        let kept = self.kept(version);
        if kept.is_dir() {
            let lacking = Manifest::read(&kept).map_or(1, |manifest| manifest.lacking(&kept).len());
            if lacking > 0 {
                return Err(Gap::Files(lacking));
            }
        }
        self.shown(version)
    }

    /// The same for a report, with what would be done about it.
    pub fn look(&self, version: &Version) -> Looked {
        let shown = self.check(version);
        let lacking = matches!(shown, Err(Gap::Tree));
        let material = lacking.then(|| self.possible(version).map_err(|why| why.root_cause().to_string()));
        Looked { shown, material }
    }

    /// The inode and name of each file of the copy of a version.
    pub fn inodes(&self, version: &Version) -> BTreeSet<(u64, String)> {
        let (mut found, mut waiting) = (BTreeSet::new(), vec![self.kept(version)]);
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                let Ok(meta) = entry.metadata() else { continue };
                if meta.is_dir() {
                    waiting.push(entry.path());
                } else {
                    found.insert((meta.ino(), entry.file_name().to_string_lossy().into_owned()));
                }
            }
        }
        found
    }

    /// What containers bind of a version.
    pub fn shown_at(&self, version: &Version) -> PathBuf {
        self.mount_point(version)
    }

    /// The glibc that the tree of a version needs; `None` where that is not known.
    pub fn glibc(&self, version: &Version) -> Option<Glibc> {
        Manifest::read(&self.kept(version))?.glibc
    }

    /// Makes sure that containers can bind the tree of the loaded driver
    /// `version`; quick where they can already. A tree that is there is taken
    /// as it is.
    ///
    /// # Errors
    /// [`Code::Software`]; `current` is as it was.
    pub fn ensure(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<Shown> {
        if let Ok(shown) = self.shown(version) {
            return Ok(shown);
        }
        self.make(version, deadline)
    }

    /// The same, repairs a tree that lacks files, and adds what the host has gained
    /// since it was made. A container that runs keeps the tree that it has mounted.
    ///
    /// # Errors
    /// [`Code::Software`].
    pub fn make(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<Shown> {
        let done = self.under_lock(version, deadline, |source| {
            // Another process may have done it. For one without an overlay that is tried again.
            let whole = self.check(version) == Ok(Shown::Overlay) && self.gained(version).is_empty();
            if whole && self.shows(version) {
                mount::make_private(&self.mount_point(version))?;
                return Ok(Shown::Overlay);
            }
            let kept = source.and_then(|source| self.keep(version, source, deadline));
            // A tree that could not be repaired has more than none, also for want of its runfile.
            let is_there = Manifest::read(&self.kept(version)).is_some_and(|list| list.version == *version);
            match kept {
                Err(error) if !is_there || exit::interrupted(&error) => Err(error),
                kept => {
                    let shown = self.present(version);
                    kept.and(shown)
                }
            }
        });
        done.map_err(|error| failed(version, error))
    }

    /// Has `current` lead to the copy of a version, mounted.
    fn present(&self, version: &Version) -> anyhow::Result<Shown> {
        let shown = self.show(version)?;
        replace::link_own(&self.current(), Path::new(version.as_str()))?;
        mount::unmount(&self.next())?;
        Ok(shown)
    }

    /// Makes the tree of a version that is not loaded yet, for the next boot.
    ///
    /// # Errors
    /// [`Code::Software`].
    pub fn make_ahead(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<()> {
        let done = self.under_lock(version, deadline, |source| self.keep(version, source?, deadline));
        done.map_err(|error| failed(version, error))
    }

    /// Does it under the lock, with what is to be downloaded here before: nobody who waits
    /// for the lock waits for that. Who downloads nothing looks under the lock alone, since
    /// another process may be making what it would look for. `work` gets what was found, or why
    /// nothing was.
    fn under_lock<T>(
        &self,
        version: &Version,
        deadline: &Deadline,
        work: impl FnOnce(anyhow::Result<Option<Source>>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        if prune::to_put_back(&self.kept(version), version).is_some() {
            let _lock = self.lock(deadline)?;
            self.put_back(version);
        }
        let source = match self.supply.download {
            Ok(_) => self.source(version, deadline),
            Err(_) => Ok(None),
        };
        let _lock = self.lock(deadline)?;
        work(source)
    }

    /// What a tree of `version` would be made of; it looks at no more than names.
    ///
    /// # Errors
    /// [`Code::Software`], as [`Trees::make`].
    pub fn possible(&self, version: &Version) -> anyhow::Result<Possible> {
        if self.kept(version).is_dir() || prune::to_put_back(&self.kept(version), version).is_some() {
            return Ok(Possible::Kept);
        }
        let Err(missing) = find::find(&self.root, version) else { return Ok(Possible::Host) };
        match self.supply.place(version) {
            Ok(place) => Ok(Possible::Runfile(place)),
            Err(remedy) => {
                let why = anyhow::anyhow!("{missing}, and its runfile is not in the cache");
                Err(why.context(cannot(version).remedy(remedy)))
            }
        }
    }

    /// Makes or repairs the copy; under the lock.
    fn keep(&self, version: &Version, source: Option<Source>, deadline: &Deadline) -> anyhow::Result<()> {
        let (kept, at, begun) = (self.kept(version), self.mount_point(version), Instant::now());
        let above = self.root.join(KEPT);
        private::directory(&self.root.join("var/lib/phoenix-nvidia"), 0o755)?;
        private::directory(&above, 0o755)?;
        prune::leftovers(&above);
        let manifest = Manifest::read(&kept).filter(|manifest| manifest.version == *version);
        let lacking = manifest.as_ref().map(|manifest| manifest.lacking(&kept));
        let gained = self.gained(version);
        if !gained.is_empty() && self.grow(version, gained, deadline)? {
            return Ok(());
        }
        if lacking.as_ref().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        // It was whole a moment ago, if nobody looked for what it is made of.
        let source = source.map_or_else(|| self.source(version, deadline), |source| Ok(Some(source)))?;
        let Some(source) = source else { return Ok(()) };
        if let Some(lacking) = lacking {
            copy::repair(&source, &kept, &lacking, deadline)?;
            log::info!("driver {version}: restored {} files of its copy for containers", lacking.len());
            return Ok(());
        }
        // Without its list nobody knows what it is.
        if kept.symlink_metadata().is_ok() {
            prune::make_way(&kept, &at, deadline)?;
        }
        // An overlay of a copy that is gone shows what the kernel remembers of it.
        mount::unmount(&at)?;
        let made = copy::make(&source, version, &kept, deadline).or_else(|error| {
            // Trees that nobody uses may be what fills the disk.
            let current = std::fs::read_link(self.current()).ok();
            let current = current.and_then(|target| target.to_str()?.parse::<Version>().ok());
            let keep: Vec<&Version> = [Some(version), current.as_ref()].into_iter().flatten().collect();
            match self.prune(&keep, deadline) {
                0 => Err(error),
                _ => copy::make(&source, version, &kept, deadline),
            }
        });
        made?;
        let how = match &source {
            Source::Host(_) => "copied".to_owned(),
            Source::Runfile(file) => format!("unpacked from {}", file.display()),
        };
        log::info!("driver {version}: {how} for containers in {}", human(begun.elapsed()));
        Ok(())
    }

    /// Mounts the copy for containers.
    fn show(&self, version: &Version) -> anyhow::Result<Shown> {
        if mountinfo::is_own_namespace(&self.root) {
            let fault = Fault::new(Code::Software, mountinfo::OWN_NAMESPACE);
            return Err(fault.remedy("nsenter -t 1 -m phoenix-nvidia prepare").into());
        }
        let (kept, at, empty) = (self.kept(version), self.mount_point(version), self.run().join("empty"));
        let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev());
        for directory in [&self.root.join(RUN.trim_start_matches('/')), &self.run(), &empty] {
            private::directory(directory, 0o755)?;
        }
        let is_overlay = || Ok::<_, std::io::Error>(device(&at)? != device(&kept)?);
        if mount::is_mounted(&at) && self.shows(version) && is_overlay()? {
            mount::make_private(&at)?;
        } else {
            self.bridge(version, &empty);
            mount::unmount(&at)?;
            private::directory(&at, 0o755)?;
            if let Err(error) = mount::read_only(&kept, &empty, &at, Holds::Programs) {
                log::warn!("no overlay over {}: {error}", kept.display());
                mount::bind_read_only(&kept, &at)?;
            }
        }
        Ok(if is_overlay()? { Shown::Overlay } else { Shown::Bind })
    }

    /// Removes the trees that no process has mounted, except those of `keep`;
    /// returns how many went. One of which nobody knows whether it is used stays.
    pub fn prune(&self, keep: &[&Version], deadline: &Deadline) -> usize {
        prune::prune(&self.root.join(KEPT), &self.run(), keep, deadline)
    }

    /// Whether there is any tree.
    pub fn exist(&self) -> bool {
        self.root.join(KEPT).exists()
    }

    /// The same under the lock, unless another process makes a tree now. Where it is not
    /// known which trees to `keep`, only what was put aside goes.
    pub fn sweep(&self, keep: Option<&[&Version]>, deadline: &Deadline) {
        let path = self.root.join("run/lock/phoenix-nvidia/driver.lock");
        if let Ok(Some(_lock)) = lock::try_take(&path) {
            prune::leftovers(&self.root.join(KEPT));
            self.unbridge();
            let all = prune::versions(&self.root.join(KEPT));
            let all: Vec<&Version> = all.iter().collect();
            let keep = keep.unwrap_or(&all);
            keep.iter().for_each(|version| self.put_back(version));
            self.prune(keep, deadline);
        }
    }
}

fn cannot(version: &Version) -> Fault {
    Fault::new(Code::Software, format!("cannot give driver {version} of this host to containers"))
}

/// The fault of a tree that was not made. An error that knows its own remedy keeps it.
fn failed(version: &Version, error: anyhow::Error) -> anyhow::Error {
    let fault = cannot(version);
    match exit::remedy_of(&error) {
        Some(_) => fault.caused_by(error),
        None => fault.remedy(supply::remedy(&error)).caused_by(error),
    }
}

#[cfg(test)]
#[path = "tree/tests.rs"]
mod tests;
