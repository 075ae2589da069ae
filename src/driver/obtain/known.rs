//! What was verified of a runfile in the cache, so that 400 MB are not read at each
//! use.

use crate::driver::cache::record;
use crate::driver::desired::Sha256;
use crate::exit::{Code, Fault};
use crate::sys::file;
use crate::sys::replace::replace_own;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The checksums of a runfile.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// Its own.
    pub sha256: Sha256,
    /// That of the file around it, if it came in one.
    pub outer: Option<Sha256>,
}

impl Known {
    /// That of a file that came as it is.
    pub fn of(sha256: Sha256) -> Known {
        Known { sha256, outer: None }
    }

    /// That of the file that was downloaded.
    pub fn published(&self) -> &Sha256 {
        self.outer.as_ref().unwrap_or(&self.sha256)
    }

    /// Itself, if one is that of the settings.
    ///
    /// # Errors
    /// Both checksums.
    pub fn expected(self, set: Option<&Sha256>) -> anyhow::Result<Known> {
        match set {
            Some(set) if *set != self.sha256 && Some(set) != self.outer.as_ref() => {
                let message = format!("its SHA-256 is {}, NVIDIA_RUNFILE_SHA256 is {set}", self.published());
                let remedy = "correct NVIDIA_RUNFILE_SHA256, or remove it";
                Err(Fault::new(Code::Software, message).remedy(remedy).into())
            }
            _ => Ok(self),
        }
    }

    /// Those of an earlier check, if it was of this very file.
    pub fn recorded(path: &Path, file: &File) -> Option<Known> {
        let text = file::text(&record(path), 4096).ok()?;
        let mut lines = text.lines();
        let (sum, rest) = lines.next()?.split_once(' ')?;
        let outer = lines.next().and_then(|line| line.strip_prefix("in ")?.parse().ok());
        (rest == identity(file)?).then(|| Some(Known { sha256: sum.parse().ok()?, outer })).flatten()
    }

    /// Records them.
    pub fn record(&self, path: &Path, file: &File) {
        let Some(identity) = identity(file) else { return };
        let outer = self.outer.as_ref().map(|sum| format!("in {sum}\n")).unwrap_or_default();
        let text = format!("{} {identity}\n{outer}", self.sha256);
        if let Err(error) = replace_own(&record(path), text.as_bytes(), 0o644) {
            log::debug!("{}: {error}", record(path).display());
        }
    }
}

/// Tells this file from one that replaced it.
fn identity(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    Some(format!("{} {} {}.{:09}", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}
