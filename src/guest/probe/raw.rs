//! The lines that the probe prints, and the state of the driver that they show.

use crate::driver::packages::PackageName;
use crate::guest::driver_state::DriverState;
use crate::guest::exec::fields;
use crate::guest::os::{Libc, Os};
use crate::guest::packaged::{Manager, Packages};
use crate::guest::smi;
use crate::types::Version;

/// The most driver packages that are read.
const MOST_PACKAGES: usize = 40;

/// The probe's lines.
#[derive(Debug, Default)]
pub(super) struct Raw {
    pub(super) os: Os,
    pub(super) libs: Vec<String>,
    pub(super) ml: Option<Version>,
    pub(super) cuda: Option<Version>,
    pub(super) smi: bool,
    pub(super) state: Option<Version>,
    /// The version of the host's driver that we mounted.
    pub(super) host_driver: Option<Version>,
    /// Directories at the host driver's places with files of the container's own.
    pub(super) occupied: Vec<String>,
    pub(super) links: bool,
    pub(super) lost: bool,
    pub(super) driver_interrupted: Option<String>,
    pub(super) cuda_interrupted: bool,
    pub(super) owners: Vec<(Manager, Option<PackageName>)>,
    /// Driver files that are mount points.
    pub(super) mounted: Vec<String>,
    /// Mount points through which an uninstaller would reach files of the host.
    pub(super) covers: Vec<String>,
    pub(super) toolkit: bool,
    pub(super) have: Vec<String>,
    pub(super) source: Option<String>,
    /// The SHA-256 of apt's auth file; `unknown` if it could not be computed.
    pub(super) auth: Option<String>,
    /// Another source file with the repository of ours.
    pub(super) twice: Option<String>,
    /// With both, apt cannot read its sources.
    pub(super) unreadable: bool,
    pub(super) says: String,
    pub(super) complete: bool,
}

impl Raw {
    pub(super) fn parse(bytes: &[u8]) -> Raw {
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
            "musl" => self.os.libc = Libc::Musl,
            "nixos" => self.os.nixos = true,
            "modprobe" => self.os.modprobe = true,
            "systemd" => self.os.systemd = true,
            "lib" => self.libs.push(value),
            "link" if two.0 == "libnvidia-ml" => self.ml = two.1.parse().ok(),
            "link" => self.cuda = two.1.parse().ok(),
            "smi" => self.smi = true,
            "host-driver" => self.host_driver = value.parse().ok(),
            "occupied" if self.occupied.len() < MOST_PACKAGES => self.occupied.push(value),
            "links" => self.links = true,
            "lost" => self.lost = true,
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
            "mounted" if self.mounted.len() < MOST_PACKAGES => self.mounted.push(value),
            "covers" if self.covers.len() < MOST_PACKAGES => self.covers.push(value),
            "toolkit" => self.toolkit = true,
            "have" => self.have.push(value),
            "source" => self.source = Some(value),
            "twice" if value.starts_with("/etc/apt/") && !value.contains("..") => self.twice = Some(value),
            "unreadable" => self.unreadable = true,
            "auth" => self.auth = Some(value),
            "says" => self.says.extend([&value, "\n"]),
            "end" => self.complete = true,
            _ => {}
        }
    }

    /// The versions of the driver's libraries, by their names.
    pub(super) fn versions(&self) -> Vec<Version> {
        let mut versions: Vec<Version> = Vec::new();
        for version in self.libs.iter().filter_map(|path| path.rsplit_once(".so.")?.1.parse().ok()) {
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        versions
    }

    /// The driver's state, without the package manager's files.
    pub(super) fn driver(&self, desired: &Version) -> DriverState {
        match (self.incomplete(), &self.ml) {
            (Some(why), ml) => DriverState::Incomplete { version: ml.clone().or(self.cuda.clone()), why },
            (None, None) => DriverState::Missing,
            (None, Some(ml)) if ml == desired => DriverState::Matching,
            (None, Some(ml)) => DriverState::Other { version: ml.clone() },
        }
    }

    /// The packages that own driver files.
    pub(super) fn packages(&self) -> Option<Packages> {
        let (manager, _) = self.owners.first()?;
        let theirs = self.owners.iter().filter(|(m, _)| m == manager);
        Some(Packages { names: theirs.filter_map(|(_, name)| name.clone()).collect(), manager: *manager })
    }

    /// The state of a driver that packages hold: right is right, whoever
    /// installed it, unless a runfile did too.
    pub(super) fn packaged(&self, packages: Packages, desired: &Version) -> DriverState {
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

/// The version in the first line of the installer's state file, like
/// `1.0-5904801 (590.48.01)`.
pub fn state_version(line: &str) -> Option<Version> {
    let (_, rest) = line.split_once('(')?;
    rest.split_once(')')?.0.trim().parse().ok()
}
