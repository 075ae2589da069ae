//! The state of the driver's user space in a container.

use super::packaged::Packages;
use crate::sys::text::few;
use crate::types::Version;
use std::fmt;

/// So many mount points are named in a message: the container chooses how many there are.
const NAMED: usize = 3;

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
    /// Installed by packages, and not complete and of the desired version. A
    /// runfile on top would break both.
    Packaged {
        /// The packages.
        packages: Packages,
        /// The version of its libraries, if known.
        version: Option<Version>,
        /// The command with which apt brings the desired version, if it can.
        upgrade: Option<String>,
        /// A runfile's files are among theirs.
        mixed: bool,
    },
    /// Driver files of the host are mounted over the container's, and do not make
    /// the desired driver. No installer can replace them.
    HostFiles {
        /// The mount points.
        points: Vec<String>,
        /// The lines of the conf that mount them, as `lines 12, 13`.
        lines: Option<String>,
    },
    /// No driver can work in this container.
    Unsupported {
        /// Why not.
        why: String,
    },
}

impl DriverState {
    /// Where the driver is the host's: its state, and that of one that is
    /// installed all the same, which this one is. `bare`: there is none.
    pub fn mounted(self, mounted: bool, bare: bool) -> (DriverState, Option<DriverState>) {
        let driver = if mounted { DriverState::Matching } else { DriverState::Missing };
        // What keeps an installer out is no hindrance; glibc is looked for with the links.
        let installed = !bare && !matches!(self, DriverState::Unsupported { .. });
        (driver, installed.then_some(self))
    }

    /// The version that programs in the container load now, if any.
    pub fn version<'a>(&'a self, desired: &'a Version) -> Option<&'a Version> {
        match self {
            DriverState::Matching => Some(desired),
            DriverState::Other { version } => Some(version),
            DriverState::Incomplete { version, .. } | DriverState::Packaged { version, .. } => {
                version.as_ref()
            }
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
            DriverState::Packaged { packages, .. } => {
                write!(f, "installed by packages: {}", packages.shown())
            }
            DriverState::HostFiles { lines: Some(lines), .. } => {
                write!(f, "driver files of the host, mounted by {lines} of its conf")
            }
            DriverState::HostFiles { points, lines: None } => {
                write!(f, "driver files of the host, mounted at {}", few(points.clone(), NAMED).join(", "))
            }
            DriverState::Unsupported { why } => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_mount_points_few_are_named() {
        let points = (0..40).map(|n| format!("/usr/lib/x{n}")).collect();
        let said = DriverState::HostFiles { points, lines: None }.to_string();
        assert!(said.ends_with("mounted at /usr/lib/x0, /usr/lib/x1, /usr/lib/x2, and 37 more"), "{said}");
    }
}
