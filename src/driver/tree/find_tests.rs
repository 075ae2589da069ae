use super::*;
use std::os::unix::fs::symlink;

const V: &str = "580.95.05";
#[cfg(not(target_arch = "aarch64"))]
const LIB: &str = "usr/lib/x86_64-linux-gnu";
#[cfg(target_arch = "aarch64")]
const LIB: &str = "usr/lib/aarch64-linux-gnu";

/// A library with a SONAME and, if `glibc` is given, the need of that version.
fn elf(soname: &str, glibc: Option<&str>) -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let needs = glibc.map(|version| format!("GLIBC_{version}\0")).unwrap_or_default();
    let names = format!("\0{soname}\0{needs}");
    let (dynamic_at, names_at) = (64 + 2 * 56, 64 + 2 * 56 + 4 * 16);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend([0_u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0_u16, 0, 64, 56, 2, 64, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    let size = (names_at + names.len()) as u64;
    for (kind, at, length) in [(1_u32, 0_u64, size), (2, dynamic_at, 64)] {
        file.extend([kind, 4].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([at, at, at, length, length, 8].iter().flat_map(|word| word.to_le_bytes()));
    }
    let tags = [(5, names_at as u64), (10, names.len() as u64), (14, 1), (0, 0)];
    file.extend(
        tags.iter().flat_map(|(tag, value): &(u64, u64)| [tag.to_le_bytes(), value.to_le_bytes()].concat()),
    );
    file.extend(names.bytes());
    file
}

struct Host(tempfile::TempDir);

impl Host {
    /// A host with the two needed libraries in a directory.
    fn with_driver(directory: &str, version: &str) -> Host {
        let host = Host(tempfile::tempdir().unwrap());
        host.library(directory, &format!("libcuda.so.{version}"), "libcuda.so.1", Some("2.14"));
        host.library(directory, &format!("libnvidia-ml.so.{version}"), "libnvidia-ml.so.1", Some("2.2.5"));
        host
    }

    fn library(&self, directory: &str, name: &str, soname: &str, glibc: Option<&str>) {
        self.file(&format!("{directory}/{name}"), &elf(soname, glibc));
    }

    fn file(&self, path: &str, content: &[u8]) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::sys::replace::replace_own(&path, content, 0o600).unwrap();
    }

    fn find(&self) -> Result<Found, Missing> {
        find(self.0.path(), &V.parse().unwrap())
    }

    fn files(&self) -> Vec<String> {
        self.find().unwrap().files.into_iter().map(|file| file.to).collect()
    }
}

#[test]
fn the_links_are_the_sonames_and_the_names_that_only_programs_know() {
    let host = Host::with_driver(LIB, V);
    host.library(LIB, &format!("libGLX_nvidia.so.{V}"), "libGLX_nvidia.so.0", None);
    let found = host.find().unwrap();
    let links: Vec<(&str, &str)> = found.links.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(
        links,
        [
            ("libGLX_indirect.so.0", "libGLX_nvidia.so.0"),
            ("libGLX_nvidia.so.0", "libGLX_nvidia.so.580.95.05"),
            ("libcuda.so", "libcuda.so.1"),
            ("libcuda.so.1", "libcuda.so.580.95.05"),
            ("libnvidia-ml.so.1", "libnvidia-ml.so.580.95.05"),
        ]
    );
    assert_eq!(found.glibc, "2.14".parse().ok());
    assert_eq!(found.size(), found.files.iter().map(|file| file.size).sum::<u64>());
}

#[test]
fn neither_glvnds_own_nor_the_distributions_builds_nor_what_serves_the_host_belong_to_it() {
    let host = Host::with_driver(LIB, V);
    for (name, soname) in [
        ("libEGL.so.580.95.05", "libEGL.so.1"),
        ("libGL.so.580.95.05", "libGL.so.1"),
        ("libOpenCL.so.580.95.05", "libOpenCL.so.1"),
        ("libnvidia-gtk3.so.580.95.05", "libnvidia-gtk3.so.580.95.05"),
        ("libglxserver_nvidia.so.580.95.05", "libglxserver_nvidia.so"),
        ("libGL.so.1.7.0", "libGL.so.1"),
        ("libcuda.so.570.1.1", "libcuda.so.1"),
        ("libnvidia-egl-gbm.so.1.1.1", "libnvidia-egl-gbm.so.1"),
    ] {
        host.library(LIB, name, soname, Some("2.34"));
    }
    host.library(LIB, "libnvidia-egl-wayland.so.1.1.9", "libnvidia-egl-wayland.so.1", Some("2.4"));
    symlink("libnvidia-egl-wayland.so.1.1.9", host.0.path().join(LIB).join("libnvidia-egl-wayland.so.1.0"))
        .unwrap();
    // Needs more than libcuda, and is NVIDIA's own.
    host.library(LIB, "libcudadebugger.so.580.95.05", "libcudadebugger.so.1", Some("2.26"));
    host.file(&format!("{LIB}/libnvidia-tls.so.{V}"), b"no library");
    assert_eq!(
        host.files(),
        [
            "libcuda.so.580.95.05",
            "libcudadebugger.so.580.95.05",
            "libnvidia-egl-wayland.so.1.1.9",
            "libnvidia-ml.so.580.95.05"
        ]
    );
}

/// Debian's packages: two directories, and links through /etc/alternatives.
#[test]
fn a_driver_in_several_directories_is_one() {
    let host = Host::with_driver(&format!("{LIB}/nvidia/current"), V);
    host.library(LIB, &format!("libnvidia-ptxjitcompiler.so.{V}"), "libnvidia-ptxjitcompiler.so.1", None);
    host.library(&format!("{LIB}/vdpau"), &format!("libvdpau_nvidia.so.{V}"), "libvdpau_nvidia.so.1", None);
    host.file("usr/lib/nvidia/current/nvidia-smi", &elf("", None));
    std::fs::create_dir_all(host.0.path().join("usr/bin")).unwrap();
    symlink("../lib/nvidia/current/nvidia-smi", host.0.path().join("usr/bin/nvidia-smi")).unwrap();
    symlink(
        format!("nvidia/current/libcuda.so.{V}"),
        host.0.path().join(LIB).join(format!("libcuda.so.{V}")),
    )
    .unwrap();
    // Not run in a container.
    host.file("usr/bin/nvidia-persistenced", &elf("", None));
    host.file("usr/bin/nvidia-debugdump", b"#!/bin/sh\n");
    for path in [
        "etc/OpenCL/vendors/nvidia.icd",
        "etc/OpenCL/vendors/pocl.icd",
        "usr/share/vulkan/icd.d/nvidia_icd.json",
        "usr/share/vulkan/icd.d/intel_icd.json",
        "usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
        "usr/share/egl/egl_external_platform.d/mesa.json",
        "usr/share/nvidia/nvidia-application-profiles-580.95.05-rc",
        "usr/share/nvidia/nvidia-application-profiles-570.86.10-rc",
    ] {
        host.file(path, b"{}");
    }
    assert_eq!(
        host.files(),
        [
            "libcuda.so.580.95.05",
            "libnvidia-ml.so.580.95.05",
            "libnvidia-ptxjitcompiler.so.580.95.05",
            "libvdpau_nvidia.so.580.95.05",
            "bin/nvidia-smi",
            "share/OpenCL/vendors/nvidia.icd",
            "share/vulkan/icd.d/nvidia_icd.json",
            "share/egl/egl_external_platform.d/15_nvidia_gbm.json",
            "share/nvidia/nvidia-application-profiles-580.95.05-rc",
        ]
    );
}

#[test]
fn a_host_whose_files_are_of_another_version_says_which() {
    let host = Host::with_driver(LIB, "590.48.01");
    let missing = host.find().unwrap_err();
    assert_eq!(
        missing.to_string(),
        "libcuda.so.580.95.05 is not on this host; its driver files are 590.48.01"
    );
    // Half of an upgrade.
    host.library(LIB, &format!("libcuda.so.{V}"), "libcuda.so.1", None);
    assert_eq!(host.find().unwrap_err().library, "libnvidia-ml.so.580.95.05");
    assert_eq!(Host(tempfile::tempdir().unwrap()).find().unwrap_err().others, []);
}

#[test]
fn libraries_of_another_architecture_and_pipes_in_the_way_are_passed_over() {
    let host = Host::with_driver("usr/lib64", V);
    let mut other = elf("libcuda.so.1", None);
    other[18] = 3;
    host.file(&format!("{LIB}/libcuda.so.{V}"), &other);
    let fifo = host.0.path().join(LIB).join(format!("libnvidia-nvvm.so.{V}"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let found = host.find().unwrap();
    assert!(
        found.files.iter().all(|file| file.from.ends_with(format!("usr/lib64/{}", file.to))),
        "{found:?}"
    );
}
