//! Opening files that may be something else than files.
//!
//! A FIFO is opened only once somebody is at its other end, a terminal becomes
//! the opener's own, and a device does what it likes: none of that happens
//! here, whoever put such a thing in the place of a settings file.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Waits for nobody at the other end, and takes no terminal.
const GUARDED: i32 = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;

/// What stands where a regular file was expected; inside an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotRegular(pub &'static str);

impl std::fmt::Display for NotRegular {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it is {}, not a regular file", self.0)
    }
}

impl std::error::Error for NotRegular {}

/// What an error says that stands in the file's place, if it says that.
pub fn in_its_place(error: &io::Error) -> Option<NotRegular> {
    error.get_ref()?.downcast_ref().copied()
}

/// Opens the regular file that a path leads to, for reading. It waits for
/// nobody.
///
/// # Errors
/// What open or fstat say; [`NotRegular`].
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    with(OpenOptions::new().read(true), 0, path)
}

/// The same for a file that is at the path itself: no symbolic link at its end
/// is followed.
///
/// # Errors
/// As [`open`].
pub fn open_itself(path: &Path) -> io::Result<(File, Metadata)> {
    with(OpenOptions::new().read(true), nix::libc::O_NOFOLLOW, path)
}

/// Opens a regular file to add to its end; makes it with this mode if there is
/// none. No symbolic link is followed.
///
/// # Errors
/// As [`open`].
pub fn append(path: &Path, mode: u32) -> io::Result<(File, Metadata)> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(mode);
    with(&mut options, nix::libc::O_NOFOLLOW, path)
}

/// The whole regular file that a path leads to, `most` bytes of it.
///
/// # Errors
/// As [`open`]; it is larger than that.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, meta) = open(path)?;
    whole(file, &meta, most)
}

/// The same of a file that is open.
///
/// # Errors
/// What reading says; it is larger than that.
pub fn whole(file: File, meta: &Metadata, most: u64) -> io::Result<Vec<u8>> {
    // One byte more than there is: the read that finds the end needs no more room.
    let room = usize::try_from(meta.len().min(most)).unwrap_or_default() + 1;
    let mut bytes = Vec::with_capacity(room);
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let shown = if most % 1024 == 0 { format!("{} KiB", most / 1024) } else { format!("{most} bytes") };
        return Err(io::Error::other(format!("larger than {shown}")));
    }
    Ok(bytes)
}

/// The first `most` bytes of what a path leads to, for who reads many files of
/// the kernel's: it takes no more calls than reading does, and so asks only of
/// what gave nothing whether it is a file.
///
/// # Errors
/// As [`open`].
pub fn beginning(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(GUARDED).open(path).map_err(|error| explained(error, path))?;
    let mut bytes = Vec::new();
    // Through `take`: without it the size is asked for, one call more, and 0
    // for everything in /proc.
    match (&file).take(most).read_to_end(&mut bytes) {
        Ok(1..) => Ok(bytes),
        nothing => match kind(&file.metadata()?) {
            Some(kind) => Err(io::Error::other(NotRegular(kind))),
            None => nothing.map(|_| bytes),
        },
    }
}

/// [`read`] as text; what is no UTF-8 in it is replaced.
///
/// # Errors
/// As [`read`].
pub fn text(path: &Path, most: u64) -> io::Result<String> {
    let bytes = read(path, most)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

fn with(options: &mut OpenOptions, more: i32, path: &Path) -> io::Result<(File, Metadata)> {
    let file = options.custom_flags(GUARDED | more).open(path).map_err(|error| explained(error, path))?;
    let meta = file.metadata()?;
    match kind(&meta) {
        None => Ok((file, meta)),
        Some(kind) => Err(io::Error::other(NotRegular(kind))),
    }
}

/// Errors that are about what is there rather than about the opening.
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
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_symlink() => Some("a symlink"),
        kind if kind.is_fifo() => Some("a FIFO"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_char_device() => Some("a character device"),
        _ => Some("a block device"),
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
        assert_eq!(text(&path, 2047).unwrap_err().to_string(), "larger than 2047 bytes");
        // Those of /proc say that they are empty.
        assert!(text(Path::new("/proc/self/status"), 64 * 1024).unwrap().contains("Name:"));
    }
}
