//! One Debian package, made by dpkg-deb from what it is to hold.

use crate::cache;
use crate::nvidia::runfile::hex;
use crate::program::run;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// dpkg's name for this machine.
pub(super) fn machine() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

#[derive(Debug, Clone)]
enum Entry {
    File { mode: u32, bytes: Vec<u8> },
    Link(String),
}

/// A package in the making.
#[derive(Debug, Clone)]
pub struct Package {
    name: String,
    version: String,
    architecture: String,
    fields: Vec<(String, String)>,
    entries: Vec<(String, Entry)>,
    scripts: Vec<(String, String)>,
}

impl Package {
    /// An empty package for this machine.
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: machine().to_owned(),
            fields: Vec::new(),
            entries: Vec::new(),
            scripts: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The packages it needs, as in a control file: `dkms, libcuda1 (= 580.95.05-1)`.
    pub fn depends(self, on: &str) -> Self {
        self.field("Depends", on)
    }

    /// Any other field of the control file.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file at an absolute path; 0o755 makes it a program.
    pub fn file(mut self, path: &str, mode: u32, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref().to_vec();
        self.entries.push((path.to_owned(), Entry::File { mode, bytes }));
        self
    }

    /// A symbolic link at an absolute path.
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.entries.push((path.to_owned(), Entry::Link(target.to_owned())));
        self
    }

    /// A maintainer script: `postinst` with `exit 1`, say, for a package whose configuration fails.
    pub fn script(mut self, name: &str, body: &str) -> Self {
        self.scripts.push((name.to_owned(), format!("#! /bin/sh\nset -e\n{body}\n")));
        self
    }

    /// Its file name in a repository. A `:` of an epoch isn't part of it, as dpkg has it.
    pub(super) fn file_name(&self) -> String {
        let version = self.version.split_once(':').map_or(self.version.as_str(), |(_, rest)| rest);
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }

    /// The control file; a repository's `Packages` says the same and a little more.
    pub(super) fn control(&self) -> String {
        let mut text = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: The lab <lab@example.com>\n",
            self.name, self.version, self.architecture
        );
        let bytes: usize = self.entries.iter().map(|(_, entry)| entry.size()).sum();
        text += &format!("Installed-Size: {}\nSection: non-free\nPriority: optional\n", bytes / 1024);
        for (name, value) in &self.fields {
            text += &format!("{name}: {value}\n");
        }
        text + "Description: stands in for the package of this name\n"
    }

    /// What it is, in short: equal packages have equal keys.
    pub(super) fn key(&self) -> String {
        hex(&Sha256::digest(format!("1 {self:?}"))[..8])
    }

    /// Makes the package, or takes it from the cache.
    pub fn build(&self) -> Result<PathBuf> {
        cache::once(&format!("debs/{}.deb", self.key()), |fresh| {
            let tree = tempfile::tempdir().context("making a directory for a package")?;
            self.fill(tree.path())?;
            let mut dpkg = Command::new("dpkg-deb");
            dpkg.args(["--root-owner-group", "-Zgzip", "--build"]).arg(tree.path()).arg(fresh);
            // The same bytes whenever it is made, so that two who make it at once agree.
            run(dpkg.env("SOURCE_DATE_EPOCH", "1735689600")).map(drop)
        })
        .with_context(|| format!("making the package {}", self.name))
    }

    fn fill(&self, tree: &Path) -> Result<()> {
        fs::set_permissions(tree, fs::Permissions::from_mode(0o755))?;
        let put = |path: &str, mode: u32, bytes: &[u8]| -> Result<()> {
            let place = tree.join(path.trim_start_matches('/'));
            parent(&place)?;
            fs::write(&place, bytes).with_context(|| format!("writing {}", place.display()))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(mode))?;
            Ok(())
        };
        put("DEBIAN/control", 0o644, self.control().as_bytes())?;
        for (name, text) in &self.scripts {
            put(&format!("DEBIAN/{name}"), 0o755, text.as_bytes())?;
        }
        for (path, entry) in &self.entries {
            match entry {
                Entry::File { mode, bytes } => put(path, *mode, bytes)?,
                Entry::Link(target) => {
                    let place = tree.join(path.trim_start_matches('/'));
                    parent(&place)?;
                    symlink(target, &place).with_context(|| format!("linking {path}"))?;
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    fn size(&self) -> usize {
        match self {
            Self::File { bytes, .. } => bytes.len(),
            Self::Link(_) => 0,
        }
    }
}

fn parent(place: &Path) -> Result<()> {
    let parent = place.parent().unwrap_or(place);
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))
}
