//! The runfiles on this node: each downloaded once, checked before it is
//! offered, for any number of containers.

use super::wishes::{Limits, Sha256, Template};
use crate::types::Version;
use std::path::{Path, PathBuf};

/// Where the runfiles are kept.
const DIRECTORY: &str = "/var/cache/phoenix-nvidia";

/// The cache of this node.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
}

/// A runfile that was checked.
#[derive(Clone, Debug)]
pub struct Runfile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its checksum, which the copy in the container must have.
    pub sha256: Sha256,
    /// Whether it had to be downloaded now.
    pub fresh: bool,
}

/// What to fetch, and from where.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    /// The driver's version.
    pub version: &'a Version,
    /// Where it is published.
    pub url: &'a Template,
    /// Its checksum, if the settings name one.
    pub sha256: Option<&'a Sha256>,
    /// How long things may take.
    pub limits: &'a Limits,
}

impl Cache {
    /// This node's.
    pub fn system() -> Self {
        Cache::at(DIRECTORY)
    }

    /// One in another directory, for tests.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Cache { directory: directory.into() }
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The runfile, from the cache or freshly downloaded and checked.
    ///
    /// # Errors
    /// [`Code::Software`](crate::exit::Code), saying what was wrong with what
    /// the server sent, or that it sent nothing.
    pub fn obtain(&self, order: &Order<'_>) -> anyhow::Result<Runfile> {
        anyhow::bail!("not written yet: {:?}", order)
    }

    /// Removes the runfiles that nobody needs: keeps the newest two and those
    /// named.
    pub fn prune(&self, _keep: &[Version]) {}
}
