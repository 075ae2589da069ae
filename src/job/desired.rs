//! Settings as the desired for a container's software.

use crate::driver::desired::{CudaPackages, Desired, Limits};
use crate::driver::supply::Supply;
use crate::exit::{Code, Fault};
use crate::host::kernel_driver;
use crate::host::modules::Modules;
use crate::settings::values::{DriverMode, DriverVersion};
use crate::settings::{Origin, Problem, Settings, keys};
use crate::sys::look::{Look, View};
use crate::sys::time::Deadline;
use crate::types::Version;
use std::time::Duration;

/// The limit of asking which driver the next boot loads.
const MODINFO: Duration = Duration::from_secs(5);

/// What is wanted, or why nothing is.
#[derive(Debug)]
pub enum Software {
    /// This.
    Desired(Box<Desired>),
    /// `INSTALL=off`.
    Off,
    /// `host`, and no kernel driver is loaded: the container keeps what it has.
    NoDriver,
}

impl Software {
    /// What is desired.
    ///
    /// # Errors
    /// Why nothing is, for messages.
    pub fn desired(&self) -> Result<&Desired, &'static str> {
        match self {
            Software::Desired(desired) => Ok(desired),
            Software::Off => Err("driver check skipped: INSTALL=off"),
            Software::NoDriver => Err("driver check skipped: no NVIDIA kernel driver loaded"),
        }
    }
}

/// Reads which software the settings ask for, and from where, so that every
/// problem of it is told at once. Lists of packages and limits that cannot be
/// read stop no driver: no packages, and the default of the limit. By hand
/// [`Settings::all_problems`] comes first and refuses those too.
///
/// # Errors
/// What is missing or cannot be read of `INSTALL`, the driver's version, and
/// where things come from.
pub fn read(
    settings: &Settings,
    kernel: Option<Version>,
    gpus: Option<usize>,
) -> Result<Software, Vec<Problem>> {
    let mut problems = Vec::new();
    let on = note(&mut problems, settings.get(keys::INSTALL));
    if on == Some(false) {
        return Ok(Software::Off);
    }
    let driver = note(&mut problems, settings.get(keys::NVIDIA_DRIVER_VERSION));
    let mode = note(&mut problems, settings.get(keys::DRIVER_MODE));
    let runfile_url = note(&mut problems, settings.get(keys::NVIDIA_RUNFILE_URL));
    let repo_url = note(&mut problems, settings.get(keys::NVIDIA_REPO_URL));
    let sha256 = note(&mut problems, settings.get(keys::NVIDIA_RUNFILE_SHA256));
    let repo_key_url = note(&mut problems, settings.get(keys::NVIDIA_REPO_KEY_URL));
    let (
        Some(_),
        Some(driver),
        Some(mode),
        Some(runfile_url),
        Some(repo_url),
        Some(sha256),
        Some(repo_key_url),
    ) = (on, driver, mode, runfile_url, repo_url, sha256, repo_key_url)
    else {
        return Err(problems);
    };
    let driver = match (driver, &kernel) {
        (DriverVersion::Exact(version), _) => version,
        (DriverVersion::Host, Some(kernel)) => kernel.clone(),
        (DriverVersion::Host, None) => return Ok(Software::NoDriver),
    };
    Ok(Software::Desired(Box::new(Desired {
        driver,
        kernel,
        injected: mode == DriverMode::Inject,
        runfile_url,
        sha256,
        repo_url,
        repo_key_url,
        cuda: settings.get(keys::CUDA_PACKAGES).unwrap_or(CudaPackages::None),
        cuda_named: settings.text(keys::CUDA_PACKAGES).is_some_and(|(_, origin)| origin != Origin::Default),
        utilities: settings.get(keys::UTILITY_PACKAGES).unwrap_or_default(),
        limits: limits(settings),
        gpus,
    })))
}

/// Keeps the value, or the problem.
fn note<T>(problems: &mut Vec<Problem>, value: Result<T, Problem>) -> Option<T> {
    value.map_err(|problem| problems.push(problem)).ok()
}

/// The limits, of which some are settings.
pub fn limits(settings: &Settings) -> Limits {
    let install = settings.value(keys::INSTALL_TIMEOUT);
    Limits {
        check: settings.value(keys::CHECK_TIMEOUT),
        download: settings.value(keys::DOWNLOAD_TIMEOUT),
        connect: Limits::CONNECT,
        stall: Limits::STALL,
        install,
        apt: install,
        network: settings.value(keys::NETWORK_TIMEOUT),
        copy: install.min(Limits::COPY),
        verify: install.min(Limits::VERIFY),
        download_max: settings.value(keys::DOWNLOAD_MAX),
    }
}

/// How the runfile of a driver tree may be had. A start waits for no download;
/// `within` is how long one may take.
pub fn supply(settings: &Settings, within: Option<Duration>) -> Supply {
    // A checksum that cannot be read is none that a file could have.
    let sha256 = settings.get(keys::NVIDIA_RUNFILE_SHA256).map_err(|problem| problem.remedy(None));
    let Some(within) = within else { return Supply { sha256, ..Supply::default() } };
    let mut limits = limits(settings);
    limits.download = limits.download.min(within);
    let url = settings.get(keys::NVIDIA_RUNFILE_URL).map_err(|problem| problem.remedy(None));
    Supply { sha256, download: url.map(|url| Box::new((url, limits))), next }
}

/// The driver that the next boot loads.
fn next() -> Option<Version> {
    let (host, modules) = (View::host_until(&Deadline::after(MODINFO)), Modules::read(&mut Look::host()));
    let driver = kernel_driver::installed(host, &modules, &Deadline::after(MODINFO));
    driver.ok().flatten().map(|driver| driver.version)
}

/// The problems as a fault of the container's software, for post-start.
pub fn fault(problems: &[Problem]) -> anyhow::Error {
    let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let fault = Fault::new(Code::Software, format!("driver check skipped: {}", all.join("; ")));
    match problems.first() {
        Some(first) => fault.remedy(first.remedy(None)).into(),
        None => fault.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Call, Places};

    #[test]
    fn every_missing_setting_is_told_at_once() {
        let problems = read(&Settings::default(), None, None).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["NVIDIA_DRIVER_VERSION", "NVIDIA_RUNFILE_URL", "NVIDIA_REPO_URL"]);
    }

    /// What a hook reads of the node's file.
    fn of_node(lines: &str) -> Result<Software, Vec<Problem>> {
        let text =
            format!("NVIDIA_DRIVER_VERSION=580.95.05\nNVIDIA_RUNFILE_URL=/x\nNVIDIA_REPO_URL=/y\n{lines}\n");
        let (cluster, node) = (Ok(Vec::new()), Ok(text.into_bytes()));
        let places = Places { conf: Vec::new(), cluster, node, environment: Vec::new() };
        read(&Settings::of(Call::Hook, places, None), None, None)
    }

    #[test]
    fn a_bad_limit_or_list_costs_no_container_its_driver() {
        let bad = of_node("CHECK_TIMEOUT=soon\nCUDA_PACKAGES=a;b\nUTILITY_PACKAGES=*\nINSTALL_TIMEOUT=-1");
        let Ok(Software::Desired(desired)) = bad else { panic!("{bad:?}") };
        assert_eq!((desired.limits.check.as_secs(), desired.limits.install.as_secs()), (15, 1800));
        // Nothing is installed that nobody asked for.
        assert_eq!((desired.cuda, desired.utilities.len()), (CudaPackages::None, 0));
    }

    #[test]
    fn packages_are_named_where_a_place_gives_them() {
        for (lines, named) in
            [("", false), ("CUDA_PACKAGES=", false), ("CUDA_PACKAGES=cuda-toolkit-{cuda}", true)]
        {
            let Ok(Software::Desired(desired)) = of_node(lines) else { panic!("{lines}") };
            assert_eq!(desired.cuda_named, named, "{lines}");
        }
    }

    #[test]
    fn what_decides_what_is_installed_and_from_where_is_not_guessed() {
        for bad in
            ["INSTALL=of", "NVIDIA_DRIVER_VERSION=new", "NVIDIA_RUNFILE_SHA256=00", "NVIDIA_REPO_KEY_URL=x"]
        {
            let problems = of_node(bad).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].message.starts_with(bad), "{problems:?}");
        }
        assert!(matches!(of_node("INSTALL=Off\nNVIDIA_DRIVER_VERSION=new"), Ok(Software::Off)));
    }
}
