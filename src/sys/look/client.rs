//! The process that asks.

use super::protocol::{self, Answer, Asked, MOST, Question, Request};
use crate::sys::process::{Cmd, Failure};
use crate::sys::time::{Deadline, human};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The timeout of a file, unless the caller's deadline is earlier. A driver that
/// wakes its cards takes seconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Its minimum: a phase after its deadline still reads the files that answer.
const LEAST: Duration = Duration::from_millis(600);
/// The additional time of the other process.
const EXTRA: Duration = Duration::from_millis(400);
/// The time until a file that did not answer is asked again.
const REMEMBER: Duration = Duration::from_secs(60);

/// Our own program, even while its package is upgraded.
const OURSELVES: &str = "/proc/self/exe";

/// The files that recently did not answer: question, time waited in
/// milliseconds, since when.
static SILENT: Mutex<Vec<(Question, u64, Instant)>> = Mutex::new(Vec::new());

/// The answers of the other process.
pub(super) struct Answers {
    known: BTreeMap<Question, Answer>,
    /// Why others are missing.
    why: (ErrorKind, String),
}

impl Answers {
    pub(super) fn of(&self, question: &Question) -> Option<&Answer> {
        self.known.get(question)
    }

    pub(super) fn why_not(&self) -> io::Error {
        io::Error::new(self.why.0, self.why.1.clone())
    }

    #[cfg(test)]
    pub(super) fn of_test(answers: Vec<(Question, Answer)>) -> Answers {
        Answers { known: answers.into_iter().collect(), why: (ErrorKind::Other, "not read".to_owned()) }
    }
}

/// Makes these walks in the other process.
pub(super) fn look(root: &Path, walks: &[Asked], deadline: &Deadline) -> Answers {
    let timeout = deadline.remaining().min(TIMEOUT).max(LEAST);
    let silent = remembered();
    let mut known: BTreeMap<Question, Answer> =
        silent.iter().map(|(question, ms)| (question.clone(), Answer::Silent(*ms))).collect();
    let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let request = Request { root: root.to_owned(), walks: walks.to_vec(), timeout: ms, silent };
    let text = serde_json::to_vec(&request).unwrap_or_default();
    let cmd = Cmd::new(OURSELVES).named("phoenix-nvidia").arg("look").stdin(std::io::Cursor::new(text));
    let (bytes, why) = match cmd.keep(MOST * 2).at_once().run(&Deadline::after(timeout + EXTRA)) {
        Ok(output) => {
            let why = format!("the reading process ended early ({})", output.ended);
            (output.stdout, (ErrorKind::Other, why))
        }
        Err(Failure::TimedOut { stdout, .. }) => {
            // Nor did it come to say so itself: the same to whoever reads it.
            (stdout, (ErrorKind::TimedOut, format!("no answer within {}", human(timeout))))
        }
        Err(failure) => (Vec::new(), (ErrorKind::Other, failure.to_string())),
    };
    let (answers, whole) = protocol::read(&bytes);
    remember(&answers);
    known.extend(answers);
    let first = known.iter().find(|(_, answer)| matches!(answer, Answer::Silent(_)));
    let why = match first {
        Some((question, _)) => {
            (ErrorKind::TimedOut, format!("not read, because {} does not answer", question.path))
        }
        None if whole => (ErrorKind::Other, "not read".to_owned()),
        None => why,
    };
    Answers { known, why }
}

fn remembered() -> Vec<(Question, u64)> {
    let mut silent = SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    silent.retain(|(_, _, since)| since.elapsed() < REMEMBER);
    silent.iter().map(|(question, ms, _)| (question.clone(), *ms)).collect()
}

fn remember(answers: &[(Question, Answer)]) {
    let mut silent = SILENT.lock().unwrap_or_else(PoisonError::into_inner);
    for (question, answer) in answers {
        match answer {
            Answer::Silent(ms) => silent.push((question.clone(), *ms, Instant::now())),
            _ => silent.retain(|(known, _, _)| known != question),
        }
    }
}
