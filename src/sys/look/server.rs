//! The process that reads: `phoenix-nvidia look`.
//!
//! One thread makes the walk. If a file does not answer, another thread repeats
//! the walk over the answers so far, skips that file, and reads the following
//! ones; a late answer counts too. The main thread only waits, and so passes on
//! the answers whatever the others do.

use super::protocol::{self, Answer, Asked, Request};
use super::reader::{Look, Source, Walk};
use super::shared::Shared;
use crate::sys::time::Deadline;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// The time until a file is skipped.
const STALL: Duration = Duration::from_millis(300);
/// The limit of files that do not answer: each of them blocks a thread.
const MOST_SILENT: usize = 32;
/// The size limit of a request, in bytes.
const REQUEST: u64 = 4 << 20;

/// A walk that this process can make: its name and its constructor.
pub type Entry = (&'static str, fn(Value) -> Option<Step>);
type Step = Box<dyn Fn(&mut Look<'_>) + Send + Sync>;

/// The entry of a walk.
pub fn entry<W: Walk>() -> Entry {
    (W::NAME, |with| {
        let walk: W = serde_json::from_value(with).ok()?;
        Some(Box::new(move |look: &mut Look<'_>| walk.walk(look)))
    })
}

/// Reads a request from stdin and writes the answers to stdout. Omits answers
/// that are too late.
pub fn serve(entries: &[Entry]) {
    let mut text = Vec::new();
    if std::io::stdin().lock().take(REQUEST).read_to_end(&mut text).is_err() {
        return;
    }
    let Ok(request) = serde_json::from_slice::<Request>(&text) else { return };
    let step = |asked: &Asked| {
        let (_, make) = entries.iter().find(|(name, _)| *name == asked.name)?;
        make(asked.with.clone())
    };
    let Some(steps) = request.walks.iter().map(step).collect::<Option<Vec<Step>>>() else { return };
    look(&request, Arc::new(steps), &mut |bytes| std::io::stdout().lock().write_all(bytes).is_ok());
}

fn look(request: &Request, steps: Arc<Vec<Step>>, write: &mut dyn FnMut(&[u8]) -> bool) {
    let shared = Arc::new(Shared::default());
    let timeout = Duration::from_millis(request.timeout);
    let known = request.silent.iter().map(|(question, ms)| (question.clone(), Answer::Silent(*ms)));
    shared.lock().known.extend(known);
    let until = Deadline::after(timeout);
    while !until.passed() && shared.lock().silent.len() < MOST_SILENT {
        begin(&shared, &request.root, &steps);
        let again = watch(&shared, &until);
        let out = std::mem::take(&mut shared.lock().out);
        if !write(&out) || !again {
            break;
        }
    }
    let mut state = shared.lock();
    let mut waiting = std::mem::take(&mut state.silent);
    waiting.extend(state.current.take().map(|(question, _)| question));
    for question in waiting {
        state.know(question, Answer::Silent(request.timeout));
    }
    let mut out = std::mem::take(&mut state.out);
    drop(state);
    out.extend_from_slice(protocol::END);
    write(&out);
}

/// Starts the walk, or repeats it.
fn begin(shared: &Arc<Shared>, root: &Path, steps: &Arc<Vec<Step>>) {
    let mut state = shared.lock();
    state.walk += 1;
    (state.done, state.late, state.current) = (false, false, None);
    let walk = state.walk;
    drop(state);
    let (shared, root, steps) = (shared.clone(), root.to_owned(), steps.clone());
    std::thread::spawn(move || {
        let _end = End(&shared, walk);
        let mut look = Look::with(&root, Source::For(shared.clone(), walk));
        steps.iter().for_each(|step| step(&mut look));
    });
}

/// Marks the end of a walk, even if it panics.
struct End<'a>(&'a Shared, u32);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.walk == self.1 {
            state.done = true;
            self.0.news.notify_one();
        }
    }
}

/// Waits for the end of a walk. True if it must be repeated: a file does not
/// answer, or answered late.
fn watch(shared: &Shared, until: &Deadline) -> bool {
    let mut state = shared.lock();
    loop {
        if state.done && state.silent.is_empty() && !state.late {
            return false;
        }
        if state.done && state.late {
            return true;
        }
        if let Some((question, since)) = &state.current {
            if since.elapsed() >= STALL {
                let question = question.clone();
                state.silent.insert(question);
                return true;
            }
        }
        if until.passed() {
            return false;
        }
        let pause = until.remaining().min(STALL / 4);
        state = shared.news.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
    }
}

#[cfg(test)]
pub(super) fn answers_of(
    root: &Path,
    walk: impl Walk,
    timeout: Duration,
) -> Vec<(protocol::Question, Answer)> {
    let timeout = u64::try_from(timeout.as_millis()).unwrap();
    let request = Request { root: root.to_owned(), walks: Vec::new(), timeout, silent: Vec::new() };
    let step: Step = Box::new(move |look: &mut Look<'_>| walk.walk(look));
    let mut written = Vec::new();
    look(&request, Arc::new(vec![step]), &mut |bytes| {
        written.extend_from_slice(bytes);
        true
    });
    let (answers, whole) = protocol::read(&written);
    assert!(whole);
    answers
}
