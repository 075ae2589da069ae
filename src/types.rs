//! Values that have passed the door: each is made by `FromStr` alone, and
//! what exists is right.

use anyhow::{Context as _, bail};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A container's number.
///
/// The requirements ask for a positive integer; Proxmox allows up to nine
/// digits. Whether such a container exists is another question (exit 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ctid(u32);

impl Ctid {
    /// The bare number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Ctid {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.is_empty() || text.len() > 9 || !text.bytes().all(|b| b.is_ascii_digit()) {
            bail!("a CTID is a positive integer of at most nine digits, like 101");
        }
        if text.starts_with('0') {
            bail!("a CTID is a positive integer without leading zeros, like 101");
        }
        Ok(Ctid(text.parse()?))
    }
}

impl Serialize for Ctid {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(self.0)
    }
}

impl<'de> Deserialize<'de> for Ctid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Ctid, D::Error> {
        u32::deserialize(from)?.to_string().parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Ctid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The second word that Proxmox gives a hookscript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before `lxc-start`; the generated config of this start exists.
    PreStart,
    /// The container runs; the task still holds the lock on its conf.
    PostStart,
    /// Before a stop by Proxmox.
    PreStop,
    /// After it has stopped, from inside `lxc-start`.
    PostStop,
    /// What a newer Proxmox may call; kept for the warning.
    Unknown(String),
}

impl FromStr for Phase {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "pre-start" => Phase::PreStart,
            "post-start" => Phase::PostStart,
            "pre-stop" => Phase::PreStop,
            "post-stop" => Phase::PostStop,
            other => Phase::Unknown(other.to_owned()),
        })
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::PreStart => "pre-start",
            Phase::PostStart => "post-start",
            Phase::PreStop => "pre-stop",
            Phase::PostStop => "post-stop",
            Phase::Unknown(word) => word,
        })
    }
}

/// A driver version: two to four dotted numbers, kept to the last digit
/// (`580.76.05` is not `580.76.5`), since kernel and user space must agree
/// to the letter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

impl Version {
    /// The text, as NVIDIA writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The branch: the number before the first dot, 580 of `580.76.05`.
    pub fn branch(&self) -> u32 {
        self.numbers().next().unwrap_or_default()
    }

    /// The dotted numbers, for comparisons by age.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.split('.').map(|part| part.parse().unwrap_or_default())
    }

    /// Whether it is `(major, minor, …)` or newer, by number.
    pub fn at_least(&self, other: &[u32]) -> bool {
        self.numbers().cmp(other.iter().copied()) != std::cmp::Ordering::Less
    }

    /// The first thing in `text` that is a version, be it anywhere in the line.
    pub fn find(text: &str) -> Option<Version> {
        text.split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | ',' | ':' | '"'))
            .find_map(|word| word.parse().ok())
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = text.split('.').collect();
        let numeric = |p: &&str| !p.is_empty() && p.len() <= 4 && p.bytes().all(|b| b.is_ascii_digit());
        if !(2..=4).contains(&parts.len()) || !parts.iter().all(numeric) || parts[0].len() < 3 {
            bail!("a driver version looks like 580.95.05");
        }
        Ok(Version(text.to_owned()))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Text for one line of a file or a log: no newline, no control character.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line(String);

impl Line {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some(bad) = text.chars().find(|c| c.is_control()) {
            bail!("contains the control character {}", bad.escape_default());
        }
        Ok(Line(text.to_owned()))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Parses a whole number of seconds, with a sensible ceiling of a week, so
/// that no addition of times overflows later.
pub fn seconds(text: &str) -> anyhow::Result<std::time::Duration> {
    let number: u64 = text.parse().context("not a whole number of seconds")?;
    if number > 7 * 86_400 {
        bail!("more than a week (604800 seconds)");
    }
    Ok(std::time::Duration::from_secs(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ctid_is_a_positive_integer() {
        assert_eq!("101".parse::<Ctid>().unwrap().get(), 101);
        for bad in ["", "0", "-1", "+1", "abc", "1e3", "007", "1234567890", "１０１", "1 ", "../1"] {
            assert!(bad.parse::<Ctid>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_phase_is_kept_for_the_warning() {
        assert_eq!("post-start".parse::<Phase>().unwrap(), Phase::PostStart);
        assert_eq!("pre-migrate".parse::<Phase>().unwrap(), Phase::Unknown("pre-migrate".into()));
        assert_eq!("post-stop".parse::<Phase>().unwrap().to_string(), "post-stop");
    }

    #[test]
    fn a_version_keeps_its_last_digit() {
        let v: Version = "580.76.05".parse().unwrap();
        assert_eq!((v.as_str(), v.branch()), ("580.76.05", 580));
        assert_ne!(v, "580.76.5".parse().unwrap());
        assert!(v.at_least(&[580]) && v.at_least(&[515, 43, 4]) && !v.at_least(&[580, 95]));
        for bad in ["", "580", "580.", "host", "58.1", "580.1.2.3.4", "580.x", "580.95.05\n"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_version_is_found_in_both_kernel_module_lines() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  590.48.01  Mon Dec  8";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release";
        assert_eq!(Version::find(closed).unwrap().as_str(), "590.48.01");
        assert_eq!(Version::find(open).unwrap().as_str(), "580.95.05");
        assert_eq!(Version::find("no version here 5.10"), None);
    }

    #[test]
    fn a_line_has_no_newline() {
        assert!("a b=c".parse::<Line>().is_ok());
        assert!("a\nb".parse::<Line>().is_err() && "a\u{1b}[0m".parse::<Line>().is_err());
    }

    #[test]
    fn seconds_have_a_ceiling() {
        assert_eq!(seconds("60").unwrap().as_secs(), 60);
        assert!(seconds("-1").is_err() && seconds("99999999999").is_err() && seconds("1m").is_err());
    }
}
