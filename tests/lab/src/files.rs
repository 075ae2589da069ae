//! Files below a root that isn't ours: a lab's, or a container's. Paths are resolved as inside it, symlinks too.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::starting;

/// The files below one root. Every method panics, naming the path, when what it is asked for can't be done.
pub struct Files {
    root: PathBuf,
}

impl Files {
    pub(crate) fn new(root: PathBuf) -> Files {
        Files { root }
    }

    /// The content of a file, as text.
    #[track_caller]
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        String::from_utf8_lossy(&self.bytes(path)).into_owned()
    }

    /// The content of a file.
    #[track_caller]
    pub fn bytes(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let opened = self.open(path.as_ref(), OFlag::O_RDONLY);
        let read = opened.and_then(|mut file| file.read_to_end(&mut bytes));
        read.unwrap_or_else(|e| self.panic("reading", path.as_ref(), &e));
        bytes
    }

    /// Writes a file in place (same inode), and the directories above it; a new file has mode 644.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.put(path.as_ref(), OFlag::O_TRUNC, content.as_ref());
    }

    /// Adds to the end of a file.
    #[track_caller]
    pub fn append(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.put(path.as_ref(), OFlag::O_APPEND, content.as_ref());
    }

    /// Writes a program of mode 755 (as a new file: the old one may be running).
    #[track_caller]
    pub fn program(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = path.as_ref();
        if self.exists(path) {
            self.remove(path);
        }
        starting::write(|| self.write(path, content));
        self.chmod(path, 0o755);
    }

    /// Changes a file's mode.
    #[track_caller]
    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) {
        let changed = self.open(path.as_ref(), OFlag::O_RDONLY).and_then(|file| {
            file.set_permissions(Permissions::from_mode(mode))?;
            Ok(())
        });
        changed.unwrap_or_else(|e| self.panic("changing the mode of", path.as_ref(), &e));
    }

    /// Is there anything at this path? The last component may be a dangling symlink.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.open(path.as_ref(), OFlag::O_PATH | OFlag::O_NOFOLLOW).is_ok()
    }

    /// Inode number: it changes when the file is replaced.
    #[track_caller]
    pub fn inode(&self, path: impl AsRef<Path>) -> u64 {
        self.metadata(path).ino()
    }

    /// What stat(2) says.
    #[track_caller]
    pub fn metadata(&self, path: impl AsRef<Path>) -> std::fs::Metadata {
        let found = self.open(path.as_ref(), OFlag::O_PATH).and_then(|file| file.metadata());
        found.unwrap_or_else(|e| self.panic("looking at", path.as_ref(), &e))
    }

    /// The names in a directory, sorted; none if it isn't there.
    pub fn list(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(dir) = self.open(path.as_ref(), OFlag::O_DIRECTORY) else { return Vec::new() };
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        let names =
            entries.into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Removes a file.
    #[track_caller]
    pub fn remove(&self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let parent = path.parent().unwrap_or(Path::new("/"));
        let gone = self.open(parent, OFlag::O_DIRECTORY).and_then(|dir| {
            unlinkat(&dir, path.file_name().unwrap_or_default(), UnlinkatFlags::NoRemoveDir)?;
            Ok(())
        });
        gone.unwrap_or_else(|e| self.panic("removing", path, &e));
    }

    /// Makes a directory and those above it.
    #[track_caller]
    pub fn mkdir(&self, path: impl AsRef<Path>) {
        let mut at = PathBuf::new();
        for part in path.as_ref().components() {
            at.push(part);
            if !self.exists(&at) {
                let parent = at.parent().unwrap_or(Path::new("/"));
                let made = self.open(parent, OFlag::O_DIRECTORY).and_then(|dir| {
                    nix::sys::stat::mkdirat(
                        &dir,
                        at.file_name().unwrap_or_default(),
                        Mode::from_bits_truncate(0o755),
                    )?;
                    Ok(())
                });
                made.unwrap_or_else(|e| self.panic("creating", &at, &e));
            }
        }
    }

    #[track_caller]
    fn put(&self, path: &Path, how: OFlag, content: &[u8]) {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | how;
        let mut opened = self.open(path, flags);
        if opened.is_err() {
            self.mkdir(path.parent().unwrap_or(Path::new("/")));
            opened = self.open(path, flags);
        }
        let written = opened.and_then(|mut file| file.write_all(content));
        written.unwrap_or_else(|e| self.panic("writing", path, &e));
    }

    fn open(&self, path: &Path, flags: OFlag) -> std::io::Result<File> {
        let root: OwnedFd = open(&self.root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        if flags.contains(OFlag::O_CREAT) {
            how = how.mode(Mode::from_bits_truncate(0o644));
        }
        // EAGAIN: somebody mounted or renamed something on the machine just then, so a `..` can't be judged; again.
        let mut left = 1000;
        loop {
            match openat2(&root, path, how) {
                Err(Errno::EAGAIN) if left > 0 => left -= 1,
                opened => return Ok(opened?.into()),
            }
        }
    }

    #[track_caller]
    fn panic(&self, doing: &str, path: &Path, error: &std::io::Error) -> ! {
        panic!("{doing} {} below {}: {error}", path.display(), self.root.display())
    }
}
