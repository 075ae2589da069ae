//! What is installed in the container: one command of shell built-ins, at
//! every start.

use super::driver_state::DriverState;
use super::exec::{Guest, fields};
use super::os::Os;
use super::packaged::{Manager, NextUpgrade, Packages};
use super::smi;
use crate::driver::desired::{CudaPackages, Desired};
use crate::driver::packages::PackageName;
use crate::driver::repo;
use crate::driver::template::{Facts, PackageTemplate};
use crate::exit::{Code, Context as _, Fault};
use crate::sys::process::Output;
use crate::sys::time::{Deadline, human};
use crate::sys::url::hex;
use crate::types::{Ctid, Version};
use sha2::{Digest as _, Sha256};
use std::time::Duration;

const PROBE: &str = include_str!("scripts/probe.sh");
/// The most driver packages that are read.
const MOST_PACKAGES: usize = 40;

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

/// What is installed in the container, compared with what is desired.
#[derive(Clone, Debug)]
pub struct Check {
    /// The driver.
    pub driver: DriverState,
    /// The packages that hold it, where it is right: it is left to them.
    pub packages: Option<Packages>,
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
    /// The container's operating system.
    pub os: Os,
    /// How long the probe took.
    pub took: Duration,
}

impl Check {
    /// Whether nothing needs to be installed. Utilities are optional: a missing
    /// one alone starts no install.
    pub fn up_to_date(&self) -> bool {
        self.driver_matches() && !self.cuda_pending()
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
    let output = probe(guest, desired, ask, &deadline.at_most(desired.limits.check))?;
    let check = understand(&output.stdout, desired);
    let mut check = check.ok_or_else(|| no_answer(guest.ctid(), &output))?;
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

/// The probe ended before its last line.
fn no_answer(ctid: Ctid, output: &Output) -> anyhow::Error {
    let last = output.last_lines(3).join(" | ");
    // 126 and 127: lxc-attach cannot execute the command.
    if matches!(output.code(), Some(126 | 127)) {
        let message =
            format!("cannot install a driver in container {ctid}: cannot run /bin/sh in it ({last})");
        return Fault::new(Code::Software, message).remedy("use a Debian or Ubuntu container").into();
    }
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

/// The probe's lines.
#[derive(Debug, Default)]
struct Raw {
    os: Os,
    libs: Vec<String>,
    ml: Option<Version>,
    cuda: Option<Version>,
    smi: bool,
    state: Option<Version>,
    driver_interrupted: Option<String>,
    cuda_interrupted: bool,
    owners: Vec<(Manager, Option<PackageName>)>,
    toolkit: bool,
    have: Vec<String>,
    source: Option<String>,
    /// The SHA-256 of apt's auth file; `unknown` if it could not be computed.
    auth: Option<String>,
    says: String,
    complete: bool,
}

impl Raw {
    fn parse(bytes: &[u8]) -> Raw {
        let mut raw = Raw::default();
        for (key, value) in fields(bytes) {
            raw.take(&key, value);
        }
        raw
    }

    fn take(&mut self, key: &str, value: String) {
        let two = value.split_once(' ').unwrap_or((&value, ""));
        match key {
            "os" => self.os.release_line(&value),
            "loader" => self.os.loader(&value),
            "init" => self.os.init = true,
            "apt-get" => self.os.apt = true,
            "modprobe" => self.os.modprobe = true,
            "systemd" => self.os.systemd = true,
            "lib" => self.libs.push(value),
            "link" if two.0 == "libnvidia-ml" => self.ml = two.1.parse().ok(),
            "link" => self.cuda = two.1.parse().ok(),
            "smi" => self.smi = true,
            "state" => self.state = state_version(&value),
            "cut" if two.0 == "driver" => self.driver_interrupted = Some(two.1.to_owned()),
            "cut" => self.cuda_interrupted = true,
            "owner" if self.owners.len() < MOST_PACKAGES => {
                let manager = match two.0 {
                    "rpm" => Manager::Rpm,
                    "pacman" => Manager::Pacman,
                    _ => Manager::Dpkg,
                };
                self.owners.push((manager, two.1.parse().ok()));
            }
            "toolkit" => self.toolkit = true,
            "have" => self.have.push(value),
            "source" => self.source = Some(value),
            "auth" => self.auth = Some(value),
            "says" => self.says.extend([&value, "\n"]),
            "end" => self.complete = true,
            _ => {}
        }
    }

    /// The driver's state, without the package manager's files.
    fn driver(&self, desired: &Version) -> DriverState {
        match (self.incomplete(), &self.ml) {
            (Some(why), ml) => DriverState::Incomplete { version: ml.clone().or(self.cuda.clone()), why },
            (None, None) => DriverState::Missing,
            (None, Some(ml)) if ml == desired => DriverState::Matching,
            (None, Some(ml)) => DriverState::Other { version: ml.clone() },
        }
    }

    /// The packages that own driver files.
    fn packages(&self) -> Option<Packages> {
        let (manager, _) = self.owners.first()?;
        let theirs = self.owners.iter().filter(|(m, _)| m == manager);
        Some(Packages { names: theirs.filter_map(|(_, name)| name.clone()).collect(), manager: *manager })
    }

    /// The state of a driver that packages hold: right is right, whoever
    /// installed it, unless a runfile did too.
    fn packaged(&self, packages: Packages, desired: &Version) -> DriverState {
        let mixed = self.state.is_some() || self.driver_interrupted.is_some();
        match self.driver(desired) {
            DriverState::Matching if !mixed => DriverState::Matching,
            state => {
                let version = state.version(desired).cloned();
                DriverState::Packaged { packages, version, upgrade: None, mixed }
            }
        }
    }

    /// Why an installed driver is incomplete, if so.
    fn incomplete(&self) -> Option<String> {
        if let Some(version) = &self.driver_interrupted {
            return Some(format!("install of {version} interrupted"));
        }
        let Some(ml) = &self.ml else {
            let some = !self.libs.is_empty() || self.smi;
            return some.then(|| "libnvidia-ml.so.1 missing".into());
        };
        match &self.cuda {
            None => return Some("libcuda.so.1 missing".into()),
            Some(cuda) if cuda != ml => return Some(format!("libnvidia-ml is {ml}, libcuda is {cuda}")),
            _ if !self.smi => return Some("nvidia-smi missing".into()),
            _ => {}
        }
        if let Some(state) = self.state.as_ref().filter(|state| *state != ml) {
            return Some(format!("libraries are {ml}, the installer's state is {state}"));
        }
        let tool = smi::version(&self.says).tool.filter(|tool| tool != ml);
        tool.map(|tool| format!("libraries are {ml}, nvidia-smi is {tool}"))
    }
}

/// What the lines mean for what is desired.
fn judge(raw: Raw, desired: &Desired, names: &Names) -> Check {
    let driver = match (raw.os.unsupported(), raw.packages()) {
        (Some(why), _) => DriverState::Unsupported { why },
        (None, None) => raw.driver(&desired.driver),
        (None, Some(packages)) => raw.packaged(packages, &desired.driver),
    };
    let missing = |list: &[PackageTemplate]| -> Vec<PackageTemplate> {
        let there = |p: &PackageTemplate| {
            let name = names.name(p);
            raw.have.contains(&name) || (raw.toolkit && name.starts_with("cuda-toolkit"))
        };
        list.iter().filter(|p| !there(p)).cloned().collect()
    };
    let cuda_missing = missing(desired.cuda.list());
    Check {
        packages: raw.packages().filter(|_| driver == DriverState::Matching),
        next_upgrade: None,
        driver,
        cuda_obstacle: names.obstacle(&cuda_missing, &raw.os),
        cuda_missing,
        utilities_missing: missing(&desired.utilities),
        cuda_interrupted: raw.cuda_interrupted && desired.cuda != CudaPackages::None,
        source_outdated: desired.cuda != CudaPackages::None && source_outdated(&raw, desired),
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

/// The version in the first line of the installer's state file, like
/// `1.0-5904801 (590.48.01)`.
pub fn state_version(line: &str) -> Option<Version> {
    let (_, rest) = line.split_once('(')?;
    rest.split_once(')')?.0.trim().parse().ok()
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
