//! The state of the driver's user space in a container.

use crate::driver::packages::PackageName;
use crate::types::{Ctid, Version};
use std::fmt;

/// The state of the driver's user space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverState {
    /// Complete, and of the desired version.
    Matching,
    /// Not installed.
    Missing,
    /// Complete, and of another version.
    Other {
        /// Its version.
        version: Version,
    },
    /// An install was interrupted, or parts are missing.
    Incomplete {
        /// The version of its libraries, if known.
        version: Option<Version>,
        /// What is wrong.
        why: String,
    },
    /// Installed by packages of the distribution. A runfile on top would break
    /// both.
    Packaged {
        /// The packages, those with a valid name.
        packages: Vec<PackageName>,
        /// Their package manager.
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

impl DriverState {
    /// The command that removes the driver's packages, to be pasted on the host;
    /// `None` without any.
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

    /// The driver's packages, for messages.
    pub fn owners(&self) -> String {
        match self {
            DriverState::Packaged { packages, .. } if !packages.is_empty() => {
                packages.iter().map(PackageName::as_str).collect::<Vec<_>>().join(", ")
            }
            _ => "(invalid names)".to_owned(),
        }
    }

    /// The version that programs in the container load now, if any.
    pub fn version<'a>(&'a self, desired: &'a Version) -> Option<&'a Version> {
        match self {
            DriverState::Matching => Some(desired),
            DriverState::Other { version } => Some(version),
            DriverState::Incomplete { version, .. } => version.as_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for DriverState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DriverState::Matching => f.write_str("up to date"),
            DriverState::Missing => f.write_str("not installed"),
            DriverState::Other { version } => write!(f, "version {version}"),
            DriverState::Incomplete { why, .. } => write!(f, "incomplete: {why}"),
            DriverState::Packaged { .. } => write!(f, "installed by packages: {}", self.owners()),
            DriverState::Unsupported { why } => f.write_str(why),
        }
    }
}
