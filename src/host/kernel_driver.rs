//! The kernel driver: the loaded one, and the one the next boot loads.

use super::modules::Modules;
use crate::sys::look::{Look, Op, Question, View};
use crate::sys::process::{self, Cmd};
use crate::sys::time::Deadline;
use crate::types::Version;
use anyhow::Context as _;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// NVIDIA's two kinds of kernel module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// The open GPU kernel module.
    Open,
    /// The proprietary one.
    Proprietary,
}

impl ModuleKind {
    /// By the license that the module names.
    fn of_license(license: &str) -> Option<ModuleKind> {
        match license {
            "NVIDIA" => Some(ModuleKind::Proprietary),
            license if license.contains("GPL") => Some(ModuleKind::Open),
            _ => None,
        }
    }
}

impl fmt::Display for ModuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModuleKind::Open => "open",
            ModuleKind::Proprietary => "proprietary",
        })
    }
}

/// The kernel driver that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelDriver {
    /// Its full version.
    pub version: Version,
    /// Open or proprietary; `None` if only `/sys/module/nvidia/version` is readable.
    pub kind: Option<ModuleKind>,
}

/// Parses `/proc/driver/nvidia/version`. The field of the version differs
/// between the two kinds, so this searches for it.
pub fn parse_version(text: &str) -> Option<KernelDriver> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let kind = if line.contains("Open Kernel Module") { ModuleKind::Open } else { ModuleKind::Proprietary };
    Some(KernelDriver { version: Version::find(line)?, kind: Some(kind) })
}

/// The loaded driver.
pub fn loaded(look: &mut Look) -> Option<KernelDriver> {
    if let Some(text) = look.text(VERSION) {
        let driver = parse_version(&text);
        if driver.is_some() {
            return driver;
        }
    }
    let version = look.text(MODULE_VERSION)?.trim().parse().ok()?;
    Some(KernelDriver { version, kind: None })
}

/// The version of the loaded driver. Asks the driver itself, through another
/// process, only if the kernel does not have it.
pub fn version<'a>(host: impl Into<View<'a>>) -> Option<Version> {
    let host = host.into();
    let mut look = Look::new(host.root());
    let version = look.text(MODULE_VERSION).and_then(|text| text.trim().parse().ok());
    if version.is_some() || !look.exists("/proc/driver/nvidia") {
        return version;
    }
    let questions = vec![Question::new(Op::Read, VERSION), Question::new(Op::Read, MODULE_VERSION)];
    loaded(&mut Look::at_files(host, questions)).map(|driver| driver.version)
}

/// From the driver.
const VERSION: &str = "/proc/driver/nvidia/version";
/// From the kernel.
const MODULE_VERSION: &str = "/sys/module/nvidia/version";

/// The module installed for the running kernel, loaded or not: the driver after
/// the next boot. `None` if modinfo knows none.
///
/// # Errors
/// modinfo did not run.
pub fn installed<'a>(
    host: impl Into<View<'a>>,
    modules: &Modules,
    deadline: &Deadline,
) -> anyhow::Result<Option<KernelDriver>> {
    let modinfo = ModInfo::of(host, deadline)?;
    for name in modules.names() {
        // What is not known by its file's name says itself what it is.
        let other = |field: String| field.starts_with("nvidia") && field != "nvidia";
        if name != "nvidia" && modinfo.field("name", name)?.is_some_and(other) {
            continue;
        }
        if let Some(version) = modinfo.field("version", name)?.and_then(|text| Version::find(&text)) {
            let kind = modinfo.field("license", name)?.and_then(|license| ModuleKind::of_license(&license));
            return Ok(Some(KernelDriver { version, kind }));
        }
    }
    Ok(None)
}

/// The version of a module's file.
///
/// # Errors
/// modinfo did not run.
pub fn version_of_file<'a>(
    host: impl Into<View<'a>>,
    file: &str,
    deadline: &Deadline,
) -> anyhow::Result<Option<Version>> {
    Ok(ModInfo::of(host, deadline)?.field("version", file)?.and_then(|text| Version::find(&text)))
}

/// kmod's program that reads a module's file.
struct ModInfo {
    program: PathBuf,
    deadline: Deadline,
}

impl ModInfo {
    fn of<'a>(host: impl Into<View<'a>>, deadline: &Deadline) -> anyhow::Result<ModInfo> {
        let root = host.into().root();
        let places = ["usr/sbin/modinfo", "sbin/modinfo"].map(|path| root.join(path));
        let program =
            places.into_iter().find(|path| process::installed(path)).context("modinfo is not installed")?;
        Ok(ModInfo { program, deadline: deadline.at_most(LIMIT) })
    }

    /// A field of the module; `None` if there is no such module or field.
    fn field(&self, field: &str, module: &str) -> anyhow::Result<Option<String>> {
        let output = Cmd::new(&self.program).args(["-F", field, module]).run(&self.deadline)?;
        let text = output.text().trim().to_owned();
        Ok(Some(text).filter(|text| output.success() && !text.is_empty()))
    }
}

/// The timeout of modinfo, which reads one file.
const LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_version_line_are_read() {
        let table = [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.48.01  Mon Dec  8 13:05:00 UTC 2025\nGCC version:  gcc 14.2.0\n",
                ("590.48.01", ModuleKind::Proprietary),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (user@host)  Tue\nGCC version:  12.2.0\n",
                ("580.95.05", ModuleKind::Open),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (a@b)\n",
                ("580.95.05", ModuleKind::Open),
            ),
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2\n",
                ("470.256.02", ModuleKind::Proprietary),
            ),
        ];
        for (text, (version, kind)) in table {
            let driver = parse_version(text).unwrap();
            assert_eq!((driver.version.as_str(), driver.kind), (version, Some(kind)), "{text}");
        }
        for text in ["", "GCC version: 12.2.0\n", "NVRM version: none\n"] {
            assert_eq!(parse_version(text), None, "{text:?}");
        }
    }
}
