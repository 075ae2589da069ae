//! The header of NVIDIA's runfile, and its checksum.

use phoenix_nvidia::driver::runfile::{Header, begins, check};
use phoenix_nvidia::sys::sums::Sums;
use phoenix_nvidia::sys::time::Deadline;
use std::fs::File;
use std::io::Write as _;

/// A header says the same whatever follows it, and less than all of it says
/// nothing; a file passes if its checksum is its header's, and then only.
pub fn holds(data: &[u8]) {
    if let Ok(header) = Header::parse(data) {
        accepted(data, &header);
    }
    // A whole file takes system calls and a thread.
    if let Some((1, rest)) = data.split_first() {
        whole(rest);
    }
}

fn accepted(data: &[u8], header: &Header) {
    let newlines: Vec<usize> = (0..data.len()).filter(|at| data[*at] == b'\n').collect();
    assert_eq!(header.covered, newlines[2] as u64 + 1);
    // The byte after a newline, behind the lines that the sums cover.
    assert!(newlines.contains(&(header.payload as usize - 1)) && header.payload > header.covered);
    assert_eq!(header.version.as_str().parse().ok().as_ref(), Some(&header.version));
    assert!(header.arch.len() < 100 && !header.arch.chars().any(char::is_control), "{:?}", header.arch);
    // The line it ends with is the last that it takes notice of.
    let end = newlines.partition_point(|at| Header::parse(&data[..=*at]).is_err());
    let Some(end) = newlines.get(end).copied() else { panic!("no part of it is the whole header") };
    assert_eq!(Header::parse(&data[..=end]).ok().as_ref(), Some(header));
    assert!(Header::parse(&data[..end]).is_err());
    for tail in [&b"\n\n"[..], b"version_string=999.99\nTARGET_ARCH=x\n\xff\0"] {
        assert_eq!(Header::parse(&[&data[..=end], tail].concat()).ok().as_ref(), Some(header));
    }
    // What is told of its beginning while it comes is told of the whole.
    for end in (0..data.len()).step_by(data.len() / 50 + 1) {
        let told = begins(&data[..end], &header.version, &header.arch);
        assert!(told.is_ok(), "{end}: {told:?}");
    }
    assert!(begins(data, &header.version, &header.arch).is_ok_and(|seen| seen));
    let mut file = file(data);
    assert!(check(&mut file, &header.version, "another", &Deadline::secs(60)).is_err());
    let fits = sums(&data[header.covered as usize..]).md5 == header.md5;
    assert_eq!(check(&mut file, &header.version, &header.arch, &Deadline::secs(60)).is_ok(), fits);
}

/// A file around these bytes, and the same with one of them changed.
fn whole(payload: &[u8]) {
    let body = [b"skip=8\nx=1\nversion_string=580.95.05\nTARGET_ARCH=\"x86_64\"\n", payload].concat();
    let md5: String = sums(&body).md5.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut bytes = format!("#!/bin/sh\nCRCsum=0\nMD5={md5}\n").into_bytes();
    bytes.extend_from_slice(&body);
    let version = "580.95.05".parse().expect("a version");
    let checked = |bytes: &[u8]| check(&mut file(bytes), &version, "x86_64", &Deadline::secs(60)).map(|_| ());
    checked(&bytes).unwrap_or_else(|why| panic!("{why:#}"));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(checked(&bytes).is_err());
}

fn sums(bytes: &[u8]) -> Sums {
    Sums::of(&file(bytes), 0, &Deadline::secs(60)).expect("a file in memory is read")
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}
