//! The reader of files: directly, through another process, or in that process.

use super::client::{self, Answers};
use super::protocol::{self, Answer, Asked, Op, Question, Stat};
use super::shared::Shared;
use crate::sys::file::NotRegular;
use crate::sys::time::{Deadline, human};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A host's root directory, and the process that reads it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    root: &'a Path,
    apart: Option<Deadline>,
}

impl<'a> View<'a> {
    /// Another process reads the files, with a deadline.
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

/// This process reads the files: for files of a test.
impl<'a> From<&'a Path> for View<'a> {
    fn from(root: &'a Path) -> View<'a> {
        View { root, apart: None }
    }
}

/// A sequence of reads that depends only on their results.
pub trait Walk: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name for the other process.
    const NAME: &'static str;

    /// Makes all reads.
    fn walk(&self, look: &mut Look<'_>);

    /// This walk for [`Look::of`].
    fn asked(&self) -> Asked {
        // Serializing never fails: a walk has only numbers and text.
        Asked { name: Self::NAME.to_owned(), with: serde_json::to_value(self).unwrap_or_default() }
    }
}

/// A walk over known files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Questions(pub Vec<Question>);

impl Questions {
    /// Each question once, in the same order: the last ones are not asked if too
    /// many before them get no answer.
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

/// The result of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// The value.
    Is(T),
    /// No such file.
    Absent,
    /// Not readable; the reason.
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

    /// The value, if any.
    pub fn value(self) -> Option<T> {
        match self {
            Seen::Is(value) => Some(value),
            _ => None,
        }
    }
}

/// A reader with a root directory, `/` on a real host, that collects errors.
pub struct Look<'a> {
    root: &'a Path,
    source: Source,
    /// What was not readable, and why.
    pub problems: Vec<String>,
    /// Whether the problems say already that not everything was asked.
    cut_short: Cell<bool>,
}

pub(super) enum Source {
    /// The files themselves.
    Files,
    /// The answers of another process.
    Answers(Box<Answers>),
    /// The files, in the other process.
    For(Arc<Shared>, u32),
}

/// Why there is no answer.
enum Unanswered {
    /// Of the file; [`ErrorKind::TimedOut`] without an answer.
    Error(io::Error),
    /// Not asked, because others got no answer.
    NotAsked(io::Error),
}

impl Look<'static> {
    /// Reads this host in this process.
    pub fn host() -> Self {
        Look::new(Path::new("/"))
    }
}

impl<'a> Look<'a> {
    /// Reads below `root` in this process.
    pub fn new(root: &'a Path) -> Self {
        Look::with(root, Source::Files)
    }

    /// Makes these walks as the view says. The caller then makes each of them over
    /// this reader.
    pub fn of(view: impl Into<View<'a>>, walks: &[Asked]) -> Self {
        let View { root, apart } = view.into();
        match apart {
            None => Look::new(root),
            Some(deadline) => {
                Look::with(root, Source::Answers(Box::new(client::look(root, walks, &deadline))))
            }
        }
    }

    /// The same for known files.
    pub fn at_files(view: impl Into<View<'a>>, questions: Vec<Question>) -> Self {
        if questions.is_empty() {
            return Look::new(view.into().root);
        }
        Look::of(view, &[Questions(questions).asked()])
    }

    pub(super) fn with(root: &'a Path, source: Source) -> Self {
        Look { root, source, problems: Vec::new(), cut_short: Cell::new(false) }
    }

    /// The absolute `path` below the root.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a file; `None` if absent.
    pub fn text(&mut self, path: &str) -> Option<String> {
        let bytes = self.bytes(path)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The content of a file; `None` if absent.
    pub fn bytes(&mut self, path: &str) -> Option<Vec<u8>> {
        match self.noted(Op::Read, path)? {
            Answer::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The same with the error, whose kind is that of the file: [`NotRegular`] inside, or
    /// [`ErrorKind::TimedOut`] without an answer.
    ///
    /// # Errors
    /// It is not readable; the problems say so too.
    pub fn content(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(match self.answered(Op::Read, path)? {
            Some(Answer::Bytes(bytes)) => Some(bytes),
            _ => None,
        })
    }

    /// The names in a directory, sorted; `None` if absent.
    pub fn names(&mut self, path: &str) -> Option<Vec<String>> {
        match self.noted(Op::List, path)? {
            Answer::Names(names) => Some(names),
            _ => None,
        }
    }

    /// The same for the subdirectories only.
    pub fn directories(&mut self, path: &str) -> Option<Vec<String>> {
        match self.noted(Op::Directories, path)? {
            Answer::Names(names) => Some(names),
            _ => None,
        }
    }

    /// The last component of a symlink's target.
    pub fn link_name(&mut self, path: &str) -> Option<String> {
        match self.noted(Op::Link, path)? {
            Answer::Path(target) => Some(Path::new(&target).file_name()?.to_string_lossy().into_owned()),
            _ => None,
        }
    }

    /// Whether `path` exists.
    pub fn exists(&mut self, path: &str) -> bool {
        self.noted(Op::Stat, path).is_some()
    }

    /// What is at `path`, following symlinks. This and the following methods add
    /// nothing to the problems.
    pub fn stat(&self, path: &str) -> Seen<Stat> {
        self.seen(Op::Stat, path, |answer| match answer {
            Answer::Stat(stat) => Some(stat),
            _ => None,
        })
    }

    /// The same without following a symlink at its end.
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

    /// The path without symlinks.
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
            Err(Unanswered::Error(error) | Unanswered::NotAsked(error)) => Seen::Unseen(error.to_string()),
        }
    }

    /// The answer; adds to the problems if not readable.
    fn noted(&mut self, op: Op, path: &str) -> Option<Answer> {
        self.answered(op, path).ok().flatten()
    }

    /// The same with the error; none if absent.
    fn answered(&mut self, op: Op, path: &str) -> io::Result<Option<Answer>> {
        let verb = op.verb();
        match self.ask(op, path) {
            Ok(answer) => Ok(Some(answer)),
            Err(Unanswered::Error(error)) if is_absent(&error) => Ok(None),
            Err(Unanswered::Error(error)) => {
                self.problems.push(format!("cannot {verb} {path}: {error}"));
                Err(error)
            }
            Err(Unanswered::NotAsked(error)) => {
                if !self.cut_short.replace(true) {
                    self.problems.push(format!("cannot {verb} {path} and later files: {error}"));
                }
                Err(error)
            }
        }
    }

    fn ask(&self, op: Op, path: &str) -> Result<Answer, Unanswered> {
        let question = Question::new(op, path);
        let answer = match &self.source {
            Source::Files => protocol::answer(self.root, &question),
            Source::For(shared, walker) => shared.answer(self.root, question, *walker),
            Source::Answers(answers) => match answers.of(&question) {
                Some(answer) => answer.clone(),
                None => return Err(Unanswered::NotAsked(answers.why_not())),
            },
        };
        match answer {
            Answer::Failed(errno) => Err(Unanswered::Error(io::Error::from_raw_os_error(errno))),
            Answer::Instead(what) => Err(Unanswered::Error(match NotRegular::named(&what) {
                Some(what) => io::Error::other(what),
                None => io::Error::other(what),
            })),
            Answer::Refused(why) => Err(Unanswered::Error(io::Error::other(why))),
            Answer::Silent(ms) => {
                let span = human(std::time::Duration::from_millis(ms));
                let why = format!("no answer within {span}");
                Err(Unanswered::Error(io::Error::new(ErrorKind::TimedOut, why)))
            }
            answer => Ok(answer),
        }
    }
}

/// Also for the files of a process that just ended, in /proc.
fn is_absent(error: &io::Error) -> bool {
    let gone = error.raw_os_error() == Some(nix::libc::ESRCH);
    gone || matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
