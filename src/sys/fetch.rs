//! Getting a file from a URL: https, http, `file:///` or a plain path.
//!
//! The transfer runs in a thread of its own, so that a signal, a stalled
//! server or a deadline ends the wait at once; an abandoned thread is bound by
//! the same limits and ends by itself.

mod error;
mod transfer;

pub use error::FetchError;
use transfer::{Resume, Transfer};

use super::signal;
use super::time::Deadline;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many attempts in a row may bring next to nothing.
const FRUITLESS: u32 = 3;
/// An attempt that brought this many bytes was worth it.
const WORTH: u64 = 4 << 20;

/// How to reach servers.
#[derive(Clone, Debug)]
pub struct Client {
    /// How long reaching the server may take.
    pub connect: Duration,
    /// How long a transfer may bring nothing.
    pub stall: Duration,
    /// A proxy to be used where the environment names none.
    pub proxy: Option<String>,
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

/// The local file that a URL or path names.
pub fn local(url: &str) -> Option<PathBuf> {
    url.strip_prefix("file://").or(url.starts_with('/').then_some(url)).map(PathBuf::from)
}

/// Whether nobody on the way can change what comes: https, a local file, or a
/// server on this machine.
pub fn is_trusted_way(url: &str) -> bool {
    url.starts_with("https://") || local(url).is_some() || is_loopback(url)
}

fn is_loopback(url: &str) -> bool {
    let Ok(uri) = url.parse::<ureq::http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A small file, whole.
///
/// # Errors
/// [`FetchError`].
pub fn small(client: &Client, url: &str, limit: usize, deadline: &Deadline) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let mut transfer = Transfer::start(client, url, &Resume::default(), deadline);
    transfer.head()?;
    while let Some(chunk) = transfer.next()? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > limit {
            return Err(FetchError::TooLarge(url.to_owned(), limit));
        }
    }
    Ok(bytes)
}

/// What a download tells while it runs.
pub trait Watch {
    /// Bytes are about to be written: `more` of them, as far as the server
    /// says. An error ends the download before it fills the disk.
    ///
    /// # Errors
    /// What keeps them from being written.
    fn room(&mut self, more: u64) -> io::Result<()>;
    /// So much has come, of so much.
    fn progress(&mut self, got: u64, of: Option<u64>);
    /// It goes on after this trouble.
    fn retry(&mut self, trouble: &FetchError);
}

/// A large file, into `part`. What an earlier call left there is resumed if
/// the server still has the same file; `part` stays behind after a failure.
/// True: bytes of an earlier call are in it.
///
/// # Errors
/// [`FetchError`].
pub fn download(
    client: &Client,
    url: &str,
    part: &Path,
    deadline: &Deadline,
    watch: &mut dyn Watch,
) -> Result<bool, FetchError> {
    let mut resumed = false;
    let mut fruitless = 0;
    loop {
        let before = length(part);
        match attempt(client, url, part, deadline, watch, &mut resumed) {
            Ok(()) => return Ok(resumed),
            Err(error) if !error.is_transient() || deadline.passed() => return Err(error),
            Err(error) => {
                let brought = length(part).saturating_sub(before);
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
    }
}

/// One request, from where the part ends.
fn attempt(
    client: &Client,
    url: &str,
    part: &Path,
    deadline: &Deadline,
    watch: &mut dyn Watch,
    resumed: &mut bool,
) -> Result<(), FetchError> {
    let resume = Resume::read(part, url);
    let mut transfer = Transfer::start(client, url, &resume, deadline);
    let head = transfer.head()?;
    let io = |error| FetchError::Local(part.to_owned(), error);
    let mut got = if head.from == resume.from { head.from } else { 0 };
    watch.room(head.length.map_or(0, |l| l.saturating_sub(got))).map_err(io)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(got == 0)
        .append(got > 0)
        .mode(0o600)
        .open(part)
        .map_err(io)?;
    *resumed |= got > 0;
    if got == 0 {
        *resumed = false;
        Resume::write(part, url, head.validator.as_deref()).map_err(io)?;
    }
    while let Some(chunk) = transfer.next()? {
        file.write_all(&chunk).map_err(io)?;
        got += chunk.len() as u64;
        watch.progress(got, head.length);
    }
    file.sync_all().map_err(io)?;
    let _ = std::fs::remove_file(Resume::notes(part));
    Ok(())
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
