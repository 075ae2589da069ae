//! What the settings ask for inside the container, as plain values that have
//! passed the door.

use crate::driver::template::{PackageTemplate, Template, packages};
use crate::exit::{Code, Fault};
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What one container's NVIDIA software should be.
#[derive(Clone, Debug)]
pub struct Desired {
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

impl Desired {
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
    /// one need not be repeated in the same boot. A hash, since URLs may hold a
    /// password and this is recorded.
    pub fn fingerprint(&self) -> String {
        let list = |packages: &[PackageTemplate]| {
            packages.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let cuda = match &self.cuda {
            CudaPackages::None => "none".to_owned(),
            CudaPackages::List(packages) => list(packages),
        };
        let all = format!(
            "{} {} {} {} {}|{}|{}",
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

/// How long each step may take, and how much.
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
    /// How large a runfile may be, in bytes.
    pub download_max: u64,
}

impl Limits {
    /// Reaching a server.
    pub const CONNECT: Duration = Duration::from_secs(15);
    /// A download that brings nothing.
    pub const STALL: Duration = Duration::from_secs(30);
    /// Streaming the runfile, at most; the limit of an install counts too.
    pub const COPY: Duration = Duration::from_secs(600);
    /// nvidia-smi, likewise.
    pub const VERIFY: Duration = Duration::from_secs(120);

    /// The same limit for each step, for tests: those of a container are
    /// settings, whose defaults stand in their table.
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

impl FromStr for CudaPackages {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.eq_ignore_ascii_case("none") {
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

impl Sha256 {
    /// The checksum in a file as `sha256sum` writes it: its first word.
    pub fn published(file: &[u8]) -> Option<Sha256> {
        String::from_utf8_lossy(file).split_whitespace().next()?.parse().ok()
    }
}

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
        let mut desired = Desired {
            driver: "580.76.05".parse().unwrap(),
            kernel: Some("580.95.05".parse().unwrap()),
            runfile_url: "/x".parse().unwrap(),
            sha256: None,
            repo_url: "/x".parse().unwrap(),
            repo_key_url: None,
            cuda: CudaPackages::None,
            utilities: Vec::new(),
            limits: Limits::all(std::time::Duration::from_secs(60)),
            gpus: None,
            check_runs_smi: false,
        };
        let error = desired.fit_the_kernel().unwrap_err();
        assert_eq!(crate::exit::code_of(&error), Code::Software);
        let text = error.to_string();
        assert!(text.contains("580.76.05") && text.contains("580.95.05"), "{text}");
        desired.kernel = None;
        assert!(desired.fit_the_kernel().is_ok());
        // Who reads the state reads no password, and a changed one is seen.
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
