//! flock(2) with a deadline, and who holds it.

use super::signal::{self, Interrupted};
use super::time::{Deadline, human};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as /proc/locks has it.
    pub pid: i32,
    /// Its name, from /proc/PID/comm; empty when it is gone.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "process {}", self.pid),
            name => write!(f, "process {} ({name})", self.pid),
        }
    }
}

/// Why a lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// Somebody held it until the deadline.
    Busy {
        /// The locked file.
        path: PathBuf,
        /// How long we waited.
        after: Duration,
        /// Who held it, where /proc/locks tells.
        holder: Option<Holder>,
    },
    /// We were told to stop while waiting.
    Interrupted(Interrupted),
    /// The lock file or the lock itself failed.
    Io(PathBuf, std::io::Error),
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
            LockError::Interrupted(_) => f.write_str("waiting for a lock was ended"),
            LockError::Io(path, error) => write!(f, "{}: {error}", path.display()),
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

/// A held lock; closing the file gives it back.
#[derive(Debug)]
pub struct Lock {
    /// The locked file.
    pub file: File,
}

/// Opens a lock file as Proxmox does: appending, created with mode 0644.
///
/// /run/lock is open to everybody, so whoever comes first could make our
/// directory there and put a link in the file's place: neither is followed.
///
/// # Errors
/// [`LockError::Io`].
pub fn open(path: &Path) -> Result<File, LockError> {
    let io = |error| LockError::Io(path.to_owned(), error);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
        trusted(parent).map_err(io)?;
    }
    open_theirs(path)
}

/// The same in a directory that is somebody else's to keep: Proxmox' own.
///
/// # Errors
/// [`LockError::Io`].
pub fn open_theirs(path: &Path) -> Result<File, LockError> {
    let io = |error| LockError::Io(path.to_owned(), error);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(GUARDED).open(path).map_err(io)
}

/// Opens a lock file that is there already, and makes none; `None` also for
/// one that [`open`] would not take.
pub fn open_existing(path: &Path) -> Option<File> {
    trusted(path.parent()?).ok()?;
    OpenOptions::new().read(true).custom_flags(GUARDED).open(path).ok()
}

/// Follows no link, and waits for nobody at the other end of a fifo.
const GUARDED: i32 = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;

/// Fails for a directory in which somebody else could put things.
fn trusted(directory: &Path) -> std::io::Result<()> {
    let meta = std::fs::symlink_metadata(directory)?;
    let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    if meta.is_dir() && ours && meta.mode() & 0o002 == 0 {
        return Ok(());
    }
    let shown = directory.display();
    Err(std::io::Error::other(format!("{shown} is open to other users than root; to mend it: rm -r {shown}")))
}

/// Tries once. False: somebody holds it.
///
/// # Errors
/// [`LockError::Io`].
pub fn try_exclusive(file: &File, path: &Path) -> Result<bool, LockError> {
    // By its full name: on a new std the method syntax would silently mean
    // File::try_lock instead.
    match fs2::FileExt::try_lock_exclusive(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(LockError::Io(path.to_owned(), error)),
    }
}

/// Takes the exclusive lock, waiting until the deadline. `waiting` is told
/// once, with the holder, when it has to wait.
///
/// # Errors
/// [`LockError`].
pub fn exclusive(
    file: File,
    path: &Path,
    deadline: &Deadline,
    waiting: impl FnOnce(Option<&Holder>),
) -> Result<Lock, LockError> {
    let mut waiting = Some(waiting);
    let mut pause = Duration::from_millis(5);
    loop {
        if try_exclusive(&file, path)? {
            return Ok(Lock { file });
        }
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

/// Who holds the flock on this file, if /proc/locks tells.
pub fn holder_of(file: &File) -> Option<Holder> {
    let meta = file.metadata().ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
    let pid = holder_in(&locks, major, minor, meta.ino())?;
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, name: super::text::line(&name) })
}

/// The pid that holds an exclusive flock on the inode, in the text of
/// /proc/locks: `1: FLOCK  ADVISORY  WRITE 29164 00:36:21 0 EOF`, device in
/// hexadecimal, inode in decimal; a waiter's line has `->` after its number.
fn holder_in(locks: &str, major: u64, minor: u64, inode: u64) -> Option<i32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, "WRITE", pid, at, ..] if *at == file => pid.parse().ok(),
            _ => None,
        }
    })
}

/// Whether `pid` is this process's parent, or its parent's parent, and so on.
pub fn is_ancestor(pid: i32) -> bool {
    let mut current = nix::unistd::getppid().as_raw();
    // No chain is that long; the bound is against a race with reused pids.
    for _ in 0..64 {
        if current == pid {
            return pid > 0;
        }
        if current <= 1 {
            return false;
        }
        match std::fs::read_to_string(format!("/proc/{current}/stat")).ok().and_then(|s| parent_in(&s)) {
            Some(parent) => current = parent,
            None => return false,
        }
    }
    false
}

/// The parent's pid in /proc/PID/stat; the name before it may hold anything.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_in_proc_locks_and_a_waiter_is_not_one() {
        let text = "1: FLOCK  ADVISORY  WRITE 29164 00:36:21 0 EOF\n\
                    1: -> FLOCK  ADVISORY  WRITE 77 00:36:21 0 EOF\n\
                    2: POSIX  ADVISORY  WRITE 5 fd:00:99 0 EOF\n";
        assert_eq!(holder_in(text, 0, 0x36, 21), Some(29164));
        assert_eq!(holder_in(text, 0xfd, 0, 99), None);
        assert_eq!(holder_in(text, 0, 0x36, 2), None);
    }

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_hide_the_parent() {
        assert_eq!(parent_in("12 (a ) b) S 7 12 12"), Some(7));
    }

    #[test]
    fn a_held_lock_ends_at_the_deadline_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/x.lock");
        let held = exclusive(open(&path).unwrap(), &path, &Deadline::secs(1), |_| ()).unwrap();
        let mut told = None;
        let again =
            exclusive(open(&path).unwrap(), &path, &Deadline::after(Duration::from_millis(60)), |h| {
                told = h.cloned();
            });
        let me = std::process::id() as i32;
        match again.unwrap_err() {
            LockError::Busy { holder, .. } => assert!(holder.is_none_or(|h| h.pid == me)),
            other => panic!("{other}"),
        }
        assert!(told.is_none_or(|h| h.pid == me));
        drop(held);
        assert!(exclusive(open(&path).unwrap(), &path, &Deadline::secs(1), |_| ()).is_ok());
    }

    #[test]
    fn a_link_or_a_directory_of_somebody_else_is_not_taken_for_a_lock() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("l/x.lock"));
        std::fs::create_dir(dir.path().join("l")).unwrap();
        symlink(&victim, &path).unwrap();
        assert!(open(&path).is_err() && open_existing(&path).is_none() && !victim.exists());
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open(&path).is_err(), "a fifo without a reader must not be waited for");
        std::fs::remove_file(&path).unwrap();
        assert!(open(&path).is_ok() && open_existing(&path).is_some());
        std::fs::set_permissions(dir.path().join("l"), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("rm -r") && open_existing(&path).is_none());
        symlink(dir.path().join("l"), dir.path().join("m")).unwrap();
        assert!(open(&dir.path().join("m/x.lock")).is_err());
    }

    #[test]
    fn the_parent_is_an_ancestor_and_a_stranger_is_not() {
        assert!(is_ancestor(nix::unistd::getppid().as_raw()));
        assert!(!is_ancestor(std::process::id() as i32) && !is_ancestor(0) && !is_ancestor(i32::MAX));
    }
}
