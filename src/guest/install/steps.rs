//! The steps of an install in a container: `plan` prints them, a run carries
//! them out. Pure.

use crate::driver::desired::Desired;
use crate::driver::template::Facts;
use crate::driver::template::PackageTemplate;
use crate::exit::{Code, Fault};
use crate::guest::driver_state::DriverState;
use crate::guest::packaged::Packages;
use crate::guest::probe::{Check, CudaObstacle};
use crate::types::{Ctid, Version};
use std::fmt;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallStep {
    /// The driver's user space, by the runfile.
    Driver {
        /// The state before.
        found: DriverState,
        /// The version after.
        to: Version,
    },
    /// Links to the host's driver go, which it does not get any more.
    Unlink,
    /// The driver of a runfile goes, of this version: the host's is mounted.
    Uninstall(Version),
    /// Our apt source goes, since this file has the same repository.
    OneSource(String),
    /// Our apt source, which has another repository than the settings.
    Source,
    /// Packages whose install was interrupted.
    Complete,
    /// The missing CUDA packages, by name.
    Cuda(Vec<String>),
    /// The missing utilities.
    Utilities(Vec<PackageTemplate>),
}

impl fmt::Display for InstallStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InstallStep::Driver { found: DriverState::Other { version }, to } => {
                write!(f, "upgrade driver {version} → {to}")
            }
            InstallStep::Driver { found: DriverState::Missing, to } => {
                write!(f, "install driver {to} (found none)")
            }
            InstallStep::Driver { found: DriverState::Incomplete { why, .. }, to } => {
                write!(f, "install driver {to} (found incomplete: {why})")
            }
            InstallStep::Driver { found, to } => write!(f, "install driver {to} (found: {found})"),
            InstallStep::Unlink => f.write_str("remove the links to the host's driver"),
            InstallStep::Uninstall(version) => {
                write!(f, "remove driver {version}, which a runfile installed, with its nvidia-uninstall")
            }
            InstallStep::OneSource(theirs) => {
                write!(f, "remove our apt source: {theirs} has the same repository")
            }
            InstallStep::Source => {
                f.write_str("replace the apt source: NVIDIA_REPO_URL or the release changed")
            }
            InstallStep::Complete => f.write_str("complete the interrupted install of packages"),
            InstallStep::Cuda(names) => write!(f, "install with apt: {}", names.join(", ")),
            InstallStep::Utilities(packages) => {
                write!(f, "install with apt, if available: {}", list(packages))
            }
        }
    }
}

impl InstallStep {
    /// Fails if the probe shows that the step will.
    ///
    /// # Errors
    /// [`Code::Software`].
    pub fn possible(&self, ctid: Ctid, check: &Check) -> anyhow::Result<()> {
        match self {
            InstallStep::Driver { .. } => refuse(ctid, check),
            _ => Ok(()),
        }
    }
}

fn list(packages: &[PackageTemplate]) -> String {
    packages.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The missing CUDA packages, filled in if possible.
fn names(check: &Check, desired: &Desired) -> Vec<String> {
    let distro = check.os.distro();
    let facts = Facts::repository(&desired.driver, distro.as_deref());
    check.cuda_missing.iter().map(|p| p.fill(&facts).unwrap_or_else(|_| p.to_string())).collect()
}

/// The steps from what is installed to what is desired, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstallSteps(Vec<InstallStep>);

impl InstallSteps {
    /// From a probe. `cuda` is false if the CUDA step failed before with the same
    /// inputs; what keeps packages from being installed is in [`cuda_refused`].
    /// Utilities are optional: missing ones alone are no step.
    /// Where no driver can be there is none: see [`fit`].
    pub fn of(check: &Check, desired: &Desired, cuda: bool) -> InstallSteps {
        let mut steps = Vec::new();
        if matches!(check.driver, DriverState::Unsupported { .. }) {
            return InstallSteps(steps);
        }
        if check.unlink {
            steps.push(InstallStep::Unlink);
        }
        steps.extend(check.runfile.clone().map(InstallStep::Uninstall));
        // Beside these no packages are needed.
        let early = steps.len();
        if !check.driver_matches() && !desired.injected {
            steps.push(InstallStep::Driver { found: check.driver.clone(), to: desired.driver.clone() });
        }
        if cuda && check.cuda_obstacle.is_none() {
            if check.source_outdated {
                steps.push(InstallStep::Source);
            }
            if check.cuda_interrupted {
                steps.push(InstallStep::Complete);
            }
            if !check.cuda_missing.is_empty() {
                steps.push(InstallStep::Cuda(names(check, desired)));
            }
        }
        if steps.len() > early && check.os.apt && !check.utilities_missing.is_empty() {
            steps.push(InstallStep::Utilities(check.utilities_missing.clone()));
        }
        if let Some(twice) = &check.source_twice {
            steps.insert(0, InstallStep::OneSource(twice.file.clone()));
        }
        InstallSteps(steps)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &InstallStep> {
        self.0.iter()
    }

    /// Whether the driver is changed.
    pub fn driver(&self) -> bool {
        self.0.iter().any(|step| matches!(step, InstallStep::Driver { .. }))
    }

    /// Whether links to the host's driver go.
    pub fn unlink(&self) -> bool {
        self.0.contains(&InstallStep::Unlink)
    }

    /// The version of a runfile's driver that goes.
    pub fn uninstall(&self) -> Option<&Version> {
        self.0.iter().find_map(|step| match step {
            InstallStep::Uninstall(version) => Some(version),
            _ => None,
        })
    }

    /// The file that has the repository of our apt source too.
    pub fn one_source(&self) -> Option<&str> {
        self.0.iter().find_map(|step| match step {
            InstallStep::OneSource(theirs) => Some(theirs.as_str()),
            _ => None,
        })
    }

    /// Whether the CUDA step has something to do.
    pub fn cuda(&self) -> bool {
        self.0
            .iter()
            .any(|step| matches!(step, InstallStep::Source | InstallStep::Complete | InstallStep::Cuda(_)))
    }

    /// The utilities to install.
    pub fn utilities(&self) -> &[PackageTemplate] {
        let utilities = self.0.iter().find_map(|step| match step {
            InstallStep::Utilities(packages) => Some(packages.as_slice()),
            _ => None,
        });
        utilities.unwrap_or_default()
    }
}

impl fmt::Display for InstallSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.iter().map(ToString::to_string).collect();
        f.write_str(&steps.join("; "))
    }
}

/// No driver can be in a container: its devices are all that it gets.
#[derive(Debug)]
pub struct Unfit(String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: devices only", self.0)
    }
}

impl std::error::Error for Unfit {}

/// The installer has no place in a container: no room, or no directory to run in.
#[derive(Debug)]
pub struct NoPlace {
    /// What keeps it from one.
    pub why: String,
    /// It is that there is not room enough.
    pub full: bool,
}

impl NoPlace {
    /// What gives the container its driver all the same.
    pub fn remedy(&self, ctid: Ctid) -> String {
        let inject = format!("phoenix-nvidia attach {ctid} --inject && phoenix-nvidia {ctid}");
        match self.full {
            true => format!("pct resize {ctid} rootfs +4G, or without an install: {inject}"),
            false => inject,
        }
    }
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for NoPlace {}

/// Whether the error is that the installer has no place.
pub fn has_no_place(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<NoPlace>())
}

/// Whether the error is that no driver can be in the container.
pub fn is_unfit(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.is::<Unfit>())
}

/// The setting that says so, after which nobody looks for a driver.
pub fn without_driver(ctid: Ctid) -> String {
    format!("INSTALL=off phoenix-nvidia attach {ctid}")
}

/// The error of a container in which no driver can be, and why.
pub fn unfit(ctid: Ctid, why: &str) -> anyhow::Error {
    Fault::new(Code::Software, format!("cannot install a driver in container {ctid}"))
        .remedy(without_driver(ctid))
        .caused_by(Unfit(why.to_owned()))
}

/// Fails if no driver can be in the container.
///
/// # Errors
/// [`Code::Software`], for which [`is_unfit`] is true.
pub fn fit(ctid: Ctid, check: &Check) -> anyhow::Result<()> {
    match &check.driver {
        DriverState::Unsupported { why } => Err(unfit(ctid, why)),
        _ => Ok(()),
    }
}

/// Fails if the driver must not be installed by the runfile.
///
/// # Errors
/// [`Code::Software`].
pub(super) fn refuse(ctid: Ctid, check: &Check) -> anyhow::Result<()> {
    fit(ctid, check)?;
    let fault = match &check.driver {
        found @ DriverState::HostFiles { .. } => {
            let message = format!(
                "no driver is installed in container {ctid} over {found}: remove those mounts, or set INSTALL=off"
            );
            Fault::new(Code::Software, message).remedy(format!("nano /etc/pve/lxc/{ctid}.conf"))
        }
        DriverState::Packaged { packages, version, upgrade, mixed } => {
            packaged(ctid, packages, version.as_ref(), upgrade.as_deref(), *mixed)
        }
        _ => return Ok(()),
    };
    Err(fault.into())
}

/// A driver of packages that is not the desired one: both ways, and no third.
fn packaged(
    ctid: Ctid,
    packages: &Packages,
    version: Option<&Version>,
    upgrade: Option<&str>,
    mixed: bool,
) -> Fault {
    let what = version.map_or_else(|| "a driver".to_owned(), |version| format!("driver {version}"));
    let files = if mixed { " and a runfile" } else { "" };
    let mut message = format!(
        "container {ctid} has {what} from packages ({}){files}; a runfile on top would break both",
        packages.shown()
    );
    let remove = packages.remove(ctid).map(|remove| format!("{remove} && phoenix-nvidia {ctid}"));
    if let (Some(_), Some(remove)) = (upgrade, &remove) {
        message.push_str(&format!("; apt can upgrade it, or remove it: {remove}"));
    }
    let fault = Fault::new(Code::Software, message);
    match upgrade.map(str::to_owned).or(remove) {
        Some(command) => fault.remedy(command),
        None => fault,
    }
}

/// Why the missing CUDA packages are no step, where the probe shows it. The
/// driver does not depend on that.
pub fn cuda_refused(ctid: Ctid, check: &Check) -> Option<Fault> {
    let obstacle = check.cuda_obstacle.as_ref().filter(|_| fit(ctid, check).is_ok())?;
    Some(refusal(ctid, obstacle, check.os.shown()))
}

/// The same before there is a container to look into, from its `ostype`.
pub fn cuda_foreseen(ctid: Ctid, desired: &Desired, ostype: &str) -> Option<Fault> {
    if desired.cuda.list().is_empty() {
        return None;
    }
    if WITHOUT_APT.contains(&ostype) {
        return Some(refusal(ctid, &CudaObstacle::NoApt, ostype));
    }
    let facts = Facts::repository(&desired.driver, Some("*"));
    let why = desired.cuda.list().iter().find_map(|package| package.fill(&facts).err())?;
    Some(refusal(ctid, &CudaObstacle::NoName(why.root_cause().to_string()), ostype))
}

/// The values of `ostype` without apt.
const WITHOUT_APT: [&str; 7] = ["alpine", "archlinux", "centos", "fedora", "gentoo", "nixos", "opensuse"];

fn refusal(ctid: Ctid, obstacle: &CudaObstacle, os: &str) -> Fault {
    let why = match obstacle {
        CudaObstacle::NoApt => format!("{os} has no apt-get"),
        CudaObstacle::NoName(why) => why.clone(),
    };
    Fault::new(Code::Software, format!("cannot install CUDA packages: {why}"))
        .remedy(format!("phoenix-nvidia attach {ctid} --cuda none"))
}
