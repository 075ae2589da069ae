//! Getting a file from a URL: https, http, `file:///` or a plain path.
//!
//! The transfer runs in a thread of its own, so that a signal, a stalled
//! server or a deadline ends the wait at once; an abandoned thread is bound by
//! the same limits and ends by itself.

mod answer;
mod error;
mod transfer;

pub use error::FetchError;
use transfer::{Resume, Transfer};

use super::signal;
use super::time::Deadline;
use super::url::Url;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

/// How many attempts in a row may bring next to nothing.
const FRUITLESS: u32 = 3;
/// An attempt that brought this many bytes was worth it.
const WORTH: u64 = 4 << 20;

/// How many bytes are written before room is asked for again.
const STEP: u64 = 8 << 20;
/// So many bytes of a file's beginning are shown to who waits for it, at most.
pub const BEGINNING: usize = 256 * 1024;

/// How to reach servers.
#[derive(Clone, Debug)]
pub struct Client {
    /// How long reaching the server may take.
    pub connect: Duration,
    /// How long a transfer may bring nothing.
    pub stall: Duration,
    /// A proxy to be used where the environment names none.
    pub proxy: Option<Url>,
}

/// What vouches for the bytes that come. Wherever a server sends us, the rule
/// of the first URL holds, and https never becomes http.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing but the way that they take: [`Url::is_trusted_way`].
    Trusted,
    /// A checksum or a signature that the caller checks: any way will do.
    Any,
}

/// A number of bytes as a person reads it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        10_000_000..=9_999_999_999 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// A small file, whole.
///
/// # Errors
/// [`FetchError`].
pub fn small(
    client: &Client,
    url: &Url,
    way: Way,
    limit: usize,
    deadline: &Deadline,
) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let mut transfer = Transfer::start(client, url, way, &Resume::default(), deadline);
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

/// What a download tells while it runs.
pub trait Watch {
    /// Bytes are about to be written, so many at least. An error ends the
    /// download before it fills the disk.
    ///
    /// # Errors
    /// What keeps them from being written; [`io::ErrorKind::StorageFull`] for
    /// a lack of room.
    fn room(&mut self, more: u64) -> io::Result<()>;
    /// The file begins so; asked again with more of it until the answer is
    /// true, or [`BEGINNING`] has come.
    ///
    /// # Errors
    /// Why it is not the file that is waited for: the download ends at once.
    fn begins(&mut self, bytes: &[u8]) -> Result<bool, String>;
    /// So much has come, of so much.
    fn progress(&mut self, got: u64, of: Option<u64>);
    /// It goes on after this trouble.
    fn retry(&mut self, trouble: &FetchError);
}

/// A large file: from where, to where, how large at most.
pub struct Order<'a> {
    /// The file.
    pub url: &'a Url,
    /// What vouches for it.
    pub way: Way,
    /// The file that it is written to.
    pub part: &'a Path,
    /// How many bytes it may have.
    pub max: u64,
}

/// A large file, into `part`. What an earlier call left there is resumed if
/// the server still has the same file. After a failure `part` stays behind if
/// a later call can go on with it; what is of no use, or what a full disk
/// needs, is removed. True: bytes of an earlier call are in it.
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
        // A part that cannot be continued is gone: from the start, then.
        let from_start = before > 0 && matches!(error, FetchError::Odd(..));
        if !(error.is_transient() || from_start) || deadline.passed() {
            return Err(error);
        }
        let brought = length(order.part).saturating_sub(before);
        // A tenth of what was missing is worth it too, be it small.
        let worth = brought >= WORTH || brought >= error.missing().max(10) / 10;
        fruitless = if worth { 0 } else { fruitless + 1 };
        if fruitless >= FRUITLESS {
            return Err(error);
        }
        watch.retry(&error);
        let pause = Duration::from_millis(250 << fruitless);
        signal::sleep(pause.min(deadline.remaining())).map_err(FetchError::Interrupted)?;
    }
}

/// One request, from where the part ends.
fn attempt(
    client: &Client,
    order: &Order<'_>,
    deadline: &Deadline,
    watch: &mut dyn Watch,
    resumed: &mut bool,
) -> Result<(), FetchError> {
    let (part, max) = (order.part, order.max);
    let resume = Resume::read(part, order.url, max);
    let mut transfer = Transfer::start(client, order.url, order.way, &resume, deadline);
    let head = transfer.head()?;
    let io = |error| FetchError::local(part, error);
    let too_large = || FetchError::TooLarge(order.url.to_string(), max);
    if head.length.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let mut got = head.from;
    // What is not continued is gone before room is asked for: it is room.
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

/// The part, to be continued at `from`, or begun.
fn open_part(part: &Path, from: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(from == 0).append(from > 0).mode(0o600);
    options.custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
    let file = options.open(part)?;
    // A device or FIFO in its place would take everything.
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// What has come of a file's beginning, until it has been looked at.
struct Beginning {
    bytes: Vec<u8>,
    seen: bool,
}

impl Beginning {
    /// With what an earlier attempt left in the part.
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

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

/// Opens a file for reading, refusing what is no regular file.
///
/// # Errors
/// What open or fstat say.
pub fn open_regular(path: &Path) -> io::Result<File> {
    Ok(super::file::open_itself(path)?.0)
}

#[cfg(test)]
mod tests;
