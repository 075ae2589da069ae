//! Reading files, keeping "is not there" apart from "could not look"; and
//! reading those that may never answer in a process of its own.
//!
//! What can block for ever, in a system call that no signal ends, is only
//! looked at through [`View::apart`]:
//!
//! | what | because |
//! | --- | --- |
//! | anything below `/proc/PID/root` | a container mounts what it likes there: a FUSE of its own over a device node |
//! | `/proc/PID/environ`, `cmdline`, `maps`, `smaps` | they wait for the lock on the process's memory, or for a page of it |
//! | `/proc/driver/nvidia` | the driver holds a card's lock while it waits for a card that is lost |
//! | a storage's files, the source of a mount point | NFS whose server is gone, FUSE |
//!
//! What the kernel answers from its own memory is read directly:
//! `/proc/PID/stat`, `status`, `cgroup`, `mountinfo`, `comm` and `ns`,
//! `/proc/devices`, `/proc/locks`, `/sys/module`, `/sys/bus/pci` (but
//! `config`), `/sys/fs/cgroup`, `/dev` itself. So is `/etc/pve`: while pmxcfs
//! does not answer, Proxmox itself starts nothing.
//!
//! The other process is our own program, called `phoenix-nvidia look`
//! ([`serve`]). It makes a [`Walk`], the very one that the caller makes
//! afterwards over its answers, and so reads a whole tree in one go.

mod answer;
mod apart;
mod serve;

pub use answer::{Op, Question, Stat};
pub use serve::{Entry, entry, serve};

use super::time::{Deadline, human};
use answer::Answer;
use apart::Answers;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A host's root directory, and who looks at it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    root: &'a Path,
    apart: Option<Deadline>,
}

impl<'a> View<'a> {
    /// The files are read by another process, until the deadline at the
    /// latest.
    pub fn apart(root: &'a Path, deadline: &Deadline) -> View<'a> {
        View { root, apart: Some(*deadline) }
    }

    /// The root directory.
    pub fn root(&self) -> &'a Path {
        self.root
    }
}

impl View<'static> {
    /// This host as calls by hand look at it: nothing is waited for longer than
    /// ten seconds.
    pub fn host() -> View<'static> {
        View::host_until(&Deadline::secs(10))
    }

    /// This host with the deadline of a whole phase.
    pub fn host_until(deadline: &Deadline) -> View<'static> {
        View::apart(Path::new("/"), deadline)
    }
}

/// The files are read by this process itself: for files of a test's.
impl<'a> From<&'a Path> for View<'a> {
    fn from(root: &'a Path) -> View<'a> {
        View { root, apart: None }
    }
}

/// Something that looks at files, and does nothing else: what it asks follows
/// from the answers alone.
pub trait Walk: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What the other process knows it by.
    const NAME: &'static str;

    /// Looks at all that there is to be looked at.
    fn walk(&self, look: &mut Look<'_>);

    /// This walk as a part of a call of [`Look::of`].
    fn asked(&self) -> Asked {
        // A walk is made of numbers and texts, which JSON takes.
        Asked { name: Self::NAME.to_owned(), with: serde_json::to_value(self).unwrap_or_default() }
    }
}

/// A [`Walk`] on its way to the other process.
#[derive(Clone, Debug, Serialize, serde::Deserialize)]
pub struct Asked {
    name: String,
    with: serde_json::Value,
}

/// Files whose names are known before.
#[derive(Clone, Debug, Default, Serialize, serde::Deserialize)]
pub struct Questions(pub Vec<Question>);

impl Questions {
    /// Each once, on their way to the other process. They keep their order:
    /// what comes last is not asked where too many before it do not answer.
    pub fn asked_once(questions: impl IntoIterator<Item = Question>) -> Asked {
        let mut asked = BTreeSet::new();
        Questions(questions.into_iter().filter(|question| asked.insert(question.clone())).collect()).asked()
    }
}

impl Walk for Questions {
    const NAME: &'static str = "questions";

    fn walk(&self, look: &mut Look<'_>) {
        for question in &self.0 {
            let _ = look.ask(question.op, &question.path);
        }
    }
}

/// What came of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// This.
    Is(T),
    /// There is nothing.
    Absent,
    /// It could not be looked at; why.
    Unseen(String),
}

impl<T> Seen<T> {
    /// The same with another value.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Seen::Is(value) => Seen::Is(change(value)),
            Seen::Absent => Seen::Absent,
            Seen::Unseen(why) => Seen::Unseen(why),
        }
    }

    /// The value, if there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Seen::Is(value) => Some(value),
            _ => None,
        }
    }
}

/// A reader bound to a root, `/` on a real host, which collects what it could
/// not look at.
pub struct Look<'a> {
    root: &'a Path,
    source: Source,
    /// What could not be looked at, and why.
    pub problems: Vec<String>,
    /// That not everything was asked is told once.
    cut_short: Cell<bool>,
}

enum Source {
    /// The files themselves.
    Files,
    /// What another process answered.
    Answers(Box<Answers>),
    /// The files, for another process.
    For(Arc<serve::Shared>, u32),
}

/// Why there is no answer.
enum Unanswered {
    Error(std::io::Error),
    Silent(String),
    /// It was not asked, because others did not answer.
    NotAsked(String),
}

impl Look<'static> {
    /// Looks at this host by itself.
    pub fn host() -> Self {
        Look::new(Path::new("/"))
    }
}

impl<'a> Look<'a> {
    /// Looks under `root` by itself.
    pub fn new(root: &'a Path) -> Self {
        Look::with(root, Source::Files)
    }

    /// Has what these walks look at be looked at as the view says; then each
    /// is to be made over this.
    pub fn of(view: impl Into<View<'a>>, walks: &[Asked]) -> Self {
        let View { root, apart } = view.into();
        match apart {
            None => Look::new(root),
            Some(deadline) => {
                Look::with(root, Source::Answers(Box::new(apart::look(root, walks, &deadline))))
            }
        }
    }

    /// The same for files whose names are known.
    pub fn at_files(view: impl Into<View<'a>>, questions: Vec<Question>) -> Self {
        if questions.is_empty() {
            return Look::new(view.into().root);
        }
        Look::of(view, &[Questions(questions).asked()])
    }

    fn with(root: &'a Path, source: Source) -> Self {
        Look { root, source, problems: Vec::new(), cut_short: Cell::new(false) }
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
        match self.noted(Op::Read, path)? {
            Answer::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The names in a directory, sorted; none if there is no directory.
    pub fn names(&mut self, path: &str) -> Option<Vec<String>> {
        match self.noted(Op::List, path)? {
            Answer::Names(names) => Some(names),
            _ => None,
        }
    }

    /// The names of the directories in a directory, likewise.
    pub fn directories(&mut self, path: &str) -> Option<Vec<String>> {
        match self.noted(Op::Directories, path)? {
            Answer::Names(names) => Some(names),
            _ => None,
        }
    }

    /// The last part of what a symbolic link points to.
    pub fn link_name(&mut self, path: &str) -> Option<String> {
        match self.noted(Op::Link, path)? {
            Answer::Path(target) => Some(Path::new(&target).file_name()?.to_string_lossy().into_owned()),
            _ => None,
        }
    }

    /// Whether there is something at `path`.
    pub fn exists(&mut self, path: &str) -> bool {
        self.noted(Op::Stat, path).is_some()
    }

    /// What is at `path`, links followed. Nothing is added to the problems,
    /// here and below.
    pub fn stat(&self, path: &str) -> Seen<Stat> {
        self.seen(Op::Stat, path, |answer| match answer {
            Answer::Stat(stat) => Some(stat),
            _ => None,
        })
    }

    /// The same without following a link at its end.
    pub fn stat_link(&self, path: &str) -> Seen<Stat> {
        self.seen(Op::StatLink, path, |answer| match answer {
            Answer::Stat(stat) => Some(stat),
            _ => None,
        })
    }

    /// The first 256 KiB of a file.
    pub fn head(&self, path: &str) -> Seen<Vec<u8>> {
        self.seen(Op::Head, path, |answer| match answer {
            Answer::Bytes(bytes) => Some(bytes),
            _ => None,
        })
    }

    /// The path without links in it.
    pub fn real(&self, path: &str) -> Seen<String> {
        self.seen(Op::Real, path, |answer| match answer {
            Answer::Path(path) => Some(path),
            _ => None,
        })
    }

    fn seen<T>(&self, op: Op, path: &str, of: impl FnOnce(Answer) -> Option<T>) -> Seen<T> {
        match self.ask(op, path) {
            Ok(answer) => of(answer).map_or(Seen::Absent, Seen::Is),
            Err(Unanswered::Error(error)) if is_absent(&error) => Seen::Absent,
            Err(Unanswered::Error(error)) => Seen::Unseen(error.to_string()),
            Err(Unanswered::Silent(why) | Unanswered::NotAsked(why)) => Seen::Unseen(why),
        }
    }

    /// The answer; what could not be looked at becomes a problem.
    fn noted(&mut self, op: Op, path: &str) -> Option<Answer> {
        let verb = op.verb();
        match self.ask(op, path) {
            Ok(answer) => Some(answer),
            Err(Unanswered::Error(error)) if is_absent(&error) => None,
            Err(Unanswered::Error(error)) => {
                self.problems.push(format!("cannot {verb} {path}: {error}"));
                None
            }
            Err(Unanswered::Silent(why)) => {
                self.problems.push(format!("cannot {verb} {path}: {why}"));
                None
            }
            Err(Unanswered::NotAsked(why)) => {
                if !self.cut_short.replace(true) {
                    self.problems.push(format!("cannot {verb} {path} and what comes after it: {why}"));
                }
                None
            }
        }
    }

    fn ask(&self, op: Op, path: &str) -> Result<Answer, Unanswered> {
        let question = Question::new(op, path);
        let answer = match &self.source {
            Source::Files => answer::of(self.root, &question),
            Source::For(shared, walker) => shared.answer(self.root, question, *walker),
            Source::Answers(answers) => match answers.of(&question) {
                Some(answer) => answer.clone(),
                None => return Err(Unanswered::NotAsked(answers.why_not())),
            },
        };
        match answer {
            Answer::Failed(errno) => Err(Unanswered::Error(std::io::Error::from_raw_os_error(errno))),
            Answer::Refused(why) => Err(Unanswered::Error(std::io::Error::other(why))),
            Answer::Silent(ms) => {
                let span = human(std::time::Duration::from_millis(ms));
                Err(Unanswered::Silent(format!("no answer within {span}")))
            }
            answer => Ok(answer),
        }
    }
}

/// Also what /proc says of a process that has just ended.
fn is_absent(error: &std::io::Error) -> bool {
    let gone = error.raw_os_error() == Some(nix::libc::ESRCH);
    gone || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

#[cfg(test)]
#[path = "look/tests.rs"]
mod tests;
