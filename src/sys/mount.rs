//! Read-only overlays of our directories, to bind into containers.
//!
//! A read-only bind mount does not protect a directory from root of a privileged
//! container: mount_setattr(2) makes it writable again, under every AppArmor
//! profile of Proxmox. An overlay without an upper layer stays read-only: every
//! write fails with EROFS.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What lies below an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Text, which no program runs.
    Data,
    /// Programs and libraries.
    Programs,
}

/// Mounts `lower` at the directory `at`, read-only and private: later mounts on
/// it do not propagate to containers. `empty` is an empty directory, since an
/// overlay without an upper layer needs two lower ones.
///
/// # Errors
/// The kernel's; ENODEV where it has no overlayfs.
pub fn read_only(lower: &Path, empty: &Path, at: &Path, holds: Holds) -> io::Result<()> {
    // These separate layers and options.
    if [lower, empty].iter().any(|path| path.as_os_str().as_bytes().iter().any(|b| b":,\\".contains(b))) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut options = OsString::from("lowerdir=");
    options.push(lower);
    options.push(":");
    options.push(empty);
    mount(Some("overlay"), at, Some("overlay"), PLAIN | holds.flags(), Some(options.as_os_str()))?;
    make_private(at)
}

const NONE: Option<&str> = None;
const PLAIN: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV);

impl Holds {
    fn flags(self) -> MsFlags {
        match self {
            Holds::Data => MsFlags::MS_NOEXEC,
            Holds::Programs => MsFlags::empty(),
        }
    }
}

/// Binds `from` to the directory `at`, read-only and private: for a kernel
/// without overlayfs. Root of a privileged container can write through it.
///
/// # Errors
/// The kernel's.
pub fn bind_read_only(from: &Path, at: &Path) -> io::Result<()> {
    mount(Some(from), at, NONE, MsFlags::MS_BIND, NONE)?;
    make_private(at)?;
    mount(NONE, at, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | PLAIN, NONE)?;
    Ok(())
}

/// No later mount on `at` shows in another mount namespace, nor the other way
/// round.
///
/// # Errors
/// The kernel's.
pub fn make_private(at: &Path) -> io::Result<()> {
    Ok(mount(NONE, at, NONE, MsFlags::MS_PRIVATE, NONE)?)
}

/// Mounts a small tmpfs at the directory `at` on which devices can be opened:
/// /run has nodev, and so has each bind mount of something below it. Private, as
/// above.
///
/// # Errors
/// The kernel's.
pub fn for_devices(at: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("phoenix-nvidia"), at, Some("tmpfs"), flags, Some("mode=0755,size=64k,nr_inodes=1024"))?;
    Ok(mount(None::<&str>, at, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?)
}

/// Whether devices can be made and opened on the file system at a path. Root of a
/// privileged container can make all of it read-only, by one file that is bound
/// into the container.
pub fn takes_devices(at: &Path) -> bool {
    statvfs(at).is_ok_and(|fs| !fs.flags().intersects(FsFlags::ST_NODEV | FsFlags::ST_RDONLY))
}

/// Whether the file system at a path is read-only.
pub fn is_read_only(at: &Path) -> bool {
    statvfs(at).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
}

/// Unmounts everything at a directory. Bind mounts of it remain.
///
/// # Errors
/// The kernel's.
pub fn unmount(at: &Path) -> io::Result<()> {
    while is_mounted(at) {
        umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
    }
    Ok(())
}

/// Whether the directory is a mount point: another file system than its parent.
pub fn is_mounted(at: &Path) -> bool {
    let device = |path: &Path| std::fs::symlink_metadata(path).ok().map(|meta| meta.dev());
    match (device(at), at.parent().and_then(device)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_directory_is_no_mount_and_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own");
        assert!(!is_mounted(&own));
        std::fs::create_dir(&own).unwrap();
        assert!(!is_mounted(&own));
        unmount(&own).unwrap();
        assert!(is_mounted(Path::new("/proc")));
    }

    #[test]
    fn a_path_that_would_be_read_as_two_layers_is_refused() {
        for bad in ["/a:b", "/a,upperdir=/etc", "/a\\b"] {
            let error =
                read_only(Path::new(bad), Path::new("/empty"), Path::new("/nonexistent"), Holds::Data)
                    .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
    }
}
