//! What a check found.

use crate::commands::level::Level;
use crate::sys::out::{Out, Style};
use crate::sys::text;
use crate::types::Ctid;
use serde::Serialize;

/// One result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name; the same in every version.
    pub check: &'static str,
    /// The container; none for the host.
    pub container: Option<u32>,
    /// How well it is.
    pub level: Level,
    /// What was found, in one sentence.
    pub what: String,
    /// Why, where that is known and not said already.
    pub cause: Option<String>,
    /// The command that mends it.
    pub mend: Option<String>,
}

impl Finding {
    /// A finding of a level.
    pub fn new(check: &'static str, level: Level, what: impl Into<String>) -> Finding {
        Finding { check, container: None, level, what: what.into(), cause: None, mend: None }
    }

    /// All is well.
    pub fn ok(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, what)
    }

    /// It works, but.
    pub fn warning(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Level::Warning, what)
    }

    /// It does not work.
    pub fn failure(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Level::Failure, what)
    }

    /// It could not be looked at.
    pub fn unknown(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Level::Unknown, what)
    }

    /// Adds why.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Finding {
        self.cause = Some(cause.into());
        self
    }

    /// Adds the command that mends it.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Finding {
        self.mend = Some(mend.into());
        self
    }

    /// Says that it is this container's.
    #[must_use]
    pub fn of(mut self, ctid: Ctid) -> Finding {
        self.container = Some(ctid.get());
        self
    }

    /// Prints it for people. What came from a container is escaped already
    /// where it was read; once more costs nothing.
    pub fn print(&self, out: &Out) {
        let word = out.paint(self.level.style(), format_args!("{:<8}", self.level.word()));
        out.line(format_args!("  {word} {:<15} {}", self.check, text::message(&self.what)));
        let more = [("why", &self.cause), ("fix", &self.mend)];
        for (label, text) in more.iter().filter_map(|(label, text)| Some((label, text.as_ref()?))) {
            let label = out.paint(Style::Faint, format_args!("{label}:"));
            out.line(format_args!("           {label} {}", text::message(text)));
        }
    }
}
