//! A repository: its packages, their index, and the signature over it.

use super::Package;
use super::key::Key;
use super::package::machine;
use crate::cache;
use crate::nvidia::runfile::hex;
use crate::program::run;
use crate::web::{Site, http_date};
use anyhow::{Context, Result};
use md5::{Digest, Md5};
use sha2::Sha256;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// How a repository is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// With the key that lies beside it.
    Good,
    /// Not at all.
    Unsigned,
    /// With another key than the one that lies beside it.
    OtherKey,
    /// With the right key, but SHA-1, which apt refuses.
    Sha1,
    /// With a key that is bound to its name by SHA-1: good for Debian 12's apt, bad for Debian 13's.
    Sha1Bound,
    /// Rightly, and then the index was changed.
    Altered,
}

/// A repository in the making.
#[derive(Debug, Clone)]
pub struct Repo {
    packages: Vec<Package>,
    signing: Signing,
    key_file: String,
    /// Codename and component; nothing for a flat one.
    dist: Option<(String, String)>,
}

impl Repo {
    /// A flat one, as NVIDIA's: `deb URL /`.
    pub fn flat() -> Self {
        Self { packages: Vec::new(), signing: Signing::Good, key_file: "3bf863cc.pub".to_owned(), dist: None }
    }

    /// One with `dists/<codename>/`, as a distribution's: `deb URL codename component`.
    pub fn dists(codename: &str, component: &str) -> Self {
        let dist = Some((codename.to_owned(), component.to_owned()));
        Self { dist, ..Self::flat() }
    }

    /// Adds a package.
    pub fn package(mut self, package: Package) -> Self {
        self.packages.push(package);
        self
    }

    /// Adds packages.
    pub fn packages(mut self, packages: impl IntoIterator<Item = Package>) -> Self {
        self.packages.extend(packages);
        self
    }

    /// Signs it in another way.
    pub fn signing(mut self, signing: Signing) -> Self {
        self.signing = signing;
        self
    }

    /// Names the file of its key otherwise than NVIDIA's `3bf863cc.pub`.
    pub fn key_file(mut self, name: &str) -> Self {
        self.key_file = name.to_owned();
        self
    }

    /// Makes it, or takes it from the cache, and returns its directory.
    pub fn build(&self) -> Result<PathBuf> {
        let keys: Vec<String> = self.packages.iter().map(Package::key).collect();
        let Self { signing, key_file, dist, .. } = self;
        let what = format!("1 {signing:?} {key_file} {dist:?} {keys:?}");
        let key = hex(&Sha256::digest(what)[..8]);
        cache::once(&format!("repos/{key}"), |fresh| self.write(fresh))
    }

    /// Puts it on a site.
    pub fn publish(&self, site: &Site, url_path: &str) -> Result<()> {
        site.put_dir(url_path, &self.build()?)
    }

    fn write(&self, root: &Path) -> Result<()> {
        let index = match &self.dist {
            Some((code, component)) => format!("dists/{code}/{component}/binary-{}", machine()),
            None => String::new(),
        };
        let release_dir = match &self.dist {
            Some((code, _)) => root.join("dists").join(code),
            None => root.to_owned(),
        };
        let index = root.join(index);
        fs::create_dir_all(&index).with_context(|| format!("making {}", index.display()))?;
        let packages = self.copy_packages(root)?;
        write(&index.join("Packages"), packages.as_bytes())?;
        let zipped = run(Command::new("gzip").arg("-9nc").arg(index.join("Packages")))?;
        write(&index.join("Packages.gz"), &zipped)?;
        write(&release_dir.join("Release"), self.release(&release_dir, &index)?.as_bytes())?;
        let (key, digest) = match self.signing {
            Signing::OtherKey => (Key::Other, "SHA512"),
            Signing::Sha1 => (Key::Own, "SHA1"),
            Signing::Sha1Bound => (Key::Sha1Bound, "SHA512"),
            _ => (Key::Own, "SHA512"),
        };
        if self.signing != Signing::Unsigned {
            key.sign(&release_dir, digest)?;
        }
        if self.signing == Signing::Altered {
            alter(&release_dir)?;
        }
        let beside = if self.signing == Signing::OtherKey { Key::Own } else { key };
        write(&root.join(&self.key_file), &beside.public()?)
    }

    /// Copies the packages and returns the text of their index.
    fn copy_packages(&self, root: &Path) -> Result<String> {
        let pool = if self.dist.is_some() { "pool" } else { "." };
        fs::create_dir_all(root.join(pool)).context("making the pool of a repository")?;
        let mut text = String::new();
        for package in &self.packages {
            let name = format!("{pool}/{}", package.file_name());
            let bytes = fs::read(package.build()?).with_context(|| format!("reading {name}"))?;
            write(&root.join(&name), &bytes)?;
            text += &package.control();
            text += &format!("Filename: {name}\nSize: {}\n", bytes.len());
            text += &format!("MD5sum: {}\n", hex(&Md5::digest(&bytes)));
            text += &format!("SHA256: {}\n\n", hex(&Sha256::digest(&bytes)));
        }
        Ok(text)
    }

    fn release(&self, release_dir: &Path, index: &Path) -> Result<String> {
        let mut text = "Origin: NVIDIA\nLabel: NVIDIA CUDA\n".to_owned();
        if let Some((code, component)) = &self.dist {
            text += &format!("Suite: {code}\nCodename: {code}\nComponents: {component}\n");
        }
        text += &format!("Architectures: {}\n", machine());
        text += &format!("Date: {}\nSHA256:\n", http_date(SystemTime::now(), "UTC"));
        for name in ["Packages", "Packages.gz"] {
            let file = index.join(name);
            let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            let relative = file.strip_prefix(release_dir)?.display();
            text += &format!(" {} {} {relative}\n", hex(&Sha256::digest(&bytes)), bytes.len());
        }
        Ok(text)
    }
}

/// Changes what was signed, in both forms of the signature.
fn alter(release_dir: &Path) -> Result<()> {
    for name in ["InRelease", "Release"] {
        let file = release_dir.join(name);
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        write(&file, text.replace("Origin: NVIDIA", "Origin: nvidia").as_bytes())?;
    }
    Ok(())
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests;
