//! One result of one check.

use crate::exit;
use crate::sys::out::Style;
use crate::types::Ctid;
use serde::Serialize;

/// From good to bad. What could not be looked at is not wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// It works, and something about it should be known.
    Warning,
    /// It does not work.
    Failure,
}

impl Level {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Unknown => "unknown",
            Level::Warning => "warning",
            Level::Failure => "failure",
        }
    }

    /// Its colour.
    pub fn style(self) -> Style {
        match self {
            Level::Ok => Style::Good,
            Level::Unknown => Style::Faint,
            Level::Warning => Style::Warn,
            Level::Failure => Style::Bad,
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name; the same in every version.
    pub check: &'static str,
    /// The container; none for the host.
    pub container: Option<u32>,
    /// How bad it is.
    pub level: Level,
    /// What was found, on what, in one sentence.
    pub what: String,
    /// Why, where that is known and not said already.
    pub why: Option<String>,
    /// The remedy.
    pub fix: Option<String>,
}

impl Finding {
    /// A finding of a level.
    pub fn new(check: &'static str, level: Level, what: impl Into<String>) -> Finding {
        Finding { check, container: None, level, what: what.into(), why: None, fix: None }
    }

    /// As it should be.
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
    pub fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = Some(why.into());
        self
    }

    /// Adds the remedy: a command, or one short imperative.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Finding {
        self.fix_if(Some(fix.into()))
    }

    /// The same where there may be none.
    #[must_use]
    pub fn fix_if(mut self, fix: Option<String>) -> Finding {
        self.fix = fix;
        self
    }

    /// Says that it is this container's.
    #[must_use]
    pub fn of(mut self, ctid: Ctid) -> Finding {
        self.container = Some(ctid.get());
        self
    }

    /// Logs it as a warning, unless all is well.
    pub fn warn(&self) {
        if self.level == Level::Ok {
            return;
        }
        match self.container {
            Some(ctid) => log::warn!("container {ctid}: {}", self.what),
            None => log::warn!("{}", self.what),
        }
        self.fix.iter().for_each(|fix| log::warn!("{}", exit::fix(fix)));
    }
}
