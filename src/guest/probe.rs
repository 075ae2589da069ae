//! What is in the container: one command, made of shell built-ins, at every
//! start.

use super::exec::{Guest, fields};
use super::os::{Os, repo_arch, state_version};
use super::package::PackageName;
use super::smi;
use crate::driver::desired::CudaPackages;
use crate::driver::desired::Desired;
use crate::driver::repo;
use crate::driver::template::Facts;
use crate::driver::template::PackageTemplate;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::time::{Deadline, human};
use crate::sys::url::hex;
use crate::types::{Ctid, Version};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::time::Duration;

const PROBE: &str = include_str!("scripts/probe.sh");

/// The driver's user space, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverState {
    /// It is the wanted version, whole.
    Matching,
    /// There is none.
    Missing,
    /// It is whole, and of another version.
    Other {
        /// What it is.
        version: Version,
    },
    /// An installation that was cut off, or of which parts are missing.
    Incomplete {
        /// The version that it was or was to become, where one is named.
        version: Option<Version>,
        /// What is wrong with it.
        why: String,
    },
    /// The distribution's package manager owns driver files. A runfile on top
    /// of them breaks both.
    Packaged {
        /// The packages that own them, as far as their names are some.
        packages: Vec<PackageName>,
        /// Who manages them.
        manager: Manager,
    },
    /// No driver can work in this container.
    Unsupported {
        /// Why not.
        why: String,
    },
}

/// A package manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// Debian's.
    Dpkg,
    /// Fedora's.
    Rpm,
    /// Arch's.
    Pacman,
}

/// A command of more packages than this is not shown.
const MOST_PACKAGES: usize = 40;

impl DriverState {
    /// The command that removes the packages which own the driver, complete, to
    /// be pasted on the host; `None` where there is nothing to name.
    pub fn remove(&self, ctid: Ctid) -> Option<String> {
        let DriverState::Packaged { packages, manager } = self else { return None };
        let names: Vec<&str> = packages.iter().map(PackageName::as_str).collect();
        let verb = match manager {
            Manager::Dpkg => "apt-get purge",
            Manager::Rpm => "dnf remove",
            Manager::Pacman => "pacman -R",
        };
        (!names.is_empty()).then(|| format!("pct exec {ctid} -- {verb} {}", names.join(" ")))
    }

    /// The packages that own the driver, for messages.
    pub fn owners(&self) -> String {
        match self {
            DriverState::Packaged { packages, .. } if !packages.is_empty() => {
                packages.iter().map(PackageName::as_str).collect::<Vec<_>>().join(", ")
            }
            _ => "names that are none".to_owned(),
        }
    }

    /// The version that programs in the container load now, if any.
    pub fn version<'a>(&'a self, wanted: &'a Version) -> Option<&'a Version> {
        match self {
            DriverState::Matching => Some(wanted),
            DriverState::Other { version } => Some(version),
            DriverState::Incomplete { version, .. } => version.as_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for DriverState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DriverState::Matching => f.write_str("right"),
            DriverState::Missing => f.write_str("not installed"),
            DriverState::Other { version } => write!(f, "version {version}"),
            DriverState::Incomplete { why, .. } => write!(f, "half installed ({why})"),
            DriverState::Packaged { .. } => write!(f, "owned by packages: {}", self.owners()),
            DriverState::Unsupported { why } => f.write_str(why),
        }
    }
}

/// The result of a look into the container.
#[derive(Clone, Debug)]
pub struct Check {
    /// The driver.
    pub found: DriverState,
    /// What is asked for by CUDA_PACKAGES and not there.
    pub cuda_missing: Vec<PackageTemplate>,
    /// What is asked for by UTILITY_PACKAGES and not there.
    pub utilities_missing: Vec<PackageTemplate>,
    /// An earlier software step was cut off.
    pub software_cut: bool,
    /// Our source in the container names another repository: the settings or
    /// the container's release have changed.
    pub source_outdated: bool,
    /// The container's operating system.
    pub os: Os,
    /// How long the look took.
    pub took: Duration,
}

impl Check {
    /// Whether there is nothing that an install would have to do. Utilities
    /// are best effort: a missing one alone is no reason to start.
    pub fn right(&self) -> bool {
        self.driver_right() && !self.software_pending()
    }

    /// Whether the driver is the wanted one.
    pub fn driver_right(&self) -> bool {
        self.found == DriverState::Matching
    }

    /// Whether the CUDA step has something to do.
    pub fn software_pending(&self) -> bool {
        !self.cuda_missing.is_empty() || self.software_cut || self.source_outdated
    }
}

/// Looks into the container, once, with one child process.
///
/// # Errors
/// When it could not look, which says nothing about what is there.
pub fn check(guest: &Guest, desired: &Desired, deadline: &Deadline) -> anyhow::Result<Check> {
    let (raw, names, took) =
        look(guest, desired, desired.check_runs_smi, &deadline.at_most(desired.limits.check))?;
    let mut check = judge(raw, desired, &names);
    check.took = took;
    log::debug!("check: driver {}, {}, {}", check.found, check.os.shown(), human(check.took));
    Ok(check)
}

/// What the probe's answer means; `None` where it is not whole.
///
/// # Errors
/// When a package's name cannot be filled in.
pub fn understand(answer: &[u8], desired: &Desired) -> anyhow::Result<Option<Check>> {
    let raw = Raw::parse(answer);
    let names = names(desired)?;
    Ok(raw.complete.then(|| judge(raw, desired, &names)))
}

/// What the driver is after an installer's run, nvidia-smi's own word
/// included and without regard to the mark that the run was begun.
///
/// # Errors
/// When it could not look.
pub(super) fn confirm(guest: &Guest, desired: &Desired) -> anyhow::Result<DriverState> {
    let (mut raw, _, _) = look(guest, desired, true, &Deadline::after(desired.limits.verify))?;
    raw.cut_driver = None;
    Ok(raw.driver(&desired.driver))
}

/// The packages looked for, each with its name in this look.
type Names = Vec<(PackageTemplate, String)>;

fn look(
    guest: &Guest,
    desired: &Desired,
    smi: bool,
    deadline: &Deadline,
) -> anyhow::Result<(Raw, Names, Duration)> {
    let ask = if smi { "smi" } else { "files" };
    let names = names(desired)?;
    let args = std::iter::once(ask).chain(names.iter().map(|(_, name)| name.as_str()));
    let could_not = || Fault::new(Code::Software, format!("could not look into container {}", guest.ctid()));
    let output = guest.attach_sh(PROBE, args).keep(128 * 1024).run(deadline).fault(could_not)?;
    let raw = Raw::parse(&output.stdout);
    if !raw.complete {
        return Err(no_answer(guest.ctid(), &output));
    }
    Ok((raw, names, output.took))
}

/// The probe did not get to its last line.
fn no_answer(ctid: Ctid, output: &crate::sys::process::Output) -> anyhow::Error {
    let last = output.last_lines(3).join(" | ");
    // 126 and 127 come from lxc-attach when it cannot execute the command.
    let no_shell = matches!(output.code(), Some(126 | 127));
    if no_shell {
        let message = format!(
            "container {ctid} has no /bin/sh that can be run ({last}): no driver can be installed in it"
        );
        return Fault::new(Code::Software, message)
            .remedy("use a container with a distribution in it, like Debian or Ubuntu")
            .into();
    }
    Fault::new(
        Code::Software,
        format!("could not look into container {ctid}: the check ended early with {}: {last}", output.ended),
    )
    .into()
}

fn names(desired: &Desired) -> anyhow::Result<Names> {
    packages(desired).map(|p| Ok((p.clone(), pattern(p, desired)?))).collect()
}

fn packages(desired: &Desired) -> impl Iterator<Item = &PackageTemplate> {
    let cuda = match &desired.cuda {
        CudaPackages::None => &[][..],
        CudaPackages::List(list) => list,
    };
    cuda.iter().chain(&desired.utilities)
}

/// The package's name, `*` for the distribution that is not known yet.
fn pattern(package: &PackageTemplate, desired: &Desired) -> anyhow::Result<String> {
    package.fill(&Facts { version: &desired.driver, arch: repo_arch(), distro: Some("*") }).fault(|| {
        Fault::new(Code::Software, "CUDA_PACKAGES cannot be filled in")
            .remedy("name the packages, like CUDA_PACKAGES=cuda-toolkit-12-8, or CUDA_PACKAGES=none")
    })
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
    cut_driver: Option<String>,
    cut_software: bool,
    owners: Vec<(Manager, Option<PackageName>)>,
    toolkit: bool,
    have: Vec<String>,
    source: Option<String>,
    /// The SHA-256 of apt's auth file, if it is there and could be taken.
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
            "cut" if two.0 == "driver" => self.cut_driver = Some(two.1.to_owned()),
            "cut" => self.cut_software = true,
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

    /// The driver's state, without what the package manager says.
    fn driver(&self, wanted: &Version) -> DriverState {
        let half = |version: &Option<Version>, why: String| DriverState::Incomplete {
            version: version.clone(),
            why,
        };
        if let Some(version) = &self.cut_driver {
            return half(&self.ml, format!("the installation of {version} was cut off"));
        }
        let Some(ml) = &self.ml else {
            return if self.libs.is_empty() && !self.smi {
                DriverState::Missing
            } else {
                half(&self.cuda, "libnvidia-ml.so.1 is missing".into())
            };
        };
        if self.cuda.as_ref().is_some_and(|cuda| cuda != ml) {
            let cuda = self.cuda.as_ref().map_or("none", Version::as_str);
            return half(&self.ml, format!("libnvidia-ml is {ml}, libcuda is {cuda}"));
        }
        if self.cuda.is_none() {
            return half(&self.ml, "libcuda.so.1 is missing".into());
        }
        if !self.smi {
            return half(&self.ml, "nvidia-smi is missing".into());
        }
        if let Some(state) = self.state.as_ref().filter(|state| *state != ml) {
            return half(&self.ml, format!("the libraries are {ml}, the installer's state is {state}"));
        }
        if let Some(tool) = smi::version(&self.says).tool.filter(|tool| tool != ml) {
            return half(&self.ml, format!("the libraries are {ml}, nvidia-smi is {tool}"));
        }
        if ml == wanted { DriverState::Matching } else { DriverState::Other { version: ml.clone() } }
    }
}

/// What the lines mean, measured against the desired.
fn judge(raw: Raw, desired: &Desired, names: &[(PackageTemplate, String)]) -> Check {
    let found = if let Some(why) = raw.os.unsupported() {
        DriverState::Unsupported { why }
    } else if let Some((manager, _)) = raw.owners.first() {
        let theirs = raw.owners.iter().filter(|(m, _)| m == manager);
        DriverState::Packaged {
            packages: theirs.filter_map(|(_, name)| name.clone()).collect(),
            manager: *manager,
        }
    } else {
        raw.driver(&desired.driver)
    };
    let missing = |list: &[PackageTemplate]| -> Vec<PackageTemplate> {
        let there = |p: &PackageTemplate| {
            let name = names.iter().find(|(template, _)| template == p).map_or("", |(_, name)| name);
            raw.have.iter().any(|have| have == name) || (raw.toolkit && name.starts_with("cuda-toolkit"))
        };
        list.iter().filter(|p| !there(p)).cloned().collect()
    };
    let cuda_missing = match &desired.cuda {
        CudaPackages::None => Vec::new(),
        CudaPackages::List(list) => missing(list),
    };
    Check {
        found,
        cuda_missing,
        utilities_missing: missing(&desired.utilities),
        software_cut: raw.cut_software && desired.cuda != CudaPackages::None,
        source_outdated: desired.cuda != CudaPackages::None && source_outdated(&raw, desired),
        os: raw.os,
        took: Duration::ZERO,
    }
}

/// Whether our source is there and not the one that would be written now, or
/// what apt's auth file says is not what the settings say.
fn source_outdated(raw: &Raw, desired: &Desired) -> bool {
    let distro = raw.os.distro();
    let facts = Facts { version: &desired.driver, arch: repo_arch(), distro: distro.as_deref() };
    let wanted = desired.repo_url.fill(&facts).ok().and_then(|url| repo::for_apt(&url).ok());
    let (Some(there), Some((uri, auth))) = (&raw.source, wanted) else { return false };
    if there.trim_end_matches('/') != uri.request().trim_end_matches('/') {
        return true;
    }
    match (auth, &raw.auth) {
        (None, found) => found.is_some(),
        // Without sha256sum inside nobody can tell.
        (Some(_), Some(found)) if found == "unknown" => false,
        (Some(auth), found) => found.as_deref() != Some(hex(&Sha256::digest(auth.as_bytes())).as_str()),
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
