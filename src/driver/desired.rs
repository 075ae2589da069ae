//! The NVIDIA software that the settings ask for in one container.

use crate::driver::template::{PackageTemplate, Template, packages};
use crate::exit::{Code, Fault};
use crate::sys::url::hex;
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The NVIDIA software that one container should have.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The driver version, with `host` resolved.
    pub driver: Version,
    /// The version of the kernel driver that is loaded on the host, if any.
    /// User space of another version cannot work.
    pub kernel: Option<Version>,
    /// Its user space is the host's, mounted into the container: nothing of it is
    /// installed.
    pub injected: bool,
    /// The URL of the runfile.
    pub runfile_url: Template,
    /// The checksum of the runfile, if set.
    pub sha256: Option<Sha256>,
    /// NVIDIA's apt repository.
    pub repo_url: Template,
    /// The URL of its key, if not in the repository's directory.
    pub repo_key_url: Option<Template>,
    /// The packages of the CUDA step.
    pub cuda: CudaPackages,
    /// Somebody named them: they are not the default, and missing ones are a
    /// fault by hand.
    pub cuda_named: bool,
    /// Optional packages: if one cannot be installed, that is a warning.
    pub utilities: Vec<PackageTemplate>,
    /// The limits of each step.
    pub limits: Limits,
    /// The number of GPUs that nvidia-smi should list, if known.
    pub gpus: Option<usize>,
}

impl Desired {
    /// Fails if the driver differs from the loaded kernel driver, before any
    /// download.
    ///
    /// # Errors
    /// [`Code::Software`], with both versions and the remedy.
    pub fn matches_kernel(&self) -> anyhow::Result<()> {
        match &self.kernel {
            Some(kernel) if *kernel != self.driver => Err(Fault::new(
                Code::Software,
                format!(
                    "NVIDIA_DRIVER_VERSION is {}, but the loaded kernel driver is {kernel}: user space and \
                     kernel driver must have the same version",
                    self.driver
                ),
            )
            .remedy(format!(
                "set NVIDIA_DRIVER_VERSION=host, or install driver {} on the host and reboot the host",
                self.driver
            ))
            .into()),
            _ => Ok(()),
        }
    }

    /// What is said of a driver that needs nothing.
    pub fn right(&self) -> String {
        let how = if self.injected { "the host's, mounted" } else { "installed and right" };
        format!("driver {}: {how}", self.driver)
    }

    /// Equal for two runs that would install the same: a failed one is not
    /// repeated in the same boot. A hash, since it is recorded and a URL may
    /// hold a password.
    pub fn fingerprint(&self) -> String {
        let list = |packages: &[PackageTemplate]| {
            packages.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let cuda = match &self.cuda {
            CudaPackages::None => "none".to_owned(),
            CudaPackages::List(packages) => list(packages),
        };
        let all = format!(
            "{}{} {} {} {} {}|{}|{}",
            if self.injected { "injected " } else { "" },
            self.driver,
            self.runfile_url.identity(),
            self.sha256.as_ref().map(ToString::to_string).unwrap_or_default(),
            self.repo_url.identity(),
            self.repo_key_url.as_ref().map(Template::identity).unwrap_or_default(),
            cuda,
            list(&self.utilities)
        );
        Sha256(<sha2::Sha256 as sha2::Digest>::digest(all.as_bytes()).into()).to_string()
    }
}

/// The limits of each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Probing the container.
    pub check: Duration,
    /// Downloading the runfile, all attempts together.
    pub download: Duration,
    /// Connecting to a server.
    pub connect: Duration,
    /// A download without any data.
    pub stall: Duration,
    /// Copying the runfile into the container.
    pub copy: Duration,
    /// Running the installer.
    pub install: Duration,
    /// All apt steps together.
    pub apt: Duration,
    /// Waiting for the network.
    pub network: Duration,
    /// nvidia-smi after an install.
    pub verify: Duration,
    /// The size of a runfile, in bytes.
    pub download_max: u64,
}

impl Limits {
    /// Connecting to a server.
    pub const CONNECT: Duration = Duration::from_secs(15);
    /// A download without any data.
    pub const STALL: Duration = Duration::from_secs(30);
    /// Copying the runfile; the limit of an install applies too.
    pub const COPY: Duration = Duration::from_secs(600);
    /// nvidia-smi; the limit of an install applies too.
    pub const VERIFY: Duration = Duration::from_secs(120);

    /// The same limit for each step, for tests: a container's are settings.
    pub fn all(limit: Duration) -> Limits {
        Limits {
            check: limit,
            download: limit,
            connect: limit,
            stall: limit,
            copy: limit,
            install: limit,
            apt: limit,
            network: limit,
            verify: limit,
            download_max: 1 << 30,
        }
    }
}

/// The CUDA step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaPackages {
    /// No packages, and no repository either.
    None,
    /// These packages.
    List(Vec<PackageTemplate>),
}

impl CudaPackages {
    /// The packages.
    pub fn list(&self) -> &[PackageTemplate] {
        match self {
            CudaPackages::None => &[],
            CudaPackages::List(list) => list,
        }
    }
}

impl FromStr for CudaPackages {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(CudaPackages::None);
        }
        let list = packages(text)?;
        if list.is_empty() {
            bail!("no package; `none` skips the CUDA step");
        }
        Ok(CudaPackages::List(list))
    }
}

/// A SHA-256 checksum.
#[derive(Clone, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The first word of a file that `sha256sum` wrote.
    pub fn published(file: &[u8]) -> Option<Sha256> {
        String::from_utf8_lossy(file).split_whitespace().next()?.parse().ok()
    }
}

impl FromStr for Sha256 {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        unhex(text).map(Sha256).context("a SHA-256 checksum is 64 hexadecimal digits")
    }
}

/// The bytes that hexadecimal digits stand for.
pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[n * 2..n * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
impl Desired {
    /// For tests: driver 580.95.05 and nothing else.
    pub(crate) fn sample() -> Desired {
        Desired {
            driver: "580.95.05".parse().unwrap(),
            kernel: Some("580.95.05".parse().unwrap()),
            injected: false,
            runfile_url: "/x".parse().unwrap(),
            sha256: None,
            repo_url: "/x".parse().unwrap(),
            repo_key_url: None,
            cuda: CudaPackages::None,
            cuda_named: false,
            utilities: Vec::new(),
            limits: Limits::all(Duration::from_secs(60)),
            gpus: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_hold_nothing_that_a_shell_or_apt_would_read_otherwise() {
        assert!("cuda-toolkit-{cuda}".parse::<PackageTemplate>().is_ok());
        for bad in ["", "-y", "a;b", "a*", "a b", "A", "{x}", "a=1", "$(id)"] {
            assert!(bad.parse::<PackageTemplate>().is_err(), "{bad:?}");
        }
        assert_eq!("None".parse::<CudaPackages>().unwrap(), CudaPackages::None);
        assert!("".parse::<CudaPackages>().is_err());
        assert!(matches!("a, b c".parse().unwrap(), CudaPackages::List(l) if l.len() == 3));
    }

    #[test]
    fn a_driver_that_differs_from_the_kernels_is_refused_with_both_versions() {
        let mut desired = Desired { driver: "580.76.05".parse().unwrap(), ..Desired::sample() };
        let error = desired.matches_kernel().unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Code::Software);
        let text = error.to_string();
        assert!(text.contains("580.76.05") && text.contains("580.95.05"), "{text}");
        desired.kernel = None;
        assert!(desired.matches_kernel().is_ok());
        // The state holds no password, and a changed one changes it.
        let mut before = desired.fingerprint();
        for url in ["https://me:geheim@h/x?token=geheim", "https://me:geheim2@h/x?token=geheim"] {
            desired.repo_url = url.parse().unwrap();
            let now = desired.fingerprint();
            assert!(now != before && now.bytes().all(|b| b.is_ascii_hexdigit()), "{now}");
            assert!(!format!("{desired:?}").contains("geheim"), "{desired:?}");
            before = now;
        }
    }

    #[test]
    fn a_checksum_is_64_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<Sha256>().unwrap().to_string(), text);
        assert!("00".parse::<Sha256>().is_err() && "zz".repeat(32).parse::<Sha256>().is_err());
    }
}
