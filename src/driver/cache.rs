//! The runfiles on this node: each downloaded once, checked before it is
//! offered, for any number of containers.

mod entry;

use crate::driver::desired::Limits;
use crate::driver::desired::Sha256;
use crate::driver::template::Template;
use crate::exit::{Code, Context as _, Fault};
use crate::guest::os::runfile_arch;
use crate::sys::fetch::Client;
use crate::sys::lock::{self, Lock};
use crate::sys::time::{Deadline, human};
use crate::sys::url::Url;
use crate::types::Version;
use anyhow::Context as _;
use entry::{Entry, record};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the runfiles are kept.
const DIRECTORY: &str = "/var/cache/phoenix-nvidia";
/// Where a download is locked: what a reboot leaves there, nobody needs.
const LOCKS: &str = "/run/lock/phoenix-nvidia";
/// How many versions stay, besides those in use.
const KEEP: usize = 2;
/// How long a download that was broken off may be gone on with.
const STALE: Duration = Duration::from_secs(86_400);

/// The cache of this node.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
    locks: PathBuf,
    proxy: Option<Url>,
}

/// A runfile that was checked.
#[derive(Clone, Debug)]
pub struct Runfile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its checksum, which the copy in the container must have.
    pub sha256: Sha256,
    /// Whether it had to be downloaded now.
    pub fresh: bool,
}

/// What to fetch, and from where.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// The driver's version.
    pub version: &'a Version,
    /// Where it is published.
    pub url: &'a Template,
    /// Its checksum, if the settings name one.
    pub sha256: Option<&'a Sha256>,
    /// How long things may take.
    pub limits: &'a Limits,
}

impl Cache {
    /// This node's, with the proxy that Proxmox knows of, since a hook's
    /// environment names none.
    pub fn system() -> Self {
        let proxy = crate::pve::datacenter::datacenter_proxy(Path::new("/"));
        Cache { directory: DIRECTORY.into(), locks: LOCKS.into(), proxy }
    }

    /// One in another directory, for tests.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Cache { locks: directory.join("locks"), directory, proxy: None }
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How servers are reached.
    pub fn client(&self, limits: &Limits) -> Client {
        Client { connect: limits.connect, stall: limits.stall, proxy: self.proxy.clone() }
    }

    /// The runfile, from the cache or freshly downloaded and checked.
    ///
    /// # Errors
    /// [`Code::Software`], saying what was wrong with what the server sent,
    /// or that it sent nothing.
    pub fn obtain(&self, order: &Order<'_>) -> anyhow::Result<Runfile> {
        let name = format!("NVIDIA-Linux-{}-{}.run", runfile_arch(), order.version);
        let fault = || Fault::new(Code::Software, format!("driver {} cannot be fetched", order.version));
        let deadline = Deadline::after(order.limits.download);
        std::fs::create_dir_all(&self.directory)
            .with_context(|| self.directory.display().to_string())
            .fault(fault)?;
        let _lock = self.lock(&name, order.version, &deadline).fault(fault)?;
        let entry = Entry { path: self.directory.join(&name), cache: self };
        if let Some(runfile) = entry.cached(order).fault(fault)? {
            return Ok(runfile);
        }
        entry.fetch(order, &deadline).fault(fault)
    }

    /// One download of a file at a time, the others wait for its result.
    fn lock(&self, name: &str, version: &Version, deadline: &Deadline) -> anyhow::Result<Lock> {
        let path = self.locks.join(format!("{name}.lock"));
        let since = Instant::now();
        let mut waited = false;
        let lock = lock::take(&path, deadline, |holder| {
            waited = true;
            let who = holder.map(|h| format!(" by {h}")).unwrap_or_default();
            log::info!("download: driver {version} is being fetched{who}, waiting for it");
        })?;
        if waited {
            log::debug!("download: waited {}", human(since.elapsed()));
        }
        Ok(lock)
    }

    /// Removes the runfiles that nobody needs: keeps the newest two and those
    /// named. A file that is being copied somewhere stays readable for whom
    /// has it open.
    pub fn prune(&self, keep: &[&Version]) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        let mut found: Vec<(Version, PathBuf)> = entries
            .filter_map(Result::ok)
            .filter_map(|e| Some((version_of(e.file_name().to_str()?)?, e.path())))
            .collect();
        found.sort_by(|a, b| b.0.numbers().cmp(a.0.numbers()));
        for (version, path) in found.into_iter().skip(KEEP) {
            if keep.contains(&&version) {
                continue;
            }
            let Some(_lock) = self.free(&path) else { continue };
            match std::fs::remove_file(&path) {
                Ok(()) => log::info!("cache: removed {}, no longer needed", path.display()),
                Err(error) => log::warn!("{}: {error}", path.display()),
            }
            let _ = std::fs::remove_file(record(&path));
        }
        self.prune_parts(keep, STALE);
    }

    /// Makes room for the download of one version: what nobody needs goes, and
    /// so does what is left of other downloads, be it new.
    fn make_room(&self, wanted: &Version) {
        self.prune(&[wanted]);
        self.prune_parts(&[wanted], Duration::ZERO);
    }

    /// Downloads that were broken off and that nobody has gone on with for a
    /// while: a driver that was never wanted again.
    fn prune_parts(&self, keep: &[&Version], stale: Duration) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for part in entries.filter_map(Result::ok) {
            let name = part.file_name().to_string_lossy().into_owned();
            let Some(whole) = name.strip_suffix(".part").or(name.strip_suffix(".part.from")) else {
                continue;
            };
            let Some(version) = version_of(whole) else { continue };
            let age = part.metadata().and_then(|m| m.modified()).map(|at| at.elapsed().unwrap_or_default());
            let old = age.is_ok_and(|age| age >= stale);
            if !old || keep.contains(&&version) {
                continue;
            }
            if let Some(_lock) = self.free(&self.directory.join(whole)) {
                log::debug!("cache: removing {}", part.path().display());
                let _ = std::fs::remove_file(part.path());
            }
        }
    }

    /// The lock on this file, if nobody is downloading it.
    fn free(&self, path: &Path) -> Option<Lock> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        lock::try_take(&self.locks.join(format!("{name}.lock"))).ok().flatten()
    }
}

/// The version in a runfile's name.
fn version_of(name: &str) -> Option<Version> {
    let rest = name.strip_prefix("NVIDIA-Linux-")?.strip_suffix(".run")?;
    rest.split_once('-')?.1.parse().ok()
}

#[cfg(test)]
mod tests;
