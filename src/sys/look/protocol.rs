//! Questions about files, answers, and their protocol: one line of JSON each,
//! followed by the raw content of a file.

use crate::sys::file::{self, NotRegular};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The size limit of a file, in bytes; the longest is a kernel's `modules.dep`.
const WHOLE: u64 = 4 << 20;
/// The size limit of all answers, in bytes.
pub(super) const MOST: usize = 24 << 20;
/// The size limit of [`Op::Head`], in bytes.
const HEAD: u64 = 256 << 10;
/// The limit of names in a directory.
const NAMES: usize = 20_000;

/// The kinds of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// A file's content.
    Read,
    /// Its beginning.
    Head,
    /// A directory's names.
    List,
    /// The names of its subdirectories.
    Directories,
    /// The target of a symlink.
    Link,
    /// stat(2).
    Stat,
    /// lstat(2).
    StatLink,
    /// The path without symlinks.
    Real,
}

impl Op {
    pub(super) fn verb(self) -> &'static str {
        match self {
            Op::Read | Op::Head => "read",
            Op::List | Op::Directories => "list",
            Op::Link => "read the link",
            Op::Stat | Op::StatLink | Op::Real => "access",
        }
    }
}

/// A question about one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Question {
    /// Its kind.
    pub op: Op,
    /// The absolute path below the root.
    pub path: String,
}

impl Question {
    /// A question.
    pub fn new(op: Op, path: impl Into<String>) -> Question {
        Question { op, path: path.into() }
    }
}

/// The result of stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// File type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device of its file system.
    pub dev: u64,
    /// Major and minor of a device node.
    pub rdev: (u32, u32),
}

impl Stat {
    fn of(meta: &fs::Metadata) -> Stat {
        let rdev = if meta.file_type().is_char_device() || meta.file_type().is_block_device() {
            file::numbers(meta.rdev())
        } else {
            (0, 0)
        };
        Stat { mode: meta.mode(), uid: meta.uid(), gid: meta.gid(), dev: meta.dev(), rdev }
    }

    fn is(&self, kind: u32) -> bool {
        self.mode & nix::libc::S_IFMT == kind
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.is(nix::libc::S_IFREG)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.is(nix::libc::S_IFDIR)
    }

    /// Whether it is a symlink.
    pub fn is_link(&self) -> bool {
        self.is(nix::libc::S_IFLNK)
    }

    /// Whether it is a character device.
    pub fn is_char_device(&self) -> bool {
        self.is(nix::libc::S_IFCHR)
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.is(nix::libc::S_IFBLK)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    /// A content; its line has only the length.
    #[serde(serialize_with = "length", deserialize_with = "zeros")]
    Bytes(Vec<u8>),
    Names(Vec<String>),
    Path(String),
    Stat(Stat),
    /// An errno.
    Failed(i32),
    /// What is there instead of a regular file.
    Instead(String),
    /// Another error.
    Refused(String),
    /// No answer within so many milliseconds.
    Silent(u64),
}

impl Answer {
    /// Its approximate size in the protocol, in bytes.
    pub(super) fn size(&self) -> usize {
        match self {
            Answer::Bytes(bytes) => bytes.len(),
            Answer::Names(names) => names.iter().map(|name| name.len() + 3).sum(),
            Answer::Path(path) => path.len(),
            _ => 16,
        }
    }
}

/// Serializes a content as its length.
fn length<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(bytes.len() as u64)
}

/// Reads a length, as so many zeros: the content follows the line.
fn zeros<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let length = u64::deserialize(from)?.min(WHOLE);
    Ok(vec![0; usize::try_from(length).unwrap_or(0)])
}

/// A serialized [`Walk`](super::Walk).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// The name of the walk.
    pub(super) name: String,
    /// The walk.
    pub(super) with: serde_json::Value,
}

/// The request, on stdin.
#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub root: PathBuf,
    pub walks: Vec<Asked>,
    /// The timeout of a file, in milliseconds.
    pub timeout: u64,
    /// Files that recently did not answer, and the time waited in milliseconds.
    pub silent: Vec<(Question, u64)>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    question: Question,
    answer: Answer,
}

/// The last line.
pub(super) const END: &[u8] = b"end\n";

/// Writes one answer.
pub(super) fn write(out: &mut Vec<u8>, question: &Question, answer: &Answer) {
    let line = Line { question: question.clone(), answer: answer.clone() };
    if serde_json::to_writer(&mut *out, &line).is_ok() {
        out.push(b'\n');
        if let Answer::Bytes(bytes) = answer {
            out.extend_from_slice(bytes);
        }
    }
}

/// Reads the answers, and whether the last line followed them. Omits an
/// incomplete answer.
pub(super) fn read(mut bytes: &[u8]) -> (Vec<(Question, Answer)>, bool) {
    let mut answers = Vec::new();
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let (line, rest) = bytes.split_at(end + 1);
        if line == END {
            return (answers, true);
        }
        let Ok(Line { question, mut answer }) = serde_json::from_slice::<Line>(line) else { break };
        bytes = rest;
        if let Answer::Bytes(content) = &mut answer {
            let Some((own, rest)) = bytes.split_at_checked(content.len()) else { break };
            content.copy_from_slice(own);
            bytes = rest;
        }
        answers.push((question, answer));
    }
    (answers, false)
}

/// The absolute `path` below `root`.
fn at(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Answers a question. Has every system call that may block.
pub(super) fn answer(root: &Path, question: &Question) -> Answer {
    let path = at(root, &question.path);
    let answer = match question.op {
        Op::Read => file::beginning(&path, WHOLE).map(Answer::Bytes),
        Op::Head => file::beginning(&path, HEAD).map(Answer::Bytes),
        Op::List => names(&path, false).map(Answer::Names),
        Op::Directories => names(&path, true).map(Answer::Names),
        Op::Link => fs::read_link(&path).map(|target| Answer::Path(text(&target))),
        Op::Stat => fs::metadata(&path).map(|meta| Answer::Stat(Stat::of(&meta))),
        Op::StatLink => fs::symlink_metadata(&path).map(|meta| Answer::Stat(Stat::of(&meta))),
        Op::Real => fs::canonicalize(&path).map(|real| Answer::Path(text(&real))),
    };
    answer.unwrap_or_else(|error| match (error.raw_os_error(), file::in_its_place(&error)) {
        (Some(errno), _) => Answer::Failed(errno),
        (None, Some(NotRegular(what))) => Answer::Instead(what.to_owned()),
        (None, None) => Answer::Refused(error.to_string()),
    })
}

fn names(path: &Path, directories: bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if directories && !entry.file_type()?.is_dir() {
            continue;
        }
        if names.len() == NAMES {
            return Err(io::Error::from_raw_os_error(nix::libc::EOVERFLOW));
        }
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
