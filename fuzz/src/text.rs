//! The door through which everything goes that is shown or logged.

use phoenix_nvidia::sys::text::{self, MAX_LINE, MAX_MESSAGE, last_lines, line};

/// The longest form of an escaped character, `\u{10ffff}`.
const ESCAPED: usize = 10;

/// One line comes out, of a length that is bounded where the input's is not, with nothing in it that a
/// terminal or a log would act on; plain text stays as it is.
pub fn holds(data: &[u8]) {
    let shown = line(data);
    harmless(&shown);
    assert!(shown.chars().count() <= MAX_LINE * ESCAPED + 1);
    if shown.chars().count() <= MAX_LINE {
        assert_eq!(line(shown.as_bytes()), shown);
    }
    let plain = |b: &u8| b.is_ascii_graphic() || *b == b' ';
    if data.len() <= MAX_LINE && data.iter().all(plain) {
        assert_eq!(shown.as_bytes(), data);
    }
    let text = String::from_utf8_lossy(data);
    assert!(text::message(&text).len() <= MAX_MESSAGE + ESCAPED);
    harmless(&text::message(&text));
    harmless(&text::shown(&text));
    pasted(&text);
    for count in [0, 1, 5] {
        let last = last_lines(data, count);
        assert!(last.len() <= count);
        last.iter().for_each(|text| harmless(text));
    }
}

/// A shell reads one word, and the text itself.
fn pasted(text: &str) {
    let word = text::word(text);
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"%+,-./:=@_".contains(&b));
    let quoted = word.strip_prefix('\'').and_then(|w| w.strip_suffix('\''));
    match quoted {
        Some(inner) => {
            assert_eq!(inner.replace(r"'\''", "'"), text);
            assert!(!inner.replace(r"'\''", "").contains('\''), "{word:?}");
        }
        None => assert!(plain && word == text && !text.is_empty(), "{word:?}"),
    }
}

fn harmless(text: &str) {
    for c in text.chars() {
        // Unicode's controls, its controls of direction (UAX 9), and what
        // ends a line.
        let acts = c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(!acts, "{:?} in {text:?}", c.escape_unicode().to_string());
    }
}
