//! `KEY=VALUE` files as systemd's EnvironmentFile= reads them: comments with
//! `#` or `;`, quotes, continued lines; no expansion, nothing executed.

/// One assignment, or a line that is none.
#[derive(Debug, PartialEq, Eq)]
pub enum EnvLine {
    /// `KEY=VALUE`.
    Set {
        /// The name.
        key: String,
        /// The value, unquoted.
        value: String,
        /// Where it begins; lines count from 1.
        line: usize,
    },
    /// A line that cannot be read.
    Bad {
        /// Where it is; lines count from 1.
        line: usize,
    },
}

/// Reads the whole text. Bytes that are no UTF-8 are replaced.
pub fn parse(bytes: &[u8]) -> Vec<EnvLine> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines().enumerate();
    let mut found = Vec::new();
    while let Some((index, first)) = lines.next() {
        let trimmed = first.trim_start();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        let mut value = Value::default();
        let Some((key, rest)) = trimmed.split_once('=').filter(|(k, _)| is_name(k.trim_end())) else {
            found.push(EnvLine::Bad { line: index + 1 });
            continue;
        };
        value.feed(rest.trim_start());
        while value.continues() {
            let Some((_, next)) = lines.next() else { break };
            value.next_line(next);
        }
        let key = key.trim_end().to_owned();
        found.push(match value.quote {
            Quote::None => EnvLine::Set { key, value: value.finish(), line: index + 1 },
            _ => EnvLine::Bad { line: index + 1 }, // a quote that never ends
        });
    }
    found
}

fn is_name(key: &str) -> bool {
    !key.is_empty()
        && !key.starts_with(|c: char| c.is_ascii_digit())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[derive(Default, PartialEq)]
enum Quote {
    #[default]
    None,
    Single,
    Double,
}

/// A value on its way, across continued lines.
#[derive(Default)]
struct Value {
    text: String,
    /// Length up to which trailing blanks are the value's own (were quoted).
    solid: usize,
    quote: Quote,
    /// The last line ended in a backslash.
    joined: bool,
    /// Inside an unquoted word, where quotes mean themselves.
    word: bool,
}

impl Value {
    fn feed(&mut self, line: &str) {
        let mut chars = line.chars();
        self.joined = false;
        while let Some(c) = chars.next() {
            match (&self.quote, c) {
                (Quote::Single, '\'') | (Quote::Double, '"') => {
                    self.quote = Quote::None;
                    self.word = false;
                    self.solid = self.text.len();
                }
                (Quote::Single, c) => self.text.push(c),
                (Quote::None, '\'') if !self.word => self.quote = Quote::Single,
                (Quote::None, '"') if !self.word => self.quote = Quote::Double,
                (quote, '\\') => {
                    let double = *quote == Quote::Double;
                    self.word = !double;
                    match chars.next() {
                        None => self.joined = true,
                        Some(c) => {
                            if double && !matches!(c, '"' | '\\' | '`' | '$') {
                                self.text.push('\\');
                            }
                            self.text.push(c);
                            self.solid = self.text.len();
                        }
                    }
                }
                // Between quoted parts.
                (Quote::None, c) if !self.word && c.is_whitespace() => {}
                (quote, c) => {
                    self.word = *quote == Quote::None;
                    self.text.push(c);
                }
            }
        }
    }

    fn continues(&self) -> bool {
        self.joined || self.quote != Quote::None
    }

    fn next_line(&mut self, line: &str) {
        if !self.joined {
            self.text.push('\n'); // inside quotes the newline belongs to the value
        }
        self.feed(line);
    }

    fn finish(mut self) -> String {
        let end = self.text.trim_end().len().max(self.solid);
        self.text.truncate(end);
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(text: &str) -> Vec<(String, String, usize)> {
        parse(text.as_bytes())
            .into_iter()
            .map(|e| match e {
                EnvLine::Set { key, value, line } => (key, value, line),
                EnvLine::Bad { line } => ("BAD".into(), String::new(), line),
            })
            .collect()
    }

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        let text = "# comment\n; comment\n\nA=1\n B = two words  \nC=\"x # y \" \nD='$HOME \\n'\nE=a\\\nb\n\
                    F=\"q\\\"q\\x\"\nG=\nH=x#y\nI=${A}\n\
                    J=it's b\"c\"\nK='a' \"b\"\n";
        let expected = [
            ("A", "1", 4),
            ("B", "two words", 5),
            ("C", "x # y ", 6),
            ("D", "$HOME \\n", 7),
            ("E", "ab", 8),
            ("F", "q\"q\\x", 10),
            ("G", "", 11),
            ("H", "x#y", 12),
            ("I", "${A}", 13),
            ("J", "it's b\"c\"", 14),
            ("K", "ab", 15),
        ];
        assert_eq!(sets(text), expected.map(|(k, v, l)| (k.to_owned(), v.to_owned(), l)));
    }

    #[test]
    fn lines_that_are_no_assignment_are_told_with_their_number() {
        let lines: Vec<_> = sets("export A=1\nno\n1A=2\nB='open\n").into_iter().map(|e| (e.0, e.2)).collect();
        assert_eq!(lines, [("BAD".into(), 1), ("BAD".into(), 2), ("BAD".into(), 3), ("BAD".into(), 4)]);
    }

    #[test]
    fn any_bytes_are_read_without_harm() {
        for bytes in [&b"\xff\xfe=\x00\n="[..], b"A=\\", b"A='", b"=\n\r\n=="] {
            let _ = parse(bytes);
        }
    }
}
