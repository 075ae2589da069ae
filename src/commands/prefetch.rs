//! `prefetch`: fetches the runfiles that the next starts need, and makes the trees of
//! the loaded and the next boot's driver, so that those starts need no network.

use super::prepare;
use crate::driver::cache::Cache;
use crate::driver::desired::{Limits, Sha256};
use crate::driver::obtain::{RunfileRequest, obtain};
use crate::driver::supply::Supply;
use crate::driver::template::Template;
use crate::driver::tree::Trees;
use crate::exit::{self, Code, Fault};
use crate::host::kernel_driver;
use crate::host::modules::Modules;
use crate::job::desired::limits;
use crate::job::injection;
use crate::settings::values::DriverVersion;
use crate::settings::{Problem, Settings, keys};
use crate::sys::look::{Look, View};
use crate::sys::text::size;
use crate::sys::time::Deadline;
use crate::types::Version;
use std::time::Duration;

/// The limit of unpacking a runfile.
const UNPACKING: Duration = Duration::from_secs(300);
/// The limit of reading the settings and confs of this node.
const CONFS: Duration = Duration::from_secs(30);

/// Fetches and checks the runfiles of these versions; without any, of the
/// versions that this host's containers have or will have after its next boot.
///
/// # Errors
/// [`Code::Software`] when one failed, after the others; [`Code::Input`] for
/// settings that cannot be read.
pub fn run(versions: &[Version]) -> anyhow::Result<Code> {
    let deadline = Deadline::after(CONFS);
    // /etc/pve may not answer.
    let read = prepare::read_confs(View::host_until(&deadline));
    let settings = read.files.of_node();
    // What is missing matters only where it is used.
    if let Some(problem) = settings.all_problems().into_iter().find(|problem| !problem.is_missing()) {
        return Err(input(problem));
    }
    let limits = limits(&settings);
    let url = settings.get(keys::NVIDIA_RUNFILE_URL).map_err(input)?;
    let sha256 = settings.get(keys::NVIDIA_RUNFILE_SHA256).map_err(input)?;
    let injection = versions.is_empty() && has_injection(&settings, &read);
    let drivers = Drivers::of_this_host(versions.is_empty() && (injection || is_hosts(&settings)));
    let versions = if versions.is_empty() { drivers.versions(&settings)? } else { versions.to_vec() };
    // A checksum in the settings is that of one file.
    let sha256 = sha256.as_ref().filter(|_| versions.len() == 1);
    let cache = Cache::system();
    let (mut failed, mut missed) = (None, Vec::new());
    for version in &versions {
        match obtain(&cache, &RunfileRequest { version, url: &url, sha256, limits: &limits }) {
            Ok(runfile) => {
                let how = if runfile.fresh { "fetched" } else { "already in the cache" };
                log::info!("driver {version}: {how} ({}, {})", runfile.path.display(), size(runfile.size));
            }
            Err(error) => {
                note(&mut failed, error);
                missed.push(version);
            }
        }
    }
    for version in drivers.all().iter().filter(|_| injection) {
        // What failed a moment ago is not tried again; the host's own files will do.
        let again = !missed.contains(&version);
        let sha256 = sha256.filter(|_| versions.contains(version)).cloned();
        let deadline = Deadline::after(UNPACKING + limits.download);
        let from = again.then(|| Box::new((url.clone(), limits)));
        let trees = Trees::host().with(supply(sha256, from));
        match trees.make_ahead(version, &deadline) {
            Ok(()) => log::info!("driver {version}: ready for the containers that have the host's"),
            // Why there is no runfile is told already.
            Err(error) if !again && trees.possible(version).is_err() => {
                log::debug!("{}", exit::one_line(&error));
            }
            Err(error) => note(&mut failed, error),
        }
    }
    if failed.is_none() {
        cache.prune(&versions.iter().collect::<Vec<_>>());
    }
    failed.map_or(Ok(Code::Success), Err)
}

/// How the tree gets its runfile: from the cache, or from there.
fn supply(sha256: Option<Sha256>, from: Option<Box<(Template, Limits)>>) -> Supply {
    let default = Supply::default();
    Supply { sha256: Ok(sha256), download: from.map_or(default.download, Ok), next: default.next }
}

/// Keeps the last failure, and tells the ones before it.
fn note(failed: &mut Option<anyhow::Error>, error: anyhow::Error) {
    if let Some(first) = failed.replace(error) {
        exit::tell(log::Level::Error, &first);
    }
}

/// Whether the version that is set is the host's.
fn is_hosts(settings: &Settings) -> bool {
    matches!(settings.get(keys::NVIDIA_DRIVER_VERSION), Ok(DriverVersion::Host))
}

/// Whether containers of this node have the host's driver, or a new one would.
fn has_injection(of_node: &Settings, read: &prepare::Read) -> bool {
    if injection::is_default(of_node) {
        return true;
    }
    read.problems.iter().for_each(|problem| log::warn!("{problem}"));
    injection::is_asked_for(&read.confs, &read.files)
}

/// The drivers of this host.
#[derive(Default)]
struct Drivers {
    /// The loaded one.
    loaded: Option<Version>,
    /// That of the next boot, where it is known.
    next: Option<Version>,
}

impl Drivers {
    /// Reads them, where they are `needed`.
    fn of_this_host(needed: bool) -> Drivers {
        if !needed {
            return Drivers::default();
        }
        let loaded = kernel_driver::version(View::host());
        Drivers { next: of_next_boot(loaded.is_some()), loaded }
    }

    /// Both.
    fn all(&self) -> Vec<Version> {
        both(self.loaded.clone(), self.next.clone())
    }

    /// The version that is set; for `host` the loaded one, and the one that is
    /// installed and not loaded yet.
    fn versions(&self, settings: &Settings) -> anyhow::Result<Vec<Version>> {
        match settings.get(keys::NVIDIA_DRIVER_VERSION).map_err(input)? {
            DriverVersion::Exact(version) => Ok(vec![version]),
            DriverVersion::Host => {
                let versions = self.all();
                if versions.is_empty() {
                    let what = "NVIDIA_DRIVER_VERSION=host, but this host has no driver";
                    return Err(Fault::new(Code::Software, what)
                        .remedy("phoenix-nvidia prefetch VERSION")
                        .into());
                }
                Ok(versions)
            }
        }
    }
}

/// The version of the driver that the next boot loads, where that is known.
fn of_next_boot(loaded: bool) -> Option<Version> {
    let modules = Modules::read(&mut Look::host());
    match kernel_driver::installed(View::host(), &modules, &Deadline::secs(15)) {
        Ok(None) if loaded => {
            log::warn!("cannot read which driver the next boot loads: {}", modules.missing());
            None
        }
        Ok(driver) => driver.map(|driver| driver.version),
        Err(error) => {
            log::warn!("cannot read which driver the next boot loads: {}", exit::one_line(&error));
            None
        }
    }
}

fn both(loaded: Option<Version>, installed: Option<Version>) -> Vec<Version> {
    let mut versions: Vec<Version> = loaded.into_iter().collect();
    versions.extend(installed.filter(|v| !versions.contains(v)));
    versions
}

fn input(problem: Problem) -> anyhow::Error {
    let remedy = problem.remedy(None);
    Fault::new(Code::Input, problem.message).remedy(remedy).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_waits_for_a_boot_is_fetched_too() {
        let v = |text: &str| Some(text.parse::<Version>().unwrap());
        let shown = |a, b| both(a, b).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(shown(v("580.76.05"), v("580.95.05")), "580.76.05 580.95.05");
        assert_eq!(shown(v("580.76.05"), v("580.76.05")), "580.76.05");
        assert_eq!(shown(None, v("580.95.05")), "580.95.05");
        assert_eq!(shown(None, None), "");
    }
}
