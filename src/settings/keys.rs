//! The table of settings: what each is called, means, and is by default.
//! Help, man page and the conffile are made from it.

use super::kinds::{self, AfterInstall, Driver, Read, StartPolicy};
use crate::driver::desired::CudaPackages;
use crate::driver::desired::Sha256;
use crate::driver::template::PackageTemplate;
use crate::driver::template::Template;
use crate::host::assignment::Assignment;
use crate::host::choose::Capabilities;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

/// One setting, whatever its type.
#[derive(Debug)]
pub struct Spec {
    /// Its name, as it stands in files and environment.
    pub name: &'static str,
    /// Its value where no place gives one; `None`: it is required.
    pub default: Option<&'static str>,
    /// What the value is, for the man page: `seconds`, `list`, `URL`.
    pub unit: &'static str,
    /// One plain paragraph.
    pub help: &'static str,
    /// A value as one might write it.
    pub example: &'static str,
    /// Says why a text is no value of it.
    pub check: fn(&str) -> Read<()>,
}

impl Spec {
    /// Whether the requirements demand it: a call by hand without it is exit 2.
    pub fn required(&self) -> bool {
        self.default.is_none()
    }
}

/// A setting with its type.
#[derive(Debug)]
pub struct Key<T: 'static> {
    spec: Spec,
    /// Reads a value.
    pub read: fn(&str) -> Read<T>,
}

impl<T> Deref for Key<T> {
    type Target = Spec;

    fn deref(&self) -> &Spec {
        &self.spec
    }
}

macro_rules! keys {
    ($($id:ident: $type:ty = $read:expr, $default:expr, $unit:literal, $example:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $id: &Key<$type> = &Key {
            spec: Spec {
                name: stringify!($id),
                default: $default,
                unit: $unit,
                help: $help,
                example: $example,
                check: |text| ($read)(text).map(|_: $type| ()),
            },
            read: $read,
        };)*
        /// All of them, in the order of the man page.
        pub const ALL: &[&Spec] = &[$(&$id.spec),*];
    };
}

keys! {
    GPU_ASSIGNMENT: Assignment = kinds::parsed, None, "list", "0,1",
        "The container's GPUs: none, all, or a comma-separated list of indices (N is the node /dev/nvidiaN), UUIDs (GPU-...), PCI addresses (0000:01:00.0) and MIG instances (GPU:GI/CI or MIG-...).";
    NVIDIA_DRIVER_VERSION: Driver = kinds::parsed, None, "version", "host",
        "The driver in the container: a version, or host for the version of the kernel driver that is loaded on the node. Both must be equal to the last digit; a version that differs from the loaded one is refused.";
    NVIDIA_REPO_URL: Template = kinds::parsed, None, "URL", "https://developer.download.nvidia.com/compute/cuda/repos/{distro}/{arch}/",
        "The apt repository for the CUDA packages. {distro}, {arch}, {version}, {branch} and {cuda} are filled in. A name and password in it (https://NAME:PASSWORD@HOST/...) go into a file of apt's in the container that root alone can read, not into the source; a query (?...) is refused, since apt cannot send one.";
    NVIDIA_RUNFILE_URL: Template = kinds::parsed, None, "URL", "https://us.download.nvidia.com/XFree86/Linux-{arch}/{version}/NVIDIA-Linux-{arch}-{version}.run",
        "Where the driver's runfile is: https, file:// or an absolute path; http only from this host or with NVIDIA_RUNFILE_SHA256. The placeholders of NVIDIA_REPO_URL are filled in.";
    NVIDIA_RUNFILE_SHA256: Option<Sha256> = kinds::optional, Some("none"), "hexadecimal", "",
        "The runfile's SHA-256. Without it the published sum beside the runfile is used.";
    NVIDIA_REPO_KEY_URL: Option<Template> = kinds::optional, Some("none"), "URL", "",
        "The repository's signing key, where it is not the one that NVIDIA publishes in the repository: https, file:// or an absolute path; http only from this host. Ending in / it is a directory with the key under NVIDIA's name for it.";
    CUDA_PACKAGES: CudaPackages = kinds::parsed, Some("cuda-toolkit-{cuda}"), "list", "cuda-toolkit-13-0",
        "The CUDA packages that apt installs after the driver, or none: then no repository is added either. A CUDA toolkit of any version that is already there satisfies it. A package that would bring kernel modules or another driver is refused.";
    UTILITY_PACKAGES: Vec<PackageTemplate> = kinds::list, Some("nvtop"), "list", "nvtop",
        "Further packages, or none. One that cannot be had is a warning.";
    GPU_CAPABILITIES: Capabilities = kinds::parsed, Some("compute,utility"), "list", "compute,utility,graphics",
        "What the GPUs are for: compute, utility, graphics, display. The last two add /dev/nvidia-modeset and the cards' own /dev/dri nodes.";
    GPU_EXCLUSIVE: bool = kinds::switch, Some("no"), "yes or no", "yes",
        "Whether a GPU that another running container has is refused.";
    START_POLICY: StartPolicy = kinds::start_policy, Some("continue"), "continue or fail", "fail",
        "What pre-start does when it cannot give the container what its settings say: continue starts it with what is there and warns, fail stops the start, so that HA goes elsewhere.";
    INSTALL: bool = kinds::switch, Some("on"), "on or off", "off",
        "Whether the driver in the container is looked after at all.";
    INSTALL_WAIT: Duration = kinds::seconds, Some("60"), "seconds", "0",
        "How long post-start follows an install before it leaves it to go on by itself. While a hook runs, Proxmox refuses to stop, back up or change the container.";
    AFTER_INSTALL: AfterInstall = kinds::after_install, Some("reboot"), "reboot or none", "none",
        "What follows an install that changed the driver: services that started before it keep the old one, so the container is rebooted once, as soon as it would start again: a lock (a backup) or a missing quorum is waited for, up to two hours.";
    HOOK_CHAIN: Option<PathBuf> = kinds::script, Some("none"), "path", "/var/lib/vz/snippets/mine.sh",
        "A hookscript of your own that runs too, with the same arguments: before this one in pre-start, after it otherwise. Its pre-start failure stops the start.";
    MAX_INSTALLS: u32 = kinds::count, Some("2"), "number", "4",
        "How many installs run at once on the node; further ones wait.";
    PRE_START_TIMEOUT: Duration = kinds::seconds, Some("90"), "seconds", "90",
        "The time limit of pre-start; loading the kernel modules with eight cards takes long.";
    CHECK_TIMEOUT: Duration = kinds::seconds, Some("15"), "seconds", "15",
        "The time limit of the check in post-start.";
    READY_TIMEOUT: Duration = kinds::seconds, Some("120"), "seconds", "120",
        "How long an install waits until the container runs commands and its boot is over.";
    NETWORK_TIMEOUT: Duration = kinds::seconds, Some("60"), "seconds", "60",
        "How long an install waits until the container reaches the repository's host.";
    DOWNLOAD_TIMEOUT: Duration = kinds::seconds, Some("1800"), "seconds", "1800",
        "The time limit of one download.";
    DOWNLOAD_MAX: u64 = kinds::mebibytes, Some("1024"), "MiB", "2048",
        "How large a runfile may be. A server that sends more is not listened to any longer, so that it cannot fill the node's disk.";
    INSTALL_TIMEOUT: Duration = kinds::seconds, Some("1800"), "seconds", "1800",
        "The time limit of an install, and of each of its steps.";
    RESTART_TIMEOUT: Duration = kinds::seconds, Some("60"), "seconds", "60",
        "How long a call by hand waits for the container to be stopped, and to be running again.";
    RESTART_INTERVAL: Duration = kinds::seconds, Some("3"), "seconds", "3",
        "The longest pause between two looks while waiting for that.";
}

/// The setting of that name.
pub fn by_name(name: &str) -> Option<&'static Spec> {
    ALL.iter().copied().find(|key| key.name == name)
}

/// The setting whose name is most like `name`, if one is near enough to be
/// meant.
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
