//! The state shared by the threads of the process that reads.

use super::protocol::{self, Answer, MOST, Question};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Shared by the threads. Its lock is not held while a file is read.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) news: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) known: BTreeMap<Question, Answer>,
    /// Asked, without an answer for a while.
    pub(super) silent: BTreeSet<Question>,
    /// The question that the current walk waits for.
    pub(super) current: Option<(Question, Instant)>,
    /// The number of the current walk; earlier ones are ignored.
    pub(super) walk: u32,
    /// The current walk has ended.
    pub(super) done: bool,
    /// A file answered late.
    pub(super) late: bool,
    /// Output not written yet.
    pub(super) out: Vec<u8>,
    /// The size of all answers so far.
    pub(super) size: usize,
}

impl State {
    pub(super) fn know(&mut self, question: Question, answer: Answer) {
        self.size += answer.size();
        let answer = if self.size > MOST { Answer::Failed(nix::libc::EFBIG) } else { answer };
        protocol::write(&mut self.out, &question, &answer);
        self.known.insert(question, answer);
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to a question of a walk.
    pub(super) fn answer(&self, root: &Path, question: Question, walk: u32) -> Answer {
        {
            let mut state = self.lock();
            if let Some(answer) = state.known.get(&question) {
                return answer.clone();
            }
            // A superseded walk is ignored.
            if state.walk != walk || state.silent.contains(&question) {
                return Answer::Silent(0);
            }
            state.current = Some((question.clone(), Instant::now()));
        }
        let answer = protocol::answer(root, &question);
        let mut state = self.lock();
        if state.silent.remove(&question) {
            state.late = true;
            self.news.notify_one();
        }
        if state.walk == walk {
            state.current = None;
        }
        state.know(question, answer.clone());
        answer
    }
}
