//! flock(2) with a deadline, and the holder of a lock.
//!
//! Our lock files are in a directory that only root can access. Every user
//! could open, and so lock, those of an older version: the next use replaces
//! such a file, since open descriptors of it remain.

mod look;

pub use look::{Holder, Table, Watch, holder_at, holder_of, is_ancestors, is_held};

use super::file::is_at;
use super::private::{self, Refused};
use super::signal::{self, Interrupted};
use super::time::{Deadline, human};
use std::fmt;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Held until the deadline.
    Busy {
        /// The locked file.
        path: PathBuf,
        /// The time waited.
        after: Duration,
        /// The holder, if known.
        holder: Option<Holder>,
    },
    /// A signal came while waiting.
    Interrupted(Interrupted),
    /// The lock file or the lock itself failed.
    Io(PathBuf, std::io::Error),
    /// The file or its directory is not safe to use.
    Refused(Refused),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Busy { path, after, holder } => {
                write!(f, "{} is locked", path.display())?;
                if let Some(holder) = holder {
                    write!(f, " by {holder}")?;
                }
                write!(f, "; gave up after {}", human(*after))
            }
            LockError::Interrupted(_) => f.write_str("waiting for a lock"),
            LockError::Io(path, error) => write!(f, "{}: {error}", path.display()),
            LockError::Refused(refused) => refused.fmt(f),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LockError::Interrupted(signal) => Some(signal),
            _ => None,
        }
    }
}

/// A held lock, released when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Opens our lock file; creates it and its directory if missing.
fn open(path: &Path) -> Result<File, LockError> {
    if let Some(parent) = path.parent() {
        private::directory(parent, 0o700).map_err(LockError::Refused)?;
    }
    let (file, meta) = private::append(path).map_err(LockError::Refused)?;
    if meta.mode() & 0o077 == 0 {
        return Ok(file);
    }
    renewed(path, file, &meta)
}

/// Replaces a lock file of an older version, unless a process of root, running
/// that version, holds its lock.
fn renewed(path: &Path, file: File, meta: &Metadata) -> Result<File, LockError> {
    let io = |error| LockError::Io(path.to_owned(), error);
    let free = try_exclusive(&file, path)?;
    if !free && holder_of(&file).is_some_and(|holder| holder.is_alive_root()) {
        return Ok(file);
    }
    // Another process of ours may have replaced it meanwhile.
    if is_at(meta, path) {
        std::fs::remove_file(path).map_err(io)?;
        log::debug!("replaced {}, which other users could lock", path.display());
    }
    let (new, meta) = private::append(path).map_err(LockError::Refused)?;
    if meta.mode() & 0o077 != 0 {
        new.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
    }
    Ok(new)
}

/// Opens a lock file of Proxmox as Proxmox does: for appending, created with
/// mode 0644.
///
/// # Errors
/// [`LockError::Io`].
pub fn open_theirs(path: &Path) -> Result<File, LockError> {
    let io = |error| LockError::Io(path.to_owned(), error);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(private::GUARDED)
        .open(path)
        .map_err(io)
}

/// Tries once; false if the lock is held.
///
/// # Errors
/// [`LockError::Io`].
pub fn try_exclusive(file: &File, path: &Path) -> Result<bool, LockError> {
    // By its full name: with a newer std, method syntax would call that of std.
    match fs2::FileExt::try_lock_exclusive(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(LockError::Io(path.to_owned(), error)),
    }
}

/// Takes the lock on our file, unless it is held.
///
/// # Errors
/// [`LockError::Io`], [`LockError::Refused`].
pub fn try_take(path: &Path) -> Result<Option<Lock>, LockError> {
    Ok(attempt(path)?.ok())
}

/// Takes the exclusive lock on our file, waiting until the deadline. Calls
/// `waiting` once with the holder if it has to wait.
///
/// # Errors
/// [`LockError`].
pub fn take(
    path: &Path,
    deadline: &Deadline,
    waiting: impl FnOnce(Option<&Holder>),
) -> Result<Lock, LockError> {
    let mut waiting = Some(waiting);
    let mut pause = Duration::from_millis(5);
    loop {
        let file = match attempt(path)? {
            Ok(lock) => return Ok(lock),
            Err(file) => file,
        };
        if let Some(tell) = waiting.take() {
            tell(holder_of(&file).as_ref());
        }
        if deadline.passed() {
            let holder = holder_of(&file);
            return Err(LockError::Busy { path: path.to_owned(), after: deadline.span(), holder });
        }
        signal::sleep(pause.min(deadline.remaining())).map_err(LockError::Interrupted)?;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// One attempt: the lock, or the file if its lock is held. Retries if the file
/// was replaced meanwhile, since that lock protects nothing.
fn attempt(path: &Path) -> Result<Result<Lock, File>, LockError> {
    loop {
        let file = open(path)?;
        if !try_exclusive(&file, path)? {
            return Ok(Err(file));
        }
        let meta = file.metadata().map_err(|error| LockError::Io(path.to_owned(), error))?;
        if is_at(&meta, path) {
            return Ok(Ok(Lock { _file: file }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_held_lock_ends_at_the_deadline_and_names_its_holder() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("sub/x.lock");
        let held = take(&path, &Deadline::secs(1), |_| ()).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let mut told = None;
        let again = take(&path, &Deadline::after(Duration::from_millis(60)), |h| told = h.cloned());
        let me = std::process::id() as i32;
        match again.unwrap_err() {
            LockError::Busy { holder, .. } => assert_eq!(holder.unwrap().pid, me),
            other => panic!("{other}"),
        }
        assert_eq!(told.unwrap().pid, me);
        drop(held);
        assert!(take(&path, &Deadline::secs(1), |_| ()).is_ok());
    }

    #[test]
    fn a_link_or_a_directory_of_somebody_else_is_not_taken_for_a_lock() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("l/x.lock"));
        std::fs::create_dir(dir.path().join("l")).unwrap();
        symlink(&victim, &path).unwrap();
        assert!(try_take(&path).is_err() && !victim.exists());
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(try_take(&path).is_err(), "a fifo without a reader must not be waited for");
        std::fs::remove_file(&path).unwrap();
        assert!(try_take(&path).is_ok());
        std::fs::set_permissions(dir.path().join("l"), Permissions::from_mode(0o777)).unwrap();
        assert!(try_take(&path).unwrap_err().to_string().contains("other than root"));
        symlink(dir.path().join("l"), dir.path().join("m")).unwrap();
        assert!(try_take(&dir.path().join("m/x.lock")).unwrap_err().to_string().contains("symlink"));
    }

    /// An older version's directory and file, and somebody who opened the file
    /// while he could.
    #[test]
    fn a_lock_that_others_could_take_is_theirs_no_more() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (old, path) = (dir.path().join("l"), dir.path().join("l/x.lock"));
        std::fs::create_dir(&old).unwrap();
        std::fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
        let theirs = OpenOptions::new().append(true).create(true).mode(0o644).open(&path).unwrap();
        let inode = theirs.metadata().unwrap().ino();
        // Held by a living process of root's, as an install of that version is.
        assert!(try_exclusive(&theirs, &path).unwrap());
        if nix::unistd::geteuid().is_root() {
            assert!(try_take(&path).unwrap().is_none());
            assert_eq!((mode(&old), std::fs::metadata(&path).unwrap().ino()), (0o700, inode));
        }
        fs2::FileExt::unlock(&theirs).unwrap();
        let ours = try_take(&path).unwrap().unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_ne!(ours._file.metadata().unwrap().ino(), inode);
        // The old file is still open to who had it, and locks nothing.
        assert!(try_exclusive(&theirs, &path).unwrap());
        drop(ours);
        assert!(try_take(&path).unwrap().is_some());
    }
}
