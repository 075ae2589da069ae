//! Directories and files that only root can access.
//!
//! Whoever can read a file can lock it with flock(2): a lock file must be in a
//! directory that no other user can enter.

use super::file;
use std::fmt;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Follows no symlink, and never blocks on a FIFO.
pub const GUARDED: i32 = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;

/// Why a path is not safe to use.
#[derive(Debug)]
pub enum Refused {
    /// Something not created by us, described; left untouched.
    NotOurs(PathBuf, String),
    /// Root's, and others can write to it, with its permission bits; left untouched.
    Open(PathBuf, u32),
    /// The file system's error.
    Io(PathBuf, io::Error),
}

impl Refused {
    /// The command that repairs it, if any.
    pub fn fix(&self) -> Option<String> {
        match self {
            // A lock that somebody holds is worth nothing once its file is gone: two would have it.
            Refused::NotOurs(path, _) => {
                Some(format!("lslocks -u | grep -F {0} || rm -r {0}", path.display()))
            }
            Refused::Open(path, _) => Some(format!("chmod go-w {}", path.display())),
            Refused::Io(..) => None,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotOurs(path, what) => write!(f, "{} {what}", path.display()),
            Refused::Open(path, mode) => {
                write!(f, "{} is writable by users other than root (mode {mode:04o})", path.display())
            }
            Refused::Io(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for Refused {}

/// Makes `path` a directory of ours with exactly this mode: creates it, or
/// corrects its mode. Creates its parents as usual.
///
/// # Errors
/// [`Refused::NotOurs`] for a symlink, another type of file, or a directory of another
/// user; [`Refused::Open`] for one that other users could write to.
pub fn directory(path: &Path, mode: u32) -> Result<(), Refused> {
    let io = |error| Refused::Io(path.to_owned(), error);
    let flags = nix::libc::O_DIRECTORY | GUARDED;
    let open = || OpenOptions::new().read(true).custom_flags(flags).open(path);
    let opened = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(io)?;
            match DirBuilder::new().mode(mode).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
                _ => open(),
            }
        }
        other => other,
    };
    let directory = opened.map_err(|error| match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => not_ours(path, "is a symlink".to_owned()),
        Ok(meta) if !meta.is_dir() => not_ours(path, "is not a directory".to_owned()),
        _ => io(error),
    })?;
    let meta = directory.metadata().map_err(io)?;
    owned(path, &meta)?;
    if meta.mode() & 0o7777 != mode {
        directory.set_permissions(Permissions::from_mode(mode)).map_err(io)?;
    }
    Ok(())
}

/// Opens a file in such a directory for appending; creates it with mode 0600.
///
/// # Errors
/// [`Refused::NotOurs`] for anything but a regular file, and for another user's;
/// [`Refused::Open`] for one that other users can write to.
pub fn append(path: &Path) -> Result<(File, Metadata), Refused> {
    let (file, meta) = file::append(path, 0o600).map_err(|error| match file::in_its_place(&error) {
        Some(other) => not_ours(path, format!("is {}, not a regular file", other.0)),
        None => Refused::Io(path.to_owned(), error),
    })?;
    owned(path, &meta)?;
    Ok((file, meta))
}

/// Reads a regular file of at most `most` bytes; `None` for anything else, or if
/// not readable.
pub fn read(path: &Path, most: u64) -> Option<Vec<u8>> {
    let (file, meta) = file::open_itself(path).ok()?;
    file::whole(file, &meta, most).ok()
}

/// Fails if another user than root owns it or can write to it.
fn owned(path: &Path, meta: &Metadata) -> Result<(), Refused> {
    let root = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
    match root {
        false => Err(not_ours(path, format!("belongs to user {}, not root", meta.uid()))),
        true if meta.mode() & 0o022 != 0 => Err(Refused::Open(path.to_owned(), meta.mode() & 0o7777)),
        true => Ok(()),
    }
}

fn not_ours(path: &Path, what: String) -> Refused {
    Refused::NotOurs(path.to_owned(), what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_older_mode_is_corrected_and_what_is_not_ours_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("above/own");
        directory(&path, 0o700).unwrap();
        assert_eq!(mode(&path), 0o700);
        chmod(&path, 0o755);
        directory(&path, 0o700).unwrap();
        assert_eq!(mode(&path), 0o700);
        directory(&path, 0o755).unwrap();
        assert_eq!(mode(&path), 0o755);
        for open in [0o777, 0o775] {
            chmod(&path, open);
            let refused = directory(&path, 0o700).unwrap_err();
            assert!(refused.to_string().contains("other than root"), "{refused}");
            assert_eq!((mode(&path), refused.fix()), (open, Some(format!("chmod go-w {}", path.display()))));
        }
        if nix::unistd::geteuid().is_root() {
            chmod(&path, 0o700);
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(directory(&path, 0o700).unwrap_err().to_string().contains("user 65534"));
        }
        let (link, file) = (dir.path().join("link"), dir.path().join("file"));
        symlink(dir.path().join("above"), &link).unwrap();
        File::create(&file).unwrap();
        assert!(directory(&link, 0o700).unwrap_err().to_string().contains("is a symlink"));
        assert!(directory(&file, 0o700).unwrap_err().to_string().contains("is not a directory"));
        assert_eq!(mode(&dir.path().join("above")), 0o755);
    }

    #[test]
    fn only_a_regular_file_of_ours_is_opened_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        append(&at("new")).unwrap();
        assert_eq!(mode(&at("new")), 0o600);
        std::os::unix::fs::symlink(at("victim"), at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::create(at("open")).unwrap();
        chmod(&at("open"), 0o666);
        for (name, said) in [("link", "symlink"), ("fifo", "a FIFO"), ("open", "mode 0666")] {
            let refused = append(&at(name)).unwrap_err();
            assert!(refused.to_string().contains(said), "{refused}");
        }
        assert!(!at("victim").exists());
        assert_eq!(read(&at("new"), 5), Some(Vec::new()));
        assert_eq!((read(&at("fifo"), 5), read(&at("link"), 5), read(dir.path(), 5)), (None, None, None));
        chmod(&at("open"), 0o600);
        std::io::Write::write_all(&mut File::create(at("open")).unwrap(), b"123456").unwrap();
        assert_eq!((read(&at("open"), 5), read(&at("open"), 6)), (None, Some(b"123456".to_vec())));
    }
}
