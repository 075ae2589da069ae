//! A tree out of NVIDIA's runfile, without running it: in one pass, since the list
//! of its files comes last.

use super::find::{self, Found, Item};
use crate::driver::runfile::lists::{FILE_LIST, Kind, MANIFEST, Manifest};
use crate::driver::runfile::{Header, lists::FileList, payload};
use crate::exit;
use crate::sys::text::{line, size};
use crate::sys::time::Deadline;
use crate::sys::{file, private, signal};
use crate::types::Version;
use anyhow::{Context as _, bail};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Space that it leaves free, in bytes.
const RESERVE: u64 = 64 << 20;
/// The limit of one file, in bytes; the largest of driver 590 has 110 MB.
const MOST_OF_FILE: u64 = 1 << 30;
/// The limit of all files together, in bytes.
const MOST: u64 = 4 << 30;
/// The limit of files in the payload; driver 590 has 1,231.
const MOST_FILES: usize = 20_000;
/// The limit of a list, in bytes; the manifest of driver 590 has 74 kB.
const MOST_OF_LIST: u64 = 4 << 20;
/// In the payload of a vGPU driver for hosts, which is without CUDA.
const VGPU_HOST: &str = "is_vgpu_host_package.txt";

/// Other files: the beginning and the end of the names in the payload, what may be
/// between them, and the directory in the tree.
type Share = (&'static str, &'static str, Middle, &'static str);
#[derive(Clone, Copy)]
enum Middle {
    Nothing,
    Version,
    Any,
}
const SHARES: [Share; 7] = [
    ("nvidia", ".icd", Middle::Nothing, "share/OpenCL/vendors"),
    ("nvidia_icd", ".json", Middle::Nothing, "share/vulkan/icd.d"),
    ("nvidia_layers", ".json", Middle::Nothing, "share/vulkan/implicit_layer.d"),
    ("10_nvidia", ".json", Middle::Nothing, "share/glvnd/egl_vendor.d"),
    ("nvoptix", ".bin", Middle::Nothing, "share/nvidia"),
    ("nvidia-application-profiles-", "-rc", Middle::Version, "share/nvidia"),
    // 10_nvidia_wayland.json, 15_nvidia_gbm.json.
    ("", ".json", Middle::Any, "share/egl/egl_external_platform.d"),
];

/// Unpacks the user space of `version` from a verified runfile into the new
/// directory `to`, in the form of a tree, without its links.
///
/// # Errors
/// Why it cannot be unpacked, or does not hold what a driver has.
pub fn unpack(runfile: &Path, version: &Version, to: &Path, deadline: &Deadline) -> anyhow::Result<Found> {
    let name = || runfile.display().to_string();
    let (mut file, meta) = file::open(runfile).with_context(name)?;
    room(to, meta.len())?;
    let header = Header::read(&mut file).with_context(name)?;
    let mut pass = Pass { to, version, files: Vec::new(), texts: Texts::default() };
    payload::read(&file, &header, deadline, |payload| pass.all(payload))
        .and_then(|()| pass.choose(deadline))
        .map_err(|error| if exit::interrupted(&error) { error } else { error.context(name()) })
}

/// Makes the directories of a name in a tree.
pub(super) fn directories(tree: &Path, name: &str) -> anyhow::Result<()> {
    for directory in Path::new(name).ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
        private::directory(&tree.join(directory), 0o755)?;
    }
    Ok(())
}

/// Fails where there is no room for so many bytes more, in a directory of a new tree.
///
/// # Errors
/// How many are needed, and how many there are.
pub fn room(at: &Path, bytes: u64) -> anyhow::Result<()> {
    let free = file::free_space(at).with_context(|| at.display().to_string())?;
    if free < bytes.saturating_add(RESERVE) {
        let above = at.parent().unwrap_or(at);
        bail!("{} needed in {}, {} free", size(bytes + RESERVE), above.display(), size(free));
    }
    Ok(())
}

/// What is read into memory.
#[derive(Default)]
struct Texts {
    manifest: Option<Vec<u8>>,
    list: Option<Vec<u8>>,
    vgpu_host: bool,
}

/// One reading of a payload.
struct Pass<'a> {
    to: &'a Path,
    version: &'a Version,
    /// What may be for containers, by its path in the tree.
    files: Vec<Item>,
    texts: Texts,
}

impl Pass<'_> {
    fn all(&mut self, payload: &mut dyn Read) -> anyhow::Result<()> {
        let mut archive = tar::Archive::new(payload);
        // Raw: a driver needs none of tar's extensions, whose names have no limit.
        for (number, entry) in archive.entries()?.raw(true).enumerate() {
            if number >= MOST_FILES {
                bail!("it holds more than {MOST_FILES} files");
            }
            self.one(&mut entry?)?;
        }
        Ok(())
    }

    fn one(&mut self, entry: &mut tar::Entry<'_, &mut dyn Read>) -> anyhow::Result<()> {
        let path = entry.path_bytes().into_owned();
        if path.starts_with(b"/") || path.split(|b| *b == b'/').any(|part| part == b"..") {
            bail!("it holds a file outside of its directory: {}", line(&path));
        }
        let bare = path.strip_prefix(b"./").unwrap_or(&path);
        // Links and devices are none of a driver's.
        let (Ok(name), tar::EntryType::Regular) = (std::str::from_utf8(bare), entry.header().entry_type())
        else {
            return Ok(());
        };
        match name {
            MANIFEST => self.texts.manifest = Some(text(entry, name)?),
            FILE_LIST => self.texts.list = Some(text(entry, name)?),
            VGPU_HOST => self.texts.vgpu_host = true,
            _ => {
                if let Some(to) = place(name, self.version) {
                    self.put(entry, to)?;
                }
            }
        }
        Ok(())
    }

    /// Writes a file. Its owner is root, its mode none that the archive chose.
    fn put(&mut self, entry: &mut tar::Entry<'_, &mut dyn Read>, to: String) -> anyhow::Result<()> {
        let bytes = entry.size();
        let all: u64 = self.files.iter().map(|item| item.size).sum();
        if bytes > MOST_OF_FILE || all.saturating_add(bytes) > MOST {
            bail!("{to} has {}, more than a driver", size(bytes));
        }
        room(self.to, bytes)?;
        let path = self.to.join(&to);
        directories(self.to, &to)?;
        let mode = if to.starts_with("bin/") { 0o755 } else { 0o644 };
        let new = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let mut new = new.with_context(|| to.clone())?;
        let copied = io::copy(entry, &mut new).with_context(|| to.clone())?;
        if copied != bytes {
            bail!("{to} is cut off");
        }
        // The umask took from it.
        new.set_permissions(Permissions::from_mode(mode))?;
        self.files.push(Item { from: path, to, size: bytes });
        Ok(())
    }

    /// Keeps what is for containers, by NVIDIA's own list where there is one, and
    /// removes the rest.
    fn choose(self, deadline: &Deadline) -> anyhow::Result<Found> {
        let text = self.texts.manifest.as_ref().with_context(|| format!("no {MANIFEST} in it"))?;
        let manifest = Manifest::parse(&String::from_utf8_lossy(text))?;
        if manifest.version != *self.version {
            bail!("its {MANIFEST} is of driver {}, its header of {}", manifest.version, self.version);
        }
        let list = self.texts.list.as_deref().map(FileList::parse).transpose()?;
        let library = |name: &str| match &list {
            Some(list) => list.kind(name) == Some(Kind::Library),
            None => find::is_library(name, self.version) && manifest.has_library(name),
        };
        let mut found = find::libraries(self.to, self.version, library).map_err(|missing| {
            let vgpu = if self.texts.vgpu_host { ": a vGPU driver for hosts has no CUDA" } else { "" };
            anyhow::anyhow!("no {missing} in it{vgpu}")
        })?;
        add_links(&mut found, &manifest);
        for item in self.files {
            let name = item.to.rsplit('/').next().unwrap_or_default();
            let wanted = match (item.to.split_once('/'), &list) {
                (None, _) => found.files.iter().any(|file| file.to == item.to),
                (Some(("bin", _)), None) => find::PROGRAMS.contains(&name),
                (Some(("bin", _)), Some(list)) => list.kind(name) == Some(Kind::Program),
                (Some(_), None) => true,
                (Some(_), Some(list)) => list.kind(name) == Some(Kind::Data),
            };
            if !wanted {
                std::fs::remove_file(&item.from)?;
                // A directory that was made for it alone goes too.
                let above = Path::new(&item.to).ancestors().skip(1).filter(|path| *path != Path::new(""));
                let _ = above.map(|path| std::fs::remove_dir(self.to.join(path))).find(Result::is_err);
                continue;
            }
            signal::check()?;
            deadline.allows("on the disk")?;
            File::open(&item.from)?.sync_all()?;
            if item.to.contains('/') {
                found.files.push(item);
            }
        }
        Ok(found)
    }
}

/// The links of the manifest that no SONAME gives, and whose libraries are there.
fn add_links(found: &mut Found, manifest: &Manifest) {
    let links: Vec<(&str, &str)> = manifest.links().collect();
    // One may lead to another.
    for _ in 0..2 {
        for (name, target) in &links {
            let there =
                |name: &str| found.links.contains_key(name) || found.files.iter().any(|file| file.to == name);
            if find::is_plain(name) && !there(name) && there(target) {
                found.links.insert((*name).to_owned(), (*target).to_owned());
            }
        }
    }
}

/// Reads a list.
fn text(entry: &mut tar::Entry<'_, &mut dyn Read>, name: &str) -> anyhow::Result<Vec<u8>> {
    if entry.size() > MOST_OF_LIST {
        bail!("{name} has {}, more than a driver's", size(entry.size()));
    }
    let mut bytes = Vec::new();
    entry.take(MOST_OF_LIST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Where a file at the top of the payload would lie in a tree, if it may be for
/// containers: that is known in the end. 32-bit libraries, firmware and sources lie
/// in directories.
fn place(name: &str, version: &Version) -> Option<String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    if name.len() > 100 || !name.bytes().all(is_plain) {
        return None;
    }
    if find::is_plain(name) && name.contains(".so") {
        return Some(name.to_owned());
    }
    if name.starts_with("nvidia-") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
        return Some(format!("bin/{name}"));
    }
    let share = SHARES.iter().find(|(begins, ends, middle, _)| {
        let between = name.strip_prefix(begins).and_then(|rest| rest.strip_suffix(ends));
        between.is_some_and(|between| match middle {
            Middle::Nothing => between.is_empty(),
            Middle::Version => between == version.as_str(),
            Middle::Any => between
                .split_once("_nvidia_")
                .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())),
        })
    })?;
    Some(format!("{}/{name}", share.3))
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
