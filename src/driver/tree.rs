//! Driver trees: the host's user space of one driver version, copied once and
//! bound into containers.
//!
//! | path | what |
//! | --- | --- |
//! | `/var/lib/phoenix-nvidia/driver/VERSION` | the copy: libraries at the top, `bin/` and `share/` below |
//! | `/run/phoenix-nvidia/driver/VERSION` | the same behind a read-only overlay, which no container can write through |
//! | `/run/phoenix-nvidia/driver/current` | a link to the version that the loaded kernel driver has |

mod copy;
mod elf;
mod find;
mod manifest;
mod prune;

pub use elf::Glibc;
pub use manifest::{Manifest, NAME as MARK};

use crate::exit::{self, Code, Fault};
use crate::pve::conf::mounts::RUN;
use crate::sys::lock::{self, Lock};
use crate::sys::mount::{self, Holds};
use crate::sys::time::{Deadline, human};
use crate::sys::{mountinfo, private, replace};
use crate::types::Version;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where copies are kept, below the root.
const KEPT: &str = "var/lib/phoenix-nvidia/driver";
/// The longest wait for another process that makes a tree; the caller's deadline
/// applies too.
const LOCK: Duration = Duration::from_secs(300);

/// The source of a container's mount.
pub fn source() -> String {
    format!("{RUN}/driver/current")
}

/// The ends of the places where containers have a tree: those that glibc looks at.
pub const HWCAPS: [&str; 2] = ["glibc-hwcaps/x86-64-v2", "x86_64"];
/// One that nothing looks at without the drop-in.
pub const OWN: &str = "phoenix-nvidia";

/// The version of the tree that a mount table shows, if any.
pub fn mounted(table: &str) -> Option<Version> {
    let below = |path: &str| path.rsplit_once("/phoenix-nvidia/driver/")?.1.parse::<Version>().ok();
    // Of a bind mount it has the path within the file system, which may begin anywhere above.
    let bound = |mount: &mountinfo::Mounted<'_>| {
        let is_place = HWCAPS.iter().chain([&OWN]).any(|end| mount.at.ends_with(end));
        mount.root.rsplit_once('/').filter(|_| is_place)?.1.parse::<Version>().ok()
    };
    mountinfo::mounts(table).find_map(|mount| {
        mount.lower().find_map(below).or_else(|| below(mount.root)).or_else(|| bound(&mount))
    })
}

/// The trees of a host.
#[derive(Clone, Debug)]
pub struct Trees {
    root: PathBuf,
}

/// How a tree is shown to containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Behind an overlay.
    Overlay,
    /// By a bind mount: the kernel has no overlayfs that can be used here.
    Bind,
}

/// What is not there of a version's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Nobody made it.
    Tree,
    /// It lacks so many files.
    Files(usize),
    /// It is not mounted: nothing to bind.
    Mount,
    /// `current` leads to another version, or nowhere.
    Current,
}

impl Gap {
    /// In words.
    pub fn of(&self, version: &Version) -> String {
        match self {
            Gap::Tree => format!("no copy of driver {version} for containers"),
            Gap::Files(count) => format!("the copy of driver {version} for containers lacks {count} files"),
            Gap::Mount => format!("the copy of driver {version} for containers is not mounted"),
            Gap::Current => format!("{} does not lead to driver {version}", source()),
        }
    }
}

impl Trees {
    /// Those of this host.
    pub fn host() -> Trees {
        Trees { root: "/".into() }
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

    /// The same, and repairs a tree that lacks files.
    ///
    /// # Errors
    /// [`Code::Software`].
    pub fn make(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<Shown> {
        let done = self.lock(deadline).and_then(|_lock| {
            // Another process may have done it. For one without an overlay that is tried again.
            if self.check(version) == Ok(Shown::Overlay) {
                mount::make_private(&self.mount_point(version))?;
                return Ok(Shown::Overlay);
            }
            self.keep(version, deadline)?;
            let shown = self.show(version)?;
            replace::link_own(&self.current(), Path::new(version.as_str()))?;
            Ok(shown)
        });
        done.map_err(|error| {
            // One that knows its own remedy keeps it.
            if exit::remedy_of(&error).is_some() {
                return cannot(version).caused_by(error);
            }
            let missing = find::find(&self.root, version).err();
            let remedy =
                missing.map_or_else(|| "phoenix-nvidia prepare".to_owned(), |it| remedy(version, &it));
            cannot(version).remedy(remedy).caused_by(error)
        })
    }

    /// Whether the host has what a tree of `version` is made of.
    ///
    /// # Errors
    /// [`Code::Software`], as [`Trees::make`].
    pub fn possible(&self, version: &Version) -> anyhow::Result<()> {
        if self.kept(version).is_dir() {
            return Ok(());
        }
        match find::find(&self.root, version) {
            Ok(_) => Ok(()),
            Err(missing) => {
                let why = anyhow::anyhow!("{missing}");
                Err(why.context(cannot(version).remedy(remedy(version, &missing))))
            }
        }
    }

    /// Makes or repairs the copy; under the lock.
    fn keep(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<()> {
        let (kept, at, begun) = (self.kept(version), self.mount_point(version), Instant::now());
        let above = self.root.join(KEPT);
        private::directory(&self.root.join("var/lib/phoenix-nvidia"), 0o755)?;
        private::directory(&above, 0o755)?;
        prune::leftovers(&above);
        if let Some(manifest) = Manifest::read(&kept).filter(|manifest| manifest.version == *version) {
            let lacking = manifest.lacking(&kept);
            if !lacking.is_empty() {
                // What an overlay does not find it may go on not to find.
                mount::unmount(&at)?;
                copy::repair(&self.root, &kept, &lacking, deadline)?;
                log::info!("driver {version}: restored {} files of its copy for containers", lacking.len());
            }
            return Ok(());
        }
        // Without its list nobody knows what it is.
        if kept.symlink_metadata().is_ok() {
            prune::make_way(&kept, &at)?;
        }
        // An overlay of a copy that is gone shows what the kernel remembers of it.
        mount::unmount(&at)?;
        let made = copy::make(&self.root, version, &kept, deadline).or_else(|error| {
            // Trees that nobody uses may be what fills the disk.
            match self.prune(&[version]) {
                0 => Err(error),
                _ => copy::make(&self.root, version, &kept, deadline),
            }
        });
        made?;
        log::info!("driver {version}: copied for containers in {}", human(begun.elapsed()));
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
        if at.join(MARK).exists() && mount::is_mounted(&at) && is_overlay()? {
            mount::make_private(&at)?;
        } else {
            mount::unmount(&at)?;
            private::directory(&at, 0o755)?;
            if let Err(error) = mount::read_only(&kept, &empty, &at, Holds::Programs) {
                log::warn!("no overlay over {}: {error}", kept.display());
                mount::bind_read_only(&kept, &at)?;
            }
        }
        Ok(if is_overlay()? { Shown::Overlay } else { Shown::Bind })
    }

    /// Removes the trees that no mount namespace uses, except those of `keep`;
    /// returns how many went. One of which nobody knows whether it is used stays.
    pub fn prune(&self, keep: &[&Version]) -> usize {
        prune::prune(&self.root.join(KEPT), &self.run(), keep)
    }

    /// Whether there is any tree.
    pub fn exist(&self) -> bool {
        self.root.join(KEPT).exists()
    }

    /// The same under the lock, unless another process makes a tree now.
    pub fn sweep(&self, keep: &[&Version]) {
        let path = self.root.join("run/lock/phoenix-nvidia/driver.lock");
        if let Ok(Some(_lock)) = lock::try_take(&path) {
            prune::leftovers(&self.root.join(KEPT));
            self.prune(keep);
        }
    }
}

fn cannot(version: &Version) -> Fault {
    Fault::new(Code::Software, format!("cannot give driver {version} of this host to containers"))
}

fn remedy(version: &Version, missing: &find::Missing) -> String {
    match missing.other {
        Some(_) => "reboot".to_owned(),
        None => format!("install the user space of NVIDIA driver {version} on this host"),
    }
}

#[cfg(test)]
#[path = "tree/tests.rs"]
mod tests;
