//! NVIDIA's two lists in the payload of a runfile: `.manifest`, by which its
//! installer goes, and `sandboxutils-filelist.json`, which names for container
//! tools what a container needs. The latter is there from driver 570.86 on. Pure.

use crate::types::Version;
use anyhow::Context as _;
use serde::Deserialize;

/// Its name in the payload.
pub const MANIFEST: &str = ".manifest";
/// Its name in the payload.
pub const FILE_LIST: &str = "sandboxutils-filelist.json";

/// A file or link of the package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the payload.
    pub name: String,
    /// Its type, like `CUDA_LIB`.
    pub kind: String,
    /// A library for the machine's own architecture.
    pub native: bool,
    /// Where it leads to, if it is a symbolic link. These are made by the
    /// installer.
    pub target: Option<String>,
}

/// Libraries of these types are not NVIDIA's own, not for containers, or for
/// Windows: by the beginning of the type.
const OTHER_LIBRARIES: [&str; 8] = [
    "XMODULE",
    "GLX_MODULE",
    "GLVND_LIB",
    "GLX_CLIENT",
    "EGL_CLIENT",
    "OPENCL_WRAPPER",
    "INTERNAL_UTILITY",
    "WINE_LIB",
];

impl Entry {
    /// Whether it is a library, or a link to one, that may be for a container.
    pub fn is_library(&self) -> bool {
        let other = OTHER_LIBRARIES.iter().any(|kind| self.kind.starts_with(kind));
        self.native && !other && (self.kind.contains("_LIB") || self.kind.ends_with("_SYMLINK"))
    }
}

/// `.manifest`: `FILE MODE TYPE [NATIVE|COMPAT32] [PATH] [TARGET] … MODULE:name` a
/// line, after a description, the version and some lines more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The driver's version.
    pub version: Version,
    /// The files and links.
    pub entries: Vec<Entry>,
}

impl Manifest {
    /// Reads it. A line of another form is passed over: types and words come and
    /// go with the versions.
    ///
    /// # Errors
    /// It has no version.
    pub fn parse(text: &str) -> anyhow::Result<Manifest> {
        let mut lines = text.lines().skip(1);
        let version = lines.next().and_then(|line| line.trim().parse().ok());
        let version = version.context("its .manifest has no driver version in line 2")?;
        Ok(Manifest { version, entries: lines.filter_map(entry).collect() })
    }

    /// Whether it has a library of this name, at the top of the payload.
    pub fn has_library(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.name == name && entry.target.is_none() && entry.is_library())
    }

    /// The links to libraries: name and target, both without a directory.
    pub fn links(&self) -> impl Iterator<Item = (&str, &str)> {
        let libraries = self.entries.iter().filter(|entry| entry.is_library());
        libraries.filter_map(|entry| {
            let target = entry.target.as_deref()?;
            Some((entry.name.as_str(), target.rsplit_once('/').map_or(target, |(_, name)| name)))
        })
    }
}

fn entry(line: &str) -> Option<Entry> {
    // The word of the module comes last; some types lack words that they define.
    let mut words: Vec<&str> =
        line.split_ascii_whitespace().take_while(|word| !word.starts_with("MODULE:")).collect();
    let (name, mode, kind) = (*words.first()?, *words.get(1)?, *words.get(2)?);
    let octal = (3..=5).contains(&mode.len()) && mode.bytes().all(|b| b.is_ascii_digit() && b < b'8');
    if !octal {
        return None;
    }
    let name = name.strip_prefix("./").unwrap_or(name).to_owned();
    let native = words.get(3) == Some(&"NATIVE") && !name.starts_with("32/");
    let last = words.split_off(3).pop();
    let link = mode.bytes().all(|b| b == b'0') && !kind.starts_with("SYSTEMD");
    let target = last.filter(|_| link).map(str::to_owned);
    Some(Entry { name, kind: kind.to_owned(), native, target })
}

/// Categories of what serves the host alone.
const OF_THE_HOST: [&str; 7] =
    ["firmware", "modprobe", "nvpd", "powerd", "xdriver", "utils", "nvsandboxutils"];
/// Of those categories all the same: nvidia-smi's like needs it.
const CFG: &str = "libnvidia-cfg.so.";

/// What an entry is, for a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A library.
    Library,
    /// A program.
    Program,
    /// Another file.
    Data,
}

/// What of the package is for containers, for the machine's own architecture, by
/// `sandboxutils-filelist.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileList(Vec<(String, Kind)>);

#[derive(Deserialize)]
struct Listed {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    category: Vec<String>,
    #[serde(default)]
    is_32bit_compat: serde_json::Value,
}

impl FileList {
    /// Reads it.
    ///
    /// # Errors
    /// It is of another form.
    pub fn parse(text: &[u8]) -> anyhow::Result<FileList> {
        let all: Vec<Listed> = serde_json::from_slice(text).with_context(|| format!("its {FILE_LIST}"))?;
        Ok(FileList(all.into_iter().filter_map(for_containers).collect()))
    }

    /// What it says of a file at the top of the payload.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.0.iter().find(|(listed, _)| listed == name).map(|(_, kind)| *kind)
    }
}

fn for_containers(listed: Listed) -> Option<(String, Kind)> {
    let compat = listed.is_32bit_compat == true || listed.is_32bit_compat == "true";
    let of_the_host = listed.category.iter().all(|category| OF_THE_HOST.contains(&category.as_str()));
    if compat || (of_the_host && !listed.name.starts_with(CFG)) {
        return None;
    }
    let kind = match listed.kind.as_str() {
        "LIB" => Kind::Library,
        "BINARY" => Kind::Program,
        "ICD" | "JSON" | "DATA" | "PROFILE" => Kind::Data,
        _ => return None,
    };
    Some((listed.name, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of the forms that driver 590 has.
    const LINES: &str = "NVIDIA Accelerated Graphics Driver for Linux-x86_64\n590.48.01\n \n\
        nvidia nvidia-uvm  nvidia-modeset nvidia-drm\n \n \n \n \n\
        kernel/dkms.conf 0644 DKMS_CONF INHERIT_PATH_DEPTH:1 MODULE:resman\n\
        nvidia-suspend.service 0000 SYSTEMD_UNIT_SYMLINK systemd-suspend.service.wants MODULE:installer\n\
        libcuda.so.590.48.01 0755 CUDA_LIB NATIVE / MODULE:gpgpu\n\
        libcuda.so.1 0000 CUDA_SYMLINK NATIVE / libcuda.so.590.48.01 MODULE:gpgpu\n\
        ./32/libcuda.so.590.48.01 0755 CUDA_LIB COMPAT32 / MODULE:gpgpu\n\
        libcuda.so.1 0000 CUDA_SYMLINK COMPAT32 / libcuda.so.590.48.01 MODULE:gpgpu\n\
        libvdpau_nvidia.so 0000 VDPAU_SYMLINK NATIVE / vdpau/libvdpau_nvidia.so.590.48.01 MODULE:vdpau\n\
        libGL.so.1.7.0 0755 GLX_CLIENT_LIB NATIVE MODULE:opengl\n\
        libGL.so.1 0000 GLX_CLIENT_SYMLINK NATIVE libGL.so.1.7.0 MODULE:opengl\n\
        libOpenCL.so.1.0.0 0755 OPENCL_WRAPPER_LIB NATIVE / MODULE:gpgpu\n\
        libglxserver_nvidia.so.590.48.01 0755 GLX_MODULE_SHARED_LIB extensions MODULE:opengl\n\
        nvngx.dll 0755 WINE_LIB NATIVE MODULE:ngx\n\
        nvidia-pcc 0755 UTILITY_BINARY /usr/bin MODULE:pcc\n\
        libnew.so.590.48.01 0755 FUTURE_LIB NATIVE what ever MODULE:new\n\
        sandboxutils-filelist.json 0755 SANDBOXUTILS_FILELIST_JSON MODULE:installer\n";

    #[test]
    fn the_manifest_names_native_libraries_and_the_links_to_them() {
        let manifest = Manifest::parse(LINES).unwrap();
        assert_eq!((manifest.version.as_str(), manifest.entries.len()), ("590.48.01", 15));
        for (name, is) in [
            ("libcuda.so.590.48.01", true),
            ("libnew.so.590.48.01", true),
            ("libcuda.so.1", false),
            ("32/libcuda.so.590.48.01", false),
            ("libGL.so.1.7.0", false),
            ("libOpenCL.so.1.0.0", false),
            ("libglxserver_nvidia.so.590.48.01", false),
            ("nvngx.dll", false),
            ("libEGL.so.590.48.01", false),
        ] {
            assert_eq!(manifest.has_library(name), is, "{name}");
        }
        let links: Vec<_> = manifest.links().collect();
        assert_eq!(
            links,
            [
                ("libcuda.so.1", "libcuda.so.590.48.01"),
                ("libvdpau_nvidia.so", "libvdpau_nvidia.so.590.48.01")
            ]
        );
        for bad in ["", "x", "x\n\n", "x\nno version\n"] {
            assert!(Manifest::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_list_for_containers_is_without_the_hosts_own_and_32_bit() {
        let list = r#"[
            {"name": "libcuda.so.590.48.01", "type": "LIB", "category": ["cuda", "optix"]},
            {"name": "libnvidia-ml.so.590.48.01", "type": "LIB", "category": ["nvml"], "is_32bit_compat": "true"},
            {"name": "libnvidia-cfg.so.590.48.01", "type": "LIB", "category": ["utils", "nvpd"]},
            {"name": "libnvidia-gtk3.so.590.48.01", "type": "LIB", "category": ["utils"]},
            {"name": "nvidia-smi", "type": "BINARY", "category": ["nvml"]},
            {"name": "nvidia-persistenced", "type": "BINARY", "category": ["nvpd"]},
            {"name": "firmware/gsp_ga10x.bin", "type": "FIRMWARE", "category": ["firmware"]},
            {"name": "nvidia.icd", "type": "ICD", "category": ["opencl"]},
            {"name": "nvidia-drm_gbm.so", "type": "SYMLINK", "category": ["gbm"]},
            {"name": "x", "type": "LIB", "category": [], "more": {"y": [1]}}
        ]"#;
        let list = FileList::parse(list.as_bytes()).unwrap();
        let names: Vec<_> = list.0.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
        assert_eq!(
            names,
            [
                ("libcuda.so.590.48.01", Kind::Library),
                ("libnvidia-cfg.so.590.48.01", Kind::Library),
                ("nvidia-smi", Kind::Program),
                ("nvidia.icd", Kind::Data)
            ]
        );
        for bad in ["", "{}", "[1]", r#"[{"name": "x"}]"#] {
            assert!(FileList::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_name_never_comes_from_anything_but_one_word(text in "(.{0,40}\n){0,8}") {
            if let Ok(manifest) = Manifest::parse(&text) {
                for entry in manifest.entries {
                    let words = [Some(entry.name), entry.target].into_iter().flatten();
                    proptest::prop_assert!(words.clone().all(|word| !word.contains(|c: char| c.is_ascii_whitespace())));
                }
            }
        }
    }
}
