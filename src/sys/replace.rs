//! The one function that replaces a file.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Replaces `path` by `contents`, whole or not at all: `temp`, which must lie
/// in the same directory, is created exclusively, written and synced, then
/// renamed over it, and the directory is synced.
///
/// The file gets `mode` if the file system allows it (pmxcfs answers EPERM to any
/// but its own, which is no failure).
///
/// # Errors
/// The first failure; then `temp` is removed and `path` unchanged. A failed sync
/// of the directory after the rename is an error too: the new file is in place,
/// but may not survive a power failure.
pub fn replace(path: &Path, temp: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    replace_if(path, temp, contents, Attributes { mode, owner: None }, || Ok(()))
}

/// Mode and owner of the new file, if the file system allows them.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// The permission bits.
    pub mode: u32,
    /// User and group, if not those of this process.
    pub owner: Option<(u32, u32)>,
}

/// [`replace`] with an owner, and with `check` right before the rename: its error
/// leaves everything unchanged.
///
/// # Errors
/// As [`replace`], and those of `check`.
pub fn replace_if(
    path: &Path,
    temp: &Path,
    contents: &[u8],
    attributes: Attributes,
    check: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let mode = attributes.mode;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(temp)?;
    let written = (|| {
        file.write_all(contents)?;
        set_owner(&file, attributes.owner)?;
        set_mode(&file, mode)?;
        file.sync_all()?;
        check()?;
        #[allow(clippy::disallowed_methods)] // this is the one room
        std::fs::rename(temp, path)
    })();
    if written.is_err() {
        // Created exclusively above, so it is ours.
        let _ = std::fs::remove_file(temp);
        return written;
    }
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// chown, unless already right or not allowed by the file system.
fn set_owner(file: &File, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    let now = file.metadata()?;
    if (now.uid(), now.gid()) == (user, group) {
        return Ok(());
    }
    match std::os::unix::fs::fchown(file, Some(user), Some(group)) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => Ok(()),
        other => other,
    }
}

/// chmod, unless already right or not allowed by the file system.
fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & 0o7777 == mode {
        return Ok(());
    }
    match file.set_permissions(Permissions::from_mode(mode)) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => Ok(()),
        other => other,
    }
}

/// [`replace`] for our own files: with a temporary name made from the path and
/// the process id, replacing a leftover of that name.
///
/// # Errors
/// As [`replace`].
pub fn replace_own(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temp = path.with_file_name(name);
    let _ = std::fs::remove_file(&temp);
    replace(path, &temp, contents, mode)
}

/// Has the symlink `path` lead to `target`, at once: nobody finds it missing.
///
/// # Errors
/// The file system's.
pub fn link_own(path: &Path, target: &Path) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temp = path.with_file_name(name);
    let _ = std::fs::remove_file(&temp);
    std::os::unix::fs::symlink(target, &temp)?;
    #[allow(clippy::disallowed_methods)] // this is the one room
    std::fs::rename(&temp, path).inspect_err(|_| drop(std::fs::remove_file(&temp)))
}

/// Moves a directory that was made beside its place there, on disk before and
/// after.
///
/// # Errors
/// The file system's: one that is there already is not replaced.
pub fn directory_whole(temp: &Path, path: &Path) -> io::Result<()> {
    File::open(temp)?.sync_all()?;
    #[allow(clippy::disallowed_methods)] // this is the one room
    std::fs::rename(temp, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Has two directories of the same parent change their names, at once: each name
/// leads to one of them at every moment. Where the file system cannot do that (ZFS
/// before 2.2), it is done by way of `spare`, a name that is free.
///
/// # Errors
/// The file system's; what was moved last may be at `spare` then.
pub fn exchange(one: &Path, other: &Path, spare: &Path) -> io::Result<()> {
    File::open(one)?.sync_all()?;
    match renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE) {
        Err(Errno::EINVAL) => by_way_of(spare, one, other)?,
        done => done?,
    }
    File::open(one.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[allow(clippy::disallowed_methods)] // this is the one room
fn by_way_of(spare: &Path, one: &Path, other: &Path) -> io::Result<()> {
    [(other, spare), (one, other), (spare, one)]
        .into_iter()
        .try_for_each(|(from, to)| std::fs::rename(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_new_whole_and_has_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        replace_own(&path, b"one", 0o640).unwrap();
        replace_own(&path, b"two", 0o640).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_temp_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::create_dir_all(path.join("full")).unwrap(); // rename over it fails
        let temp = dir.path().join("f.tmp");
        assert!(replace(&path, &temp, b"x", 0o600).is_err());
        assert!(!temp.exists() && path.is_dir());
    }

    #[test]
    fn a_link_is_replaced_whatever_it_led_to_and_a_directory_never() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for target in ["a", "b"] {
            link_own(&at("current"), Path::new(target)).unwrap();
            assert_eq!(std::fs::read_link(at("current")).unwrap(), Path::new(target));
        }
        std::fs::create_dir_all(at("new")).unwrap();
        std::fs::create_dir_all(at("old/full")).unwrap();
        assert!(directory_whole(&at("new"), &at("old")).is_err());
        assert!(link_own(&at("old"), Path::new("a")).is_err());
        directory_whole(&at("new"), &at("fresh")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn two_directories_change_names_and_one_that_is_missing_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("new/of-new")).unwrap();
        std::fs::create_dir_all(at("old/of-old")).unwrap();
        exchange(&at("new"), &at("old"), &at("spare")).unwrap();
        assert!(at("old/of-new").exists() && at("new/of-old").exists());
        assert!(exchange(&at("old"), &at("missing"), &at("spare")).is_err());
        by_way_of(&at("spare"), &at("new"), &at("old")).unwrap();
        assert!(at("new/of-new").exists() && at("old/of-old").exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_existing_temp_file_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let temp = dir.path().join("f.tmp");
        File::create(&temp).unwrap().write_all(b"theirs").unwrap();
        assert!(replace(&dir.path().join("f"), &temp, b"x", 0o600).is_err());
        assert_eq!(std::fs::read(&temp).unwrap(), b"theirs");
    }
}
