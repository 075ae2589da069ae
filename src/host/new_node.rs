//! Makes a device node in a directory that somebody else may write to as well: what
//! is changed is the node that was made, whatever its name leads to by then.

use crate::device::Number;
use anyhow::{Context as _, bail};
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// A character device to be made.
pub(super) struct Wanted {
    /// Its number.
    pub number: Number,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// The directory of a node, held open: its name may lead elsewhere later.
pub(super) struct Directory {
    fd: OwnedFd,
    name: OsString,
}

impl Directory {
    /// That of the node at `path`.
    ///
    /// # Errors
    /// It is not there, or is a link or another file.
    pub fn of(path: &Path) -> anyhow::Result<Directory> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{} has no directory", path.display())
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = open(parent, flags, Mode::empty())
            .with_context(|| format!("{} is not a directory to make nodes in", parent.display()))?;
        Ok(Directory { fd, name: name.to_owned() })
    }

    /// Makes the node under a temporary name with its mode and owner, then renames
    /// it over what is there.
    ///
    /// # Errors
    /// The node could not be made, or somebody exchanged it meanwhile.
    pub fn place(&self, wanted: &Wanted) -> anyhow::Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique =
            format!(".phoenix-nvidia.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut temp = self.name.clone();
        temp.push(unique);
        let device = makedev(wanted.number.major.into(), wanted.number.minor.into());
        // Nobody opens it before it has its owner.
        mknodat(&self.fd, temp.as_os_str(), SFlag::S_IFCHR, Mode::empty(), device)?;
        let placed = self.finish(&temp, wanted);
        if placed.is_err() {
            // Nothing of ours stays in /dev.
            let _ = unlinkat(&self.fd, temp.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
        placed
    }

    /// Gives the new node its mode and owner, and its name.
    fn finish(&self, temp: &OsStr, wanted: &Wanted) -> anyhow::Result<()> {
        let (node, made) = self.made(temp, wanted.number)?;
        fchownat(
            &node,
            "",
            Some(Uid::from_raw(wanted.uid)),
            Some(Gid::from_raw(wanted.gid)),
            AtFlags::AT_EMPTY_PATH,
        )?;
        // fchmod(2) takes no O_PATH descriptor; this link leads to its inode alone.
        let itself = format!("/proc/self/fd/{}", node.as_raw_fd());
        std::fs::set_permissions(itself, Permissions::from_mode(wanted.mode))?;
        #[allow(clippy::disallowed_methods)] // a device node, no file that has to survive a crash
        renameat(&self.fd, temp, &self.fd, self.name.as_os_str())?;
        let there = fstatat(&self.fd, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if (there.st_dev, there.st_ino) != (made.st_dev, made.st_ino) {
            bail!("{EXCHANGED}");
        }
        Ok(())
    }

    /// The node that was just made, opened: nothing else that has its name by now.
    fn made(&self, temp: &OsStr, number: Number) -> anyhow::Result<(OwnedFd, FileStat)> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node = openat(&self.fd, temp, flags, Mode::empty())?;
        let stat = fstat(&node)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let device = makedev(number.major.into(), number.minor.into());
        // One more name is another node's, a hard link to it.
        if kind != SFlag::S_IFCHR || stat.st_rdev != device || stat.st_nlink != 1 {
            bail!("{EXCHANGED}");
        }
        Ok((node, stat))
    }
}

/// Somebody else writes to the directory.
const EXCHANGED: &str = "somebody exchanged the new node: who else writes to its directory?";

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test's own directory
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};

    fn wanted(minor: u32) -> Wanted {
        Wanted { number: Number { major: 195, minor }, mode: 0o640, uid: 7, gid: 8 }
    }

    fn node(path: &Path, minor: u32) {
        nix::sys::stat::mknod(
            path,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o600),
            makedev(195, minor.into()),
        )
        .unwrap();
    }

    /// What a racer put in the place of the new node is left as it is.
    #[test]
    fn what_has_the_new_nodes_name_by_then_gets_neither_mode_nor_owner() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        let temp = dir.path().join("temp");
        let swaps: [&dyn Fn(); 5] = [
            &|| symlink(&victim, &temp).unwrap(),
            &|| fs::hard_link(&victim, &temp).unwrap(),
            &|| node(&temp, 9),
            &|| {
                node(&dir.path().join("other"), 3);
                fs::hard_link(dir.path().join("other"), &temp).unwrap();
            },
            &|| fs::create_dir(&temp).unwrap(),
        ];
        let to = dir.path().join("nvidia-cap3");
        for swap in swaps {
            fs::write(&victim, "host").unwrap();
            fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
            swap();
            let finished = Directory::of(&to).unwrap().finish(OsStr::new("temp"), &wanted(3));
            assert_eq!(finished.unwrap_err().to_string(), EXCHANGED);
            for file in [&victim, &temp] {
                let meta = fs::metadata(file).unwrap();
                assert!(
                    meta.mode() & 0o7777 != 0o640 && (meta.uid(), meta.gid()) == (0, 0),
                    "{file:?} {meta:?}"
                );
            }
            assert!(fs::symlink_metadata(&to).is_err());
            let _ = fs::remove_file(&temp).or_else(|_| fs::remove_dir(&temp));
        }
    }

    #[test]
    fn a_node_gets_its_mode_and_owner_and_takes_the_place_of_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (to, victim) = (dir.path().join("nvidia-cap3"), dir.path().join("victim"));
        fs::write(&victim, "host").unwrap();
        symlink(&victim, &to).unwrap();
        Directory::of(&to).unwrap().place(&wanted(3)).unwrap();
        let made = fs::symlink_metadata(&to).unwrap();
        assert!(made.file_type().is_char_device() && made.rdev() == makedev(195, 3));
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o640, 7, 8));
        assert_eq!(fs::read(&victim).unwrap(), b"host");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_link_in_the_place_of_the_directory_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink(dir.path().join("etc"), dir.path().join("nvidia-caps")).unwrap();
        let refused = Directory::of(&dir.path().join("nvidia-caps/nvidia-cap3")).err().unwrap();
        assert!(
            refused.to_string().ends_with("nvidia-caps is not a directory to make nodes in"),
            "{refused}"
        );
    }
}
