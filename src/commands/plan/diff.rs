//! The difference of two texts, line by line. Pure.

use crate::pve::conf::document::Document;
use crate::sys::out::Style;
use crate::sys::text;
use std::fmt;

/// A line of a diff, safe to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// In both, for orientation.
    Same(String),
    /// Only in the new one.
    Added(String),
    /// Only in the old one.
    Removed(String),
    /// Lines in both that are not shown.
    Skipped,
}

impl Line {
    /// How it is shown on a terminal.
    pub fn style(&self) -> Style {
        match self {
            Line::Added(_) => Style::Good,
            Line::Removed(_) => Style::Bad,
            Line::Same(_) | Line::Skipped => Style::Faint,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Same(text) => write!(f, "  {text}"),
            Line::Added(text) => write!(f, "+ {text}"),
            Line::Removed(text) => write!(f, "- {text}"),
            Line::Skipped => f.write_str("  ..."),
        }
    }
}

/// How many lines around a change are shown.
const AROUND: usize = 1;
/// Beyond so many comparisons all is shown as replaced; no conf gets there.
const LIMIT: usize = 16_000_000;

/// The changed lines and a few around them.
pub fn lines(old: &[u8], new: &[u8]) -> Vec<Line> {
    let (old, new) = (split(old), split(new));
    let same = |(a, b): &(&&[u8], &&[u8])| a == b;
    let start = old.iter().zip(&new).take_while(same).count();
    let (old_rest, new_rest) = (&old[start..], &new[start..]);
    let end = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(same).count();
    let mut all: Vec<Line> = old[..start].iter().map(|l| Line::Same(shown(l))).collect();
    all.extend(middle(&old_rest[..old_rest.len() - end], &new_rest[..new_rest.len() - end]));
    all.extend(old_rest[old_rest.len() - end..].iter().map(|l| Line::Same(shown(l))));
    shorten(all)
}

/// A line of a conf without secrets: settings may hold passwords.
fn shown(line: &[u8]) -> String {
    let shown = match Document::parse(line).environment().first() {
        Some(set) => format!("lxc.environment: {}={}", set.key, text::hidden(&set.value)),
        None => text::without_secrets(&String::from_utf8_lossy(line)),
    };
    text::line(shown.as_bytes())
}

fn split(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|b| *b == b'\n').collect()
}

/// By the longest common subsequence; removed lines come before added ones.
fn middle(old: &[&[u8]], new: &[&[u8]]) -> Vec<Line> {
    let whole = old.len().saturating_mul(new.len()) > LIMIT;
    let table = if whole { Vec::new() } else { common(old, new) };
    let longest =
        |i: usize, j: usize| table.get(i).and_then(|row: &Vec<u32>| row.get(j)).copied().unwrap_or(0);
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if !whole && i < old.len() && j < new.len() && old[i] == new[j] {
            out.push(Line::Same(shown(old[i])));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || longest(i + 1, j) >= longest(i, j + 1)) {
            out.push(Line::Removed(shown(old[i])));
            i += 1;
        } else {
            out.push(Line::Added(shown(new[j])));
            j += 1;
        }
    }
    out
}

/// For each pair of places, how many lines the rests have in common.
fn common(old: &[&[u8]], new: &[&[u8]]) -> Vec<Vec<u32>> {
    let mut table = vec![vec![0; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            table[i][j] = match old[i] == new[j] {
                true => table[i + 1][j + 1] + 1,
                false => table[i + 1][j].max(table[i][j + 1]),
            };
        }
    }
    table
}

fn shorten(all: Vec<Line>) -> Vec<Line> {
    let changed: Vec<bool> = all.iter().map(|line| !matches!(line, Line::Same(_))).collect();
    let near = |n: usize| {
        let from = n.saturating_sub(AROUND);
        changed[from..(n + AROUND + 1).min(changed.len())].contains(&true)
    };
    let mut out = Vec::new();
    for (n, line) in all.into_iter().enumerate() {
        match near(n) {
            true => out.push(line),
            false if out.last() != Some(&Line::Skipped) => out.push(Line::Skipped),
            false => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(old: &str, new: &str) -> Vec<String> {
        lines(old.as_bytes(), new.as_bytes()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_changes_and_its_neighbours_are_shown() {
        let old = "a\nb\nc\nd\ne\nf\n";
        assert_eq!(diff(old, "a\nb\nc\nX\ne\nf\n"), ["  ...", "  c", "- d", "+ X", "  e", "  ..."]);
        assert_eq!(diff(old, &format!("{old}g\n")), ["  ...", "  f", "+ g"]);
        assert_eq!(diff("", "a\n"), ["+ a"]);
        assert_eq!(diff("a\nb\nc\n", "b\n"), ["- a", "  b", "- c"]);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(diff("", "\u{1b}[2J\n"), ["+ \\u{1b}[2J"]);
    }

    #[test]
    fn a_password_next_to_a_change_is_not_shown() {
        let old = "lxc.environment: NVIDIA_REPO_URL=https://me:ge/heim@h/x?t=geheim\nmemory: 1\n";
        let lines = diff(old, &format!("{old}swap: 1\n").replace("memory: 1", "memory: 2"));
        assert!(lines[0].ends_with("NVIDIA_REPO_URL=https://…@h/x?…"), "{lines:?}");
    }
}
