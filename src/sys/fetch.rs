//! Fetches a file from a URL: https, http, `file:///` or a plain path.
//!
//! The transfer runs in its own thread, so that a signal, a stalled server or a
//! deadline ends the wait at once. An abandoned thread has the same timeouts
//! and ends by itself.

mod answer;
mod error;
mod transfer;

pub use error::FetchError;
pub use transfer::{Client, Transport};
use transfer::{Resume, Transfer, length};

use super::signal;
use super::time::Deadline;
use super::url::Url;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

/// The limit of failed attempts in a row without progress.
const FRUITLESS: u32 = 3;
/// An attempt with this many bytes made progress.
const PROGRESS: u64 = 4 << 20;

/// The number of bytes written between two checks for space.
const STEP: u64 = 8 << 20;
/// The size limit of the beginning that [`Watch::begins`] gets, in bytes.
pub const BEGINNING: usize = 256 * 1024;

/// Fetches a small file.
///
/// # Errors
/// [`FetchError`].
pub fn small(
    client: &Client,
    url: &Url,
    transport: Transport,
    limit: usize,
    deadline: &Deadline,
) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let mut transfer = Transfer::start(client, url, transport, &Resume::default(), deadline);
    let too_large = || FetchError::TooLarge(url.to_string(), limit as u64);
    if transfer.head()?.length.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    while let Some(chunk) = transfer.next()? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > limit {
            return Err(too_large());
        }
    }
    Ok(bytes)
}

/// The observer of a download.
pub trait Watch {
    /// Called before so many more bytes are written. An error ends the download
    /// before it fills the disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] for a lack of space, or another reason.
    fn room(&mut self, more: u64) -> io::Result<()>;
    /// Called with the beginning of the file, again with more of it until it
    /// returns true or [`BEGINNING`] is reached.
    ///
    /// # Errors
    /// Why this is the wrong file, which ends the download.
    fn begins(&mut self, bytes: &[u8]) -> Result<bool, String>;
    /// Called with the bytes received, and those of the whole file if known.
    fn progress(&mut self, got: u64, of: Option<u64>);
    /// Called before a retry.
    fn retry(&mut self, trouble: &FetchError);
}

/// A large file to download.
pub struct Order<'a> {
    /// Its URL.
    pub url: &'a Url,
    /// The transport that it needs.
    pub transport: Transport,
    /// The file to write.
    pub part: &'a Path,
    /// Its size limit, in bytes.
    pub max: u64,
}

/// Downloads a large file to `part`. Resumes what an earlier call left there, if
/// the server still has the same file. After a failure `part` stays if a later
/// call can resume it; a useless one is removed, or any if the disk is full.
/// True if it resumed.
///
/// # Errors
/// [`FetchError`].
pub fn download(
    client: &Client,
    order: &Order<'_>,
    deadline: &Deadline,
    watch: &mut dyn Watch,
) -> Result<bool, FetchError> {
    let mut resumed = false;
    let mut fruitless = 0;
    loop {
        let before = length(order.part);
        let error = match attempt(client, order, deadline, watch, &mut resumed) {
            Ok(()) => return Ok(resumed),
            Err(error) => error,
        };
        if error.spoils_part() {
            let _ = std::fs::remove_file(Resume::notes(order.part));
            let _ = std::fs::remove_file(order.part);
        }
        // The part that cannot be resumed is removed: retry from the start.
        let from_start = before > 0 && matches!(error, FetchError::Odd(..));
        let may_change = error.is_transient() && order.url.local().is_none();
        if !(may_change || from_start) || deadline.passed() {
            return Err(error);
        }
        let received = length(order.part).saturating_sub(before);
        // Also a tenth of what was missing, for a small file.
        let progress = received >= PROGRESS || received >= error.missing().max(10) / 10;
        fruitless = if progress { 0 } else { fruitless + 1 };
        if fruitless >= FRUITLESS {
            return Err(error);
        }
        watch.retry(&error);
        let pause = Duration::from_millis(250 << fruitless);
        signal::sleep(pause.min(deadline.remaining())).map_err(FetchError::Interrupted)?;
    }
}

/// One attempt, from the end of the part.
fn attempt(
    client: &Client,
    order: &Order<'_>,
    deadline: &Deadline,
    watch: &mut dyn Watch,
    resumed: &mut bool,
) -> Result<(), FetchError> {
    let (part, max) = (order.part, order.max);
    let resume = Resume::read(part, order.url, max);
    let mut transfer = Transfer::start(client, order.url, order.transport, &resume, deadline);
    let head = transfer.head()?;
    let io = |error| FetchError::local(part, error);
    let too_large = || FetchError::TooLarge(order.url.to_string(), max);
    if head.length.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let mut got = head.from;
    // Truncates a part that is not resumed before the check for space.
    let mut file = open_part(part, got).map_err(io)?;
    *resumed = got > 0;
    if got == 0 {
        Resume::write(part, order.url, head.validator.as_deref()).map_err(io)?;
    }
    let left = |got: u64| head.length.map_or(STEP, |length| length.saturating_sub(got));
    watch.room(left(got)).map_err(io)?;
    let mut room = STEP;
    let mut beginning = Beginning::of(part, got).map_err(io)?;
    while let Some(chunk) = transfer.next()? {
        let size = chunk.len() as u64;
        if got.checked_add(size).is_none_or(|whole| whole > max) {
            return Err(too_large());
        }
        beginning.add(&chunk, watch).map_err(|why| FetchError::Refused(order.url.to_string(), why))?;
        if size > room {
            watch.room(left(got)).map_err(io)?;
            room = STEP;
        }
        file.write_all(&chunk).map_err(io)?;
        room -= size.min(room);
        got += size;
        watch.progress(got, head.length);
    }
    file.sync_all().map_err(io)?;
    let _ = std::fs::remove_file(Resume::notes(part));
    Ok(())
}

/// Opens the part to resume it at `from`, or to begin.
fn open_part(part: &Path, from: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(from == 0).append(from > 0).mode(0o600);
    options.custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    let file = options.open(part)?;
    // Not a device or a FIFO.
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// The beginning of a file, until the observer has seen enough.
struct Beginning {
    bytes: Vec<u8>,
    seen: bool,
}

impl Beginning {
    /// Starts with what an earlier attempt left in the part.
    fn of(part: &Path, got: u64) -> io::Result<Beginning> {
        let mut bytes = Vec::new();
        if got > 0 {
            open_regular(part)?.take(BEGINNING as u64).read_to_end(&mut bytes)?;
        }
        Ok(Beginning { bytes, seen: false })
    }

    fn add(&mut self, chunk: &[u8], watch: &mut dyn Watch) -> Result<(), String> {
        if self.seen {
            return Ok(());
        }
        let room = BEGINNING.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        self.seen = watch.begins(&self.bytes)? || self.bytes.len() >= BEGINNING;
        Ok(())
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// What open or fstat say.
pub fn open_regular(path: &Path) -> io::Result<File> {
    Ok(super::file::open_itself(path)?.0)
}

#[cfg(test)]
mod tests;
