//! The payload of a runfile, decompressed while it is read. The decompressor that
//! some runfiles carry is code from the file, and is never run.

use super::Header;
use crate::sys::signal;
use crate::sys::text::size;
use crate::sys::time::Deadline;
use anyhow::{Context as _, bail};
use lzma_rust2::XzReader;
use md5::{Digest as _, Md5};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};

/// The base-2 logarithm of the window of NVIDIA's zstd files, which is held in
/// memory: 128 MiB.
const WINDOW: u32 = 27;
/// The same for xz, with what its decoder needs besides, in KiB.
const XZ_MEMORY: u32 = 160 << 10;
/// So much is read at once, in bytes.
const PIECE: usize = 1 << 20;
/// The limit of a decompressed payload, in bytes. Driver 590 has 1.7 GB.
pub const MOST: u64 = 8 << 30;

/// How a payload is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Until driver 313.
    Gzip,
    /// Drivers 319 to 525.
    Xz,
    /// From driver 530.30 on.
    Zstd,
    /// A plain tar archive.
    Plain,
}

impl Compression {
    /// That of a payload that begins so: of at least 262 bytes, if it has them.
    ///
    /// # Errors
    /// It is none that is known.
    pub fn of(begins: &[u8]) -> anyhow::Result<Compression> {
        const TAR: &[u8] = b"ustar";
        match begins {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Compression::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
            [b'B', b'Z', b'h', ..] => {
                bail!("its payload is compressed with bzip2, as no driver of NVIDIA's is")
            }
            _ if begins.get(257..262) == Some(TAR) => Ok(Compression::Plain),
            _ => bail!("its payload is neither gzip, xz, zstd nor tar"),
        }
    }
}

/// Reads the payload of a verified file with `reader`, and all of it: a file that
/// changed since it was verified is none.
///
/// # Errors
/// What `reader` says; it does not decompress, or its MD5 is not that of its
/// header; the deadline passed, or a signal came.
pub fn read<T>(
    mut file: &File,
    header: &Header,
    deadline: &Deadline,
    reader: impl FnOnce(&mut dyn Read) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut source = Source { file, md5: Md5::new(), deadline };
    file.seek(SeekFrom::Start(header.covered))?;
    let script = header.payload.saturating_sub(header.covered);
    io::copy(&mut (&mut source).take(script), &mut io::sink())?;
    let done = decompressed(&mut source, reader);
    // A signal and the deadline come as errors of reading too.
    signal::check()?;
    let done = done.context("its payload could not be unpacked")?;
    io::copy(&mut source, &mut io::sink())?;
    if source.md5.finalize().as_slice() != header.md5.as_slice() {
        bail!("its MD5 differs from its header: it changed since it was verified");
    }
    Ok(done)
}

/// The same for a payload from `start` on that nothing vouches for.
///
/// # Errors
/// As [`read`], but for the checksum.
pub fn read_plain<T>(
    mut file: &File,
    start: u64,
    deadline: &Deadline,
    reader: impl FnOnce(&mut dyn Read) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    file.seek(SeekFrom::Start(start))?;
    let done = decompressed(&mut Source { file, md5: Md5::new(), deadline }, reader);
    signal::check()?;
    done.context("its payload could not be unpacked")
}

/// Reads with `reader`, and then to the end of the archive, where the checksum of
/// the compression is.
fn decompressed<T>(
    source: &mut Source<'_>,
    reader: impl FnOnce(&mut dyn Read) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = source.deadline;
    let mut input = BufReader::with_capacity(PIECE, source);
    let inner = decoder(&mut input)?;
    let mut payload = Payload { inner, left: MOST, deadline };
    let done = reader(&mut payload)?;
    io::copy(&mut payload, &mut io::sink())?;
    Ok(done)
}

fn decoder<'a>(input: &'a mut BufReader<&mut Source<'_>>) -> anyhow::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::of(input.fill_buf()?)? {
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
        Compression::Xz => Box::new(XzReader::new_mem_limit(input, false, XZ_MEMORY)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input)?.single_frame();
            decoder.window_log_max(WINDOW)?;
            Box::new(decoder)
        }
        Compression::Plain => Box::new(input),
    })
}

/// Whoever reads for too long, or after a signal, gets an error.
fn in_time(deadline: &Deadline) -> io::Result<()> {
    signal::check().map_err(io::Error::other)?;
    deadline.allows("unpacked").map_err(io::Error::other)
}

/// The file, with the MD5 of what was read of it.
struct Source<'a> {
    file: &'a File,
    md5: Md5,
    deadline: &'a Deadline,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        in_time(self.deadline)?;
        let got = self.file.read(buffer)?;
        self.md5.update(&buffer[..got]);
        Ok(got)
    }
}

/// What a few bytes may unpack to is bounded.
struct Payload<'a> {
    inner: Box<dyn Read + 'a>,
    left: u64,
    deadline: &'a Deadline,
}

impl Read for Payload<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        in_time(self.deadline)?;
        let got = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(got as u64).ok_or_else(|| {
            io::Error::other(format!("it unpacks to more than {}, as no driver of NVIDIA's does", size(MOST)))
        })?;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_known_by_its_first_bytes_and_nothing_else_is_taken() {
        let tar = [&[0; 257][..], b"ustar  \0"].concat();
        for (begins, is) in [
            (&b"\x1f\x8b\x08"[..], Some(Compression::Gzip)),
            (b"\xfd7zXZ\0\0\0", Some(Compression::Xz)),
            (b"\x28\xb5\x2f\xfd\x04\x88", Some(Compression::Zstd)),
            (&tar, Some(Compression::Plain)),
            (b"BZh9", None),
            (b"\x7fELF", None),
            (b"", None),
            (b"\x1f", None),
        ] {
            assert_eq!(Compression::of(begins).ok(), is, "{begins:?}");
        }
    }

    #[test]
    fn what_a_few_bytes_unpack_to_is_bounded() {
        let deadline = Deadline::secs(60);
        let payload = |left| Payload { inner: Box::new(io::repeat(0).take(1000)), left, deadline: &deadline };
        assert_eq!(io::copy(&mut payload(1000), &mut io::sink()).unwrap(), 1000);
        let error = io::copy(&mut payload(999), &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("more than 8"), "{error}");
    }
}
