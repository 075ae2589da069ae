//! The side of the process that asks.

use super::super::process::{Cmd, Failure};
use super::super::time::{Deadline, human};
use super::Asked;
use super::answer::{self, Answer, Question};
use super::serve::{MOST, Request};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a file has for its answer, where the caller's deadline does not
/// come first. A driver that is just waking its cards takes seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// What it has in any case: a phase whose time is over looks all the same, at
/// what does answer.
const LEAST: Duration = Duration::from_millis(600);
/// What the other process may take beside that.
const BESIDE: Duration = Duration::from_millis(400);
/// A file that did not answer is not asked again for so long.
const REMEMBER: Duration = Duration::from_secs(60);

/// Our own program, also while its package is being upgraded.
const OURSELVES: &str = "/proc/self/exe";

/// The files that did not answer this process lately: which, how long it
/// waited, when.
static SILENT: Mutex<Vec<(Question, u64, Instant)>> = Mutex::new(Vec::new());

/// What the other process answered.
pub(super) struct Answers {
    known: BTreeMap<Question, Answer>,
    /// Why there are no more.
    why: String,
}

impl Answers {
    pub(super) fn of(&self, question: &Question) -> Option<&Answer> {
        self.known.get(question)
    }

    pub(super) fn why_not(&self) -> String {
        self.why.clone()
    }

    #[cfg(test)]
    pub(super) fn of_test(answers: Vec<(Question, Answer)>) -> Answers {
        Answers { known: answers.into_iter().collect(), why: "not looked at".to_owned() }
    }
}

/// Has the other process make these walks.
pub(super) fn look(root: &Path, walks: &[Asked], deadline: &Deadline) -> Answers {
    let patience = deadline.remaining().min(PATIENCE).max(LEAST);
    let silent = remembered();
    let mut known: BTreeMap<Question, Answer> =
        silent.iter().map(|(question, ms)| (question.clone(), Answer::Silent(*ms))).collect();
    let ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    let request = Request { root: root.to_owned(), walks: walks.to_vec(), patience: ms, silent };
    let text = serde_json::to_vec(&request).unwrap_or_default();
    let cmd = Cmd::new(OURSELVES).named("phoenix-nvidia").arg("look").stdin(std::io::Cursor::new(text));
    let (bytes, why) = match cmd.keep(MOST * 2).at_once().run(&Deadline::after(patience + BESIDE)) {
        Ok(output) => {
            let why = format!("the process that looks ended early ({})", output.ended);
            (output.stdout, why)
        }
        Err(Failure::TimedOut { stdout, .. }) => {
            (stdout, format!("the process that looks did not end within {}", human(patience)))
        }
        Err(failure) => (Vec::new(), failure.to_string()),
    };
    let (answers, whole) = answer::read(&bytes);
    remember(&answers);
    known.extend(answers);
    let first = known.iter().find(|(_, answer)| matches!(answer, Answer::Silent(_)));
    let why = match first {
        Some((question, _)) => format!("not looked at, because {} does not answer", question.path),
        None if whole => "not looked at".to_owned(),
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
