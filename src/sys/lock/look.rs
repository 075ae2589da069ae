//! Whether a lock is held, and by whom, without taking it: taking it for a
//! moment would make another process find it held.
//!
//! Two sources, as measured on Linux 6.18:
//!
//! * `/proc/locks` lists the flocks of the machine: `1: FLOCK  ADVISORY  WRITE
//!   29164 00:36:21 0 EOF`. The device is the file system's, in hexadecimal,
//!   the inode is decimal; a waiter's line has `->` after its number. The
//!   process is the one that *took* the lock. A lock lives as long as the open
//!   file, though, which children and parents share: in `(flock 9; work) 9>FILE`
//!   the taker ends at once and the lock stays with the shell. Its line keeps
//!   the dead process's number, which may be given again. Outside of the first
//!   namespace of process numbers such a line is **left out**, like that of a
//!   taker in another one. The first read takes 11 ms (the kernel waits until
//!   no lock is being changed), the following ones 10 µs; it comes in pieces of
//!   4 KiB, and what others unlock between two pieces may hide a line.
//! * `/proc/PID/fdinfo/N` has the same line (`lock:` before it, 0 for a taker
//!   that is gone) for each open file that holds a lock, whoever took it: 50 µs
//!   for a process, but one has to know which.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as /proc/locks has it.
    pub pid: i32,
    /// Its name from /proc/PID/comm, escaped; empty if it has ended.
    pub name: String,
    /// Its user.
    pub user: u32,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name.as_str(), self.user) {
            ("", _) => write!(f, "process {}, which has ended, through a child", self.pid),
            (name, 0) => write!(f, "process {} ({name})", self.pid),
            (name, user) => write!(f, "process {} ({name}, user {user})", self.pid),
        }
    }
}

impl Holder {
    /// Whether it is a running process of root.
    pub(super) fn is_alive_root(&self) -> bool {
        !self.name.is_empty() && self.user == 0
    }

    fn of(pid: i32) -> Holder {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let name = std::fs::read(process.join("comm")).unwrap_or_default();
        let user = std::fs::metadata(&process).map_or(0, |meta| meta.uid());
        Holder { pid, name: crate::sys::text::line(&name), user }
    }
}

/// A file's id in lines about locks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Id(String);

impl Id {
    fn of(meta: &Metadata) -> Id {
        let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
        Id(format!("{major:02x}:{minor:02x}:{}", meta.ino()))
    }

    fn at(path: &Path) -> Option<Id> {
        Some(Id::of(&std::fs::symlink_metadata(path).ok()?))
    }

    /// The pid in a line, if the line is about a held flock of this file.
    fn taker_in(&self, line: &str) -> Option<i32> {
        let mut words = line.trim_start_matches("lock:").split_ascii_whitespace().skip(1);
        let kind = (words.next()?, words.next()?, words.next()?);
        let (taker, file) = (words.next()?, words.next()?);
        let held = kind.0 == "FLOCK" && matches!(kind.2, "WRITE" | "READ") && file == self.0;
        if held { taker.parse().ok() } else { None }
    }
}

/// The locks held at one moment, to look up many.
pub struct Table(String);

impl Table {
    /// Reads /proc/locks; empty if not readable.
    pub fn read() -> Table {
        Table::of(Path::new("/proc/locks"))
    }

    /// The same of a file of its form.
    pub fn of(locks: &Path) -> Table {
        let mut bytes = Vec::new();
        // Read in several pieces, it may lack lines: read it twice.
        if matches!(pieces(locks, &mut bytes), Ok(count) if count > 1) {
            let _ = pieces(locks, &mut bytes);
        }
        Table(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether the lock on the file at this path was held.
    pub fn is_held(&self, path: &Path) -> bool {
        Id::at(path).is_some_and(|id| self.taker(&id).is_some() || hidden(&id, path).is_some())
    }

    /// The process that took the lock on the file at this path, if that is shown.
    pub fn taker_of(&self, path: &Path) -> Option<i32> {
        self.taker(&Id::at(path)?)
    }

    fn taker(&self, id: &Id) -> Option<i32> {
        self.0.lines().find_map(|line| id.taker_in(line))
    }
}

fn pieces(locks: &Path, bytes: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut file = File::open(locks)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(count),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
        count += 1;
    }
}

/// One lock, checked repeatedly: checks the last holder first, which does not
/// slow down other processes' locking.
pub struct Watch {
    path: PathBuf,
    holder: Option<i32>,
}

impl Watch {
    /// The lock on the file at this path, which need not exist.
    pub fn new(path: PathBuf) -> Watch {
        Watch { path, holder: None }
    }

    /// Whether it is held now.
    pub fn is_held(&mut self) -> bool {
        let Some(id) = Id::at(&self.path) else { return false };
        if self.holder.is_some_and(|pid| holds(pid, &id, &self.path)) {
            return true;
        }
        self.holder = Table::read().taker(&id).or_else(|| hidden(&id, &self.path));
        self.holder.is_some()
    }
}

/// Whether the lock on the file at this path is held.
pub fn is_held(path: &Path) -> bool {
    Watch::new(path.to_owned()).is_held()
}

/// The holder of the flock on this file, if /proc/locks has it.
pub fn holder_of(file: &File) -> Option<Holder> {
    let id = Id::of(&file.metadata().ok()?);
    Table::read().taker(&id).map(Holder::of)
}

/// The same for the file at this path.
pub fn holder_at(path: &Path) -> Option<Holder> {
    Table::read().taker(&Id::at(path)?).map(Holder::of)
}

/// Whether an ancestor of this process holds the lock on the file at this path,
/// and so on our behalf.
pub fn is_ancestors(path: &Path) -> bool {
    let Some(id) = Id::at(path) else { return false };
    let mut current = nix::unistd::getppid().as_raw();
    // Bounded because of a race with reused pids.
    for _ in 0..64 {
        if holds(current, &id, path) {
            return true;
        }
        let stat = std::fs::read(format!("/proc/{current}/stat")).unwrap_or_default();
        match parent_in(&String::from_utf8_lossy(&stat)) {
            Some(parent) if parent > 0 => current = parent,
            _ => return false,
        }
    }
    false
}

/// The parent's pid in /proc/PID/stat; the name before it may have any bytes.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Whether an open file of this process holds the lock. Checks only files of
/// that name: reading a link does not touch its target.
fn holds(pid: i32, id: &Id, path: &Path) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| {
        let named = std::fs::read_link(file.path()).is_ok_and(|to| to.file_name() == path.file_name());
        let info = |number| std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        named
            && file.file_name().to_str().is_some_and(|number| {
                info(number).is_ok_and(|text| text.lines().any(|l| id.taker_in(l).is_some()))
            })
    })
}

/// The inode of the initial pid namespace.
const FIRST: u64 = 0xEFFF_FFFC;

/// A process that holds a lock not shown in /proc/locks of this namespace.
fn hidden(id: &Id, path: &Path) -> Option<i32> {
    if std::fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() == FIRST) {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| holds(*pid, id, path))
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;
