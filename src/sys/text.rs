//! Text that comes from elsewhere, made fit to be shown.

/// The longest line that is passed on, in characters; the rest is cut.
pub const MAX_LINE: usize = 400;

/// Bytes from a container or a program as one line that is safe to log:
/// invalid UTF-8 replaced, control characters (escape codes, NUL) escaped,
/// tabs as blanks, at most [`MAX_LINE`] characters.
pub fn line(bytes: &[u8]) -> String {
    // MAX_LINE characters never need more than four times as many bytes.
    let cut = &bytes[..bytes.len().min((MAX_LINE + 1) * 4)];
    let text = String::from_utf8_lossy(cut);
    let mut out = String::with_capacity(text.len().min(MAX_LINE + 8));
    for (n, c) in text.trim_end_matches(['\r', '\n']).chars().enumerate() {
        match c {
            _ if n >= MAX_LINE => {
                out.push('…');
                break;
            }
            '\t' => out.push(' '),
            c if c.is_control() || is_reordering(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Characters that change how the rest of a line is shown.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The last `count` lines that are not blank, each through [`line`]. Carriage
/// returns end a line too: progress bars redraw with them.
pub fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let mut lines: Vec<String> = bytes
        .rsplit(|b| matches!(b, b'\n' | b'\r'))
        .filter(|l| !l.iter().all(u8::is_ascii_whitespace))
        .take(count)
        .map(line)
        .collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_codes_nul_and_bad_utf8_are_made_visible() {
        assert_eq!(line(b"a\x1b[31mb\0c\xffd\te\r\n"), "a\\u{1b}[31mb\\u{0}c\u{fffd}d e");
        assert_eq!(line("x\u{202e}y".as_bytes()), "x\\u{202e}y");
    }

    #[test]
    fn an_endless_line_is_cut() {
        assert_eq!(line(&[b'x'; 1 << 20]).chars().count(), MAX_LINE + 1);
    }

    #[test]
    fn last_lines_skip_blanks_and_split_at_carriage_returns() {
        assert_eq!(last_lines(b"one\n\n 10%\r 20%\r\nend\n\n", 3), [" 10%", " 20%", "end"]);
        assert!(last_lines(b"\n\n", 3).is_empty());
    }
}
