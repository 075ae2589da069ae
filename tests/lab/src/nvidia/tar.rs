//! A tar archive (ustar) of plain files, the same bytes for the same content, so that a runfile's sums are stable.

/// Collects files; [`Tar::finish`] gives the archive.
#[derive(Debug, Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    /// Adds a file; the name is relative and shorter than 100 bytes.
    pub(crate) fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.header(name, mode, b'0', bytes.len() as u64, "");
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// Adds the header of something else, of this type, that says to have so many bytes; none follow.
    pub(crate) fn odd(&mut self, name: &str, kind: u8, size: u64, link: &str) {
        self.header(name, 0o644, kind, size, link);
    }

    fn header(&mut self, name: &str, mode: u32, kind: u8, size: u64, link: &str) {
        let mut header = [0_u8; 512];
        let mut field = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        field(0, name);
        field(100, &format!("{mode:07o}"));
        field(108, "0000000");
        field(116, "0000000");
        field(124, &format!("{size:011o}"));
        // 2025-01-01: a date like any other, but always the same.
        field(136, &format!("{:011o}", 1_735_689_600));
        field(148, "        ");
        field(157, link);
        field(257, "ustar");
        field(263, "00");
        header[156] = kind;
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
    }

    /// How long it is so far.
    pub(crate) fn size(&self) -> usize {
        self.0.len()
    }

    /// The archive with its two empty blocks at the end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn tar_reads_it_back() -> std::io::Result<()> {
        let mut tar = Tar::default();
        tar.file("a", 0o755, b"first");
        tar.file("b.so.1", 0o644, &[7; 1024]);
        tar.file("empty", 0o644, b"");
        let dir = tempfile::tempdir()?;
        let archive = dir.path().join("t.tar");
        std::fs::write(&archive, tar.finish())?;
        let unpacked = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir.path()).output()?;
        assert!(unpacked.status.success() && unpacked.stderr.is_empty(), "{unpacked:?}");
        assert_eq!(std::fs::read(dir.path().join("a"))?, b"first");
        assert_eq!(std::fs::read(dir.path().join("b.so.1"))?, [7; 1024]);
        assert_eq!(std::fs::read(dir.path().join("empty"))?, b"");
        Ok(())
    }
}
