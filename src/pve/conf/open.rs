//! Opening, reading and locking a file that others may replace at any moment.

use crate::sys::file::{self, is_at};
use crate::sys::lock::{self, LockError};
use crate::sys::signal;
use crate::sys::time::Deadline;
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// The limit of a file under /etc/pve.
pub(super) const MAX_SIZE: usize = 1 << 20;

/// Why a file was not read.
#[derive(Debug)]
pub(super) enum OpenError {
    /// It does not exist.
    Missing,
    /// It is a symlink, a directory, … (what it is).
    NotAFile(&'static str),
    /// It is larger than [`MAX_SIZE`].
    TooLarge,
    /// Anything else.
    Io(io::Error),
}

/// Opens for reading; follows no symlink and waits for no FIFO. Retries a missing
/// name: while a file is replaced on pmxcfs it is missing for a moment.
pub(super) fn open(path: &Path, retries: u32) -> Result<(File, Metadata), OpenError> {
    let mut pause = Duration::from_millis(2);
    for left in (0..=retries).rev() {
        match file::open_itself(path) {
            Ok(opened) => return Ok(opened),
            Err(error) if error.kind() == io::ErrorKind::NotFound && left > 0 => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(error) => {
                return Err(match file::in_its_place(&error) {
                    Some(other) => OpenError::NotAFile(other.0),
                    None if error.kind() == io::ErrorKind::NotFound => OpenError::Missing,
                    None => OpenError::Io(error),
                });
            }
        }
    }
    Err(OpenError::Missing)
}

/// The whole file from its start.
pub(super) fn read(mut file: &File, meta: &Metadata) -> Result<Vec<u8>, OpenError> {
    let most = MAX_SIZE as u64 + 1;
    // One byte more than there is: the read that finds the end needs no more room.
    let size = meta.len().min(MAX_SIZE as u64) + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(MAX_SIZE));
    file.by_ref().take(most).read_to_end(&mut bytes).map_err(OpenError::Io)?;
    if bytes.len() > MAX_SIZE { Err(OpenError::TooLarge) } else { Ok(bytes) }
}

/// Why [`lock_at`] has no lock.
#[derive(Debug)]
pub(super) enum TakeError {
    /// Opening failed.
    Open(OpenError),
    /// Locking failed.
    Lock(LockError),
}

/// Locks the file at `path`. A lock on a file that was replaced meanwhile locks
/// nothing: takes the new one instead. `None`: an ancestor of this process holds
/// the lock for us.
pub(super) fn lock_at(
    path: &Path,
    deadline: &Deadline,
    open: impl Fn() -> Result<File, TakeError>,
) -> Result<Option<File>, TakeError> {
    let mut pause = Duration::from_millis(2);
    let mut told = false;
    let began = Instant::now();
    loop {
        let file = open()?;
        let meta = file.metadata().map_err(|e| TakeError::Open(OpenError::Io(e)))?;
        let late = deadline.passed();
        let mut holder = None;
        if lock::try_exclusive(&file, path).map_err(TakeError::Lock)? {
            if is_at(&meta, path) {
                return Ok(Some(file));
            }
        } else {
            // An ancestor holds its lock from the start: checking in every
            // round would cost more than the wait.
            if (late || !told) && lock::is_ancestors(path) {
                return Ok(None);
            }
            let tell = !told && began.elapsed() > Duration::from_millis(100);
            if late || tell {
                holder = lock::holder_of(&file);
            }
            if tell && !late {
                let by = holder.as_ref().map(|h| format!(" held by {h}")).unwrap_or_default();
                log::info!("waiting for the lock {}{by}", path.display());
                told = true;
            }
        }
        if late {
            let (path, after) = (path.to_owned(), deadline.span());
            return Err(TakeError::Lock(LockError::Busy { path, after, holder }));
        }
        let interrupted = |s| TakeError::Lock(LockError::Interrupted(s));
        signal::sleep(pause.min(deadline.remaining())).map_err(interrupted)?;
        pause = (pause * 2).min(Duration::from_millis(16));
    }
}
