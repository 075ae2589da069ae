//! The packages of NVIDIA's repository that matter to us, with the names and the dependencies of the real ones and
//! little in them.

use super::Package;
use crate::nvidia::shared_object;

const ARCH: &str = std::env::consts::ARCH;

/// What `cuda-drivers-<branch>` brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drivers {
    /// Nothing but itself: no kernel module, no library.
    Alone,
    /// The libraries of its version, no kernel module.
    Libraries,
    /// The libraries and the kernel module's source with DKMS, as the real one.
    Full,
}

/// How a distribution names the parts of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `libnvidia-ml1`, `nvidia-kernel-dkms`.
    Debian,
    /// `libnvidia-compute-580`, `nvidia-dkms-580`.
    Ubuntu,
}

/// `cuda-toolkit-13-0` and its parts, for a version like `13-0`. It holds no driver.
pub fn cuda_toolkit(version: &str) -> Vec<Package> {
    let dotted = version.replace('-', ".");
    let full = format!("{dotted}.2-1");
    let place = format!("/usr/local/cuda-{dotted}");
    let nvcc = format!(
        "#! /bin/sh\necho 'nvcc: NVIDIA (R) Cuda compiler driver'\necho 'Cuda compilation tools, release {dotted}, V{dotted}.88'\n"
    );
    let alternative = format!(
        "if test \"$1\" = configure; then update-alternatives --install /usr/local/cuda cuda {place} {}; fi",
        version.replace('-', "")
    );
    let remove = format!("if test \"$1\" = remove; then update-alternatives --remove cuda {place}; fi");
    let soname = format!("libcudart.so.{}", dotted.split('.').next().unwrap_or_default());
    let libraries = format!("{place}/targets/{ARCH}-linux/lib");
    vec![
        Package::new(&format!("cuda-toolkit-{version}"), &full).depends(&format!(
            "cuda-nvcc-{version} (>= {dotted}), cuda-cudart-{version} (>= {dotted}), cuda-toolkit-{version}-config-common"
        )),
        Package::new(&format!("cuda-nvcc-{version}"), &full)
            .file(&format!("{place}/bin/nvcc"), 0o755, nvcc),
        Package::new(&format!("cuda-cudart-{version}"), &full)
            .file(&format!("{libraries}/{soname}"), 0o644, shared_object(&soname, &dotted)),
        Package::new(&format!("cuda-toolkit-{version}-config-common"), &full)
            .file(&format!("/etc/ld.so.conf.d/{version}_cuda.conf"), 0o644, format!("{libraries}\n"))
            .script("postinst", &alternative)
            .script("prerm", &remove),
    ]
}

/// `cuda-drivers-<branch>` of a driver's version, with all that it needs.
pub fn cuda_drivers(version: &str, drivers: Drivers, names: Names) -> Vec<Package> {
    let branch = version.split('.').next().unwrap_or_default();
    let debian = format!("{version}-1");
    let exact = |name: &str| format!("{name} (= {debian})");
    let libraries = libraries(version, names);
    let module = module(version, names);
    let mut needed: Vec<String> = Vec::new();
    let mut packages = Vec::new();
    if drivers != Drivers::Alone {
        needed.extend(libraries.iter().map(|package| exact(package.name())));
        needed.push(exact("nvidia-persistenced"));
        packages.extend(libraries);
        packages.push(persistenced(version));
    }
    if drivers == Drivers::Full {
        needed.push(exact(module.name()));
        packages.push(module);
        packages.push(dkms());
    }
    let mut metapackage = Package::new(&format!("cuda-drivers-{branch}"), &debian).file(
        &format!("/usr/share/doc/cuda-drivers-{branch}/copyright"),
        0o644,
        "The lab's.\n",
    );
    if !needed.is_empty() {
        metapackage = metapackage.depends(&needed.join(", "));
    }
    packages.push(metapackage);
    packages
}

/// The packages that own a driver's libraries in the distribution's or NVIDIA's repository.
pub fn libraries(version: &str, names: Names) -> Vec<Package> {
    let branch = version.split('.').next().unwrap_or_default();
    let debian = format!("{version}-1");
    let with = |package: Package, library: &str| {
        let (soname, file) = (format!("{library}.so.1"), format!("{library}.so.{version}"));
        let place = format!("/usr/lib/{ARCH}-linux-gnu");
        package
            .file(&format!("{place}/{file}"), 0o644, shared_object(&soname, version))
            .link(&format!("{place}/{soname}"), &file)
    };
    match names {
        Names::Debian => vec![
            with(Package::new("libnvidia-ml1", &debian), "libnvidia-ml"),
            with(Package::new("libcuda1", &debian), "libcuda"),
        ],
        Names::Ubuntu => {
            let package = Package::new(&format!("libnvidia-compute-{branch}"), &debian);
            vec![with(with(package, "libnvidia-ml"), "libcuda")]
        }
    }
}

/// A driver as Debian's own packages have it: the files in a directory of their own, reached through
/// /etc/alternatives.
pub fn debian_driver(version: &str) -> Vec<Package> {
    let debian = format!("{version}-1~deb12u1");
    let library = |package: &str, library: &str| {
        let (soname, file) = (format!("{library}.so.1"), format!("{library}.so.{version}"));
        let place = format!("/usr/lib/{ARCH}-linux-gnu");
        let alternative = format!("/etc/alternatives/nvidia--{soname}");
        Package::new(package, &debian)
            .file(&format!("{place}/nvidia/current/{file}"), 0o644, shared_object(&soname, version))
            .link(&format!("{place}/nvidia/current/{soname}"), &file)
            .link(&alternative, &format!("{place}/nvidia/current/{soname}"))
            .link(&format!("{place}/{soname}"), &alternative)
    };
    let tool = crate::nvidia::runfile::smi(version).unwrap_or_default();
    vec![
        library("libnvidia-ml1", "libnvidia-ml"),
        library("libcuda1", "libcuda").depends(&format!("libnvidia-ml1 (= {debian})")),
        Package::new("nvidia-smi", &debian)
            .depends(&format!("libnvidia-ml1 (= {debian})"))
            .file("/usr/lib/nvidia/current/nvidia-smi", 0o755, tool)
            .link("/etc/alternatives/nvidia--nvidia-smi", "/usr/lib/nvidia/current/nvidia-smi")
            .link("/usr/bin/nvidia-smi", "/etc/alternatives/nvidia--nvidia-smi"),
        // A helper of a version of its own, with a file that makes it an owner too.
        Package::new("nvidia-installer-cleanup", "20220217+3").file(
            "/usr/lib/nvidia/alternate-install-present",
            0o644,
            "",
        ),
    ]
}

/// `nvtop`, which a distribution's repository has.
pub fn nvtop() -> Package {
    Package::new("nvtop", "3.2.0-1").file("/usr/bin/nvtop", 0o755, "#! /bin/sh\necho 'nvtop version 3.2.0'\n")
}

/// Debian 11's nvtop, which wants apt's library.
pub fn nvtop_with_library() -> Package {
    nvtop().depends("libnvidia-ml1")
}

fn module(version: &str, names: Names) -> Package {
    let branch = version.split('.').next().unwrap_or_default();
    let name = match names {
        Names::Debian => "nvidia-kernel-dkms".to_owned(),
        Names::Ubuntu => format!("nvidia-dkms-{branch}"),
    };
    let configuration = format!("PACKAGE_NAME=\"nvidia\"\nPACKAGE_VERSION=\"{version}\"\n");
    Package::new(&name, &format!("{version}-1")).depends("dkms").file(
        &format!("/usr/src/nvidia-{version}/dkms.conf"),
        0o644,
        configuration,
    )
}

fn dkms() -> Package {
    Package::new("dkms", "3.0.10-8").file("/usr/sbin/dkms", 0o755, "#! /bin/sh\nexit 0\n")
}

/// Its unit fails in a container, where there is no device to keep awake.
fn persistenced(version: &str) -> Package {
    let unit = "[Unit]\nDescription=NVIDIA Persistence Daemon\n\n[Service]\nType=oneshot\nExecStart=/usr/bin/nvidia-persistenced\n\n[Install]\nWantedBy=multi-user.target\n";
    Package::new("nvidia-persistenced", &format!("{version}-1"))
        .file(
            "/usr/bin/nvidia-persistenced",
            0o755,
            "#! /bin/sh\necho 'Failed to query NVIDIA devices' >&2\nexit 1\n",
        )
        .file("/lib/systemd/system/nvidia-persistenced.service", 0o644, unit)
}
