//! Stock makeself around one of NVIDIA's runfiles, as some drivers for data centers
//! are published (545.23.08, 555.42.06, 560.35.05, 570.86.10, 575.51.03). Its script
//! says where the payload starts by the number of its own lines; that is an archive
//! with the runfile in it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

/// So much of a file is read for its script, in bytes: it has 14 kB.
const SCRIPT: usize = 64 << 10;
/// In line 2.
const MARK: &[u8] = b"# This script was generated using Makeself";
/// At the beginning of a line; the number of lines follows.
const LINES: &[u8] = b"\noffset=`head -n ";

/// Whether a file that begins so is one; false while more of it is needed to tell,
/// none if it is not.
pub fn begins(bytes: &[u8]) -> Option<bool> {
    if payload(bytes).is_some() {
        return Some(true);
    }
    let mut lines = bytes.split(|b| *b == b'\n');
    let (first, second) = (lines.next()?, lines.next()?);
    (first.starts_with(b"#!") && second.starts_with(MARK) && bytes.len() < SCRIPT).then_some(false)
}

/// Where the payload of a file that begins so starts, in bytes.
pub fn payload(bytes: &[u8]) -> Option<u64> {
    let script = &bytes[..bytes.len().min(SCRIPT)];
    let second = script.split(|b| *b == b'\n').nth(1)?;
    let at = script.windows(LINES.len()).position(|part| part == LINES)? + LINES.len();
    let digits = script[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    let lines: usize = std::str::from_utf8(&script[at..at + digits]).ok()?.parse().ok()?;
    let mut ends = script.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let (end, _) = second.starts_with(MARK).then(|| ends.nth(lines.checked_sub(1)?)).flatten()?;
    Some(end as u64 + 1)
}

/// The same for a file.
///
/// # Errors
/// It cannot be read.
pub fn payload_of(mut file: &File) -> io::Result<Option<u64>> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(SCRIPT as u64).read_to_end(&mut bytes)?;
    Ok(payload(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &[u8] = b"#!/bin/sh\n# This script was generated using Makeself 2.1.4\nCRCsum=\"1\"\n\
        offset=`head -n 5 \"$0\" | wc -c | tr -d \" \"`\nexit\n\x1f\x8b\n";

    #[test]
    fn the_lines_of_the_script_say_where_the_payload_is() {
        let at = usize::try_from(payload(SCRIPT).unwrap()).unwrap();
        assert_eq!(&SCRIPT[at..], b"\x1f\x8b\n");
        assert_eq!(begins(SCRIPT), Some(true));
        for end in 53..SCRIPT.len() - 3 {
            assert_eq!(begins(&SCRIPT[..end]), Some(false), "{end}");
        }
        let text = String::from_utf8_lossy(SCRIPT).into_owned();
        for bad in [
            String::new(),
            text.replace("Makeself", "another"),
            text.replace("head -n 5", "head -n 0"),
            text.replace("head -n 5", "head -n 99999999999999999999999"),
            text.replace("head -n 5", "head -n 500"),
            text.replace("\noffset", " offset"),
        ] {
            assert_eq!(payload(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(begins(b"#!/bin/sh\nCRCsum=1\n"), None);
        assert_eq!(begins(&[&SCRIPT[..60], &vec![b'x'; super::SCRIPT]].concat()), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail: Vec<u8>) {
            let all = [&SCRIPT[..80], &tail].concat();
            proptest::prop_assert!(payload(&all).is_none_or(|at| at <= all.len() as u64));
        }
    }
}
