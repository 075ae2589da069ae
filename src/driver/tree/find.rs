//! Which files of the host are NVIDIA's user space of one version, by rule.
//!
//! A runfile has them in one directory, Debian's packages in several. Files that
//! a distribution builds itself (glvnd's, some of the EGL platforms) need a newer
//! glibc than NVIDIA's own, and are left out.

use super::elf::{self, Elf, Glibc};
use crate::types::Version;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Where distributions have libraries.
#[cfg(not(target_arch = "aarch64"))]
const DIRECTORIES: [&str; 3] = ["usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"];
#[cfg(target_arch = "aarch64")]
const DIRECTORIES: [&str; 3] = ["usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"];

/// Libraries of glvnd and of the OpenCL loader, by SONAME: the container's own
/// are used, and a runfile has copies of them with NVIDIA's version in the name.
const NOT_NVIDIAS: [&str; 9] = [
    "libGL.so.1",
    "libEGL.so.1",
    "libGLX.so.0",
    "libOpenGL.so.0",
    "libGLESv1_CM.so.1",
    "libGLESv2.so.2",
    "libGLdispatch.so.0",
    "libGLdispatch.so.1",
    "libOpenCL.so.1",
];

/// What serves the X server, nvidia-settings or a sandbox on the host.
const NOT_FOR_CONTAINERS: [&str; 6] = [
    "libglxserver_nvidia.so.",
    "libnvidia-gtk",
    "libnvidia-wayland-client.so.",
    "libnvidia-nvsandboxutils.so.",
    "libnvidia-sandboxutils.so.",
    "libnvidia-vgpu.so.",
];

/// Libraries whose file has a version of its own, or none.
const OWN_VERSION: [&str; 7] = [
    "libnvidia-api.so.1",
    "libnvidia-egl-gbm.so.1.",
    "libnvidia-egl-wayland.so.1.",
    "libnvidia-egl-wayland2.so.1.",
    "libnvidia-egl-xcb.so.1.",
    "libnvidia-egl-xlib.so.1.",
    "libnvidia-nvvm70.so.",
];

/// The libraries without which there is no driver.
pub const NEEDED: [&str; 2] = ["libcuda.so", "libnvidia-ml.so"];

/// Names that programs open and no SONAME has, each with the SONAME behind it.
const BARE: [(&str, &str); 3] = [
    ("libcuda.so", "libcuda.so.1"),
    ("libnvidia-opticalflow.so", "libnvidia-opticalflow.so.1"),
    ("libGLX_indirect.so.0", "libGLX_nvidia.so.0"),
];

/// The programs for containers.
pub const PROGRAMS: [&str; 4] =
    ["nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];

/// Other files: directories of the host, the beginning and the end of the names
/// there, and the directory in the tree.
type Share = (&'static [&'static str], &'static str, &'static str, &'static str);
const SHARES: [Share; 7] = [
    (&["etc/OpenCL/vendors"], "nvidia", ".icd", "share/OpenCL/vendors"),
    (&["etc/vulkan/icd.d", "usr/share/vulkan/icd.d"], "nvidia_icd", ".json", "share/vulkan/icd.d"),
    (
        &["etc/vulkan/implicit_layer.d", "usr/share/vulkan/implicit_layer.d"],
        "nvidia_layers",
        ".json",
        "share/vulkan/implicit_layer.d",
    ),
    (&["usr/share/glvnd/egl_vendor.d"], "10_nvidia", ".json", "share/glvnd/egl_vendor.d"),
    (&["usr/share/egl/egl_external_platform.d"], "", ".json", "share/egl/egl_external_platform.d"),
    (&["usr/share/nvidia", "usr/lib/nvidia/current"], "nvoptix", ".bin", "share/nvidia"),
    (&["usr/share/nvidia"], "nvidia-application-profiles-", "-rc", "share/nvidia"),
];

/// A file of the host, and its path in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// On the host.
    pub from: PathBuf,
    /// In the tree.
    pub to: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The user space of one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its files.
    pub files: Vec<Item>,
    /// The links among its libraries: name and target.
    pub links: BTreeMap<String, String>,
    /// The glibc that libcuda and libnvidia-ml need.
    pub glibc: Option<Glibc>,
}

impl Found {
    /// The size of all files in bytes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The library that is not there.
    pub library: String,
    /// Other versions that are there.
    pub others: Vec<Version>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not on this host", self.library)?;
        match self.others.as_slice() {
            [] => Ok(()),
            others => {
                let others: Vec<&str> = others.iter().map(Version::as_str).collect();
                write!(f, "; its driver files are {}", others.join(", "))
            }
        }
    }
}

/// A library that may belong to it.
struct Library {
    item: Item,
    elf: Elf,
    own_version: bool,
}

/// Looks for the user space of `version` below `root`.
///
/// # Errors
/// A library of [`NEEDED`] is missing.
pub fn find(root: &Path, version: &Version) -> Result<Found, Missing> {
    let mut libraries: BTreeMap<String, Library> = BTreeMap::new();
    let mut others = Vec::new();
    for directory in directories(root) {
        for name in names(&directory) {
            if let Some(library) = library(&directory, &name, version) {
                libraries.entry(name).or_insert(library);
            } else if let Some(other) = name.strip_prefix("libnvidia-ml.so.") {
                let other = other.parse::<Version>().ok().filter(|other| other != version);
                others.extend(other.filter(|other| !others.contains(other)));
            }
        }
    }
    let mut found = of_libraries(libraries, version).map_err(|library| Missing { library, others })?;
    found.files.extend(PROGRAMS.iter().filter_map(|name| program(root, name)));
    found.files.extend(SHARES.iter().flat_map(|share| shared(root, share, version)));
    Ok(found)
}

/// The libraries of a directory, all of one package: those that `admitted` names,
/// in the tree as they lie there.
///
/// # Errors
/// The library of [`NEEDED`] that is missing.
pub fn libraries(
    directory: &Path,
    version: &Version,
    admitted: impl Fn(&str) -> bool,
) -> Result<Found, String> {
    let all = names(directory).into_iter().filter(|name| admitted(name));
    let library = |name: String| Some((name.clone(), open(directory, &name, !is_versioned(&name, version))?));
    of_libraries(all.filter_map(library).collect(), version)
}

/// Those of a package, without what a distribution built itself.
fn of_libraries(mut libraries: BTreeMap<String, Library>, version: &Version) -> Result<Found, String> {
    let missing = NEEDED.iter().map(|needed| format!("{needed}.{version}"));
    if let Some(library) = missing.into_iter().find(|library| !libraries.contains_key(library)) {
        return Err(library);
    }
    // The most that NVIDIA's own need.
    let most = libraries.values().filter(|library| !library.own_version).filter_map(|l| l.elf.glibc).max();
    libraries.retain(|_, library| !library.own_version || library.elf.glibc <= most);
    let core = NEEDED.iter().filter_map(|needed| libraries.get(&format!("{needed}.{version}"))?.elf.glibc);
    let mut found = Found { glibc: core.max(), links: links(&libraries), files: Vec::new() };
    found.files.extend(libraries.into_values().map(|library| library.item));
    Ok(found)
}

/// The directories that may hold a part of it, each once.
fn directories(root: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    let mut add = |path: PathBuf| {
        // usr/lib64 may be a link to usr/lib.
        if let Ok(real) = path.canonicalize() {
            if real.is_dir() && !all.contains(&real) {
                all.push(real);
            }
        }
    };
    for directory in DIRECTORIES.map(|directory| root.join(directory)) {
        add(directory.clone());
        for below in ["vdpau", "tls", "nvidia"] {
            add(directory.join(below));
        }
        for name in names(&directory.join("nvidia")) {
            add(directory.join("nvidia").join(&name));
            add(directory.join("nvidia").join(name).join("vdpau"));
        }
    }
    all
}

/// The names in a directory, in order; none where it is missing.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().to_str().map(str::to_owned)).collect();
    names.sort();
    names
}

/// The regular file behind a path, with its size. Opened without waiting for
/// anything that may be in its place.
fn regular(path: &Path) -> Option<(File, u64)> {
    let (file, meta) = crate::sys::file::open(path).ok()?;
    Some((file, meta.len()))
}

/// Whether a name is that of a library of NVIDIA's for containers.
pub fn is_library(name: &str, version: &Version) -> bool {
    name.starts_with("lib")
        && (is_of_own_version(name) || is_versioned(name, version))
        && !NOT_FOR_CONTAINERS.iter().any(|other| name.starts_with(other))
}

fn is_of_own_version(name: &str) -> bool {
    OWN_VERSION.iter().any(|family| name.starts_with(family))
}

fn is_versioned(name: &str, version: &Version) -> bool {
    name.strip_suffix(version.as_str()).is_some_and(|stem| stem.ends_with(".so."))
}

fn library(directory: &Path, name: &str, version: &Version) -> Option<Library> {
    is_library(name, version).then(|| open(directory, name, is_of_own_version(name)))?
}

/// A library with what its ELF header says; `None` for what is no library of this
/// machine, or glvnd's.
fn open(directory: &Path, name: &str, own_version: bool) -> Option<Library> {
    let path = directory.join(name);
    // A link among these is a SONAME, made anew.
    if own_version && path.is_symlink() {
        return None;
    }
    let (file, size) = regular(&path)?;
    let elf = elf::read(&file)?;
    if elf.soname.as_deref().is_some_and(|soname| NOT_NVIDIAS.contains(&soname)) {
        return None;
    }
    Some(Library { item: Item { from: path, to: name.to_owned(), size }, elf, own_version })
}

/// A link for each SONAME, and the names that only programs know.
fn links(libraries: &BTreeMap<String, Library>) -> BTreeMap<String, String> {
    let mut links = BTreeMap::new();
    for (name, library) in libraries {
        let soname = library.elf.soname.as_ref().filter(|soname| *soname != name && is_plain(soname));
        if let Some(soname) = soname {
            // Of two files with one SONAME the driver's own goes first.
            if !library.own_version || !links.contains_key(soname) {
                links.insert(soname.clone(), name.clone());
            }
        }
    }
    for (bare, soname) in BARE {
        if links.contains_key(soname) {
            links.insert(bare.to_owned(), soname.to_owned());
        }
    }
    links
}

/// Whether a name from a file can be the name of a link.
pub fn is_plain(name: &str) -> bool {
    name.starts_with("lib") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
}

fn program(root: &Path, name: &str) -> Option<Item> {
    let from = root.join("usr/bin").join(name);
    let (file, size) = regular(&from)?;
    elf::read(&file)?;
    Some(Item { from, to: format!("bin/{name}"), size })
}

fn shared(root: &Path, (directories, begins, ends, to): &Share, version: &Version) -> Vec<Item> {
    let mut items: BTreeMap<String, Item> = BTreeMap::new();
    for directory in directories.iter().map(|directory| root.join(directory)) {
        for name in names(&directory) {
            let middle = name.strip_prefix(begins).and_then(|rest| rest.strip_suffix(ends));
            // Where the name has a version it is this one.
            let fits = middle.is_some_and(|middle| {
                (middle.parse::<Version>().is_err() || middle == version.as_str())
                    && (!begins.is_empty() || middle.contains("nvidia"))
            });
            let from = directory.join(&name);
            if let Some((_, size)) = fits.then(|| regular(&from)).flatten() {
                let path = format!("{to}/{name}");
                items.entry(name).or_insert(Item { from, to: path, size });
            }
        }
    }
    items.into_values().collect()
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
