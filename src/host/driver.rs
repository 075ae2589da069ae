//! The kernel driver: what is loaded, and what is installed but not loaded.

use crate::types::Version;
use std::fmt;

/// Which of NVIDIA's two kernel modules it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The open GPU kernel module.
    Open,
    /// The proprietary one.
    Proprietary,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Open => "open",
            Kind::Proprietary => "proprietary",
        })
    }
}

/// The kernel driver that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Its version, to the last digit.
    pub version: Version,
    /// Open or proprietary; not known when only `/sys/module/nvidia/version` could be read.
    pub kind: Option<Kind>,
}

/// Reads `/proc/driver/nvidia/version`. The two modules put the version into
/// different fields, so it is looked for.
pub fn parse_version(text: &str) -> Option<Driver> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let kind = if line.contains("Open Kernel Module") { Kind::Open } else { Kind::Proprietary };
    Some(Driver { version: Version::find(line)?, kind: Some(kind) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_version_line_are_read() {
        let table = [
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.48.01  Mon Dec  8 13:05:00 UTC 2025\nGCC version:  gcc 14.2.0\n",
                ("590.48.01", Kind::Proprietary),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (user@host)  Tue\nGCC version:  12.2.0\n",
                ("580.95.05", Kind::Open),
            ),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build  (a@b)\n",
                ("580.95.05", Kind::Open),
            ),
            (
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2\n",
                ("470.256.02", Kind::Proprietary),
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
