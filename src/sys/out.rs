//! The result of a command, on stdout. Messages go to the log instead.
//!
//! A result quotes foreign text, also of containers: every character that a
//! terminal obeys is escaped here. Styles are noncharacters until the line is
//! printed, so that foreign escape codes are never taken for ours.
//!
//! Printing to a closed pipe is no panic and no failure, as in
//! `phoenix-nvidia status | head -1`.

use super::text;
use serde::Serialize;
use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

/// The style of a word on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// None.
    Plain,
    /// Right; an added line.
    Good,
    /// A warning.
    Warn,
    /// Wrong; a removed line.
    Bad,
    /// Less important.
    Faint,
    /// A heading.
    Bold,
}

/// Ends a style.
const END: char = '\u{fdd0}';

impl Style {
    fn mark(self) -> char {
        match self {
            Style::Plain => END,
            Style::Good => '\u{fdd1}',
            Style::Warn => '\u{fdd2}',
            Style::Bad => '\u{fdd3}',
            Style::Faint => '\u{fdd4}',
            Style::Bold => '\u{fdd5}',
        }
    }
}

/// The escape code of a mark.
fn code(mark: char) -> Option<&'static str> {
    Some(match mark {
        END => "\x1b[0m",
        '\u{fdd1}' => "\x1b[32m",
        '\u{fdd2}' => "\x1b[33m",
        '\u{fdd3}' => "\x1b[31m",
        '\u{fdd4}' => "\x1b[2m",
        '\u{fdd5}' => "\x1b[1m",
        _ => return None,
    })
}

/// The destination of the result.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    colour: bool,
}

impl Out {
    /// Stdout; in colour only on a terminal and without NO_COLOR.
    pub fn stdout() -> Out {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Out { colour: wanted && std::io::stdout().is_terminal() }
    }

    /// The text in a style, if in colour.
    pub fn paint(&self, style: Style, text: impl Display) -> String {
        match (self.colour, style) {
            (false, _) | (_, Style::Plain) => text.to_string(),
            (true, style) => format!("{}{}{END}", style.mark(), text::shown(&text.to_string())),
        }
    }

    /// Prints one line. A closed pipe is no error.
    pub fn line(&self, text: impl Display) {
        print(&self.rendered(&text.to_string()));
    }

    fn rendered(&self, text: &str) -> String {
        let mut line = String::with_capacity(text.len() + 1);
        let mut styled = false;
        for c in text.chars() {
            match code(c).filter(|_| self.colour) {
                Some(code) => {
                    line.push_str(code);
                    styled = c != END;
                }
                None => text::push(&mut line, c),
            }
        }
        line.push_str(if styled { "\x1b[0m\n" } else { "\n" });
        line
    }

    /// A value as JSON of several lines.
    ///
    /// # Errors
    /// It has no form in JSON.
    pub fn json(&self, value: &impl Serialize) -> serde_json::Result<()> {
        print(&json(value)?);
        Ok(())
    }
}

fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// JSON escapes only the control characters of ASCII. This escapes the others,
/// which are always inside strings.
fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string_pretty(value)?;
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            c if text::commands(c) => {
                let mut units = [0; 2];
                out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('\n');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[2J\u{9b}2J\u{202e}\u{e0041}\r\nb";

    #[test]
    fn no_terminal_obeys_what_a_line_quotes() {
        let escaped = "a\\u{1b}[2J\\u{9b}2J\\u{202e}\\u{e0041}\\r\\nb";
        let (plain, colour) = (Out { colour: false }, Out { colour: true });
        assert_eq!(plain.rendered(HOSTILE), format!("{escaped}\n"));
        let line = format!("x {}", colour.paint(Style::Bad, HOSTILE));
        assert_eq!(colour.rendered(&line), format!("x \x1b[31m{escaped}\x1b[0m\n"));
        // Marks of somebody else's: nothing without colour, closed with it.
        assert_eq!(plain.rendered("\u{fdd3}x"), "\\u{fdd3}x\n");
        assert_eq!(colour.rendered("\u{fdd3}x"), "\x1b[31mx\x1b[0m\n");
        assert_eq!(colour.rendered(&colour.paint(Style::Good, "\u{fdd3}x")), "\x1b[32m\\u{fdd3}x\x1b[0m\n");
    }

    #[test]
    fn no_terminal_obeys_what_json_quotes_and_it_reads_back_as_it_was() {
        let text = json(&[HOSTILE]).unwrap();
        assert_eq!(text, "[\n  \"a\\u001b[2J\\u009b2J\\u202e\\udb40\\udc41\\r\\nb\"\n]\n");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), [HOSTILE]);
    }

    #[test]
    fn colour_is_only_for_terminals() {
        assert_eq!(Out { colour: false }.paint(Style::Bad, "x"), "x");
        let colour = Out { colour: true };
        assert_eq!(colour.rendered(&colour.paint(Style::Bad, "x")), "\x1b[31mx\x1b[0m\n");
        assert_eq!(colour.rendered(&colour.paint(Style::Plain, "x")), "x\n");
    }
}
