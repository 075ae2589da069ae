//! `look`: what another process of ours starts to have files read that may
//! never answer. It has no log, catches no signal and holds nothing: whoever
//! waits for it can leave it behind.

use super::prepare;
use crate::driver::source;
use crate::guest::leftovers;
use crate::host::gpus;
use crate::sys::look::{Questions, entry, serve};

/// The word on the command line.
pub const WORD: &str = "look";

/// Whether this process was started for that; asked before anything else is
/// done.
pub fn is_asked_for() -> bool {
    let mut args = std::env::args_os().skip(1);
    args.next().is_some_and(|word| word == WORD) && args.next().is_none()
}

/// Answers what stands on stdin.
pub fn run() {
    serve(&[
        entry::<Questions>(),
        entry::<gpus::Scope>(),
        entry::<leftovers::Entered>(),
        entry::<leftovers::Marked>(),
        entry::<source::Runfiles>(),
        entry::<prepare::Confs>(),
    ]);
}
