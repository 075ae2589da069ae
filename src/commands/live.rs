//! `live`: what another process of ours starts to look at a running container's
//! processes, or to mount something in it. It has no log and catches no signal:
//! whoever waits for it can leave it behind.

use crate::job::live::enter::{Step, WORD};
use crate::job::live::users;
use std::io::{Read as _, Write as _};

/// The size limit of what is asked, in bytes: a driver tree has some hundred
/// files.
const MOST: u64 = 4 << 20;
/// It ends after so many seconds itself, later than anybody waits for it: once it
/// has changed its user, the death of its parent does not end it.
const LIMIT: u32 = 15;

/// What this process was started for, if for that; asked before anything else is
/// done.
pub fn asked_for() -> Option<String> {
    let mut args = std::env::args_os().skip(1);
    let word = args.next().filter(|word| word == WORD).and_then(|_| args.next())?;
    word.into_string().ok().filter(|word| ["mount", "users"].contains(&word.as_str()))
}

/// Does what stands on stdin, and answers on stdout.
pub fn run(word: &str) {
    nix::unistd::alarm::set(LIMIT);
    let mut text = Vec::new();
    if std::io::stdin().lock().take(MOST).read_to_end(&mut text).is_err() {
        return;
    }
    let answer = match word {
        "mount" => serde_json::from_slice(&text).map(|step: Step| serde_json::to_vec(&step.answer())),
        _ => serde_json::from_slice(&text).map(|wanted: users::Wanted| serde_json::to_vec(&wanted.answer())),
    };
    if let Ok(Ok(answer)) = answer {
        let _ = std::io::stdout().lock().write_all(&answer);
    }
}
