//! The runfile of a driver for a tree: one that is in the cache and verified, or,
//! where that may take its time, a download.

use crate::driver::cache::Cache;
use crate::driver::desired::{Limits, Sha256};
use crate::driver::obtain::{self, RunfileRequest};
use crate::driver::template::Template;
use crate::exit::{self, Code, Fault};
use crate::sys::time::Deadline;
use crate::types::Version;
use std::path::PathBuf;

/// How runfiles may be had.
#[derive(Clone, Debug)]
pub struct Supply {
    /// The checksum that one must have, if set; what to correct, where that cannot be
    /// read.
    pub sha256: Result<Option<Sha256>, String>,
    /// Where one is downloaded from; else what to do instead.
    pub download: Result<Box<(Template, Limits)>, String>,
    /// The driver that the next boot loads, where that is known.
    pub next: fn() -> Option<Version>,
}

impl Default for Supply {
    /// What is in the cache.
    fn default() -> Self {
        Supply { sha256: Ok(None), download: Err(PREPARE.to_owned()), next: || None }
    }
}

/// What downloads a runfile, unpacks it and mounts that.
const PREPARE: &str = "phoenix-nvidia prepare";
/// What does the same but the mount, and takes the time that it needs: guests wait for the
/// other one.
const PREFETCH: &str = "phoenix-nvidia prefetch";

/// What makes a tree, after an error that has no remedy of its own.
pub fn remedy(error: &anyhow::Error) -> &'static str {
    if obtain::lacked_time(error) { PREFETCH } else { PREPARE }
}

/// Where the runfile of a version is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the cache.
    Cached(PathBuf),
    /// It can be downloaded.
    Download,
}

impl Supply {
    /// The verified runfile of a version. A download has its own limit.
    ///
    /// # Errors
    /// None is in the cache, or one that is not good, and it is not downloaded, or
    /// could not be.
    pub fn runfile(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<PathBuf> {
        let sha256 = self.sha256.as_ref().map_err(|remedy| {
            Fault::new(Code::Software, "NVIDIA_RUNFILE_SHA256 cannot be read").remedy(remedy.as_str())
        })?;
        match &self.download {
            Ok(from) => {
                let (url, limits) = from.as_ref();
                let request = RunfileRequest { version, url, sha256: sha256.as_ref(), limits };
                Ok(obtain::obtain(&Cache::system(), &request)?.path)
            }
            Err(instead) => {
                match obtain::cached(&Cache::without_network(), version, sha256.as_ref(), deadline) {
                    Ok(runfile) => Ok(runfile.path),
                    Err(error) if exit::remedy_of(&error).is_some() || exit::interrupted(&error) => {
                        Err(error)
                    }
                    Err(error) => {
                        let fault = Fault::new(Code::Software, "no verified runfile");
                        let late = obtain::lacked_time(&error);
                        let remedy = if late { PREFETCH } else { instead.as_str() };
                        Err(fault.remedy(remedy).caused_by(error))
                    }
                }
            }
        }
    }

    /// Where it is, without a look into the file.
    ///
    /// # Errors
    /// What helps, since there is none.
    pub fn place(&self, version: &Version) -> Result<Place, &str> {
        let file = Cache::without_network().file(version);
        match (&self.sha256, file.is_file(), &self.download) {
            (Err(remedy), ..) => Err(remedy),
            (_, true, _) => Ok(Place::Cached(file)),
            (_, false, Ok(_)) => Ok(Place::Download),
            (_, false, Err(instead)) => Err(instead),
        }
    }
}
