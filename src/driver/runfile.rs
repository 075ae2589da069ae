//! NVIDIA's runfile: its header, its checksum, and the options of its
//! installer. Nothing here runs it.

pub mod lists;
pub mod outer;
pub mod payload;

use crate::driver::desired::{Sha256, unhex};
use crate::sys::fetch::BEGINNING;
use crate::sys::sums::Sums;
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// How much of a file is read for its header: a shell script of some 50 kB and
/// a decompressor of 120 kB.
const HEADER: u64 = BEGINNING as u64;

/// The header of a runfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the bytes start that `MD5` covers: after the third newline.
    pub covered: u64,
    /// Where the payload starts, in bytes: at line `skip`. The lines are counted in
    /// bytes, since before the payload may lie a program.
    pub payload: u64,
    /// `MD5`. `CRCsum` covers the same bytes and says less.
    pub md5: [u8; 16],
    /// `version_string`.
    pub version: Version,
    /// `TARGET_ARCH`.
    pub arch: String,
}

impl Header {
    /// Parses the beginning of a file.
    ///
    /// # Errors
    /// Why it is not a runfile.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Header> {
        if bytes.is_empty() {
            bail!("empty file");
        }
        if !bytes.starts_with(b"#!") {
            let page = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'<');
            bail!("not a runfile{}", if page { " (a web page)" } else { "" });
        }
        let lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
        let skip: usize = value(&lines, 3, "skip").context("not a runfile: no skip= in line 4")?.parse()?;
        // The last piece has no newline and may be incomplete.
        if !(5..100_000).contains(&skip) || lines.len() <= skip.saturating_sub(1) {
            bail!("header truncated: {} of {skip} lines", lines.len() - 1);
        }
        let header = &lines[..skip - 1];
        let named = |name: &str| header.iter().enumerate().find_map(|(n, _)| value(header, n, name));
        let md5 = value(header, 2, "MD5").context("no MD5 in line 3 of the header")?;
        Ok(Header {
            covered: length(&lines[..3]),
            payload: length(header),
            md5: unhex(md5).context("the MD5 in the header is not a checksum")?,
            version: named("version_string")
                .and_then(|v| v.parse().ok())
                .context("no driver version in the header")?,
            arch: named("TARGET_ARCH")
                .filter(|arch| is_word(arch))
                .context("no architecture in the header")?
                .to_owned(),
        })
    }

    /// Fails for another driver.
    ///
    /// # Errors
    /// What it is instead.
    fn is_for(&self, version: &Version, arch: &str) -> anyhow::Result<()> {
        if self.arch != arch {
            bail!("built for {}, this host is {arch}", text::line(self.arch.as_bytes()));
        }
        if self.version != *version {
            bail!("contains driver {}, expected {version}", self.version);
        }
        Ok(())
    }

    /// The header of a file.
    ///
    /// # Errors
    /// As [`Header::parse`], or the file cannot be read.
    pub fn read(file: &mut File) -> anyhow::Result<Header> {
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.take(HEADER).read_to_end(&mut bytes)?;
        Header::parse(&bytes)
    }
}

/// The length of lines with their newlines, in bytes.
fn length(lines: &[&[u8]]) -> u64 {
    lines.iter().map(|line| line.len() as u64 + 1).sum()
}

/// Whether a file that begins so is the expected driver; false while more of
/// it is needed to tell.
///
/// # Errors
/// What it is instead: the download can end.
pub fn begins(bytes: &[u8], version: &Version, arch: &str) -> anyhow::Result<bool> {
    match Header::parse(bytes) {
        Ok(header) => header.is_for(version, arch).map(|()| true),
        Err(_) if (bytes.len() as u64) < HEADER && is_cut(bytes) => Ok(false),
        // What is in it shows in the end.
        Err(error) => outer::begins(bytes).ok_or(error),
    }
}

/// Whether these may be the first bytes of a header.
fn is_cut(bytes: &[u8]) -> bool {
    if bytes.len() < 2 {
        return b"#!".starts_with(bytes);
    }
    let lines: Vec<&[u8]> = bytes.split(|b| *b == b'\n').collect();
    let skip = value(&lines, 3, "skip").and_then(|skip| skip.parse::<usize>().ok());
    match skip {
        // skip= is in line 4; the last piece may be incomplete.
        _ if lines.len() < 5 => bytes.starts_with(b"#!"),
        Some(skip) => (5..100_000).contains(&skip) && lines.len() < skip,
        None => false,
    }
}

/// The value in `NAME=value` of line `n`, without quotes.
fn value<'a>(lines: &[&'a [u8]], n: usize, name: &str) -> Option<&'a str> {
    let line = std::str::from_utf8(lines.get(n)?).ok()?;
    let value = line.strip_prefix(name)?.strip_prefix('=')?.trim().trim_matches(['"', '\'']);
    (value.len() < 100).then_some(value)
}

/// Whether it can be an architecture: it goes into a message.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

/// Verifies a file against its own header and the expected driver, without
/// running it. Returns its SHA-256.
///
/// # Errors
/// Why it is rejected.
pub fn check(file: &mut File, version: &Version, arch: &str, deadline: &Deadline) -> anyhow::Result<Sha256> {
    let header = Header::read(file)?;
    header.is_for(version, arch)?;
    let sums = Sums::of(file, header.covered, deadline)?;
    if sums.md5 != header.md5 {
        bail!("its MD5 differs from its header: damaged or truncated");
    }
    Ok(Sha256(sums.sha256))
}

/// The installer's options. With an unknown one it installs nothing, so they
/// depend on the version.
pub fn options(version: &Version, directory: &str, log: &str) -> Vec<String> {
    let mut options = vec![
        "--silent",
        // The plural form needs 515.
        "--no-kernel-module",
        "--no-x-check",
        // It would check the host's PCI devices.
        "--no-nouveau-check",
        "--no-distro-scripts",
    ];
    if version.at_least(&[465, 19]) {
        options.push("--no-systemd");
    }
    if version.at_least(&[346, 16]) {
        options.push("--no-install-compat32-libs");
    }
    if version.at_least(&[361, 16]) {
        // Without this, an incomplete libglvnd aborts a silent run.
        options.push("--install-libglvnd");
    }
    let mut options: Vec<String> = options.into_iter().map(Into::into).collect();
    options.push(format!("--tmpdir={directory}"));
    options.push(format!("--log-file-name={log}"));
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use phoenix_lab::nvidia::runfile::{Flaw, Runfile};

    const GOOD: &str = "#! /bin/sh\nCRCsum=12\nMD5=00112233445566778899aabbccddeeff\nskip=8\nx=1\n\
        version_string=580.95.05\nTARGET_ARCH=\"x86_64\"\nPAYLOAD";

    #[test]
    fn the_header_is_read_to_its_last_line_and_no_further() {
        let header = Header::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(header.covered, 11 + 10 + 37);
        assert_eq!(&GOOD[usize::try_from(header.payload).unwrap()..], "PAYLOAD");
        assert_eq!((header.version.as_str(), header.arch.as_str()), ("580.95.05", "x86_64"));
        let behind = GOOD.replace("skip=8", "skip=6");
        assert!(Header::parse(behind.as_bytes()).unwrap_err().to_string().contains("no driver version"));
    }

    #[test]
    fn a_beginning_is_judged_as_soon_as_it_can_be() {
        let version: Version = "580.95.05".parse().unwrap();
        let begins = |bytes: &[u8]| begins(bytes, &version, "x86_64").map_err(|e| e.to_string());
        for end in 0..GOOD.len() - "PAYLOAD".len() {
            assert_eq!(begins(&GOOD.as_bytes()[..end]), Ok(false), "{end}");
        }
        assert_eq!(begins(GOOD.as_bytes()), Ok(true));
        for (bytes, why) in [
            (&b"<html>"[..], "a web page"),
            (b"\0\0\0", "not a runfile"),
            (b"#!/bin/sh\necho\necho\necho\necho\n", "skip="),
            (GOOD.replace("580.95", "570.95").as_bytes(), "contains driver 570.95.05"),
            (GOOD.replace("x86_64", "riscv64").as_bytes(), "built for riscv64"),
            ([&b"#!"[..], &[b'x'; BEGINNING]].concat().as_slice(), "skip="),
        ] {
            assert!(begins(bytes).unwrap_err().contains(why), "{bytes:?}");
        }
        // A header that never ends is one that is too long.
        let long = [GOOD.replace("skip=8", "skip=99999").as_bytes(), &vec![b'x'; BEGINNING]].concat();
        assert!(begins(&long[..BEGINNING]).unwrap_err().contains("truncated"));
    }

    #[test]
    fn what_is_no_runfile_is_named() {
        let says = |text: &str| Header::parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(says(""), "empty file");
        assert_eq!(says("\n<!doctype html>"), "not a runfile (a web page)");
        assert_eq!(says("\x7fELF"), "not a runfile");
        assert!(says("#!/bin/sh\necho\n").contains("skip="));
        assert!(says(&GOOD[..80]).contains("truncated"), "{}", says(&GOOD[..80]));
        assert!(says(&GOOD.replace("00112233", "0x")).contains("MD5"));
        assert!(says(&GOOD.replace("x86_64", "x86\u{1b}[2J")).contains("no architecture"));
        assert!(says(&GOOD.replace("skip=8", "skip=99999999999")).contains("truncated"));
    }

    #[test]
    fn a_real_one_passes_and_a_damaged_or_cut_one_never() {
        let version: Version = "580.95.05".parse().unwrap();
        let arch = std::env::consts::ARCH;
        let path = Runfile::new("580.95.05").build().unwrap();
        let mut file = File::open(&path).unwrap();
        check(&mut file, &version, arch, &Deadline::secs(60)).unwrap();
        let error = check(&mut file, &"580.76.05".parse().unwrap(), arch, &Deadline::secs(60))
            .unwrap_err()
            .to_string();
        assert!(error.contains("580.95.05") && error.contains("580.76.05"), "{error}");
        assert!(
            check(&mut file, &version, "riscv64", &Deadline::secs(60))
                .unwrap_err()
                .to_string()
                .contains("riscv64")
        );

        let damaged = Runfile::new("580.95.05").flaw(Flaw::Damaged).build().unwrap();
        let error = check(&mut File::open(damaged).unwrap(), &version, arch, &Deadline::secs(60))
            .unwrap_err()
            .to_string();
        assert!(error.contains("MD5"), "{error}");

        let whole = std::fs::read(&path).unwrap();
        for tenth in 0..10 {
            let mut cut = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut cut, &whole[..whole.len() * tenth / 10]).unwrap();
            assert!(check(&mut cut, &version, arch, &Deadline::secs(60)).is_err(), "{tenth}");
        }
    }

    #[test]
    fn options_come_with_the_version_that_knows_them() {
        let of = |v: &str| options(&v.parse().unwrap(), "/tmp/d", "/var/log/l").join(" ");
        assert!(
            of("580.95.05")
                .contains("--no-systemd --no-install-compat32-libs --install-libglvnd --tmpdir=/tmp/d")
        );
        assert!(!of("460.91.03").contains("--no-systemd"));
        assert!(of("465.19.01").contains("--no-systemd"));
        assert!(!of("340.108").contains("glvnd") && !of("340.108").contains("compat32"));
        assert!(of("361.16").contains("glvnd"));
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_the_parser_panic(tail: Vec<u8>) {
            let _ = Header::parse(&[&GOOD.as_bytes()[..60], &tail].concat());
            let _ = Header::parse(&tail);
        }
    }
}
