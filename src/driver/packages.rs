//! Packages of a distribution: their names, and which of them hold a driver.
//! The runfile owns the driver, so apt must not install one.

use anyhow::bail;
use std::fmt;
use std::str::FromStr;

/// A package's name: `[a-z0-9][a-z0-9+.-]*`, maybe with `:ARCHITECTURE`. A
/// container prints it, and it goes into commands to be pasted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageName(String);

impl PackageName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, architecture) = text.split_once(':').map_or((text, None), |(n, a)| (n, Some(a)));
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let word = |text: &str, more: &[u8]| {
            text.bytes().next().is_some_and(alnum) && text.bytes().all(|b| alnum(b) || more.contains(&b))
        };
        if text.len() > 100 || !word(name, b"+.-") || architecture.is_some_and(|a| !word(a, b"-")) {
            bail!("not a package name");
        }
        Ok(PackageName(text.to_owned()))
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Packages of a driver's user space in Debian, Ubuntu and NVIDIA's
/// repository; `*` stands for any end.
const DRIVER: [&str; 46] = [
    "firmware-nvidia-gsp*",
    "libcuda1*",
    "libcudadebugger1",
    "libegl-nvidia0",
    "libgles-nvidia*",
    "libglx-nvidia0",
    "libnvcuvid1",
    "libnvidia-allocator1",
    "libnvidia-api1",
    "libnvidia-cfg1*",
    "libnvidia-common-*",
    "libnvidia-compute-*",
    "libnvidia-decode-*",
    "libnvidia-eglcore",
    "libnvidia-encode*",
    "libnvidia-extra-*",
    "libnvidia-fbc1*",
    "libnvidia-gl-*",
    "libnvidia-glcore",
    "libnvidia-glvkspirv",
    "libnvidia-gpucomp",
    "libnvidia-legacy-*",
    "libnvidia-ml1",
    "libnvidia-ngx1",
    "libnvidia-nvvm*",
    "libnvidia-opticalflow1",
    "libnvidia-pkcs11*",
    "libnvidia-ptxjitcompiler1",
    "libnvidia-rtcore",
    "libnvidia-sandboxutils",
    "libnvidia-tesla*",
    "libnvoptix1",
    "nvidia-alternative",
    "nvidia-compute-utils-*",
    "nvidia-driver*",
    "nvidia-egl-icd",
    "nvidia-headless-*",
    "nvidia-legacy-*",
    "nvidia-libopencl1",
    "nvidia-opencl-icd",
    "nvidia-open*",
    "nvidia-smi",
    "nvidia-tesla-*",
    "nvidia-utils-*",
    "nvidia-vulkan-icd",
    "xserver-xorg-video-nvidia*",
];

/// Packages that build or contain kernel modules. A container has no kernel.
const KERNEL: [&str; 9] = [
    "dkms",
    "linux-headers-*",
    "linux-image-*",
    "linux-modules-*",
    "linux-objects-nvidia-*",
    "nvidia-dkms-*",
    "nvidia-fs*",
    "nvidia-kernel-*",
    "nvidia-kmod*",
];

/// Whether `name` belongs to a driver's user space.
pub fn is_driver(name: &str) -> bool {
    one_of(&DRIVER, name)
}

/// Whether `name` builds or contains kernel modules.
pub fn is_kernel(name: &str) -> bool {
    one_of(&KERNEL, name) || name.ends_with("-dkms")
}

fn one_of(patterns: &[&str], name: &str) -> bool {
    let name = name.split(':').next().unwrap_or_default();
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *pattern,
    })
}

/// The preferences file with which apt installs none of them.
pub fn preferences() -> String {
    let names: Vec<&str> = DRIVER.iter().chain(&KERNEL[1..]).copied().collect();
    format!(
        "# Written by phoenix-nvidia. The driver in this container comes from NVIDIA's\n\
         # runfile and must have the version of the host's kernel driver. A package\n\
         # would overwrite it with another version.\n\
         Package: {} *-dkms\n\
         Pin: version *\n\
         Pin-Priority: -1\n",
        names.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_told_from_what_only_has_nvidia_in_its_name() {
        for name in [
            "libcuda1",
            "libcuda1:amd64",
            "libnvidia-compute-580",
            "nvidia-driver-cuda",
            "nvidia-smi",
            "libnvidia-ml1",
        ] {
            assert!(is_driver(name), "{name}");
        }
        for name in [
            "libnvidia-container1",
            "nvidia-container-toolkit",
            "cuda-toolkit-13-0",
            "nvidia-cuda-toolkit",
            "nvtop",
            "cuda-drivers-580",
            "libcudart12",
        ] {
            assert!(!is_driver(name) && !is_kernel(name), "{name}");
        }
        for name in ["nvidia-kernel-open-dkms", "nvidia-dkms-580", "dkms", "zfs-dkms", "linux-image-amd64"] {
            assert!(is_kernel(name), "{name}");
        }
    }

    #[test]
    fn a_name_is_nothing_that_a_shell_would_read_otherwise() {
        for good in ["libc6", "libnvidia-ml1:amd64", "g++", "libstdc++6", "python3.11", "0ad"] {
            assert!(good.parse::<PackageName>().is_ok(), "{good}");
        }
        for bad in
            ["", "-y", "--force", "A", "a b", "a;b", "$(id)", "a*", "a:", ":a", "a:b:c", "a:-b", "a\n", "é"]
        {
            assert!(bad.parse::<PackageName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(101).parse::<PackageName>().is_err());
    }
}
