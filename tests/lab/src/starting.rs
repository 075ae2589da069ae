//! Programs that tests write, and processes that they start at the same time: a program that anybody has open for
//! writing cannot be run (ETXTBSY), and a child that another thread starts has all open files of this process until it
//! has become the other program. So nothing is started while a program is written.

use std::io::Result;
use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock};

static WRITING: RwLock<()> = RwLock::new(());

/// Starts a process once no program is being written; it has become the other program when this returns.
pub(crate) fn start(command: &mut Command) -> Result<Child> {
    let _none = WRITING.read().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Writes a program while nothing is started.
pub(crate) fn write<T>(program: impl FnOnce() -> T) -> T {
    let _alone = WRITING.write().unwrap_or_else(PoisonError::into_inner);
    program()
}
