//! The checksums of a large file: SHA-256 of all of it, MD5 and POSIX cksum
//! of what follows its header.

use super::signal;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// How much is read at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// A file's checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Of the whole file.
    pub sha256: [u8; 32],
    /// From the offset on.
    pub md5: [u8; 16],
    /// From the offset on, as `cksum` prints it.
    pub cksum: u32,
    /// The file's length.
    pub size: u64,
}

impl Sums {
    /// Reads the file; MD5 and cksum start at `from`. MD5 has a thread of its
    /// own, since it takes as long as the other two together.
    ///
    /// # Errors
    /// What reading says, or that a signal came.
    pub fn of(file: &File, from: u64) -> io::Result<Sums> {
        let again = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
        let (md5, rest) = std::thread::scope(|scope| {
            let md5 = scope.spawn(move || {
                let mut md5 = Md5::new();
                read(again, from, |bytes, _| md5.update(bytes)).map(|_| md5.finalize())
            });
            let mut sha256 = Sha256::new();
            let mut crc = Cksum::default();
            let rest = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))
                .and_then(|file| {
                    read(file, 0, |bytes, at| {
                        sha256.update(bytes);
                        let skip = from.saturating_sub(at).min(bytes.len() as u64) as usize;
                        crc.update(&bytes[skip..]);
                    })
                })
                .map(|size| (sha256.finalize(), crc.finish(), size));
            (md5.join(), rest)
        });
        let md5 = md5.map_err(|_| io::Error::other("the MD5 thread failed"))??;
        let (sha256, cksum, size) = rest?;
        Ok(Sums { sha256: sha256.into(), md5: md5.into(), cksum, size })
    }
}

/// Hands a file over in pieces, each with its place; returns its length.
fn read(mut file: File, from: u64, mut each: impl FnMut(&[u8], u64)) -> io::Result<u64> {
    let mut at = file.seek(SeekFrom::Start(from))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        signal::check().map_err(io::Error::other)?;
        match file.read(&mut buffer)? {
            0 => return Ok(at),
            n => {
                each(&buffer[..n], at);
                at += n as u64;
            }
        }
    }
}

/// The POSIX cksum: CRC-32 with the highest bit first, over the bytes and
/// then their number.
#[derive(Default)]
pub struct Cksum {
    crc: u32,
    length: u64,
}

/// `TABLES[n][b]`: what byte `b` does to the sum when `n` bytes follow it.
/// Sixteen bytes a step are ten times as fast as one.
static TABLES: [[u32; 256]; 16] = tables();

const fn tables() -> [[u32; 256]; 16] {
    let mut tables = [[0u32; 256]; 16];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ 0x04C1_1DB7 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < 16 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before << 8) ^ tables[0][(before >> 24) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

impl Cksum {
    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut blocks = bytes.chunks_exact(16);
        let mut crc = self.crc;
        for block in &mut blocks {
            let first = crc.to_be_bytes();
            let mut next = 0;
            for (n, byte) in block.iter().enumerate() {
                let byte = if n < 4 { byte ^ first[n] } else { *byte };
                next ^= TABLES[15 - n][byte as usize];
            }
            crc = next;
        }
        self.crc = blocks.remainder().iter().fold(crc, |crc, byte| step(crc, *byte));
        self.length += bytes.len() as u64;
    }

    /// The sum, as `cksum` prints it.
    pub fn finish(&self) -> u32 {
        let mut crc = self.crc;
        let mut length = self.length;
        while length > 0 {
            crc = step(crc, length as u8);
            length >>= 8;
        }
        !crc
    }
}

fn step(crc: u32, byte: u8) -> u32 {
    (crc << 8) ^ TABLES[0][((crc >> 24) as u8 ^ byte) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn cksum_is_posixs() {
        let sum = |bytes: &[u8]| {
            let mut cksum = Cksum::default();
            cksum.update(bytes);
            cksum.finish()
        };
        // What cksum prints for nothing and for "123456789".
        assert_eq!(sum(b""), 4_294_967_295);
        assert_eq!(sum(b"123456789"), 930_766_865);
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7 % 256) as u8).collect();
        let mut split = Cksum::default();
        bytes.chunks(13).for_each(|c| split.update(c));
        assert_eq!(split.finish(), sum(&bytes));
    }

    #[test]
    fn the_header_counts_for_sha256_only() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"header\n123456789").unwrap();
        let sums = Sums::of(&file, 7).unwrap();
        assert_eq!((sums.cksum, sums.size), (930_766_865, 16));
        assert_eq!(sums.md5, *Md5::digest(b"123456789"));
        assert_eq!(sums.sha256, *Sha256::digest(b"header\n123456789"));
    }
}
