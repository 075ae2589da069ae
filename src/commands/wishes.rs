//! Settings as the wishes for a container's software.

use crate::exit::{Code, Fault};
use crate::guest::wishes::{CudaPackages, Limits, PackageTemplate, Sha256, Template, Wishes};
use crate::settings::{Problem, Settings, keys};
use crate::types::Version;
use std::str::FromStr;

/// `NVIDIA_DRIVER_VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The version of the kernel driver that is loaded.
    Host,
    /// This one.
    Exact(Version),
}

impl FromStr for Driver {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "host" => Ok(Driver::Host),
            other => other.parse().map(Driver::Exact).map_err(|e| e.context("neither 'host' nor a version")),
        }
    }
}

/// What is wanted, or why nothing is.
#[derive(Debug)]
pub enum Wanted {
    /// This.
    Software(Box<Wishes>),
    /// `INSTALL=off`.
    Off,
    /// `host`, and no kernel driver is loaded: the container keeps what it has.
    NoDriver,
}

/// Reads them all, so that every problem is told at once.
///
/// # Errors
/// Every setting that is missing or cannot be read.
pub fn read(
    settings: &Settings,
    kernel: Option<Version>,
    gpus: Option<usize>,
) -> Result<Wanted, Vec<Problem>> {
    let mut problems = Vec::new();
    let on = note(&mut problems, settings.choice(keys::INSTALL, "on", "off"));
    let driver = note(&mut problems, settings.get::<Driver>(keys::NVIDIA_DRIVER_VERSION));
    let runfile_url = note(&mut problems, settings.get::<Template>(keys::NVIDIA_RUNFILE_URL));
    let repo_url = note(&mut problems, settings.get::<Template>(keys::NVIDIA_REPO_URL));
    let sha256 = note(&mut problems, settings.optional::<Sha256>(keys::NVIDIA_RUNFILE_SHA256));
    let repo_key_url = note(&mut problems, settings.optional::<Template>(keys::NVIDIA_REPO_KEY_URL));
    let cuda = note(&mut problems, settings.get::<CudaPackages>(keys::CUDA_PACKAGES));
    let utilities = note(&mut problems, settings.parse(keys::UTILITY_PACKAGES, packages));
    let limits = limits(settings, &mut problems);
    let (Some(on), Some(driver), Some(runfile_url), Some(repo_url)) = (on, driver, runfile_url, repo_url)
    else {
        return Err(problems);
    };
    let (Some(sha256), Some(repo_key_url), Some(cuda), Some(utilities)) =
        (sha256, repo_key_url, cuda, utilities)
    else {
        return Err(problems);
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    if !on {
        return Ok(Wanted::Off);
    }
    let driver = match (driver, &kernel) {
        (Driver::Exact(version), _) => version,
        (Driver::Host, Some(kernel)) => kernel.clone(),
        (Driver::Host, None) => return Ok(Wanted::NoDriver),
    };
    Ok(Wanted::Software(Box::new(Wishes {
        driver,
        kernel,
        runfile_url,
        sha256,
        repo_url,
        repo_key_url,
        cuda,
        utilities,
        limits,
        gpus,
        // Measured on an H200 with persistence mode on: 32 ms to 65 ms for
        // `nvidia-smi --version`, 0.01 ms for the library's link, which says
        // the same. Without persistence mode it is said to take longer (not measured).
        check_runs_smi: false,
    })))
}

/// The fingerprint of the software that the settings ask for; `None` where
/// they ask for none or cannot be read.
pub fn asked(settings: &Settings, kernel: Option<Version>) -> Option<String> {
    match read(settings, kernel, None) {
        Ok(Wanted::Software(wishes)) => Some(wishes.fingerprint()),
        _ => None,
    }
}

/// Keeps the value, or the problem.
fn note<T>(problems: &mut Vec<Problem>, value: Result<T, Problem>) -> Option<T> {
    value.map_err(|problem| problems.push(problem)).ok()
}

fn packages(text: &str) -> Result<Vec<PackageTemplate>, String> {
    if text.trim().eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    crate::guest::wishes::packages(text).map_err(|e| format!("{e:#}"))
}

/// The time limits among the settings.
pub(super) fn limits(settings: &Settings, problems: &mut Vec<Problem>) -> Limits {
    let mut seconds = |key| note(problems, settings.seconds(key)).unwrap_or_default();
    let install = seconds(keys::INSTALL_TIMEOUT);
    let default = Limits::default();
    Limits {
        check: seconds(keys::CHECK_TIMEOUT),
        download: seconds(keys::DOWNLOAD_TIMEOUT),
        install,
        apt: install,
        network: seconds(keys::NETWORK_TIMEOUT),
        copy: install.min(default.copy),
        verify: install.min(default.verify),
        download_max: note(problems, settings.parse(keys::DOWNLOAD_MAX, mebibytes))
            .unwrap_or(default.download_max),
        ..default
    }
}

/// Mebibytes as bytes.
fn mebibytes(text: &str) -> Result<u64, String> {
    let number = text.parse::<u64>().ok().filter(|n| (1..=1 << 20).contains(n));
    number.map(|n| n << 20).ok_or_else(|| "must be a number of MiB from 1 to 1048576".to_owned())
}

/// The problems as a fault of the container's software, for post-start.
pub fn fault(problems: &[Problem]) -> anyhow::Error {
    let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Fault::new(Code::Software, format!("the driver is not looked after: {}", all.join("; ")))
        .remedy("set it in the container's conf or in /etc/default/phoenix-nvidia; see phoenix-nvidia.env(5)")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_host_or_a_version() {
        assert_eq!("host".parse::<Driver>().unwrap(), Driver::Host);
        assert_eq!("580.95.05".parse::<Driver>().unwrap(), Driver::Exact("580.95.05".parse().unwrap()));
        assert!("latest".parse::<Driver>().is_err());
    }

    #[test]
    fn mebibytes_cannot_overflow() {
        assert_eq!(mebibytes("1024"), Ok(1 << 30));
        for bad in ["0", "-1", "1048577", "18446744073709551615", "1G", ""] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_missing_setting_is_told_at_once() {
        let problems = read(&Settings::default(), None, None).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["NVIDIA_DRIVER_VERSION", "NVIDIA_RUNFILE_URL", "NVIDIA_REPO_URL"]);
    }
}
