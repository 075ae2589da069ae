//! What an install in a container does, as one list: `plan` prints it, a run
//! carries it out. Pure.

use super::runfile;
use crate::driver::desired::Desired;
use crate::driver::template::Facts;
use crate::driver::template::PackageTemplate;
use crate::exit::{Code, Fault};
use crate::guest::os::repo_arch;
use crate::guest::probe::{Check, DriverState};
use crate::types::{Ctid, Version};
use std::fmt;

/// One step, in words for a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The driver's user space, by the runfile.
    Driver {
        /// What is there before.
        found: DriverState,
        /// What is there afterwards.
        to: Version,
    },
    /// The apt source of ours names another repository than the settings.
    Source,
    /// Packages whose installation was cut off.
    Complete,
    /// CUDA packages that are missing, by name.
    Cuda(Vec<String>),
    /// Utilities that are missing.
    Utilities(Vec<PackageTemplate>),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Driver { found: DriverState::Other { version }, to } => {
                write!(f, "upgrade the driver: {version} → {to}")
            }
            Step::Driver { found: DriverState::Missing, to } => write!(f, "install driver {to} (found none)"),
            Step::Driver { found: DriverState::Incomplete { why, .. }, to } => {
                write!(f, "install driver {to} (found incomplete: {why})")
            }
            Step::Driver { found, to } => write!(f, "install driver {to} (found: {found})"),
            Step::Source => f.write_str("replace the apt source: NVIDIA_REPO_URL or the release changed"),
            Step::Complete => f.write_str("complete the packages whose installation was interrupted"),
            Step::Cuda(names) => write!(f, "install with apt: {}", names.join(", ")),
            Step::Utilities(packages) => write!(f, "install with apt, if available: {}", list(packages)),
        }
    }
}

impl Step {
    /// Fails with what the step will fail with, as far as the look shows it.
    ///
    /// # Errors
    /// [`Code::Software`].
    pub fn possible(&self, ctid: Ctid, check: &Check) -> anyhow::Result<()> {
        match self {
            Step::Driver { .. } => runfile::refuse(ctid, check),
            Step::Source | Step::Complete | Step::Cuda(_) if !check.os.apt => Err(no_apt(ctid, check).into()),
            _ => Ok(()),
        }
    }
}

fn list(packages: &[PackageTemplate]) -> String {
    packages.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The missing CUDA packages, filled in as far as that can be.
fn names(check: &Check, desired: &Desired) -> Vec<String> {
    let distro = check.os.distro();
    let facts = Facts { version: &desired.driver, arch: repo_arch(), distro: distro.as_deref() };
    check.cuda_missing.iter().map(|p| p.fill(&facts).unwrap_or_else(|_| p.to_string())).collect()
}

/// The steps that lead from what is there to what is wanted; none when
/// nothing is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps(Vec<Step>);

impl Steps {
    /// From a look. `cuda` is false where the CUDA step failed already with
    /// the same inputs and is not tried again. Utilities are best effort:
    /// missing ones alone are no reason to begin.
    pub fn of(check: &Check, desired: &Desired, cuda: bool) -> Steps {
        let mut steps = Vec::new();
        if !check.driver_right() {
            steps.push(Step::Driver { found: check.found.clone(), to: desired.driver.clone() });
        }
        if cuda {
            if check.source_outdated {
                steps.push(Step::Source);
            }
            if check.software_cut {
                steps.push(Step::Complete);
            }
            if !check.cuda_missing.is_empty() {
                steps.push(Step::Cuda(names(check, desired)));
            }
        }
        if !steps.is_empty() && check.os.apt && !check.utilities_missing.is_empty() {
            steps.push(Step::Utilities(check.utilities_missing.clone()));
        }
        Steps(steps)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Step> {
        self.0.iter()
    }

    /// Whether the driver is changed.
    pub fn driver(&self) -> bool {
        self.0.iter().any(|step| matches!(step, Step::Driver { .. }))
    }

    /// Whether the repository is needed.
    pub fn software(&self) -> bool {
        self.0.iter().any(|step| matches!(step, Step::Source | Step::Complete | Step::Cuda(_)))
    }

    /// The utilities to be tried.
    pub fn utilities(&self) -> &[PackageTemplate] {
        let utilities = self.0.iter().find_map(|step| match step {
            Step::Utilities(packages) => Some(packages.as_slice()),
            _ => None,
        });
        utilities.unwrap_or_default()
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.iter().map(ToString::to_string).collect();
        f.write_str(&steps.join("; "))
    }
}

/// CUDA packages are wanted where there is no apt.
pub(super) fn no_apt(ctid: Ctid, check: &Check) -> Fault {
    Fault::new(
        Code::Software,
        format!("{} has no apt-get: CUDA packages cannot be installed in it", check.os.shown()),
    )
    .remedy(format!("phoenix-nvidia attach {ctid} --cuda none"))
}
