//! `NVIDIA-Linux-<arch>-<version>.run`, made in milliseconds.

use super::cksum::cksum;
use super::elf::shared_object;
use super::options::Options;
use super::package::{self, Compression, Trap};
use super::tar::Tar;
use crate::cache;
use crate::web::Site;
use anyhow::{Context, Result, bail};
use md5::{Digest, Md5};
use sha2::Sha256;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

const STUB: &str = include_str!("stub.sh");
const INSTALLER: &str = include_str!("installer.sh");
const SMI: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nvidia-smi"));
const STAMP: &[u8] = b"lab nvidia-smi stamp:...........................";
const ARCH: &str = std::env::consts::ARCH;

/// The libraries of a driver: the name before `.so`, and the number of its SONAME.
const LIBRARIES: [(&str, &str); 8] = [
    ("libnvidia-ml", "1"),
    ("libcuda", "1"),
    ("libnvidia-ptxjitcompiler", "1"),
    ("libnvidia-encode", "1"),
    ("libnvcuvid", "1"),
    ("libnvidia-opencl", "1"),
    ("libnvidia-cfg", "1"),
    ("libGLX_nvidia", "0"),
];

/// What goes wrong with an installer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// It takes this many seconds more, half way through, in a child process.
    Slow(u32),
    /// It runs this line of shell before anything else.
    Runs(String),
    /// It ends with 0 and has installed nothing.
    NothingInstalled,
    /// It ends with 1 and a message.
    Fails,
    /// It prints without end.
    Endless,
    /// It takes for ever, and TERM does not end it.
    Deaf,
    /// It ends with 3 and leaves a child behind, with its output open.
    LeavesChild,
    /// It dies of SIGBUS half way, as on a full disk.
    HalfInstalled,
    /// It installs another version than its name says.
    Installs(String),
    /// A byte of it is not what its sums say.
    Damaged,
}

/// What a runfile is to be like.
#[derive(Debug, Clone)]
pub struct Runfile {
    version: String,
    arch: String,
    flaw: Option<Flaw>,
    size: u64,
    tree: Option<PathBuf>,
    compression: Compression,
    trap: Option<Trap>,
    listed: bool,
    wrapped: usize,
}

impl Runfile {
    /// A good one.
    pub fn new(version: &str) -> Self {
        Self {
            version: version.to_owned(),
            arch: ARCH.to_owned(),
            flaw: None,
            size: 0,
            tree: None,
            compression: Compression::None,
            trap: None,
            listed: false,
            wrapped: 0,
        }
    }

    /// One that fails.
    pub fn flaw(mut self, flaw: Flaw) -> Self {
        self.flaw = Some(flaw);
        self
    }

    /// One for another architecture, by its header; it refuses to run here.
    pub fn arch(mut self, arch: &str) -> Self {
        self.arch = arch.to_owned();
        self
    }

    /// One of at least this many bytes.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = bytes;
        self
    }

    /// One with the files of a real driver, from one flat directory, instead of small stand-ins: `lib*.so.VERSION`, and
    /// programs. The installer is the lab's all the same.
    pub fn tree(mut self, directory: &Path) -> Self {
        self.tree = Some(directory.to_owned());
        self
    }

    /// One whose payload is compressed, with an embedded decompressor where NVIDIA's has one.
    pub fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// One with something that a payload must not have, and sums that are right.
    pub fn trap(mut self, trap: Trap) -> Self {
        self.trap = Some(trap);
        self
    }

    /// One with NVIDIA's list for container tools, which leaves out libnvcuvid.
    pub fn listed(mut self) -> Self {
        self.listed = true;
        self
    }

    /// So many of it in one archive of stock makeself, as drivers for data centers are published.
    pub fn wrapped(mut self, times: usize) -> Self {
        self.wrapped = times;
        self
    }

    /// Its file name.
    pub fn name(&self) -> String {
        format!("NVIDIA-Linux-{}-{}.run", self.arch, self.version)
    }

    /// The path of its URL at NVIDIA's server.
    pub fn url_path(&self) -> String {
        // Measured: `Linux-aarch64` is no directory there.
        let platform =
            if self.arch == "aarch64" { "aarch64".to_owned() } else { format!("Linux-{}", self.arch) };
        format!("/XFree86/{platform}/{}/{}", self.version, self.name())
    }

    /// The path of the datacenter branch, where some drivers are found only.
    pub fn tesla_path(&self) -> String {
        format!("/tesla/{}/{}", self.version, self.name())
    }

    /// Makes it, or takes it from the cache, and returns where it lies.
    pub fn build(&self) -> Result<PathBuf> {
        let mut key = Sha256::new();
        for part in [STUB.as_bytes(), INSTALLER.as_bytes(), SMI, format!("{self:?}").as_bytes()] {
            key.update(part);
        }
        let key = hex(&key.finalize()[..8]);
        let dir = cache::once(&format!("runfiles/{key}"), |fresh| {
            fs::create_dir(fresh).with_context(|| format!("making {}", fresh.display()))?;
            let file = fresh.join(self.name());
            fs::write(&file, self.bytes()?).with_context(|| format!("writing {}", file.display()))
        })?;
        Ok(dir.join(self.name()))
    }

    /// Puts it on a site at NVIDIA's path, with its `.sha256sum` beside it, and returns that path.
    pub fn publish(&self, site: &Site) -> Result<String> {
        let path = self.url_path();
        self.publish_at(site, &path)?;
        Ok(path)
    }

    /// The same at another path.
    pub fn publish_at(&self, site: &Site, path: &str) -> Result<()> {
        let file = self.build()?;
        site.put(&format!("{path}.sha256sum"), sha256sum(&file)?.as_bytes())?;
        site.put_file(path, &file)
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        if self.wrapped > 0 {
            let inner = Self { wrapped: 0, ..self.clone() };
            return package::wrap(&inner.name(), &inner.bytes()?, self.wrapped);
        }
        let payload = self.compression.of(&self.payload()?)?;
        // The sums cover the line with the payload's place and all behind it, so they come last.
        let lines = STUB.lines().count();
        let need = payload.len() / 1024 + 1024;
        let mut embedded = Vec::new();
        if self.compression.embeds() {
            embedded = package::decompressor();
            embedded.push(b'\n');
        }
        let more = embedded.iter().filter(|byte| **byte == b'\n').count();
        let stub = STUB
            .replace("@SKIP@", &(lines + 1 + more).to_string())
            .replace("@DSKIP@", &(lines + 1).to_string())
            .replace("@DSIZE@", &more.to_string())
            .replace("@UNDO@", self.compression.undo())
            .replace("@NEED@", &need.to_string())
            .replace("@VERSION@", &self.version)
            .replace("@ARCH@", &self.arch);
        let Some((third, _)) = stub.match_indices('\n').nth(2) else {
            bail!("the stub of a runfile has fewer than three lines");
        };
        let (top, rest) = stub.split_at(third + 1);
        let mut covered = rest.as_bytes().to_vec();
        covered.extend(embedded);
        covered.extend(payload);
        let top =
            top.replace("@CRC@", &cksum(&covered).to_string()).replace("@MD5@", &hex(&Md5::digest(&covered)));
        if self.flaw == Some(Flaw::Damaged) {
            let middle = covered.len() / 2;
            covered[middle] ^= 1;
        }
        Ok([top.as_bytes(), &covered].concat())
    }

    fn payload(&self) -> Result<Vec<u8>> {
        let installed = match &self.flaw {
            Some(Flaw::Installs(other)) => other,
            _ => &self.version,
        };
        let mut tar = Tar::default();
        let mut manifest = String::new();
        let mut genuine = package::manifest(installed);
        if let Some(trap) = self.trap {
            trap.put(&mut tar, installed);
        }
        tar.file("nvidia-installer", 0o755, self.installer(installed).as_bytes());
        if let Some(tree) = &self.tree {
            real_files(tree, &mut tar, &mut manifest, &mut genuine)?;
            tar.file("manifest", 0o644, manifest.as_bytes());
            tar.file(".manifest", 0o644, genuine.as_bytes());
            return Ok(tar.finish());
        }
        for (at, (library, number)) in LIBRARIES.iter().enumerate() {
            let soname = format!("{library}.so.{number}");
            let file = format!("{library}.so.{installed}");
            tar.file(&file, 0o755, &shared_object(&soname, installed));
            let _ = write!(manifest, "lib {file}\nlink {soname} {file}\nlink {library}.so {soname}\n");
            // Some links are left to ldconfig.
            genuine.push_str(&package::library(&file, (at % 2 == 0).then_some(&soname)));
            if at == 2 {
                manifest.push_str("half\n");
            }
        }
        tar.file("nvidia-smi", 0o755, &smi(installed)?);
        manifest
            .push_str("bin nvidia-smi\nbin nvidia-installer\nbinlink nvidia-uninstall nvidia-installer\n");
        tar.file("manifest", 0o644, manifest.as_bytes());
        self.others(&mut tar, installed, &genuine);
        let missing = usize::try_from(self.size)?.saturating_sub(tar.size());
        if missing > 0 {
            tar.file("padding", 0o644, &noise(missing));
        }
        Ok(tar.finish())
    }

    /// What containers get of a driver besides its libraries, and what they must not get.
    fn others(&self, tar: &mut Tar, version: &str, manifest: &str) {
        for name in ["firmware/gsp_ga10x.bin", "kernel/dkms.conf", "README.txt", "nvidia_icd_vksc.json"] {
            tar.file(name, 0o644, b"of the host\n");
        }
        for (name, soname) in [
            (format!("32/libcuda.so.{version}"), "libcuda.so.1"),
            // Not in the manifest, and glvnd's by its SONAME.
            (format!("libEGL.so.{version}"), "libEGL.so.1"),
            ("libGL.so.1.7.0".to_owned(), "libGL.so.1"),
            (format!("libnvidia-gtk3.so.{version}"), "libnvidia-gtk3.so"),
        ] {
            tar.file(&name, 0o755, &shared_object(soname, version));
        }
        tar.file("nvidia-modprobe", 0o4755, b"#!/bin/sh\n");
        for name in ["nvidia.icd", "nvidia_icd.json", "10_nvidia.json", "./10_nvidia_wayland.json"] {
            tar.file(name, 0o444, b"{}\n");
        }
        if self.listed {
            let libraries = LIBRARIES.iter().filter(|(name, _)| *name != "libnvcuvid");
            let mut all: Vec<String> = libraries
                .map(|(name, _)| package::listed(&format!("{name}.so.{version}"), "LIB", "cuda"))
                .collect();
            all.push(package::listed("nvidia-smi", "BINARY", "nvml"));
            all.push(package::listed("nvidia-modprobe", "MODPROBE", "modprobe"));
            all.push(package::listed("nvidia.icd", "ICD", "opencl"));
            all.push(package::listed(&format!("libnvidia-gtk3.so.{version}"), "LIB", "utils"));
            tar.file("sandboxutils-filelist.json", 0o755, format!("[{}]", all.join(",")).as_bytes());
        }
        tar.file(".manifest", 0o644, manifest.as_bytes());
    }

    fn installer(&self, version: &str) -> String {
        let options = Options::of(version);
        let flaw = match &self.flaw {
            Some(Flaw::Runs(line)) => line.clone(),
            Some(Flaw::NothingInstalled) => "exit 0".to_owned(),
            Some(Flaw::Fails) => "fail \"The installer was told to fail.\"".to_owned(),
            Some(Flaw::Deaf) => "trap '' TERM; while :; do sleep 1000; done".to_owned(),
            Some(Flaw::LeavesChild) => "sleep 1000 & exit 3".to_owned(),
            Some(Flaw::Endless) => "while :; do echo 'WARNING: and so on'; done".to_owned(),
            _ => String::new(),
        };
        let half = match self.flaw {
            Some(Flaw::HalfInstalled) => "kill -BUS $$".to_owned(),
            Some(Flaw::Slow(seconds)) => format!("sleep {seconds}"),
            _ => ":".to_owned(),
        };
        INSTALLER
            .replace("@VERSION@", version)
            .replace("@ARCH@", &self.arch)
            .replace("@PLURAL@", options.plural)
            .replace("@GLVND@", options.glvnd)
            .replace("@GLVND_CHOICE@", options.glvnd_choice)
            .replace("@ALTERNATES@", options.alternates)
            .replace("@VALUES@", &options.values)
            .replace("@VALUES_JOINED@", &options.values_joined)
            .replace("@FLAGS@", &options.flags)
            .replace("@FLAW@", &flaw)
            .replace("@HALF@", &half)
    }
}

/// A real driver's files; its SONAME links are left to ldconfig.
fn real_files(tree: &Path, tar: &mut Tar, manifest: &mut String, genuine: &mut String) -> Result<()> {
    let entries = fs::read_dir(tree).with_context(|| tree.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        tar.file(&name, 0o755, &fs::read(&file).with_context(|| name.clone())?);
        let kind = if name.starts_with("lib") { "lib" } else { "bin" };
        if kind == "lib" {
            genuine.push_str(&package::library(&name, None));
        }
        let _ = writeln!(manifest, "{kind} {name}");
    }
    manifest.push_str("link libcuda.so libcuda.so.1\n");
    manifest.push_str("bin nvidia-installer\nbinlink nvidia-uninstall nvidia-installer\n");
    Ok(())
}

/// An nvidia-smi of a version: a static program that runs in every container, and on the lab's host.
pub fn smi(version: &str) -> Result<Vec<u8>> {
    let mut program = SMI.to_vec();
    let Some(at) = program.windows(STAMP.len()).position(|window| window == STAMP) else {
        bail!("the lab's nvidia-smi has no place for its version");
    };
    let text_at = at + STAMP.len() - STAMP.iter().rev().take_while(|&&byte| byte == b'.').count();
    let room = at + STAMP.len() - text_at;
    if version.len() > room {
        bail!("a version of more than {room} characters: {version}");
    }
    program[text_at..text_at + version.len()].copy_from_slice(version.as_bytes());
    Ok(program)
}

/// The line of a `.sha256sum` file for a file.
pub fn sha256sum(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{}  {name}\n", hex(&Sha256::digest(&bytes))))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Bytes that no compression and no resumed download at the wrong place would give again.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests;
