//! Reading under a root directory, with as few system calls as it takes, and
//! keeping "is not there" apart from "could not look".

use super::gpus::Node;
use crate::sys::file;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// No file of interest is longer; the longest is a kernel's `modules.dep`.
const LIMIT: u64 = 4 << 20;

/// A reader bound to a root, `/` on a real host, which collects what it could
/// not look at.
pub struct Look<'a> {
    root: &'a Path,
    /// What could not be looked at, and why.
    pub problems: Vec<String>,
}

impl<'a> Look<'a> {
    /// Looks under `root`.
    pub fn new(root: &'a Path) -> Self {
        Look { root, problems: Vec::new() }
    }

    /// Where the absolute `path` lies under the root.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a file; none if there is none.
    pub fn text(&mut self, path: &str) -> Option<String> {
        let bytes = self.bytes(path)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The content of a file; none if there is none.
    pub fn bytes(&mut self, path: &str) -> Option<Vec<u8>> {
        let read = file::beginning(&self.at(path), LIMIT);
        self.found(path, "read", read)
    }

    /// The names in a directory, sorted; none if there is no directory.
    pub fn names(&mut self, path: &str) -> Option<Vec<String>> {
        let listed = fs::read_dir(self.at(path)).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<_>>>()
        });
        let mut names = self.found(path, "list", listed)?;
        names.sort();
        Some(names)
    }

    /// The last part of what a symbolic link points to.
    pub fn link_name(&mut self, path: &str) -> Option<String> {
        let target = fs::read_link(self.at(path));
        let target = self.found(path, "read the link", target)?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether there is something at `path`.
    pub fn exists(&mut self, path: &str) -> bool {
        let metadata = fs::metadata(self.at(path));
        self.found(path, "look at", metadata).is_some()
    }

    /// What stands at a path under /dev. A link there is followed: udev rules
    /// may have made one.
    pub fn node(&mut self, path: &str) -> Node {
        let metadata = match fs::metadata(self.at(path)) {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => return Node::Absent,
            Err(error) => {
                self.problems.push(format!("cannot look at {path}: {error}"));
                return Node::Unknown;
            }
        };
        let kind = metadata.file_type();
        if kind.is_char_device() {
            let (major, minor) = numbers(metadata.rdev());
            return Node::Device {
                major,
                minor,
                mode: metadata.mode() & 0o7777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            };
        }
        Node::Other(match kind {
            k if k.is_dir() => "a directory",
            k if k.is_file() => "a regular file",
            k if k.is_block_device() => "a block device",
            _ => "no device",
        })
    }

    fn found<T>(&mut self, path: &str, verb: &str, result: std::io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if is_absent(&error) => None,
            Err(error) => {
                self.problems.push(format!("cannot {verb} {path}: {error}"));
                None
            }
        }
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Major and minor of a device number; both fit 32 bits on Linux.
fn numbers(rdev: u64) -> (u32, u32) {
    let half = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    (half(nix::sys::stat::major(rdev)), half(nix::sys::stat::minor(rdev)))
}
