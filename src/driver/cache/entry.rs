//! One runfile of the cache: taken from it, or fetched and checked.

use crate::driver::cache::Cache;
use crate::driver::cache::Order;
use crate::driver::cache::Runfile;
use crate::driver::desired::Sha256;
use crate::driver::progress::Progress;
use crate::driver::runfile;
use crate::driver::template::Facts;
use crate::exit::{Code, Fault};
use crate::guest::os::runfile_arch;
use crate::sys::fetch::{self, Client, FetchError, Watch, Way};
use crate::sys::file;
use crate::sys::replace::replace_own;
use crate::sys::time::{Deadline, human};
use crate::sys::url::Url;
use crate::types::Version;
use anyhow::Context as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Space that a download leaves free, in bytes.
const RESERVE: u64 = 128 << 20;
/// A published checksum file is one line, in bytes.
const SUM_LIMIT: usize = 16 * 1024;

/// Beside each file: what was checked, so that the next use need not read
/// 400 MB again.
pub(super) fn record(path: &Path) -> PathBuf {
    path.with_extension("run.checked")
}

/// One file of the cache, while its lock is held.
pub(super) struct Entry<'a> {
    pub(super) path: PathBuf,
    pub(super) cache: &'a Cache,
}

impl Entry<'_> {
    /// The file as an earlier run left it, if it is good.
    pub(super) fn cached(&self, order: &Order<'_>) -> anyhow::Result<Option<Runfile>> {
        let mut file = match fetch::open_regular(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.path.display().to_string()),
        };
        let sha256 = match self.recorded(&file) {
            Some(sum) => sum,
            None => match runfile::check(&mut file, order.version, runfile_arch()) {
                Ok(sum) => sum,
                Err(why) => return self.drop_bad(&format!("{why:#}")).map(|()| None),
            },
        };
        match order.sha256 {
            Some(wanted) if *wanted != sha256 => {
                let why = format!("NVIDIA_RUNFILE_SHA256 is {wanted}, the file's is {sha256}");
                self.drop_bad(&why).map(|()| None)
            }
            _ => {
                self.remember(&file, &sha256);
                let size = file.metadata()?.len();
                log::debug!("cache: {} is there and was checked", self.path.display());
                Ok(Some(Runfile { path: self.path.clone(), size, sha256, fresh: false }))
            }
        }
    }

    /// A file that is not what it should be is never offered again.
    fn drop_bad(&self, why: &str) -> anyhow::Result<()> {
        log::warn!("cache: removing {}: {why}", self.path.display());
        let _ = std::fs::remove_file(record(&self.path));
        std::fs::remove_file(&self.path).with_context(|| self.path.display().to_string())
    }

    /// The checksum of an earlier check, if it was of this very file.
    fn recorded(&self, file: &File) -> Option<Sha256> {
        let text = file::text(&record(&self.path), 4096).ok()?;
        let (sum, rest) = text.trim().split_once(' ')?;
        (rest == identity(file)?).then(|| sum.parse().ok()).flatten()
    }

    fn remember(&self, file: &File, sum: &Sha256) {
        let Some(identity) = identity(file) else { return };
        let text = format!("{sum} {identity}\n");
        if let Err(error) = replace_own(&record(&self.path), text.as_bytes(), 0o644) {
            log::debug!("{}: {error}", record(&self.path).display());
        }
    }

    pub(super) fn fetch(&self, order: &Order<'_>, deadline: &Deadline) -> anyhow::Result<Runfile> {
        let facts = Facts { version: order.version, arch: runfile_arch(), distro: None };
        let url = order.url.fill(&facts)?;
        match self.fetch_from(&url, order, deadline) {
            Err(error) if is_missing(&error) => match elsewhere(&url, order.version) {
                Some(other) => {
                    log::info!("download: {url} is not there, trying {other}");
                    self.fetch_from(&other, order, deadline).map_err(|second| {
                        if is_missing(&second) { error.context(format!("{second:#}")) } else { second }
                    })
                }
                None => Err(error),
            },
            other => other,
        }
    }

    fn fetch_from(&self, url: &Url, order: &Order<'_>, deadline: &Deadline) -> anyhow::Result<Runfile> {
        let part = self.path.with_extension("run.part");
        let client = self.cache.client(order.limits);
        // Without a checksum in the settings the way is all that vouches for it.
        let way = if order.sha256.is_some() { Way::Any } else { Way::Trusted };
        let download = fetch::Order { url, way, part: &part, max: order.limits.download_max };
        for last in [false, true] {
            let started = Instant::now();
            let begun = part.exists();
            let mut watch = Download::new(self, order.version);
            let resumed = match fetch::download(&client, &download, deadline, &mut watch) {
                Ok(resumed) => resumed,
                // The beginning of an earlier call: once more from the start.
                Err(FetchError::Refused(..)) if begun && !last => continue,
                Err(error) => return Err(self.fault_of(error, order)),
            };
            drop(watch);
            let took = started.elapsed();
            match self.accept(&part, url, order, &client, deadline) {
                Ok(runfile) => {
                    let size = fetch::size(runfile.size);
                    log::info!("download: {url}, {size} in {}, checked", human(took));
                    return Ok(runfile);
                }
                Err(Refused::Local(error)) => return Err(error),
                Err(Refused::Bad(why)) => {
                    let _ = std::fs::remove_file(&part);
                    if !resumed || last {
                        return Err(refusal(url, &why));
                    }
                    // Bytes of two different files: once more from the start.
                    log::info!("download: {url}: {why:#}; fetching it again from the start");
                }
            }
        }
        anyhow::bail!("{url}: not reached")
    }

    /// What a failed download is to who reads it.
    fn fault_of(&self, error: FetchError, order: &Order<'_>) -> anyhow::Error {
        let directory = self.cache.directory.display();
        let fault = |what: String| Fault::new(Code::Software, format!("{what}: {error}"));
        match &error {
            FetchError::Refused(url, why) => refusal(url, &anyhow::anyhow!("{why}")),
            FetchError::Full(..) => fault(format!("no room for the runfile in {directory}"))
                .remedy(format!("df -h {directory} && du -xh --max-depth=2 /var | sort -h | tail"))
                .into(),
            FetchError::TooLarge(..) => {
                let mib = order.limits.download_max >> 20;
                fault(format!("DOWNLOAD_MAX is {mib} MiB"))
                    .remedy("check NVIDIA_RUNFILE_URL; if it is right, set a larger DOWNLOAD_MAX in /etc/default/phoenix-nvidia")
                    .into()
            }
            FetchError::Untrusted(..) | FetchError::Redirect(..) => {
                fault("NVIDIA_RUNFILE_URL is not safe to use".into())
                    .remedy("use https://, or set NVIDIA_RUNFILE_SHA256 to the runfile's checksum")
                    .into()
            }
            _ => error.into(),
        }
    }

    /// Checks what came, and makes it the cache's if it is good.
    fn accept(
        &self,
        part: &Path,
        url: &Url,
        order: &Order<'_>,
        client: &Client,
        deadline: &Deadline,
    ) -> Result<Runfile, Refused> {
        let local =
            |error: io::Error| Refused::Local(anyhow::Error::new(error).context(part.display().to_string()));
        let mut file = fetch::open_regular(part).map_err(local)?;
        let sha256 = runfile::check(&mut file, order.version, runfile_arch()).map_err(Refused::Bad)?;
        match order.sha256 {
            Some(wanted) if *wanted != sha256 => {
                let why = format!("its SHA-256 is {sha256}, NVIDIA_RUNFILE_SHA256 is {wanted}");
                return Err(Refused::Bad(anyhow::anyhow!(why)));
            }
            Some(_) => {}
            None => published(client, url, &sha256, deadline)?,
        }
        let size = file.metadata().map_err(local)?.len();
        #[allow(clippy::disallowed_methods)] // the part is whole and synced, its name ours under the lock
        std::fs::rename(part, &self.path).map_err(local)?;
        self.remember(&file, &sha256);
        Ok(Runfile { path: self.path.clone(), size, sha256, fresh: true })
    }
}

/// Why a download was not taken.
enum Refused {
    /// The file is not what it should be.
    Bad(anyhow::Error),
    /// We could not look, or keep it.
    Local(anyhow::Error),
}

fn refusal(url: &dyn std::fmt::Display, why: &anyhow::Error) -> anyhow::Error {
    Fault::new(Code::Software, format!("{url} is refused and was deleted, it was not run: {why:#}"))
        .remedy(
            "check NVIDIA_RUNFILE_URL (and NVIDIA_RUNFILE_SHA256, if it is set) and the way to that server",
        )
        .into()
}

/// Compares with the checksum that is published beside the file. One that
/// cannot be had is a warning, since mirrors often lack it.
fn published(client: &Client, url: &Url, sum: &Sha256, deadline: &Deadline) -> Result<(), Refused> {
    let sum_url = url.with_suffix(".sha256sum");
    let text = match fetch::small(client, &sum_url, Way::Trusted, SUM_LIMIT, deadline) {
        Ok(text) => text,
        Err(FetchError::Interrupted(signal)) => return Err(Refused::Local(anyhow::Error::new(signal))),
        Err(error) if url.local().is_some() => {
            log::debug!("download: no published checksum: {error}");
            return Ok(());
        }
        Err(error) => {
            log::warn!(
                "download: no published checksum to compare with ({error}); the header's own sums are right"
            );
            return Ok(());
        }
    };
    match Sha256::published(&text) {
        Some(published) if published == *sum => Ok(()),
        Some(published) => {
            Err(Refused::Bad(anyhow::anyhow!("its SHA-256 is {sum}, {sum_url} says {published}")))
        }
        None => Err(Refused::Bad(anyhow::anyhow!("{sum_url} holds no SHA-256 checksum"))),
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref().is_some_and(FetchError::is_missing))
}

/// The datacenter branch's place at the same server: many drivers of H100 and
/// H200 are only there.
fn elsewhere(url: &Url, version: &Version) -> Option<Url> {
    let usual = format!("/XFree86/Linux-{}/{version}/", runfile_arch());
    url.map_path(|path| {
        path.contains(&usual).then(|| path.replacen(&usual, &format!("/tesla/{version}/"), 1))
    })
}

/// What tells this file from one that was put in its place since.
fn identity(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    Some(format!("{} {} {}.{:09}", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

/// Watches a download: space before it, progress, trouble.
struct Download<'a> {
    entry: &'a Entry<'a>,
    version: &'a Version,
    progress: Progress,
}

impl<'a> Download<'a> {
    fn new(entry: &'a Entry<'a>, version: &'a Version) -> Self {
        Download { entry, version, progress: Progress::new(format!("download: driver {version}")) }
    }
}

impl Watch for Download<'_> {
    fn room(&mut self, more: u64) -> io::Result<()> {
        let directory = &self.entry.cache.directory;
        let need = more.saturating_add(RESERVE);
        if free_space(directory)? < need {
            self.entry.cache.make_room(self.version);
        }
        let free = free_space(directory)?;
        if free < need {
            let (need, free) = (fetch::size(need), fetch::size(free));
            let why = format!("needs {need}, only {free} are free in {}", directory.display());
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(())
    }

    fn begins(&mut self, bytes: &[u8]) -> Result<bool, String> {
        runfile::begins(bytes, self.version, runfile_arch()).map_err(|why| format!("{why:#}"))
    }

    fn progress(&mut self, got: u64, of: Option<u64>) {
        self.progress.at(got, of);
    }

    fn retry(&mut self, trouble: &FetchError) {
        log::warn!("download: {trouble}; trying again");
    }
}

fn free_space(directory: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(directory)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
