//! URLs and package names with placeholders.

use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fmt;
use std::str::FromStr;

/// What placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `{version}`, `{branch}` and, by a table, `{cuda}`.
    pub version: &'a Version,
    /// `{arch}`: x86_64, or aarch64 in runfile names and sbsa in repositories.
    pub arch: &'a str,
    /// `{distro}`: the container's, like debian12; unknown outside one.
    pub distro: Option<&'a str>,
}

/// A URL (https, http, file) or absolute path with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// The URL or path with every placeholder filled in.
    ///
    /// # Errors
    /// When a placeholder has no value here.
    pub fn fill(&self, facts: &Facts<'_>) -> anyhow::Result<String> {
        fill(&self.0, facts)
    }
}

impl FromStr for Template {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some(bad) = text.chars().find(|c| c.is_control() || c.is_whitespace() || !c.is_ascii()) {
            bail!("a URL cannot contain {bad:?}");
        }
        let rest = ["https://", "http://", "file:///"].iter().find_map(|s| text.strip_prefix(s));
        match rest.or(text.strip_prefix('/')) {
            None => bail!("{text:?} is neither a URL (https://, http://, file:///) nor an absolute path"),
            Some("") => bail!("{text:?} names no host or file"),
            Some(_) => {}
        }
        placeholders(text)?;
        Ok(Template(text.to_owned()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name of a package, with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageTemplate(String);

impl PackageTemplate {
    /// The name with every placeholder filled in.
    ///
    /// # Errors
    /// When a placeholder has no value here.
    pub fn fill(&self, facts: &Facts<'_>) -> anyhow::Result<String> {
        fill(&self.0, facts)
    }
}

impl FromStr for PackageTemplate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let mut plain = text.to_owned();
        for name in placeholders(text)? {
            plain = plain.replace(&format!("{{{name}}}"), "x");
        }
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.');
        if plain.is_empty() || !plain.bytes().all(good) || !plain.as_bytes()[0].is_ascii_alphanumeric() {
            bail!("{text:?} is no package name");
        }
        Ok(PackageTemplate(text.to_owned()))
    }
}

impl fmt::Display for PackageTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Package names between commas or blanks; empty for none.
///
/// # Errors
/// When one of them is no package name.
pub fn packages(text: &str) -> anyhow::Result<Vec<PackageTemplate>> {
    text.split([',', ' ', '\t']).filter(|word| !word.is_empty()).map(str::parse).collect()
}

/// The placeholders there are.
const PLACEHOLDERS: [&str; 5] = ["version", "branch", "cuda", "arch", "distro"];

/// The placeholders in `text`; an unknown or unclosed one is an error.
fn placeholders(text: &str) -> anyhow::Result<Vec<&str>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['{', '}']) {
        let known = rest[start..].strip_prefix('{').and_then(|r| r.split_once('}'));
        match known {
            Some((name, after)) if PLACEHOLDERS.contains(&name) => {
                found.push(name);
                rest = after;
            }
            Some((name, _)) => {
                bail!("{{{name}}} is no placeholder; known are {{{}}}", PLACEHOLDERS.join("}, {"))
            }
            None => bail!("a brace without its partner in {text:?}"),
        }
    }
    Ok(found)
}

fn fill(text: &str, facts: &Facts<'_>) -> anyhow::Result<String> {
    let mut filled = text.to_owned();
    for name in placeholders(text)? {
        let value = match name {
            "version" => facts.version.to_string(),
            "branch" => facts.version.branch().to_string(),
            "arch" => facts.arch.to_owned(),
            "distro" => {
                facts.distro.with_context(|| format!("{{distro}} has no value here: {text}"))?.to_owned()
            }
            _ => newest_cuda(facts.version.branch())
                .with_context(|| {
                    format!("no CUDA version is known for driver branch {}: {text}", facts.version.branch())
                })?
                .to_owned(),
        };
        filled = filled.replace(&format!("{{{name}}}"), &value);
    }
    Ok(filled)
}

/// The newest CUDA that a driver branch runs, as package names have it.
pub fn newest_cuda(branch: u32) -> Option<&'static str> {
    Some(match branch {
        525..=529 => "12-0",
        530..=534 => "12-1",
        535..=544 => "12-2",
        545..=549 => "12-3",
        550..=554 => "12-4",
        555..=559 => "12-5",
        560..=564 => "12-6",
        565..=569 => "12-7",
        570..=574 => "12-8",
        575..=579 => "12-9",
        580..=589 => "13-0",
        590..=594 => "13-1",
        595..=609 => "13-2",
        610..=614 => "13-3",
        615.. => "13-4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(version: &'a Version, distro: Option<&'a str>) -> Facts<'a> {
        Facts { version, arch: "x86_64", distro }
    }

    #[test]
    fn every_placeholder_is_filled_in() {
        let version = "580.95.05".parse().unwrap();
        let template: Template = "https://h/{distro}/{arch}/{branch}/{cuda}/{version}.run".parse().unwrap();
        let filled = template.fill(&facts(&version, Some("debian12"))).unwrap();
        assert_eq!(filled, "https://h/debian12/x86_64/580/13-0/580.95.05.run");
        let error = template.fill(&facts(&version, None)).unwrap_err();
        assert!(error.to_string().contains("{distro} has no value"), "{error}");
    }

    #[test]
    fn a_bad_url_is_refused_at_the_door() {
        for good in ["https://h/x", "http://127.0.0.1/{version}", "file:///srv/x.run", "/srv/x.run"] {
            assert!(good.parse::<Template>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "ftp://h/x",
            "h/x",
            "https://",
            "file://x",
            "https://h/{v}",
            "https://h/{",
            "https://h/a b",
            "/x\n",
        ] {
            assert!(bad.parse::<Template>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_table_of_cuda_versions_is_the_guides() {
        let pairs =
            [(525, "12-0"), (535, "12-2"), (570, "12-8"), (580, "13-0"), (590, "13-1"), (595, "13-2")];
        for (branch, cuda) in pairs {
            assert_eq!(newest_cuda(branch), Some(cuda));
        }
        assert_eq!(newest_cuda(470), None);
    }
}
