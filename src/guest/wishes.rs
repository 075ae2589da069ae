//! What the settings ask for inside the container, as plain values that have
//! passed the door.

use crate::exit::{Code, Fault};
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What one container's NVIDIA software should be.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The driver version, `host` already resolved.
    pub driver: Version,
    /// The kernel driver that is loaded on the host, if one is. User space of
    /// another version cannot work, so it is refused before any download.
    pub kernel: Option<Version>,
    /// Where the runfile comes from.
    pub runfile_url: Template,
    /// The runfile's checksum, if the settings name one.
    pub sha256: Option<Sha256>,
    /// NVIDIA's apt repository.
    pub repo_url: Template,
    /// Its key, if not the one beside it.
    pub repo_key_url: Option<Template>,
    /// What the CUDA step installs.
    pub cuda: CudaPackages,
    /// Packages that are nice to have; a failure is a warning.
    pub utilities: Vec<PackageTemplate>,
    /// How long each step may take.
    pub limits: Limits,
    /// How many GPUs nvidia-smi should list; `None` when that is not known.
    pub gpus: Option<usize>,
    /// Whether the check asks nvidia-smi too. Its start of NVML can take
    /// seconds per GPU without persistence mode; the library's version and the
    /// installer's state file say the same in milliseconds.
    pub check_runs_smi: bool,
}

impl Wishes {
    /// Fails when the wanted user space cannot work with the loaded kernel
    /// driver.
    ///
    /// # Errors
    /// [`Code::Software`], with both versions and the remedy.
    pub fn fit_the_kernel(&self) -> anyhow::Result<()> {
        match &self.kernel {
            Some(kernel) if *kernel != self.driver => Err(Fault::new(
                Code::Software,
                format!(
                    "NVIDIA_DRIVER_VERSION is {}, but the host's kernel driver is {kernel}: user space and \
                     kernel driver must be the same version to the last digit",
                    self.driver
                ),
            )
            .remedy(format!(
                "set NVIDIA_DRIVER_VERSION=host (or {kernel}), or install driver {} on the host and reboot it",
                self.driver
            ))
            .into()),
            _ => Ok(()),
        }
    }

    /// Two runs with equal fingerprints would try the same things: a failed
    /// one need not be repeated in the same boot.
    pub fn fingerprint(&self) -> String {
        let list = |packages: &[PackageTemplate]| {
            packages.iter().map(|p| p.0.as_str()).collect::<Vec<_>>().join(" ")
        };
        let cuda = match &self.cuda {
            CudaPackages::None => "none".to_owned(),
            CudaPackages::List(packages) => list(packages),
        };
        format!(
            "{} {} {} {} {}|{}|{}",
            self.driver,
            self.runfile_url.0,
            self.sha256.as_ref().map(ToString::to_string).unwrap_or_default(),
            self.repo_url.0,
            self.repo_key_url.as_ref().map(|t| t.0.as_str()).unwrap_or_default(),
            cuda,
            list(&self.utilities)
        )
    }
}

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The look at what is there.
    pub check: Duration,
    /// Fetching the runfile, all attempts together.
    pub download: Duration,
    /// Reaching a server.
    pub connect: Duration,
    /// A download that brings nothing.
    pub stall: Duration,
    /// Streaming the runfile into the container.
    pub copy: Duration,
    /// The installer's run.
    pub install: Duration,
    /// The apt steps, together.
    pub apt: Duration,
    /// Waiting for a network that is not there yet.
    pub network: Duration,
    /// nvidia-smi after an install.
    pub verify: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Limits {
            check: seconds(15),
            download: seconds(1800),
            connect: seconds(15),
            stall: seconds(30),
            copy: seconds(600),
            install: seconds(1800),
            apt: seconds(1800),
            network: seconds(60),
            verify: seconds(120),
        }
    }
}

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

/// The CUDA step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaPackages {
    /// No packages, and no repository either.
    None,
    /// These packages.
    List(Vec<PackageTemplate>),
}

impl FromStr for CudaPackages {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "none" {
            return Ok(CudaPackages::None);
        }
        let list = packages(text)?;
        if list.is_empty() {
            bail!("names no package; `none` leaves the CUDA step out");
        }
        Ok(CudaPackages::List(list))
    }
}

/// A SHA-256 checksum.
#[derive(Clone, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl FromStr for Sha256 {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("a SHA-256 checksum is 64 hexadecimal digits");
        }
        let mut sum = [0u8; 32];
        for (n, byte) in sum.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[n * 2..n * 2 + 2], 16).context("not hexadecimal")?;
        }
        Ok(Sha256(sum))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
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
    fn package_names_hold_nothing_that_a_shell_or_apt_would_read_otherwise() {
        assert!("cuda-toolkit-{cuda}".parse::<PackageTemplate>().is_ok());
        for bad in ["", "-y", "a;b", "a*", "a b", "A", "{x}", "a=1", "$(id)"] {
            assert!(bad.parse::<PackageTemplate>().is_err(), "{bad:?}");
        }
        assert_eq!("none".parse::<CudaPackages>().unwrap(), CudaPackages::None);
        assert!("".parse::<CudaPackages>().is_err());
        assert!(matches!("a, b c".parse().unwrap(), CudaPackages::List(l) if l.len() == 3));
    }

    #[test]
    fn a_driver_that_differs_from_the_kernels_is_refused_with_both_versions() {
        let mut wishes = Wishes {
            driver: "580.76.05".parse().unwrap(),
            kernel: Some("580.95.05".parse().unwrap()),
            runfile_url: "/x".parse().unwrap(),
            sha256: None,
            repo_url: "/x".parse().unwrap(),
            repo_key_url: None,
            cuda: CudaPackages::None,
            utilities: Vec::new(),
            limits: Limits::default(),
            gpus: None,
            check_runs_smi: false,
        };
        let error = wishes.fit_the_kernel().unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Code::Software);
        let text = error.to_string();
        assert!(text.contains("580.76.05") && text.contains("580.95.05"), "{text}");
        wishes.kernel = None;
        assert!(wishes.fit_the_kernel().is_ok());
    }

    #[test]
    fn a_checksum_is_64_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<Sha256>().unwrap().to_string(), text);
        assert!("00".parse::<Sha256>().is_err() && "zz".repeat(32).parse::<Sha256>().is_err());
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
