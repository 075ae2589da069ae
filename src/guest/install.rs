//! An install in the container: the driver first and alone, then repository,
//! CUDA packages and utilities.

pub mod apt;
mod runfile;
pub mod steps;

use super::exec::{self, Guest};
use super::probe::Check;
use crate::driver::cache::Cache;
use crate::driver::desired::Desired;
use crate::exit;
use crate::types::Version;
use steps::InstallSteps;

/// What an install did.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// The driver changed: from (if there was one) to.
    pub driver_changed: Option<(Option<Version>, Version)>,
    /// The utilities that could not be installed, and why.
    pub warnings: Vec<String>,
}

/// Carries out the steps; each logs one line with its duration. The driver may
/// have changed although a later step failed.
pub fn install(
    guest: &Guest,
    desired: &Desired,
    check: &Check,
    steps: &InstallSteps,
    cache: &Cache,
) -> (Installed, anyhow::Result<()>) {
    let mut installed = Installed::default();
    if steps.driver() {
        if let Err(error) = runfile::install(guest, desired, check, cache) {
            return (installed, Err(error));
        }
        let before = check.driver.version(&desired.driver).cloned();
        installed.driver_changed = Some((before, desired.driver.clone()));
        let mut keep = vec![&desired.driver];
        keep.extend(&desired.kernel);
        cache.prune(&keep);
    }
    let apt = apt::Apt::new(guest, desired, &check.os);
    let cuda = if steps.cuda() { apt.cuda(check, cache) } else { Ok(()) };
    let ended = |error: &anyhow::Error| exec::is_gone(error) || exit::interrupted(error);
    if !cuda.as_ref().is_err_and(ended) {
        installed.warnings = apt.utilities(steps.utilities());
    }
    (installed, cuda)
}
