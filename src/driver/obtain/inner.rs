//! The runfile in an archive of stock makeself.

use crate::driver::runfile::payload;
use crate::sys::text::size;
use crate::sys::time::Deadline;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::io;

/// The limit of files in it; there are three or four.
const MOST_FILES: usize = 100;

/// Copies the one runfile in the payload, which starts at `start`, to a new file. It
/// has its own checksum. `most` is the limit of its size, in bytes; `room` is asked
/// before anything is written.
///
/// # Errors
/// There is none, or more than one; it could not be read or written.
pub fn unwrap(
    file: &File,
    start: u64,
    mut to: &File,
    most: u64,
    room: impl Fn(u64) -> io::Result<()>,
    deadline: &Deadline,
) -> anyhow::Result<()> {
    payload::read_plain(file, start, deadline, |payload| {
        let mut found = false;
        for (number, entry) in tar::Archive::new(payload).entries()?.raw(true).enumerate() {
            let mut entry = entry?;
            let regular = entry.header().entry_type() == tar::EntryType::Regular;
            if number >= MOST_FILES {
                bail!("it holds more than {MOST_FILES} files");
            }
            if !regular || !entry.path_bytes().ends_with(b".run") {
                continue;
            }
            if std::mem::replace(&mut found, true) {
                bail!("it holds more than one runfile");
            }
            let bytes = entry.size();
            if bytes > most {
                bail!("the runfile in it has {}, the limit is {}", size(bytes), size(most));
            }
            room(bytes)?;
            if io::copy(&mut entry, &mut to)? != bytes {
                bail!("the runfile in it is cut off");
            }
        }
        found.then_some(()).context("it holds no runfile")
    })
}
