//! The checksums of a large file: SHA-256 of the whole, MD5 of what follows
//! its header.

use super::signal;
use super::time::Deadline;
use md5::Md5;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd as _;

/// How much is read at a time, in bytes.
const CHUNK: usize = 1 << 20;

/// A file's checksums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Of the whole file.
    pub sha256: [u8; 32],
    /// From the offset on.
    pub md5: [u8; 16],
}

impl Sums {
    /// Reads the file; MD5 starts at `from`, in a thread of its own, since it
    /// takes as long as SHA-256.
    ///
    /// # Errors
    /// The file cannot be read, a signal came, or [`Late`](super::time::Late).
    pub fn of(file: &File, from: u64, deadline: &Deadline) -> anyhow::Result<Sums> {
        let again = || File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let (first, second) = (again()?, again()?);
        std::thread::scope(|scope| {
            let md5 = scope.spawn(move || digest::<Md5>(first, from, deadline));
            let sha256 = digest::<Sha256>(second, 0, deadline)?;
            let md5 = md5.join().map_err(|_| anyhow::anyhow!("the MD5 thread failed"))??;
            Ok(Sums { sha256: sha256.into(), md5: md5.into() })
        })
    }
}

/// The checksum of a file from an offset on.
fn digest<D: Digest>(
    mut file: File,
    from: u64,
    deadline: &Deadline,
) -> anyhow::Result<sha2::digest::Output<D>> {
    file.seek(SeekFrom::Start(from))?;
    let (mut sum, mut buffer) = (D::new(), vec![0; CHUNK]);
    loop {
        signal::check()?;
        deadline.allows("read")?;
        match file.read(&mut buffer)? {
            0 => return Ok(sum.finalize()),
            n => sum.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::time::is_late;
    use std::io::Write as _;

    #[test]
    fn the_header_counts_for_sha256_only() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"header\n123456789").unwrap();
        let sums = Sums::of(&file, 7, &Deadline::secs(60)).unwrap();
        assert_eq!(sums.md5, *Md5::digest(b"123456789"));
        assert_eq!(sums.sha256, *Sha256::digest(b"header\n123456789"));
        let late = Sums::of(&file, 7, &Deadline::secs(0)).unwrap_err();
        assert!(is_late(&late) && !is_late(&anyhow::anyhow!("damaged")), "{late:#}");
    }
}
