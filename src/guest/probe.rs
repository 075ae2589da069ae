//! What is installed in the container: one command of shell built-ins, at
//! every start.

mod raw;

use super::driver_state::DriverState;
use super::exec::Guest;
use super::os::{self, Os, Unfit};
use super::packaged::{NextUpgrade, Packages};
use crate::driver::desired::{CudaPackages, Desired};
use crate::driver::repo;
use crate::driver::template::{Facts, PackageTemplate};
use crate::exit::{Code, Context as _, Fault};
use crate::pve::conf::host_files;
use crate::pve::conf::store::Conf;
use crate::sys::process::Output;
use crate::sys::time::{Deadline, human};
use crate::sys::url::hex;
use crate::types::{Ctid, Version};
use raw::Raw;
pub use raw::state_version;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

const PROBE: &str = concat!(
    include_str!("scripts/apt-sources.sh"),
    include_str!("scripts/libc.sh"),
    include_str!("scripts/probe.sh")
);

/// What the probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The files: libraries and the installer's state have the version. On an
    /// H200 with persistence mode that takes 0.01 ms.
    Files,
    /// nvidia-smi too, which took 32 ms to 65 ms there, and may take seconds per
    /// GPU without persistence mode.
    NvidiaSmi,
}

impl Ask {
    fn argument(self) -> &'static str {
        match self {
            Ask::Files => "files",
            Ask::NvidiaSmi => "smi",
        }
    }
}

/// What keeps the CUDA packages from being installed, whatever a repository has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaObstacle {
    /// The container has no apt.
    NoApt,
    /// A package's name cannot be filled in, and why.
    NoName(String),
}

impl CudaObstacle {
    /// Where there is no apt, the default is no packages.
    pub fn matters(&self, desired: &Desired) -> bool {
        desired.cuda_named || *self != CudaObstacle::NoApt
    }
}

/// Another source file with the repository of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTwice {
    /// The file.
    pub file: String,
    /// With both, apt cannot read its sources; asked for with nvidia-smi.
    pub unreadable: bool,
}

/// What is installed in the container, compared with what is desired.
#[derive(Clone, Debug)]
pub struct Check {
    /// The driver.
    pub driver: DriverState,
    /// The packages that hold it, where it is right: it is left to them.
    pub packages: Option<Packages>,
    /// Where the driver is the host's: one that is installed all the same.
    pub beside: Option<DriverState>,
    /// The version of one that NVIDIA's installer put beside the host's: its own
    /// uninstaller can remove it.
    pub runfile: Option<Version>,
    /// The versions in the names of the driver's libraries that are the container's own.
    pub versions: Vec<Version>,
    /// Directories at the places of the host's driver with files of its own.
    pub occupied: Vec<String>,
    /// Links to the host's driver were made in it.
    pub links: bool,
    /// They are of no use: it does not get the host's driver any more.
    pub unlink: bool,
    /// Some of them are gone, or what had their place is.
    pub lost: bool,
    /// What apt's next upgrade does to them; asked for with nvidia-smi.
    pub next_upgrade: Option<NextUpgrade>,
    /// The missing packages of CUDA_PACKAGES.
    pub cuda_missing: Vec<PackageTemplate>,
    /// The missing packages of UTILITY_PACKAGES.
    pub utilities_missing: Vec<PackageTemplate>,
    /// Why the missing CUDA packages cannot be installed, where the look shows it.
    pub cuda_obstacle: Option<CudaObstacle>,
    /// An earlier CUDA step was interrupted.
    pub cuda_interrupted: bool,
    /// Our apt source has another repository: the settings or the container's
    /// release have changed.
    pub source_outdated: bool,
    /// Another source file has the repository of ours.
    pub source_twice: Option<SourceTwice>,
    /// The container's operating system.
    pub os: Os,
    /// How long the probe took.
    pub took: Duration,
}

impl Check {
    /// Whether nothing needs to be installed. Utilities are optional: a missing
    /// one alone starts no install.
    pub fn up_to_date(&self) -> bool {
        self.driver_matches() && !self.cuda_pending() && !self.unlink && self.runfile.is_none()
    }

    /// Whether the driver is the desired one.
    pub fn driver_matches(&self) -> bool {
        self.driver == DriverState::Matching
    }

    /// Where packages hold the driver: what apt can do about it, or will.
    fn ask_apt(&mut self, guest: &Guest, desired: &Desired, ask: Ask, deadline: &Deadline) {
        let deadline = deadline.at_most(desired.limits.check);
        if let DriverState::Packaged { packages, upgrade, mixed: false, .. } = &mut self.driver {
            *upgrade = packages.upgrade(guest, &desired.driver, &deadline);
        }
        if let (Some(packages), Ask::NvidiaSmi) = (&self.packages, ask) {
            self.next_upgrade = packages.next(guest, &deadline);
        }
    }

    /// Whether the CUDA step has something that it can do.
    pub fn cuda_pending(&self) -> bool {
        let due = !self.cuda_missing.is_empty() || self.cuda_interrupted || self.source_outdated;
        due && self.cuda_obstacle.is_none()
    }
}

/// Probes the container, with one child process.
///
/// # Errors
/// The probe failed, which says nothing about what is installed.
pub fn check(guest: &Guest, desired: &Desired, ask: Ask, deadline: &Deadline) -> anyhow::Result<Check> {
    if let Some(application) = application(guest.ctid()) {
        return Ok(unfit(Unfit::Application(application), desired));
    }
    let output = probe(guest, desired, ask, &deadline.at_most(desired.limits.check))?;
    // 126 and 127: lxc-attach cannot execute the command.
    if matches!(output.code(), Some(126 | 127)) {
        return Ok(unfit(Unfit::NoShell(output.last_lines(3).join(" | ")), desired));
    }
    let check = understand(&output.stdout, desired);
    let mut check = check.ok_or_else(|| no_answer(guest.ctid(), &output))?;
    for driver in [Some(&mut check.driver), check.beside.as_mut()].into_iter().flatten() {
        if let DriverState::HostFiles { lines, .. } = driver {
            *lines = Conf::of(guest.ctid()).read().ok().and_then(|conf| host_files::shown(&conf));
        }
    }
    check.took = output.took;
    check.ask_apt(guest, desired, ask, deadline);
    log::debug!("probe: driver {}, {}, {}", check.driver, check.os.shown(), human(check.took));
    Ok(check)
}

/// The driver after the installer ran: asks nvidia-smi too, and ignores the mark
/// of an interrupted install.
///
/// # Errors
/// The probe failed.
pub(super) fn confirm(guest: &Guest, desired: &Desired) -> anyhow::Result<DriverState> {
    let output = probe(guest, desired, Ask::NvidiaSmi, &Deadline::after(desired.limits.verify))?;
    let raw = Raw { driver_interrupted: None, ..Raw::parse(&output.stdout) };
    if raw.complete { Ok(raw.driver(&desired.driver)) } else { Err(no_answer(guest.ctid(), &output)) }
}

/// What the probe's answer means; `None` if it is incomplete.
pub fn understand(answer: &[u8], desired: &Desired) -> Option<Check> {
    let raw = Raw::parse(answer);
    raw.complete.then(|| judge(raw, desired, &Names::of(desired)))
}

fn probe(guest: &Guest, desired: &Desired, ask: Ask, deadline: &Deadline) -> anyhow::Result<Output> {
    let names = Names::of(desired);
    let args = std::iter::once(ask.argument()).chain(names.known.iter().map(|(_, name)| name.as_str()));
    let fault = || Fault::new(Code::Software, format!("cannot probe container {}", guest.ctid()));
    guest.attach_sh(PROBE, args).keep(128 * 1024).run(deadline).fault(fault)
}

/// What the container starts instead of an init, as its conf says: then nothing is
/// run in it.
pub fn application(ctid: Ctid) -> Option<String> {
    os::application(&Conf::of(ctid).read().ok()?)
}

/// A container in which no driver can be, without a probe.
fn unfit(why: Unfit, desired: &Desired) -> Check {
    let os = Os { unfit: Some(why), ..Os::default() };
    judge(Raw { os, ..Raw::default() }, desired, &Names::default())
}

/// The probe ended before its last line.
fn no_answer(ctid: Ctid, output: &Output) -> anyhow::Error {
    let last = output.last_lines(3).join(" | ");
    let message = format!("cannot probe container {ctid}: the probe ended early, {}: {last}", output.ended);
    Fault::new(Code::Software, message).into()
}

/// The packages to look for.
#[derive(Default)]
struct Names {
    /// Each with its name for the probe.
    known: Vec<(PackageTemplate, String)>,
    /// Those whose name cannot be filled in, and why: no reason not to look.
    unknown: Vec<(PackageTemplate, String)>,
}

impl Names {
    fn of(desired: &Desired) -> Names {
        // The distribution is not known yet.
        let facts = Facts::repository(&desired.driver, Some("*"));
        let mut names = Names::default();
        for package in desired.cuda.list().iter().chain(&desired.utilities) {
            match package.fill(&facts) {
                Ok(name) => names.known.push((package.clone(), name)),
                Err(why) => names.unknown.push((package.clone(), why.root_cause().to_string())),
            }
        }
        names
    }

    /// The name, or the template where it cannot be filled in.
    fn name(&self, package: &PackageTemplate) -> String {
        let known = self.known.iter().find(|(template, _)| template == package);
        known.map_or_else(|| package.to_string(), |(_, name)| name.clone())
    }

    /// What keeps these packages from being installed.
    fn obstacle(&self, missing: &[PackageTemplate], os: &Os) -> Option<CudaObstacle> {
        if missing.is_empty() {
            return None;
        }
        if !os.apt {
            return Some(CudaObstacle::NoApt);
        }
        let unknown = self.unknown.iter().find(|(template, _)| missing.contains(template));
        unknown.map(|(_, why)| CudaObstacle::NoName(why.clone()))
    }
}

/// What the lines mean for what is desired.
fn judge(raw: Raw, desired: &Desired, names: &Names) -> Check {
    let driver = match (raw.os.unsupported(), raw.packages()) {
        (Some(why), _) => DriverState::Unsupported { why },
        (None, None) => raw.driver(&desired.driver),
        (None, Some(packages)) => raw.packaged(packages, &desired.driver),
    };
    let driver = match driver {
        DriverState::Matching | DriverState::Unsupported { .. } => driver,
        _ if raw.mounted.is_empty() => driver,
        _ => DriverState::HostFiles { points: raw.mounted.clone(), lines: None },
    };
    let bare = raw.libs.is_empty() && raw.owners.is_empty() && raw.mounted.is_empty();
    let (driver, beside) = match desired.injected {
        true => driver.mounted(raw.host_driver.as_ref() == Some(&desired.driver), bare),
        false => (driver, None),
    };
    // One that packages hold too is for somebody to look at, and so is one that no uninstaller, package manager or
    // find could remove without the host's own files.
    let removable = raw.owners.is_empty() && raw.covers.is_empty();
    let runfile = beside.as_ref().filter(|_| removable).and(raw.state.clone());
    let beside = beside.map(|beside| match raw.covers.is_empty() {
        true => beside,
        false => DriverState::HostFiles { points: raw.covers.clone(), lines: None },
    });
    let missing = |list: &[PackageTemplate]| -> Vec<PackageTemplate> {
        let there = |p: &PackageTemplate| {
            let name = names.name(p);
            raw.have.contains(&name) || (raw.toolkit && name.starts_with("cuda-toolkit"))
        };
        list.iter().filter(|p| !there(p)).cloned().collect()
    };
    let cuda_missing = missing(desired.cuda.list());
    Check {
        packages: raw.packages().filter(|_| driver == DriverState::Matching && !desired.injected),
        beside,
        runfile,
        versions: raw.versions(),
        occupied: raw.occupied.clone(),
        links: raw.links,
        unlink: raw.links && !desired.injected,
        lost: raw.lost,
        next_upgrade: None,
        driver,
        cuda_obstacle: names.obstacle(&cuda_missing, &raw.os),
        cuda_missing,
        utilities_missing: missing(&desired.utilities),
        cuda_interrupted: raw.cuda_interrupted && desired.cuda != CudaPackages::None,
        source_outdated: desired.cuda != CudaPackages::None && source_outdated(&raw, desired),
        source_twice: raw.twice.map(|file| SourceTwice { file, unreadable: raw.unreadable }),
        os: raw.os,
        took: Duration::ZERO,
    }
}

/// Whether our source or apt's auth file differs from what an install would
/// write.
fn source_outdated(raw: &Raw, desired: &Desired) -> bool {
    let distro = raw.os.distro();
    let facts = Facts::repository(&desired.driver, distro.as_deref());
    let wanted = desired.repo_url.fill(&facts).ok().and_then(|url| repo::for_apt(&url).ok());
    let (Some(there), Some((uri, auth))) = (&raw.source, wanted) else { return false };
    if there.trim_end_matches('/') != uri.request().trim_end_matches('/') {
        return true;
    }
    match (auth, &raw.auth) {
        (None, found) => found.is_some(),
        // No sha256sum in the container.
        (Some(_), Some(found)) if found == "unknown" => false,
        (Some(auth), found) => found.as_deref() != Some(hex(&Sha256::digest(auth.as_bytes())).as_str()),
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
