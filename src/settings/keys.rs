//! The table of settings: name, type, default, unit and help of each. Man
//! page, conffile and README's table are made from it.

use super::values::{
    AfterInstall, DriverMode, DriverVersion, Nested, Read, StartPolicy, after_install, count, driver_mode,
    list, mebibytes, nested, optional, parsed, script, seconds, start_policy, switch,
};
use crate::device::assignment::Assignment;
use crate::driver::desired::{CudaPackages, Sha256};
use crate::driver::template::{PackageTemplate, Template};
use crate::host::choose::Capabilities;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

/// One setting, whatever its type.
#[derive(Debug)]
pub struct Spec {
    /// Its name, as files and environment have it.
    pub name: &'static str,
    /// Its value where no place gives one; `None`: it is required.
    pub default: Option<&'static str>,
    /// What the value is, for the man page: `seconds`, `list`, `URL`.
    pub unit: &'static str,
    /// A value as one may write it; empty where none says more than the help.
    pub example: &'static str,
    /// Says why a text is no value of it.
    pub check: fn(&str) -> Read<()>,
    /// Its doc comment in the table, lines joined.
    help: &'static str,
}

impl Spec {
    /// Whether the requirements demand it: a call by hand without it is exit 2.
    pub fn required(&self) -> bool {
        self.default.is_none()
    }

    /// One plain paragraph. Its first sentence says the most.
    pub fn help(&self) -> &'static str {
        self.help.trim_start()
    }
}

/// Marks a setting that has a default.
#[derive(Debug)]
pub struct Optional;
/// Marks a setting that has none.
#[derive(Debug)]
pub struct Required;

/// A setting with its type, and whether it has a default.
#[derive(Debug)]
pub struct Key<T: 'static, D = Optional> {
    spec: Spec,
    /// Reads a value.
    pub read: fn(&str) -> Read<T>,
    has: PhantomData<D>,
}

impl<T, D> Deref for Key<T, D> {
    type Target = Spec;

    fn deref(&self) -> &Spec {
        &self.spec
    }
}

impl<T, D> Key<T, D> {
    /// The same whatever its type.
    pub const fn spec(&'static self) -> &'static Spec {
        &self.spec
    }
}

impl<T> Key<T, Optional> {
    /// The default as its type.
    pub(super) fn fallback(&self) -> T {
        let value = (self.read)(self.spec.default.unwrap_or_default());
        value.unwrap_or_else(|why| {
            unreachable!("the default of {}, which a test reads: {why}", self.spec.name)
        })
    }
}

macro_rules! settings {
    ($($(#[doc = $help:literal])+ $id:ident: $type:ty {
        read: $read:expr, default: $default:tt, unit: $unit:literal, example: $example:literal
    })*) => {
        $($(#[doc = $help])+ pub const $id: &Key<$type, settings!(@mark $default)> = &Key {
            spec: Spec {
                name: stringify!($id),
                default: settings!(@default $default),
                unit: $unit,
                example: $example,
                check: |text| ($read)(text).map(|_: $type| ()),
                help: concat!($($help),+),
            },
            read: $read,
            has: PhantomData,
        };)*
        /// All of them, in the order of the man page.
        pub const ALL: &[&Spec] = &[$(&$id.spec),*];
    };
    (@mark required) => { Required };
    (@mark $default:literal) => { Optional };
    (@default required) => { None };
    (@default $default:literal) => { Some($default) };
}

settings! {
    /// GPUs of the container: none, all, or a comma-separated list of indices (0 is /dev/nvidia0), UUIDs
    /// (GPU-...), PCI addresses (0000:01:00.0) and MIG instances (GPU:GI/CI or MIG-...).
    GPU_ASSIGNMENT: Assignment { read: parsed, default: required, unit: "list", example: "0,1" }

    /// Driver version in the container: host (the version of the loaded kernel driver), or a version. A
    /// version that differs from the loaded kernel driver is refused, since both must match to the last digit.
    NVIDIA_DRIVER_VERSION: DriverVersion { read: parsed, default: required, unit: "version", example: "host" }

    /// How the container gets the driver: install (NVIDIA's installer copies it into the container), inject
    /// (the host's own driver files are mounted into it read-only at each start; nothing of it is installed) or auto
    /// (inject for application containers and where an install was found impossible: no shell, no init, no
    /// room; else install). The change from one to the other takes effect at the next start. A driver that a
    /// runfile installed in the container is then removed by its own uninstaller; one of packages stays, and is
    /// named with the command that removes it.
    DRIVER_MODE: DriverMode {
        read: driver_mode, default: "install", unit: "install, inject or auto", example: "inject"
    }

    /// Whether Docker and Podman in the container get its GPUs: none, cdi (a CDI description of them is kept in
    /// /etc/cdi of the container, for --device nvidia.com/gpu=all) or replace (cdi, and a description that
    /// NVIDIA's toolkit wrote is put aside: of two the engines use neither).
    NESTED: Nested { read: nested, default: "none", unit: "none, cdi or replace", example: "cdi" }

    /// URL of the apt repository with the CUDA packages. The placeholders {distro}, {arch}, {version},
    /// {branch} and {cuda} are filled in. A name and password in the URL (https://NAME:PASSWORD@HOST/...) are
    /// stored in the container in a file that only its root can read. A URL with a query (?...) is refused,
    /// since apt cannot send one.
    NVIDIA_REPO_URL: Template {
        read: parsed, default: required, unit: "URL",
        example: "https://developer.download.nvidia.com/compute/cuda/repos/{distro}/{arch}/"
    }

    /// URL or absolute path of the driver's runfile: https, file, or http from this host or with
    /// NVIDIA_RUNFILE_SHA256. A path may also be that of a directory of this host, which is searched for the
    /// runfile of the version, whatever its name; subdirectories are not. To a URL of a server that ends in /
    /// NVIDIA's name of the file is added. Placeholders as in NVIDIA_REPO_URL, but {arch} is x86_64 or aarch64
    /// here, and {platform} is NVIDIA's directory of it: Linux-x86_64 or aarch64. Where a URL of NVIDIA's form
    /// (.../XFree86/...) has no such file, that directory and the one of the datacenter drivers (.../tesla/...)
    /// are tried too. vGPU, GRID and OEM drivers are on no public server: name the file that the host's driver
    /// was installed from.
    NVIDIA_RUNFILE_URL: Template {
        read: parsed, default: required, unit: "URL",
        example: "https://us.download.nvidia.com/XFree86/{platform}/{version}/NVIDIA-Linux-{arch}-{version}.run"
    }

    /// SHA-256 checksum of the runfile; none: the checksum that is published next to the runfile.
    NVIDIA_RUNFILE_SHA256: Option<Sha256> { read: optional, default: "none", unit: "hexadecimal", example: "" }

    /// URL or absolute path of the repository's signing key: https, file, or http from this host; none: the
    /// key that NVIDIA publishes in the repository. A value that ends in / is a directory that holds the key
    /// under NVIDIA's file name.
    NVIDIA_REPO_KEY_URL: Option<Template> { read: optional, default: "none", unit: "URL", example: "" }

    /// CUDA packages that apt installs after the driver; none: no packages and no repository, as by default
    /// where the container has no apt. Names are separated by commas or blanks. The driver does not depend on them: packages of the default that
    /// cannot be installed are a warning, packages that somebody named are exit code 5 by hand. An installed
    /// CUDA toolkit of any version satisfies this setting. Packages that would install kernel modules or
    /// another driver version are refused.
    CUDA_PACKAGES: CudaPackages {
        read: parsed, default: "cuda-toolkit-{cuda}", unit: "list", example: "cuda-toolkit-13-0"
    }

    /// More packages that apt installs with the driver or the CUDA packages (alone they start no install), or
    /// none; a package that cannot be installed is a warning.
    UTILITY_PACKAGES: Vec<PackageTemplate> { read: list, default: "nvtop", unit: "list", example: "nvtop" }

    /// What the container uses its GPUs for: compute, utility, graphics, display, or all. graphics and
    /// display add /dev/nvidia-modeset and the GPUs' /dev/dri nodes.
    GPU_CAPABILITIES: Capabilities {
        read: parsed, default: "compute,utility", unit: "list", example: "compute,utility,graphics"
    }

    /// Whether to refuse a GPU that another running container has.
    GPU_EXCLUSIVE: bool { read: switch, default: "no", unit: "yes or no", example: "yes" }

    /// What pre-start does when it cannot give the container what its settings ask for: continue (warn, and
    /// start it without what is missing) or fail (stop the start, so that HA tries another node).
    START_POLICY: StartPolicy {
        read: start_policy, default: "continue", unit: "continue or fail", example: "fail"
    }

    /// Whether to check and install the driver in the container; off: devices only.
    INSTALL: bool { read: switch, default: "on", unit: "on or off", example: "off" }

    /// How long post-start follows an install before the install continues in the background. While a hook
    /// runs, Proxmox refuses to stop, back up or change the container. It counts as 0 where an interface is
    /// host-managed: Proxmox starts its DHCP after this hook.
    INSTALL_WAIT: Duration { read: seconds, default: "60", unit: "seconds", example: "0" }

    /// What follows an install that changed the driver: reboot (the container, once, since running services
    /// keep the old driver) or none.
    AFTER_INSTALL: AfterInstall {
        read: after_install, default: "reboot", unit: "reboot or none", example: "none"
    }

    /// How long that reboot waits while the container is locked (a backup) or the node has no quorum. After
    /// that it stays due until the next start. More than 72000 (20 hours) counts as that, since an install
    /// process runs for at most a day.
    REBOOT_WAIT: Duration { read: seconds, default: "7200", unit: "seconds", example: "28800" }

    /// Absolute path of another hookscript that runs too, with the same arguments, or none. It runs first in
    /// pre-start and last in the other phases. If it fails in pre-start, the start stops.
    HOOK_CHAIN: Option<PathBuf> {
        read: script, default: "none", unit: "path", example: "/var/lib/vz/snippets/mine.sh"
    }

    /// How many installs run at once on the node; further installs wait, 2 hours at most, or INSTALL_TIMEOUT
    /// where that is longer.
    MAX_INSTALLS: u32 { read: count, default: "2", unit: "number", example: "4" }

    /// Time limit of pre-start, without HOOK_CHAIN, which has none. Loading the kernel modules takes long with
    /// many GPUs.
    PRE_START_TIMEOUT: Duration { read: seconds, default: "90", unit: "seconds", example: "90" }

    /// Time limit of the driver check in post-start.
    CHECK_TIMEOUT: Duration { read: seconds, default: "15", unit: "seconds", example: "15" }

    /// How long an install waits until the container runs commands and has booted.
    READY_TIMEOUT: Duration { read: seconds, default: "120", unit: "seconds", example: "120" }

    /// How long an install waits until the container reaches the repository's host.
    NETWORK_TIMEOUT: Duration { read: seconds, default: "60", unit: "seconds", example: "60" }

    /// Time limit of one download.
    DOWNLOAD_TIMEOUT: Duration { read: seconds, default: "1800", unit: "seconds", example: "1800" }

    /// Largest size of a runfile. A larger download is aborted, so that no server can fill the node's disk.
    DOWNLOAD_MAX: u64 { read: mebibytes, default: "1024", unit: "MiB", example: "2048" }

    /// Time limit of the driver installer, and of all apt steps together.
    INSTALL_TIMEOUT: Duration { read: seconds, default: "1800", unit: "seconds", example: "1800" }

    /// How long a restart waits for the container to shut down; then it is stopped by force. Its start may take
    /// PRE_START_TIMEOUT and INSTALL_WAIT longer.
    RESTART_TIMEOUT: Duration { read: seconds, default: "60", unit: "seconds", example: "60" }

    /// Longest pause between two checks of the container's status during a restart; the first are 0.2 seconds
    /// apart.
    RESTART_INTERVAL: Duration { read: seconds, default: "3", unit: "seconds", example: "3" }
}

/// The setting of that name.
pub fn by_name(name: &str) -> Option<&'static Spec> {
    ALL.iter().copied().find(|key| key.name == name)
}

/// The setting whose name is most like `name`, if one is near enough.
pub fn nearest(name: &str) -> Option<&'static Spec> {
    // The comparison takes as long as both names are: no misspelling is that long.
    if name.len() > 64 {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    let score = |key: &Spec| strsim::jaro_winkler(key.name, &upper);
    let best = ALL.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) > 0.9).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_of_the_requirements_are_required() {
        let required: Vec<_> = ALL.iter().filter(|k| k.required()).map(|k| k.name).collect();
        assert_eq!(
            required,
            ["GPU_ASSIGNMENT", "NVIDIA_DRIVER_VERSION", "NVIDIA_REPO_URL", "NVIDIA_RUNFILE_URL"]
        );
    }

    #[test]
    fn every_default_and_every_example_is_a_value() {
        for key in ALL {
            for text in [key.default.unwrap_or_default(), key.example].iter().filter(|text| !text.is_empty())
            {
                assert_eq!((key.check)(text), Ok(()), "{}={text}", key.name);
            }
            assert!(key.default != Some(""), "{}: an empty value is none", key.name);
            assert!(key.help().ends_with('.') && !key.help().contains("  "), "{}", key.help());
            assert!((key.check)("\u{1}").is_err() || key.name == "HOOK_CHAIN", "{}", key.name);
        }
    }

    #[test]
    fn a_misspelt_key_finds_its_neighbour_and_a_strange_one_none() {
        assert_eq!(nearest("GPU_ASSIGNEMENT").unwrap().name, "GPU_ASSIGNMENT");
        assert_eq!(nearest("gpu_assignment").unwrap().name, "GPU_ASSIGNMENT");
        assert_eq!(nearest("NVIDIA_DRIVER_VERISON").unwrap().name, "NVIDIA_DRIVER_VERSION");
        assert!(nearest("NVIDIA_VISIBLE_DEVICES").is_none());
        assert!(nearest(&"GPU_ASSIGNMENT".repeat(1000)).is_none());
        assert!(nearest("PATH").is_none() && nearest("LANG").is_none());
    }
}
