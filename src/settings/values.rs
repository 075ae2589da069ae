//! The types of settings, and how each is read from text. Words are read in
//! any case.

use crate::driver::template::{PackageTemplate, packages};
use crate::types::{self, Version};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What a reader gives: the value, or why the text is none.
pub type Read<T> = Result<T, String>;

/// `NVIDIA_DRIVER_VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverVersion {
    /// The version of the kernel driver that is loaded.
    Host,
    /// This one.
    Exact(Version),
}

impl FromStr for DriverVersion {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.eq_ignore_ascii_case("host") {
            return Ok(DriverVersion::Host);
        }
        text.parse()
            .map(DriverVersion::Exact)
            .map_err(|e: anyhow::Error| e.context("must be host or a version"))
    }
}

/// `START_POLICY`: what pre-start does when it cannot give the container what
/// its settings ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartPolicy {
    /// Warn, and start it with what is there.
    Continue,
    /// Stop the start.
    Fail,
}

impl StartPolicy {
    /// Whether a fault stops the start.
    pub fn fails(self) -> bool {
        self == StartPolicy::Fail
    }
}

/// `DRIVER_MODE`: how a container gets the driver's user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverMode {
    /// By NVIDIA's installer, in the container.
    Install,
    /// The host's own, mounted.
    Inject,
    /// The second where the first cannot work.
    Auto,
}

impl DriverMode {
    /// As the setting has it.
    pub fn word(self) -> &'static str {
        match self {
            DriverMode::Install => "install",
            DriverMode::Inject => "inject",
            DriverMode::Auto => "auto",
        }
    }
}

/// `NESTED`: whether engines in the container get its GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nested {
    /// They are left alone.
    None,
    /// By a CDI description of ours, unless there is another one.
    Cdi,
    /// The same, and another one is put aside.
    Replace,
}

impl Nested {
    /// As the setting has it.
    pub fn word(self) -> &'static str {
        match self {
            Nested::None => "none",
            Nested::Cdi => "cdi",
            Nested::Replace => "replace",
        }
    }
}

/// `AFTER_INSTALL`: what follows an install that changed the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterInstall {
    /// One reboot of the container.
    Reboot,
    /// Nothing.
    None,
}

/// A type with a reader of its own.
pub fn parsed<T: FromStr<Err = anyhow::Error>>(text: &str) -> Read<T> {
    text.parse().map_err(|e| format!("{e:#}"))
}

/// One that may be left out: `none`.
pub fn optional<T: FromStr<Err = anyhow::Error>>(text: &str) -> Read<Option<T>> {
    if is_none(text) { Ok(None) } else { parsed(text).map(Some) }
}

/// Yes or no, in the usual forms.
pub fn switch(text: &str) -> Read<bool> {
    let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    match () {
        () if is(&["yes", "on", "true", "1"]) => Ok(true),
        () if is(&["no", "off", "false", "0"]) => Ok(false),
        () => Err("must be yes or no (or on, off, true, false)".to_owned()),
    }
}

/// One of some words, each with what it stands for.
fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Read<T> {
    let found = words.iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("must be {}", all.join(" or "))
    })
}

/// `continue` or `fail`.
pub fn start_policy(text: &str) -> Read<StartPolicy> {
    word(text, &[("continue", StartPolicy::Continue), ("fail", StartPolicy::Fail)])
}

/// `install`, `inject` or `auto`.
pub fn driver_mode(text: &str) -> Read<DriverMode> {
    word(text, &[DriverMode::Install, DriverMode::Inject, DriverMode::Auto].map(|mode| (mode.word(), mode)))
}

/// `none`, `cdi` or `replace`.
pub fn nested(text: &str) -> Read<Nested> {
    word(text, &[Nested::None, Nested::Cdi, Nested::Replace].map(|nested| (nested.word(), nested)))
}

/// `reboot` or `none`.
pub fn after_install(text: &str) -> Read<AfterInstall> {
    word(text, &[("reboot", AfterInstall::Reboot), ("none", AfterInstall::None)])
}

/// Whole seconds.
pub fn seconds(text: &str) -> Read<Duration> {
    types::seconds(text).map_err(|e| format!("{e:#}"))
}

/// A small number, at least one.
pub fn count(text: &str) -> Read<u32> {
    let number = text.parse().ok().filter(|n| (1..=1000).contains(n));
    number.ok_or_else(|| "must be a whole number from 1 to 1000".to_owned())
}

/// Mebibytes, as bytes.
pub fn mebibytes(text: &str) -> Read<u64> {
    let number = text.parse::<u64>().ok().filter(|n| (1..=1 << 20).contains(n));
    number.map(|n| n << 20).ok_or_else(|| "must be a number of MiB from 1 to 1048576".to_owned())
}

/// Names of packages; empty for `none`.
pub fn list(text: &str) -> Read<Vec<PackageTemplate>> {
    if is_none(text) {
        return Ok(Vec::new());
    }
    let list = packages(text).map_err(|e| format!("{e:#}"))?;
    if list.is_empty() { Err("must name a package, or be none".to_owned()) } else { Ok(list) }
}

/// The absolute path of a program, or `none`.
pub fn script(text: &str) -> Read<Option<PathBuf>> {
    match text {
        _ if is_none(text) => Ok(None),
        _ if text.starts_with('/') => Ok(Some(text.into())),
        _ => Err("must be an absolute path, or none".to_owned()),
    }
}

fn is_none(text: &str) -> bool {
    text.eq_ignore_ascii_case("none")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::desired::{CudaPackages, Sha256};

    #[test]
    fn words_are_read_in_any_case_and_in_every_form() {
        for word in ["yes", "Yes", "ON", "true", "1"] {
            assert_eq!(switch(word), Ok(true), "{word}");
        }
        for word in ["no", "Off", "FALSE", "0"] {
            assert_eq!(switch(word), Ok(false), "{word}");
        }
        assert!(switch("maybe").is_err() && switch("").is_err());
        assert_eq!(start_policy("Fail"), Ok(StartPolicy::Fail));
        assert_eq!(after_install("NONE"), Ok(AfterInstall::None));
        assert_eq!(start_policy("maybe"), Err("must be continue or fail".to_owned()));
        assert_eq!(parsed::<DriverVersion>("HOST"), Ok(DriverVersion::Host));
        assert_eq!(
            "580.95.05".parse::<DriverVersion>().unwrap(),
            DriverVersion::Exact("580.95.05".parse().unwrap())
        );
        assert!("latest".parse::<DriverVersion>().is_err());
    }

    #[test]
    fn none_leaves_out_whatever_can_be_left_out() {
        for none in ["none", "None", "NONE"] {
            assert_eq!(parsed(none), Ok(CudaPackages::None));
            assert_eq!(list(none), Ok(Vec::new()));
            assert_eq!(script(none), Ok(None));
            assert_eq!(optional::<Sha256>(none), Ok(None));
        }
        assert!(parsed::<CudaPackages>(",").is_err() && list(" , ").is_err());
        assert!(matches!(parsed::<CudaPackages>("a, b c"), Ok(CudaPackages::List(l)) if l.len() == 3));
    }

    #[test]
    fn numbers_and_paths_have_their_bounds() {
        assert_eq!(count("2"), Ok(2));
        for bad in ["0", "-1", "1001", "two", "4294967296"] {
            assert!(count(bad).is_err(), "{bad}");
        }
        assert_eq!(mebibytes("1024"), Ok(1 << 30));
        for bad in ["0", "-1", "1048577", "18446744073709551615", "1G", ""] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
        assert_eq!(script("/a"), Ok(Some("/a".into())));
        assert!(script("mine.sh").is_err() && script("./mine.sh").is_err());
        assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
    }
}
