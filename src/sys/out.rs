//! The result of a command, on stdout. Messages go through the log instead.
//!
//! Printing to a pipe that nobody reads any more is no panic and no failure:
//! `phoenix-nvidia status | head -1` is an honest thing to ask for.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

/// How a word is shown on a terminal that can do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// All is well; a line that is added.
    Good,
    /// Something to look at.
    Warn,
    /// Something is wrong; a line that is removed.
    Bad,
    /// Less important.
    Faint,
    /// A heading.
    Bold,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Good => "\x1b[32m",
            Style::Warn => "\x1b[33m",
            Style::Bad => "\x1b[31m",
            Style::Faint => "\x1b[2m",
            Style::Bold => "\x1b[1m",
        }
    }
}

/// Where the result goes.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    colour: bool,
}

impl Out {
    /// The process's stdout; in colour only on a terminal, and not where
    /// NO_COLOR is set.
    pub fn stdout() -> Out {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Out { colour: wanted && std::io::stdout().is_terminal() }
    }

    /// One that never uses colour.
    pub fn plain() -> Out {
        Out { colour: false }
    }

    /// The text in a style, where that can be shown.
    pub fn paint(&self, style: Style, text: impl Display) -> String {
        match (self.colour, style) {
            (false, _) | (_, Style::Plain) => text.to_string(),
            (true, style) => format!("{}{text}\x1b[0m", style.code()),
        }
    }

    /// One line. A reader that has gone is no error.
    pub fn line(&self, text: impl Display) {
        let _ = std::io::stdout().lock().write_all(format!("{text}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_only_for_terminals() {
        assert_eq!(Out::plain().paint(Style::Bad, "x"), "x");
        assert_eq!(Out { colour: true }.paint(Style::Bad, "x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Out { colour: true }.paint(Style::Plain, "x"), "x");
    }
}
