//! The door through which everything goes that is shown or logged.

use phoenix_nvidia::sys::text::{MAX_LINE, last_lines, line};

/// The longest form of an escaped character, `\u{10ffff}`.
const ESCAPED: usize = 10;

/// One line comes out, of a bounded length, with nothing in it that a
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
    for count in [0, 1, 5] {
        let last = last_lines(data, count);
        assert!(last.len() <= count);
        last.iter().for_each(|text| harmless(text));
    }
}

fn harmless(text: &str) {
    for c in text.chars() {
        // Unicode's controls, and its controls of direction (UAX 9).
        let acts = c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(!acts, "{:?} in {text:?}", c.escape_unicode().to_string());
    }
}
