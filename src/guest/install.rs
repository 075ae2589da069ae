//! An install in the container: the driver first and alone, then repository,
//! CUDA packages and utilities.

pub mod apt;
mod runfile;
pub mod steps;

use super::exec::{self, Guest};
use super::own;
use super::probe::Check;
use crate::driver::cache::Cache;
use crate::driver::desired::Desired;
use crate::sys::time::Deadline;
use crate::types::Version;
use steps::InstallSteps;

/// What an install did.
#[derive(Debug, Default)]
pub struct Installed {
    /// The driver changed: from (if there was one) to.
    pub driver_changed: Option<(Option<Version>, Version)>,
    /// Why the CUDA step failed: the driver is right all the same.
    pub cuda: Option<anyhow::Error>,
    /// The utilities that could not be installed, and why.
    pub warnings: Vec<String>,
}

/// Carries out the steps; each logs one line with its duration.
///
/// # Errors
/// Those of the driver, and of nothing that comes after it.
pub fn install(
    guest: &Guest,
    desired: &Desired,
    check: &Check,
    steps: &InstallSteps,
    cache: &Cache,
) -> anyhow::Result<Installed> {
    let mut installed = Installed::default();
    // apt may be unreadable until then, and the driver step may need it.
    if let Some(theirs) = steps.one_source() {
        own::give_way(guest, theirs, &Deadline::secs(30));
    }
    if steps.driver() {
        runfile::install(guest, desired, check, cache)?;
        let before = check.driver.version(&desired.driver).cloned();
        installed.driver_changed = Some((before, desired.driver.clone()));
        let mut keep = vec![&desired.driver];
        keep.extend(&desired.kernel);
        cache.prune(&keep);
    }
    let apt = apt::Apt::new(guest, desired, &check.os, check.packages.is_some());
    installed.cuda = if steps.cuda() { apt.cuda(check, cache).err() } else { None };
    if !installed.cuda.as_ref().is_some_and(exec::ended) {
        installed.warnings = apt.utilities(steps.utilities());
    }
    Ok(installed)
}
