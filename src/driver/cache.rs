//! The runfiles on this node: where they are, and which are no longer needed.

use crate::driver::desired::Limits;
use crate::driver::source;
use crate::driver::template::RUNFILE_ARCH;
use crate::pve::datacenter;
use crate::sys::fetch::Client;
use crate::sys::lock::{self, Lock};
use crate::sys::look::View;
use crate::sys::time::{Deadline, human};
use crate::sys::url::Url;
use crate::types::Version;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the runfiles are kept.
const DIRECTORY: &str = "/var/cache/phoenix-nvidia";
/// The locks of downloads; nobody needs them after a reboot.
const LOCKS: &str = "/run/lock/phoenix-nvidia";
/// How many versions stay, besides those in use.
const KEEP: usize = 2;
/// How long the proxy's file is waited for.
const PROXY: Duration = Duration::from_secs(5);
/// How long an interrupted download is kept to be resumed.
const STALE: Duration = Duration::from_secs(86_400);

/// The cache of this node.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(super) directory: PathBuf,
    pub(super) locks: PathBuf,
    /// The proxy, read only where there is a download.
    pub(super) proxy: fn(View<'_>) -> Option<Url>,
    /// The architecture of its runfiles.
    pub(super) arch: &'static str,
    /// How directories and files of this host are read that may not answer.
    pub(super) view: fn(&Deadline) -> View<'static>,
}

impl Cache {
    /// This node's, with the proxy of datacenter.cfg, since a hook's
    /// environment has none.
    pub fn system() -> Self {
        Cache { proxy: datacenter::proxy, ..Cache::without_network() }
    }

    /// The same for what is in it already.
    pub fn without_network() -> Self {
        let (directory, locks) = (DIRECTORY.into(), LOCKS.into());
        Cache { directory, locks, proxy: |_| None, arch: RUNFILE_ARCH, view: View::host_until }
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How to reach servers. /etc/pve has the proxy, and may not answer: nobody waits for
    /// that longer than seconds.
    pub fn client(&self, limits: &Limits, deadline: &Deadline) -> Client {
        let proxy = (self.proxy)((self.view)(&deadline.at_most(PROXY)));
        Client { connect: limits.connect, stall: limits.stall, proxy }
    }

    /// The same for a file of this host.
    pub(super) fn local(limits: &Limits) -> Client {
        Client { connect: limits.connect, stall: limits.stall, proxy: None }
    }

    /// The file of a version, whether it exists or not.
    pub(super) fn file(&self, version: &Version) -> PathBuf {
        self.directory.join(source::name(version, self.arch))
    }

    /// The lock of a version: one process downloads it, the others wait for the
    /// result.
    pub(super) fn lock(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<Lock> {
        let since = Instant::now();
        let mut waited = false;
        let lock = lock::take(&self.lock_file(&self.file(version)), deadline, |holder| {
            waited = true;
            let who = holder.map(|h| format!(" by {h}")).unwrap_or_default();
            log::info!("download: driver {version} is being fetched{who}; waiting");
        })?;
        if waited {
            log::debug!("download: waited {}", human(since.elapsed()));
        }
        Ok(lock)
    }

    /// The lock of a file, if nobody is downloading it.
    pub(super) fn free(&self, path: &Path) -> Option<Lock> {
        lock::try_take(&self.lock_file(path)).ok().flatten()
    }

    fn lock_file(&self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.locks.join(format!("{name}.lock"))
    }

    /// Removes the runfiles that are no longer needed: the newest two and those
    /// in `keep` stay. Who has a file open can still read it.
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

    /// Frees space for the download of one version: prunes, and removes every
    /// other interrupted download, however recent.
    pub(super) fn make_room(&self, wanted: &Version) {
        self.prune(&[wanted]);
        self.prune_parts(&[wanted], Duration::ZERO);
    }

    /// Removes interrupted downloads that nobody resumed for so long.
    fn prune_parts(&self, keep: &[&Version], stale: Duration) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for part in entries.filter_map(Result::ok) {
            let name = part.file_name().to_string_lossy().into_owned();
            let ends = [".part", ".part.from", ".inner"];
            let Some(whole) = ends.iter().find_map(|end| name.strip_suffix(end)) else { continue };
            let Some(version) = version_of(whole) else { continue };
            let age = part.metadata().and_then(|m| m.modified()).map(|at| at.elapsed().unwrap_or_default());
            let old = age.is_ok_and(|age| age >= stale);
            if !old || keep.contains(&&version) {
                continue;
            }
            if let Some(_lock) = self.free(Path::new(whole)) {
                log::debug!("cache: removing {}", part.path().display());
                let _ = std::fs::remove_file(part.path());
            }
        }
    }
}

/// What was verified of a file, so that 400 MB are not read at each use.
pub(super) fn record(path: &Path) -> PathBuf {
    path.with_extension("run.checked")
}

/// The version in a runfile's name.
pub(super) fn version_of(name: &str) -> Option<Version> {
    let rest = name.strip_prefix("NVIDIA-Linux-")?.strip_suffix(".run")?;
    rest.split_once('-')?.1.parse().ok()
}
