//! Which packages belong to a driver: what the runfile owns, apt must not
//! bring.

/// Names of packages that hold a driver's user space, in Debian, Ubuntu and
/// NVIDIA's repository; `*` at an end stands for anything.
pub const DRIVER: [&str; 46] = [
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

/// Names of packages that build or hold kernel modules. A container has no
/// kernel.
pub const KERNEL: [&str; 9] = [
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

/// Whether `name` is one of them.
pub fn is_driver(name: &str) -> bool {
    one_of(&DRIVER, name)
}

/// Whether `name` brings kernel modules.
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

/// The preferences file that keeps them out.
pub fn preferences() -> String {
    let names: Vec<&str> = DRIVER.iter().chain(&KERNEL[1..]).copied().collect();
    format!(
        "# Written by phoenix-nvidia. The driver in this container comes from NVIDIA's\n\
         # runfile and must be the version of the host's kernel driver. Packages of\n\
         # it would overwrite it with another version, at any upgrade.\n\
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
}
