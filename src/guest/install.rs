//! The order of the steps: driver first and alone, then repository, CUDA,
//! utilities.

pub mod apt;
mod runfile;
pub mod steps;

use crate::driver::cache::Cache;
use crate::driver::desired::Desired;
use crate::guest::exec::Guest;
use crate::guest::probe::Check;
use crate::types::Version;
use steps::Steps;

/// What an install did.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// The driver was changed: from (if there was one) to.
    pub driver_changed: Option<(Option<Version>, Version)>,
    /// The packages that the CUDA step installed.
    pub cuda: Vec<String>,
    /// The utilities that were installed.
    pub utilities: Vec<String>,
    /// What did not work and is no failure (utilities).
    pub warnings: Vec<String>,
}

impl Installed {
    /// Whether anything was changed.
    pub fn changed(&self) -> bool {
        self.driver_changed.is_some() || !self.cuda.is_empty() || !self.utilities.is_empty()
    }
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

/// Carries out the steps that follow from the look. Each logs one line with
/// its duration.
pub fn install(guest: &Guest, desired: &Desired, check: &Check, steps: &Steps, cache: &Cache) -> Outcome {
    let mut installed = Installed::default();
    let result = carry_out(guest, desired, check, steps, cache, &mut installed);
    Outcome { installed, result }
}

fn carry_out(
    guest: &Guest,
    desired: &Desired,
    check: &Check,
    steps: &Steps,
    cache: &Cache,
    installed: &mut Installed,
) -> anyhow::Result<()> {
    if steps.driver() {
        runfile::install(guest, desired, check, cache)?;
        let before = check.found.version(&desired.driver).cloned();
        installed.driver_changed = Some((before, desired.driver.clone()));
        let mut keep = vec![&desired.driver];
        keep.extend(&desired.kernel);
        cache.prune(&keep);
    }
    apt::software(guest, desired, check, steps, cache, installed)
}
