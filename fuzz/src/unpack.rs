//! The lists in a runfile's payload, and the compressions that it may have.

use phoenix_nvidia::driver::runfile::Header;
use phoenix_nvidia::driver::runfile::lists::{FileList, Manifest};
use phoenix_nvidia::driver::runfile::outer;
use phoenix_nvidia::driver::runfile::payload::{Compression, read};
use phoenix_nvidia::sys::sums::Sums;
use phoenix_nvidia::sys::time::Deadline;
use std::fs::File;
use std::io::{Read as _, Write as _};

/// A list names single words and lines; no payload is longer than what it is said to be, and one that is not as its
/// header says gives nothing.
pub fn holds(data: &[u8]) {
    match data.split_first() {
        Some((0, rest)) => payload(rest),
        Some((1, rest)) => drop(FileList::parse(rest)),
        Some((2, rest)) => around(rest),
        _ => manifest(&String::from_utf8_lossy(data)),
    }
}

/// A payload starts behind a newline of what there is.
fn around(bytes: &[u8]) {
    match outer::payload(bytes) {
        Some(at) => {
            assert_eq!(bytes[at as usize - 1], b'\n');
            assert_eq!(outer::begins(bytes), Some(true));
        }
        None => assert_ne!(outer::begins(bytes), Some(true)),
    }
}

fn manifest(text: &str) {
    let Ok(manifest) = Manifest::parse(text) else { return };
    let word = |word: &str| !word.is_empty() && !word.contains(|c: char| c.is_ascii_whitespace());
    for entry in &manifest.entries {
        assert!(word(&entry.kind) && entry.target.as_deref().is_none_or(word), "{entry:?}");
        assert!(!entry.name.contains(|c: char| c.is_ascii_whitespace()), "{entry:?}");
        // 32-bit ones never are.
        assert!(!(entry.is_library() && entry.name.starts_with("32/")), "{entry:?}");
    }
    for (name, target) in manifest.links() {
        assert!(!target.contains('/') && !name.contains('\n'), "{name} {target}");
    }
    // Line ends of another system are words' ends too.
    let again = Manifest::parse(&text.replace('\n', "\r\n"));
    assert!(again.is_err() || again.is_ok_and(|again| again.entries.len() == manifest.entries.len()));
}

fn payload(bytes: &[u8]) {
    let body = [b"skip=7\nversion_string=580.95.05\nTARGET_ARCH=x\n", bytes].concat();
    let file = file(&body);
    let md5 = Sums::of(&file, 0, &Deadline::secs(60)).expect("a file in memory is read").md5;
    let header = |md5| Header {
        covered: 0,
        payload: (body.len() - bytes.len()) as u64,
        md5,
        version: "580.95.05".parse().expect("a version"),
        arch: "x".to_owned(),
    };
    let all = |header: &Header| {
        let deadline = Deadline::secs(10);
        read(&file, header, &deadline, |payload| {
            let mut got = Vec::new();
            payload.take(1 << 20).read_to_end(&mut got)?;
            Ok(got)
        })
    };
    if let Ok(got) = all(&header(md5)) {
        assert!(Compression::of(bytes).is_ok());
        if Compression::of(bytes).is_ok_and(|how| how == Compression::Plain) {
            assert_eq!(got, &bytes[..bytes.len().min(1 << 20)]);
        }
        let mut other = md5;
        other[0] ^= 1;
        assert!(all(&header(other)).is_err());
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}
