//! Opens regular files at paths that may have something else.
//!
//! Opening a FIFO blocks, opening a terminal makes it the controlling one, and
//! opening a device may have any effect. Nothing of that happens here, even if
//! someone put one in the place of a settings file.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Never blocks on a FIFO, never makes a terminal the controlling one.
const GUARDED: i32 = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;

/// What is at the path instead of a regular file; inside an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotRegular(pub &'static str);

impl std::fmt::Display for NotRegular {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it is {}, not a regular file", self.0)
    }
}

impl std::error::Error for NotRegular {}

/// What may be there instead.
const KINDS: [&str; 6] =
    ["a directory", "a symlink", "a FIFO", "a socket", "a character device", "a block device"];

impl NotRegular {
    /// That of this name, as another process tells it.
    pub fn named(name: &str) -> Option<NotRegular> {
        KINDS.into_iter().find(|kind| *kind == name).map(NotRegular)
    }
}

/// The [`NotRegular`] inside an error, if any.
pub fn in_its_place(error: &io::Error) -> Option<NotRegular> {
    error.get_ref()?.downcast_ref().copied()
}

/// Opens a regular file for reading, without blocking.
///
/// # Errors
/// What open or fstat say; [`NotRegular`].
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    with(OpenOptions::new().read(true), 0, path)
}

/// The same without following a symlink at the end of the path.
///
/// # Errors
/// As [`open`].
pub fn open_itself(path: &Path) -> io::Result<(File, Metadata)> {
    with(OpenOptions::new().read(true), nix::libc::O_NOFOLLOW, path)
}

/// Opens a regular file for appending; creates it with this mode if missing.
/// Follows no symlink.
///
/// # Errors
/// As [`open`].
pub fn append(path: &Path, mode: u32) -> io::Result<(File, Metadata)> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(mode);
    with(&mut options, nix::libc::O_NOFOLLOW, path)
}

/// Whether the path still leads to this very file.
pub fn is_at(meta: &Metadata, path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (meta.dev(), meta.ino()))
}

/// The number of the character device at a path, from what the kernel knows: a
/// FUSE or network file system is not asked. `None` for anything else.
///
/// # Errors
/// What statx says.
pub fn known_device(path: &str) -> io::Result<Option<(u32, u32)>> {
    let (mode, number) = super::raw::known_stat(&std::ffi::CString::new(path)?)?;
    Ok((mode & nix::libc::S_IFMT == nix::libc::S_IFCHR).then_some(number))
}

/// Major and minor of a device number; both fit 32 bits on Linux.
pub fn numbers(rdev: u64) -> (u32, u32) {
    let half = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (half(nix::sys::stat::major(rdev)), half(nix::sys::stat::minor(rdev)))
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; the file is larger.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, meta) = open(path)?;
    whole(file, &meta, most)
}

/// The same for an open file.
///
/// # Errors
/// What read says; the file is larger.
pub fn whole(file: File, meta: &Metadata, most: u64) -> io::Result<Vec<u8>> {
    // One byte more than the file, so that the last read needs no new allocation.
    let room = usize::try_from(meta.len().min(most)).unwrap_or_default() + 1;
    let mut bytes = Vec::with_capacity(room);
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let shown = if most % 1024 == 0 { format!("{} KiB", most / 1024) } else { format!("{most} bytes") };
        return Err(io::Error::other(format!("larger than {shown}")));
    }
    Ok(bytes)
}

/// Reads the first `most` bytes, for readers of many files of the kernel: with
/// no system call beyond open, read and close. It checks what the path is only
/// if there are no bytes, or as many as from a device without an end.
///
/// # Errors
/// As [`open`].
pub fn beginning(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(GUARDED).open(path).map_err(|error| explained(error, path))?;
    let mut bytes = Vec::new();
    // Without `take`, read_to_end asks for the size first, which is 0 in /proc.
    match (&file).take(most).read_to_end(&mut bytes) {
        Ok(got @ 1..) if (got as u64) < most => Ok(bytes),
        nothing => match kind(&file.metadata()?) {
            Some(kind) => Err(io::Error::other(NotRegular(kind))),
            None => nothing.map(|_| bytes),
        },
    }
}

/// [`read`] as text, with invalid UTF-8 replaced.
///
/// # Errors
/// As [`read`].
pub fn text(path: &Path, most: u64) -> io::Result<String> {
    let bytes = read(path, most)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// How many bytes the file system of a directory can take.
///
/// # Errors
/// What statvfs says.
pub fn free_space(directory: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(directory)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

fn with(options: &mut OpenOptions, more: i32, path: &Path) -> io::Result<(File, Metadata)> {
    let file = options.custom_flags(GUARDED | more).open(path).map_err(|error| explained(error, path))?;
    let meta = file.metadata()?;
    match kind(&meta) {
        None => Ok((file, meta)),
        Some(kind) => Err(io::Error::other(NotRegular(kind))),
    }
}

/// Replaces an error of open by [`NotRegular`], if that is the reason.
fn explained(error: io::Error, path: &Path) -> io::Error {
    use nix::libc::{EISDIR, ELOOP, ENODEV, ENXIO};
    match error.raw_os_error() {
        Some(EISDIR | ELOOP | ENODEV | ENXIO) => {
            let itself = error.raw_os_error() == Some(ELOOP);
            let meta = if itself { std::fs::symlink_metadata(path) } else { std::fs::metadata(path) };
            meta.ok().as_ref().and_then(kind).map_or(error, |kind| io::Error::other(NotRegular(kind)))
        }
        _ => error,
    }
}

fn kind(meta: &Metadata) -> Option<&'static str> {
    match meta.file_type() {
        kind if kind.is_file() => None,
        kind if kind.is_dir() => Some(KINDS[0]),
        kind if kind.is_symlink() => Some(KINDS[1]),
        kind if kind.is_fifo() => Some(KINDS[2]),
        kind if kind.is_socket() => Some(KINDS[3]),
        kind if kind.is_char_device() => Some(KINDS[4]),
        _ => Some(KINDS[5]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, Instant};

    /// A name and what [`open`], [`open_itself`] and [`append`] say is there.
    type Case = (&'static str, [Option<&'static str>; 3]);

    #[test]
    fn nothing_but_a_regular_file_is_opened_and_nobody_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        crate::sys::replace::replace_own(&at("file"), b"text", 0o600).unwrap();
        std::fs::create_dir(at("directory")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        let link = Some("a symlink");
        let cases: [Case; 6] = [
            ("file", [None; 3]),
            ("directory", [Some("a directory"); 3]),
            ("fifo", [Some("a FIFO"); 3]),
            ("socket", [Some("a socket"); 3]),
            ("link", [None, link, link]),
            ("zero", [Some("a character device"), link, link]),
        ];
        let begun = Instant::now();
        for (name, said) in cases {
            let path = at(name);
            let seen = [open(&path).map(drop), open_itself(&path).map(drop), append(&path, 0o600).map(drop)];
            let seen =
                seen.map(|r| r.err().map(|e| in_its_place(&e).unwrap_or_else(|| panic!("{name}: {e}")).0));
            assert_eq!(seen, said, "{name}");
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_fifo_that_somebody_writes_to_is_none_either() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert_eq!(in_its_place(&append(&path, 0o600).unwrap_err()), Some(NotRegular("a FIFO")));
        assert_eq!(read(&path, 10).unwrap_err().to_string(), "it is a FIFO, not a regular file");
        drop(both);
    }

    #[test]
    fn what_is_read_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        crate::sys::replace::replace_own(&path, &[b'x'; 2048], 0o600).unwrap();
        assert_eq!(read(&path, 2048).unwrap().len(), 2048);
        assert_eq!(read(&path, 1024).unwrap_err().to_string(), "larger than 1 KiB");
        assert_eq!(beginning(&path, 1024).unwrap().len(), 1024);
        let endless = beginning(Path::new("/dev/zero"), 1024).unwrap_err();
        assert_eq!(in_its_place(&endless), Some(NotRegular("a character device")));
        assert_eq!(text(&path, 2047).unwrap_err().to_string(), "larger than 2047 bytes");
        // Those of /proc say that they are empty.
        assert!(text(Path::new("/proc/self/status"), 64 * 1024).unwrap().contains("Name:"));
    }
}
