//! Foreign text, escaped for messages.

/// The length limit of a foreign line, in characters.
pub const MAX_LINE: usize = 400;
/// The length limit of our own message, in bytes. A list of 16 cards or 56 MIG
/// instances fits, and writing the line to a pipe is atomic (`PIPE_BUF` is 4096).
pub const MAX_MESSAGE: usize = 3800;

/// Bytes of a container or a program as one line for the log: invalid UTF-8
/// replaced, control characters escaped, tabs as blanks, at most [`MAX_LINE`]
/// characters.
pub fn line(bytes: &[u8]) -> String {
    // MAX_LINE characters never need more than four times as many bytes.
    let cut = &bytes[..bytes.len().min((MAX_LINE + 1) * 4)];
    let text = String::from_utf8_lossy(cut);
    let text = text.trim_end_matches(['\r', '\n']);
    let mut out = String::with_capacity(text.len().min(MAX_LINE + 8));
    for (n, c) in text.chars().enumerate() {
        if n >= MAX_LINE {
            out.push('…');
            break;
        }
        push(&mut out, c);
    }
    out
}

/// Our own message as one escaped line of about [`MAX_MESSAGE`] bytes at most. A
/// foreign text in it went through [`line()`].
pub fn message(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_MESSAGE + 8));
    for c in text.trim_end_matches(['\r', '\n']).chars() {
        if out.len() >= MAX_MESSAGE {
            out.push('…');
            break;
        }
        push(&mut out, c);
    }
    out
}

/// Escaped text of any length, as part of a line.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push(&mut out, c));
    out
}

/// One character, escaped if it [`commands`].
pub(super) fn push(out: &mut String, c: char) {
    match c {
        '\t' => out.push(' '),
        c if commands(c) => out.extend(c.escape_default()),
        c => out.push(c),
    }
}

/// Whether a character controls a terminal or misleads a reader: control
/// characters (with C1, which begin sequences like ESC), line separators,
/// direction marks, invisible characters, and the noncharacters used by
/// [`super::out`].
pub(super) fn commands(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fdd0}'..='\u{fdef}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text as one word of a shell command.
pub fn word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The text without the secrets of its URLs: user name and password (between
/// `://` and `@`) and query (after `?`). Other users read log and state. Applying
/// it twice changes nothing.
pub fn without_secrets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // The end of the current URL and the start of its first query, each searched
    // once for all URLs in one word.
    let (mut done, mut end, mut sign) = (0, 0, 0);
    while let Some(at) = text[done..].find("://").map(|found| done + found + 3) {
        out.push_str(&text[done..at]);
        if end < at {
            let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\');
            end = text[at..].find(ends).map_or(text.len(), |found| at + found);
        }
        if sign < at {
            sign = text[at..end].find(['?', '#']).map_or(end, |found| at + found);
        }
        let path = text[at..sign].find('/').map_or(sign, |found| at + found);
        let authority = &text[at..path];
        let host = authority.rfind('@');
        if host.is_some() {
            out.push('…');
        }
        out.push_str(&authority[host.unwrap_or(0)..]);
        done = path;
        // A URL in the path of another one is searched too.
        if sign == end || text[path..sign].contains("://") {
            continue;
        }
        out.push_str(&text[path..=sign]);
        let query = &text[sign + 1..end];
        if !query.is_empty() {
            out.push('…');
        }
        done = if query.starts_with('…') { sign + 1 + '…'.len_utf8() } else { end };
    }
    out.push_str(&text[done..]);
    out
}

/// The same for the value of a setting, which may be an invalid URL: a password
/// with a slash, no scheme.
pub fn hidden(value: &str) -> String {
    let start = value.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = value.split_at(start);
    let user = rest.rfind('@');
    let sign = rest.find(['?', '#']).filter(|_| start > 0 || user.is_some());
    match (user, sign) {
        // Either a password with a `?`, or a query with an `@`.
        (Some(user), Some(sign)) if sign < user => format!("{scheme}…"),
        (user, sign) => {
            let (mark, from) = user.map_or(("", 0), |at| ("…", at));
            let to = sign.map_or(rest.len(), |at| at + 1);
            let more = if to < rest.len() { "…" } else { "" };
            format!("{scheme}{mark}{}{more}", without_secrets(&rest[from..to]))
        }
    }
}

/// A number of bytes for messages.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} bytes"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        10_000_000..=9_999_999_999 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// The first `most` lines, and the number of the others.
pub fn few(mut lines: Vec<String>, most: usize) -> Vec<String> {
    if let Some(more) = lines.len().checked_sub(most).filter(|more| *more > 0) {
        lines.truncate(most);
        lines.push(format!("and {more} more"));
    }
    lines
}

/// The last `count` non-blank lines, each through [`line()`]. A carriage return ends
/// a line too, as in progress bars.
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
    fn a_word_is_quoted_where_a_shell_would_read_it_otherwise() {
        assert_eq!(word("0:1/0,GPU-1"), "0:1/0,GPU-1");
        assert_eq!([word(""), word("a b"), word("it's; $x")], ["''", "'a b'", r"'it'\''s; $x'"]);
    }

    #[test]
    fn escape_codes_nul_and_bad_utf8_are_made_visible() {
        assert_eq!(line(b"a\x1b[31mb\0c\xffd\te\r\n"), "a\\u{1b}[31mb\\u{0}c\u{fffd}d e");
        assert_eq!(line("x\u{202e}y".as_bytes()), "x\\u{202e}y");
        // CSI as one character, a bidi mark, a line separator, a tag.
        let all = shown("\u{9b}2J\u{61c}\u{2028}\u{e0041}ü€\u{1f600}\tend");
        assert_eq!(all, "\\u{9b}2J\\u{61c}\\u{2028}\\u{e0041}ü€\u{1f600} end");
    }

    #[test]
    fn a_password_in_a_url_is_left_out_and_nothing_else() {
        let shown = without_secrets("get https://me:p@ss@host/a@b via http://u:p@proxy:3128: 404");
        assert_eq!(shown, "get https://…@host/a@b via http://…@proxy:3128: 404");
        for plain in ["", "://", "https://host/x", "mail a@b://", "GPU 0 (0000:01:00.0)", "https://h/x? y"] {
            assert_eq!(without_secrets(plain), plain);
        }
    }

    #[test]
    fn a_query_is_left_out_and_doing_it_twice_changes_nothing() {
        for (text, shown) in [
            ("https://h/x?token=abc: 404", "https://h/x?… 404"),
            ("\"https://h/x?t=a\\\"b\"", "\"https://h/x?…\\\"b\""),
            ("https://h/x?…: 404", "https://h/x?…: 404"),
            ("https://h#abc y", "https://h#… y"),
            ("https://archive/http://u:p@h/x?y", "https://archive/http://…@h/x?…"),
            ("https://h/?u=http://a:b@c d", "https://h/?… d"),
        ] {
            assert_eq!(without_secrets(text), shown);
            assert_eq!(without_secrets(shown), shown);
        }
    }

    #[test]
    fn a_value_that_is_no_proper_url_shows_no_password_either() {
        assert_eq!(hidden("https://me:pa/ss@host/x?t=1"), "https://…@host/x?…");
        assert_eq!(hidden("me:pass@host/x"), "…@host/x");
        assert_eq!(hidden("me:pass@host/x?t=1"), "…@host/x?…");
        assert_eq!(hidden("https://h/x?t=a@b"), "https://…");
        assert_eq!(hidden("https://h/x?t=a'b"), "https://h/x?…");
        assert_eq!(hidden("/srv/a#b?c"), "/srv/a#b?c");
        assert_eq!(hidden("0,1"), "0,1");
    }

    #[test]
    fn of_many_lines_a_few_are_shown_and_the_others_counted() {
        let lines = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(few(lines(3), 3), ["0", "1", "2"]);
        assert_eq!(few(lines(28_000), 2), ["0", "1", "and 27998 more"]);
    }

    #[test]
    fn an_endless_line_is_cut() {
        assert_eq!(line(&[b'x'; 1 << 20]).chars().count(), MAX_LINE + 1);
    }

    #[test]
    fn a_message_of_ours_is_whole_where_a_strangers_line_is_cut() {
        let cards: Vec<String> = (0..16).map(|n| format!("GPU {n} (NVIDIA H100 80GB HBM3)")).collect();
        let text = cards.join(", ");
        assert!(text.len() > MAX_LINE);
        assert_eq!(message(&text), text);
        assert_eq!(message("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb");
        assert!(message(&"ü".repeat(10_000)).len() <= MAX_MESSAGE + 8);
    }

    #[test]
    fn last_lines_skip_blanks_and_split_at_carriage_returns() {
        assert_eq!(last_lines(b"one\n\n 10%\r 20%\r\nend\n\n", 3), [" 10%", " 20%", "end"]);
        assert!(last_lines(b"\n\n", 3).is_empty());
    }
}
