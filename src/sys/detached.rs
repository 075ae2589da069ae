//! Copies of this host's mounts that are mounted nowhere yet, to be placed in
//! another mount namespace by descriptor: no path is looked up there.

use super::file;
use super::raw;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// A copy of a mount.
#[derive(Debug)]
pub struct Detached(OwnedFd);

/// What a copy holds, and so what it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// A device node: as the host has it.
    Node,
    /// A directory of them: as the host has it.
    Nodes,
    /// Text: read-only, without programs.
    Data,
    /// Programs and libraries: read-only.
    Programs,
}

impl Holds {
    fn attributes(self) -> u64 {
        use nix::libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
        let plain = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        match self {
            Holds::Node | Holds::Nodes => MOUNT_ATTR_NOSUID,
            Holds::Data => plain | MOUNT_ATTR_NOEXEC,
            Holds::Programs => plain,
        }
    }
}

impl Detached {
    /// A copy of what `path` shows on this host. Private: a copy of a shared
    /// mount is its peer, and what a container mounts on that would show on the
    /// host.
    ///
    /// # Errors
    /// The kernel's; ENOSYS before Linux 5.12.
    pub fn of(path: &Path, holds: Holds) -> io::Result<Detached> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let copy = raw::copy_of_mount(None, &path)?;
        raw::private_mount(copy.as_fd(), holds.attributes())?;
        Ok(Detached(copy))
    }

    /// A copy of the mount of an open file, as it is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_open(file: &impl AsFd) -> io::Result<Detached> {
        raw::copy_of_mount(Some(file.as_fd()), c"").map(Detached)
    }

    /// Mounts it on an open file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn place(&self, on: &impl AsFd) -> io::Result<()> {
        raw::place_mount(self.0.as_fd(), on.as_fd())
    }

    /// The number of the character device that it is, if it is one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn number(&self) -> io::Result<Option<(u32, u32)>> {
        let meta = File::from(self.0.try_clone()?).metadata()?;
        Ok(meta.file_type().is_char_device().then(|| file::numbers(meta.rdev())))
    }
}

/// Which file or directory an open one is, by the device of its file system and its inode.
///
/// # Errors
/// The kernel's.
pub fn identity(file: &impl AsFd) -> nix::Result<(u64, u64)> {
    let stat = nix::sys::stat::fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
