//! How well something is, for `status` and `doctor`.

use crate::state::Outcome;
use crate::sys::out::Style;
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
    /// That of what did not end well.
    pub fn of(outcome: Outcome) -> Level {
        if outcome == Outcome::Failed { Level::Failure } else { Level::Warning }
    }

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
