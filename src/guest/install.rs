//! The order of the steps: driver first and alone, then repository, CUDA,
//! utilities.

use super::cache::Cache;
use super::exec::Guest;
use super::found::Check;
use super::wishes::Wishes;
use crate::types::Version;

/// What an install did.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// The driver was changed: from (if there was one) to.
    pub driver_changed: Option<(Option<Version>, Version)>,
    /// One line per step that did something.
    pub steps: Vec<String>,
    /// What did not work and is no failure (utilities).
    pub warnings: Vec<String>,
}

/// What an install came to. The driver stands alone: it may have changed
/// although a later step failed.
#[derive(Debug)]
pub struct Outcome {
    /// What was done.
    pub installed: Installed,
    /// The step that failed, if one did.
    pub result: anyhow::Result<()>,
}

/// Brings the container's software to what the wishes say. Every step logs
/// one line with its duration.
pub fn install(guest: &Guest, wishes: &Wishes, check: &Check, cache: &Cache) -> Outcome {
    let mut installed = Installed::default();
    let result = steps(guest, wishes, check, cache, &mut installed);
    Outcome { installed, result }
}

fn steps(
    guest: &Guest,
    _wishes: &Wishes,
    _check: &Check,
    _cache: &Cache,
    _installed: &mut Installed,
) -> anyhow::Result<()> {
    anyhow::bail!("not written yet: {}", guest.ctid())
}
