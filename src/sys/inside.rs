//! The files of another process's root, in its mount and user namespace.
//!
//! Only a process that does nothing else enters: nothing of this host can be
//! reached by path afterwards. No symlink is followed there, and a file system
//! there may never answer, so whoever starts the process has a deadline.

use super::file::numbers;
use super::pidfd::Pidfd;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, umask};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchdir, setgroups, setresgid, setresuid, unlinkat};
use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// The root of the process that was entered.
#[derive(Debug)]
pub struct Inside {
    root: OwnedFd,
}

/// A directory in it, and a name there.
#[derive(Debug)]
pub struct Spot {
    directory: OwnedFd,
    name: OsString,
    /// The directories that were made, the outermost first.
    made: Vec<(OwnedFd, OsString)>,
}

/// What is at a spot.
#[derive(Debug)]
pub enum There {
    /// Nothing.
    Nothing,
    /// A character device with this number.
    Device(OwnedFd, (u32, u32)),
    /// A regular file, and whether it is empty.
    File(OwnedFd, bool),
    /// A directory.
    Directory(OwnedFd),
    /// Anything else.
    Other,
}

/// Why something was not done there, and at which path.
#[derive(Debug)]
pub struct Refused {
    /// The path inside.
    pub path: PathBuf,
    /// The kernel's reason.
    pub error: Errno,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match self.error {
            Errno::ELOOP => write!(f, "{path} is a symbolic link in the container"),
            Errno::EROFS => write!(f, "{path} is on a read-only file system in the container"),
            Errno::ENOTEMPTY => write!(f, "{path} in the container has files of its own"),
            Errno::ENOSPC | Errno::EDQUOT => write!(f, "{path}: no space left in the container"),
            Errno::EBUSY => write!(f, "{path} is busy: the container has something of its own mounted there"),
            error => write!(f, "{path} in the container: {}", error.desc()),
        }
    }
}

impl std::error::Error for Refused {}

/// Enters the namespaces of a process, if `is_it` says that it is the meant one
/// once its pid cannot be reused; `None` if it is not, or has gone.
///
/// # Errors
/// The kernel's. The caller may be half inside then, and ends.
pub fn enter(pid: i32, is_it: impl Fn() -> bool) -> std::io::Result<Option<Inside>> {
    let gone = |error: &std::io::Error| {
        let no_process = error.raw_os_error() == Some(nix::libc::ESRCH);
        no_process || error.kind() == std::io::ErrorKind::NotFound
    };
    let process = match Pidfd::open(pid) {
        Err(error) if gone(&error) => return Ok(None),
        opened => opened?,
    };
    if !is_it() {
        return Ok(None);
    }
    let own = std::fs::read_link("/proc/self/ns/user")?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = std::fs::read_link(format!("/proc/{pid}/ns/user")).and_then(|its| {
        let root = nix::fcntl::open(Path::new(&format!("/proc/{pid}/root")), flags, Mode::empty())?;
        Ok((its, root))
    });
    let (its, root) = match opened {
        Err(error) if gone(&error) || !is_it() => return Ok(None),
        opened => opened?,
    };
    let foreign = its != own;
    let user = if foreign { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() };
    match setns(&process, CloneFlags::CLONE_NEWNS | user) {
        Err(Errno::ESRCH) => return Ok(None),
        done => done?,
    }
    if foreign {
        // Its root: what is made there belongs to somebody who exists there.
        let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    umask(Mode::empty());
    Ok(Some(Inside { root }))
}

impl Inside {
    /// The spot of a path, relative to the root; with `make` the missing
    /// directories above it are made.
    ///
    /// # Errors
    /// A directory above is missing, a symlink, or cannot be made.
    pub fn spot(&self, path: &Path, make: bool) -> Result<Spot, Refused> {
        let names: Vec<OsString> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_owned()),
                _ => None,
            })
            .collect();
        let (mut at, mut made) = (PathBuf::from("/"), Vec::new());
        let refused = |at: &Path| {
            let path = at.to_owned();
            move |error: Errno| Refused { path, error }
        };
        let Some((name, above)) = names.split_last() else { return Err(refused(&at)(Errno::EINVAL)) };
        let mut directory = self.root.try_clone().map_err(|_| refused(&at)(Errno::EMFILE))?;
        for part in above {
            at.push(part);
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let next = match open(&directory, part, flags) {
                Err(Errno::ENOTDIR) if is_link(&directory, part) => Err(Errno::ELOOP),
                Err(Errno::ENOENT) if make => {
                    let made_it = mkdirat(&directory, part.as_os_str(), Mode::from_bits_truncate(0o755))
                        .and_then(|()| open(&directory, part, flags));
                    let next = made_it.inspect_err(|_| undo(&made)).map_err(refused(&at))?;
                    let above = directory.try_clone().map_err(|_| refused(&at)(Errno::EMFILE))?;
                    made.push((above, part.clone()));
                    Ok(next)
                }
                next => next,
            };
            directory = next.inspect_err(|_| undo(&made)).map_err(refused(&at))?;
        }
        Ok(Spot { directory, name: name.clone(), made })
    }
}

/// Opens one name of a directory, whatever mount is there, and follows nothing.
fn open(directory: &OwnedFd, name: &OsString, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mut how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
    if flags.contains(OFlag::O_CREAT) {
        how = how.mode(Mode::empty());
    }
    // EAGAIN: somebody renames or mounts at the same time.
    for _ in 0..1000 {
        match openat2(directory, name.as_os_str(), how) {
            Err(Errno::EAGAIN) => {}
            opened => return opened,
        }
    }
    Err(Errno::EAGAIN)
}

fn is_link(directory: &OwnedFd, name: &OsString) -> bool {
    let stat = open(directory, name, OFlag::O_PATH).and_then(fstat);
    stat.is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
}

fn undo(made: &[(OwnedFd, OsString)]) {
    for (above, name) in made.iter().rev() {
        let _ = unlinkat(above, name.as_os_str(), UnlinkatFlags::RemoveDir);
    }
}

impl Spot {
    /// What is there, a mount on it rather than what lies below.
    ///
    /// # Errors
    /// The kernel's; ELOOP for a symlink.
    pub fn look(&self) -> nix::Result<There> {
        let file = match open(&self.directory, &self.name, OFlag::O_PATH) {
            Err(Errno::ENOENT) => return Ok(There::Nothing),
            opened => opened?,
        };
        let stat = fstat(&file)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFLNK {
            return Err(Errno::ELOOP);
        }
        Ok(match kind {
            SFlag::S_IFCHR => There::Device(file, numbers(stat.st_rdev)),
            SFlag::S_IFREG => There::File(file, stat.st_size == 0),
            SFlag::S_IFDIR => There::Directory(file),
            _ => There::Other,
        })
    }

    /// Whether something is mounted there. What is mounted on that in turn shows
    /// also at the place from which it was bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_mount(&self) -> nix::Result<bool> {
        let file = open(&self.directory, &self.name, OFlag::O_PATH)?;
        let is = super::raw::is_mount_root(file.as_fd());
        is.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// Whether the directory there is empty.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_empty(&self) -> nix::Result<bool> {
        let directory = open(&self.directory, &self.name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut entries = nix::dir::Dir::from_fd(directory)?;
        let own = |entry: nix::Result<nix::dir::Entry>| {
            entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))
        };
        Ok(entries.iter().all(own))
    }

    /// Makes an empty file that nobody may open.
    ///
    /// # Errors
    /// The kernel's; EEXIST.
    pub fn make_file(&self) -> nix::Result<()> {
        open(&self.directory, &self.name, OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY).map(drop)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make_directory(&self) -> nix::Result<()> {
        mkdirat(&self.directory, self.name.as_os_str(), Mode::from_bits_truncate(0o755))
    }

    /// Removes the file, which is no mount.
    ///
    /// # Errors
    /// The kernel's; EBUSY where something is mounted on it.
    pub fn remove_file(&self) -> nix::Result<()> {
        unlinkat(&self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
    }

    /// Removes the empty directory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_directory(&self) -> nix::Result<()> {
        unlinkat(&self.directory, self.name.as_os_str(), UnlinkatFlags::RemoveDir)
    }

    /// Removes the directories that were made above it.
    pub fn unmake(&self) {
        undo(&self.made);
    }

    /// Unmounts what is mounted there; false if nothing is. Open files stay.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unmount(&self) -> nix::Result<bool> {
        fchdir(&self.directory)?;
        match umount2(Path::new(&self.name), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EINVAL) => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// The same errno with the path, for messages.
    pub fn refused(&self, path: &Path) -> impl Fn(Errno) -> Refused + use<> {
        let path = Path::new("/").join(path);
        move |error| Refused { path: path.clone(), error }
    }
}
