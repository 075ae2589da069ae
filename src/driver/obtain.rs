//! A verified runfile: from the cache, or downloaded once for all containers.

mod fault;
mod inner;
mod known;

use crate::driver::cache::{Cache, record};
use crate::driver::desired::{Limits, Sha256};
use crate::driver::progress::DownloadProgress;
use crate::driver::runfile;
use crate::driver::source;
use crate::driver::template::Template;
use crate::exit::{self, Code, Fault};
use crate::sys::fetch::{self, Client, FetchError, Transport, Watch};
use crate::sys::file;
use crate::sys::sums::Sums;
use crate::sys::text::size;
use crate::sys::time::{Deadline, human, is_late};
use crate::sys::url::Url;
use crate::types::Version;
use anyhow::Context as _;
use fault::Unaccepted;
pub use fault::lacked_time;
use known::Known;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Space that a download leaves free, in bytes.
const RESERVE: u64 = 128 << 20;
/// How long a directory is searched.
const SEARCH: Duration = Duration::from_secs(30);
/// The size limit of a published checksum file, in bytes.
const SUM_LIMIT: usize = 16 * 1024;

/// The runfile to obtain.
#[derive(Clone, Debug)]
pub struct RunfileRequest<'a> {
    /// The driver version.
    pub version: &'a Version,
    /// Its URL.
    pub url: &'a Template,
    /// Its checksum, if set.
    pub sha256: Option<&'a Sha256>,
    /// The limits of a download.
    pub limits: &'a Limits,
}

/// A verified runfile.
#[derive(Clone, Debug)]
pub struct Runfile {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its checksum, which the copy in the container must have.
    pub sha256: Sha256,
    /// Whether it was downloaded now.
    pub fresh: bool,
}

/// The runfile, from the cache or downloaded and verified.
///
/// # Errors
/// [`Code::Software`]: the download failed, or the file is not what was asked
/// for.
pub fn obtain(cache: &Cache, request: &RunfileRequest<'_>) -> anyhow::Result<Runfile> {
    had(cache, request).map_err(|error| {
        let what = if request.url.is_local() { "no runfile of driver" } else { "cannot download driver" };
        let fault = Fault::new(Code::Software, format!("{what} {}", request.version));
        if lacked_time(&error) && exit::remedy_of(&error).is_none() {
            return fault.remedy(fault::longer(request.version, request.limits.download)).caused_by(error);
        }
        fault.caused_by(error)
    })
}

fn had(cache: &Cache, request: &RunfileRequest<'_>) -> anyhow::Result<Runfile> {
    let deadline = Deadline::after(request.limits.download);
    std::fs::create_dir_all(cache.directory()).with_context(|| cache.directory().display().to_string())?;
    let path = cache.file(request.version);
    let _lock = cache.lock(request.version, &deadline)?;
    let entry = CacheEntry { path, cache, request };
    match entry.cached(&deadline)? {
        Some(runfile) => Ok(runfile),
        None => entry.fetch(&deadline),
    }
}

/// The runfile that is in the cache. No download is waited for, but who reads the
/// file that is there; nothing is removed.
///
/// # Errors
/// There is none, it is not good, or the time is over.
pub fn cached(
    cache: &Cache,
    version: &Version,
    sha256: Option<&Sha256>,
    deadline: &Deadline,
) -> anyhow::Result<Runfile> {
    let path = cache.file(version);
    let open = || {
        file::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!("its runfile is not in the cache"),
            _ => anyhow::Error::new(error).context(path.display().to_string()),
        })
    };
    // A download takes its lock before there is a file.
    drop(open()?);
    let _lock = cache.lock(version, deadline)?;
    // What was not good is gone by now.
    let (mut file, _) = open()?;
    let sum = match Known::recorded(&path, &file) {
        Some(sums) => sums,
        None => Known::of(
            runfile::check(&mut file, version, cache.arch, deadline)
                .with_context(|| path.display().to_string())?,
        ),
    };
    accept(&path, &file, sum.expected(sha256)?, false)
}

/// One file of the cache, while its lock is held.
struct CacheEntry<'a> {
    path: PathBuf,
    cache: &'a Cache,
    request: &'a RunfileRequest<'a>,
}

impl CacheEntry<'_> {
    /// The file of an earlier run, if it is good.
    fn cached(&self, deadline: &Deadline) -> anyhow::Result<Option<Runfile>> {
        let mut file = match fetch::open_regular(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.path.display().to_string()),
        };
        let sum = Known::recorded(&self.path, &file).map_or_else(|| self.check(&mut file, deadline), Ok);
        match sum.and_then(|sum| sum.expected(self.request.sha256)) {
            Ok(sum) => {
                log::debug!("cache: using {}", self.path.display());
                accept(&self.path, &file, sum, false).map(Some)
            }
            Err(why) if exit::interrupted(&why) || is_late(&why) => Err(why),
            Err(why) => {
                log::warn!("cache: removing {}: {why:#}", self.path.display());
                let _ = std::fs::remove_file(record(&self.path));
                std::fs::remove_file(&self.path).with_context(|| self.path.display().to_string())?;
                Ok(None)
            }
        }
    }

    /// Verifies a file against its header and the version.
    fn check(&self, file: &mut File, deadline: &Deadline) -> anyhow::Result<Known> {
        runfile::check(file, self.request.version, self.cache.arch, deadline).map(Known::of)
    }

    /// The runfile in a file around it, in its place, with the checksums of both.
    fn unwrap(&self, part: &Path, file: &File, start: u64, deadline: &Deadline) -> anyhow::Result<Known> {
        let outer = Sha256(Sums::of(file, 0, deadline)?.sha256);
        let (most, temp) = (self.request.limits.download_max, part.with_extension("inner"));
        let room = |bytes| Download::new(self.cache, self.request.version, true).room(bytes);
        let _ = std::fs::remove_file(&temp);
        let mut new = File::options().read(true).write(true).create_new(true).open(&temp)?;
        let checked = inner::unwrap(file, start, &new, most, room, deadline)
            .and_then(|()| Ok(new.sync_all()?))
            .and_then(|()| self.check(&mut new, deadline));
        let known = checked.inspect_err(|_| drop(std::fs::remove_file(&temp)))?;
        #[allow(clippy::disallowed_methods)] // whole and synced, both names ours under the lock
        std::fs::rename(&temp, part)?;
        Ok(Known { outer: Some(outer), ..known })
    }

    /// From the first of its URLs that has it.
    fn fetch(&self, deadline: &Deadline) -> anyhow::Result<Runfile> {
        let (version, arch) = (self.request.version, self.cache.arch);
        let urls = source::urls(self.request.url, version, arch)?;
        for (n, url) in urls.iter().enumerate() {
            match self.fetch_from(url, deadline) {
                Err(error) if is_missing(&error) => {
                    urls[n + 1..]
                        .first()
                        .iter()
                        .for_each(|next| log::info!("{url} not found, trying {next}"));
                }
                other => return other,
            }
        }
        Err(source::nowhere(version, arch, &urls).into())
    }

    /// From a server, a file of this host, or one of those in a directory that
    /// fit.
    fn fetch_from(&self, url: &Url, deadline: &Deadline) -> anyhow::Result<Runfile> {
        let Some(path) = url.local() else { return self.download(url, deadline) };
        let view = (self.cache.view)(&deadline.at_most(SEARCH));
        let found =
            source::in_directory(view, &path.to_string_lossy(), self.request.version, self.cache.arch)?;
        let mut error = None;
        for url in found.as_deref().unwrap_or(std::slice::from_ref(url)) {
            match self.download(url, deadline) {
                Err(why) if !exit::interrupted(&why) => drop(error.get_or_insert(why)),
                done => return done,
            }
        }
        Err(error.unwrap_or_else(|| anyhow::anyhow!("{url}: nothing found")))
    }

    fn download(&self, url: &Url, deadline: &Deadline) -> anyhow::Result<Runfile> {
        let limits = self.request.limits;
        let client = match url.local() {
            Some(_) => Cache::local(limits),
            None => self.cache.client(limits, deadline),
        };
        match self.attempt(url, &client, deadline, false)? {
            Some(runfile) => Ok(runfile),
            None => self
                .attempt(url, &client, deadline, true)?
                .with_context(|| format!("{url}: two downloads gave no runfile")),
        }
    }

    /// One download; `None`: what an earlier one left made it useless, and it
    /// is worth another one from the start.
    fn attempt(
        &self,
        url: &Url,
        client: &Client,
        deadline: &Deadline,
        last: bool,
    ) -> anyhow::Result<Option<Runfile>> {
        let (part, started) = (self.path.with_extension("run.part"), Instant::now());
        // Without a checksum in the settings only the transport vouches for the file.
        let transport = if self.request.sha256.is_some() { Transport::Any } else { Transport::Trusted };
        let order = fetch::Order { url, transport, part: &part, max: self.request.limits.download_max };
        let here = url.local().is_some();
        let begun = !here && part.exists();
        let mut watch = Download::new(self.cache, self.request.version, here);
        let resumed = match fetch::download(client, &order, deadline, &mut watch) {
            Ok(resumed) => resumed,
            Err(FetchError::Refused(..)) if begun && !last => return Ok(None),
            Err(error) => {
                if here {
                    // Its next copy begins anew.
                    let _ = std::fs::remove_file(&part);
                }
                return Err(fault::of(error, url, self.cache.directory(), self.request.limits.download_max));
            }
        };
        drop(watch);
        match self.verify(&part, url, client, deadline) {
            Ok(runfile) => {
                let size = size(runfile.size);
                let verb = if here { "copy" } else { "download" };
                log::info!("{verb}: {url}: {size} in {}, verified", human(started.elapsed()));
                Ok(Some(runfile))
            }
            Err(Unaccepted::Local(error)) => Err(error),
            Err(Unaccepted::Bad(why)) => {
                let _ = std::fs::remove_file(&part);
                if !resumed || last {
                    return Err(fault::rejected(url, &why));
                }
                // The bytes of two different files.
                log::info!("download: {url}: {why:#}; restarting from the beginning");
                Ok(None)
            }
        }
    }

    /// Verifies a download and moves it into the cache.
    fn verify(
        &self,
        part: &Path,
        url: &Url,
        client: &Client,
        deadline: &Deadline,
    ) -> Result<Runfile, Unaccepted> {
        let local = |error: io::Error| {
            Unaccepted::Local(anyhow::Error::new(error).context(part.display().to_string()))
        };
        let mut file = fetch::open_regular(part).map_err(local)?;
        let start = runfile::outer::payload_of(&file).map_err(local)?;
        let known = match start {
            Some(start) => self.unwrap(part, &file, start, deadline),
            None => self.check(&mut file, deadline),
        };
        let known = known
            .and_then(|known| known.expected(self.request.sha256))
            .map_err(|why| fault::unaccepted(why, self.cache.directory(), deadline))?;
        if self.request.sha256.is_none() {
            published(client, url, known.published(), deadline)?;
        }
        if start.is_some() {
            file = fetch::open_regular(part).map_err(local)?;
        }
        #[allow(clippy::disallowed_methods)] // the part is whole and synced, its name ours under the lock
        std::fs::rename(part, &self.path).map_err(local)?;
        accept(&self.path, &file, known, true).map_err(Unaccepted::Local)
    }
}

/// Records the check.
fn accept(path: &Path, file: &File, known: Known, fresh: bool) -> anyhow::Result<Runfile> {
    known.record(path, file);
    Ok(Runfile { path: path.to_owned(), size: file.metadata()?.len(), sha256: known.sha256, fresh })
}

/// Compares with the checksum that is published beside the file. If it cannot
/// be read, that is a warning, since mirrors often lack it.
fn published(client: &Client, url: &Url, sum: &Sha256, deadline: &Deadline) -> Result<(), Unaccepted> {
    let sum_url = url.with_suffix(".sha256sum");
    let text = match fetch::small(client, &sum_url, Transport::Trusted, SUM_LIMIT, deadline) {
        Ok(text) => text,
        Err(FetchError::Interrupted(signal)) => return Err(Unaccepted::Local(anyhow::Error::new(signal))),
        Err(error) if url.local().is_some() => {
            log::debug!("download: no published checksum: {error}");
            return Ok(());
        }
        Err(error) => {
            log::warn!("download: no published checksum ({error}); only the runfile's own MD5 was verified");
            return Ok(());
        }
    };
    match Sha256::published(&text) {
        Some(published) if published == *sum => Ok(()),
        Some(published) => {
            Err(Unaccepted::Bad(anyhow::anyhow!("its SHA-256 is {sum}, {sum_url} says {published}")))
        }
        None => Err(Unaccepted::Bad(anyhow::anyhow!("{sum_url} has no SHA-256 checksum"))),
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref().is_some_and(FetchError::is_missing))
}

/// Watches a download: space, first bytes, progress.
struct Download<'a> {
    cache: &'a Cache,
    version: &'a Version,
    progress: DownloadProgress,
}

impl<'a> Download<'a> {
    fn new(cache: &'a Cache, version: &'a Version, here: bool) -> Self {
        let verb = if here { "copy" } else { "download" };
        Download { cache, version, progress: DownloadProgress::new(format!("{verb}: driver {version}")) }
    }
}

impl Watch for Download<'_> {
    fn room(&mut self, more: u64) -> io::Result<()> {
        let directory = self.cache.directory();
        let need = more.saturating_add(RESERVE);
        if file::free_space(directory)? < need {
            self.cache.make_room(self.version);
        }
        let free = file::free_space(directory)?;
        if free < need {
            let why = format!("{} needed, {} free", size(need), size(free));
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(())
    }

    fn begins(&mut self, bytes: &[u8]) -> Result<bool, String> {
        runfile::begins(bytes, self.version, self.cache.arch).map_err(|why| format!("{why:#}"))
    }

    fn progress(&mut self, got: u64, of: Option<u64>) {
        self.progress.at(got, of);
    }

    fn retry(&mut self, trouble: &FetchError) {
        log::warn!("download: {trouble}; retrying");
    }
}

#[cfg(test)]
mod tests;
