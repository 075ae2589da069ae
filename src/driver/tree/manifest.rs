//! What a tree holds, written in it: a tree with a file that lists all others is
//! whole, or it can be seen what is missing.

use super::elf::Glibc;
use super::find::Found;
use crate::types::Version;
use std::path::Path;

/// Its name in the tree; a container knows a tree of ours by it.
pub const NAME: &str = ".phoenix-nvidia";
/// It is small, in bytes.
const MOST: u64 = 256 * 1024;
const FIRST: &str = "phoenix-nvidia driver 1";

/// What a tree is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The host's own files.
    #[default]
    Host,
    /// NVIDIA's runfile.
    Runfile,
}

/// The content of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The driver's version.
    pub version: Version,
    /// What it was made of.
    pub origin: Origin,
    /// How often it was repaired: that tells a copy from the one that it replaced.
    pub repairs: u32,
    /// The glibc that it needs.
    pub glibc: Option<Glibc>,
    /// The files, with their sizes in bytes.
    pub files: Vec<(String, u64)>,
    /// The links, with their targets.
    pub links: Vec<(String, String)>,
}

impl Manifest {
    /// That of what was found.
    pub fn of(version: &Version, origin: Origin, found: &Found) -> Manifest {
        Manifest {
            version: version.clone(),
            origin,
            repairs: 0,
            glibc: found.glibc,
            files: found.files.iter().map(|file| (file.to.clone(), file.size)).collect(),
            links: found.links.iter().map(|(name, target)| (name.clone(), target.clone())).collect(),
        }
    }

    /// That of a tree; `None` where there is none, or one of another form.
    pub fn read(tree: &Path) -> Option<Manifest> {
        Manifest::parse(&crate::sys::file::text(&tree.join(NAME), MOST).ok()?)
    }

    /// As it is written.
    pub fn text(&self) -> String {
        let glibc = self.glibc.map(|glibc| format!("glibc {glibc}\n")).unwrap_or_default();
        let files = self.files.iter().map(|(name, size)| format!("file {size} {name}\n"));
        let links = self.links.iter().map(|(name, target)| format!("link {name} {target}\n"));
        let list: String = files.chain(links).collect();
        let origin = if self.origin == Origin::Runfile { "origin runfile\n" } else { "" };
        let repairs = if self.repairs > 0 { format!("repairs {}\n", self.repairs) } else { String::new() };
        format!("{FIRST}\nversion {}\n{origin}{repairs}{glibc}{list}end\n", self.version)
    }

    fn parse(text: &str) -> Option<Manifest> {
        let mut lines = text.lines();
        (lines.next()? == FIRST).then_some(())?;
        let version = lines.next()?.strip_prefix("version ")?.parse().ok()?;
        let mut manifest = Manifest::of(&version, Origin::Host, &Found::default());
        for line in lines {
            match line.split_once(' ') {
                Some(("origin", "runfile")) => manifest.origin = Origin::Runfile,
                Some(("repairs", number)) => manifest.repairs = number.parse().ok()?,
                Some(("glibc", glibc)) => manifest.glibc = Some(glibc.parse().ok()?),
                Some(("file", rest)) => {
                    let (size, name) = rest.split_once(' ')?;
                    manifest.files.push((name.to_owned(), size.parse().ok()?));
                }
                Some(("link", rest)) => {
                    let (name, target) = rest.split_once(' ')?;
                    manifest.links.push((name.to_owned(), target.to_owned()));
                }
                None if line == "end" => return Some(manifest),
                _ => {}
            }
        }
        None
    }

    /// What a name is: a file with its size, or a link with its target.
    pub fn entry(&self, name: &str) -> Option<(Option<u64>, Option<&str>)> {
        let file = self.files.iter().find(|(file, _)| file == name).map(|(_, size)| (Some(*size), None));
        let link = || self.links.iter().find(|(link, _)| link == name);
        file.or_else(|| link().map(|(_, target)| (None, Some(target.as_str()))))
    }

    /// The files and links that a tree lacks, or has with another size or
    /// target.
    pub fn lacking(&self, tree: &Path) -> Vec<String> {
        let file = |(name, size): &&(String, u64)| {
            let meta = std::fs::symlink_metadata(tree.join(name));
            !meta.is_ok_and(|meta| meta.is_file() && meta.len() == *size)
        };
        let link = |(name, target): &&(String, String)| {
            !std::fs::read_link(tree.join(name)).is_ok_and(|found| found == Path::new(target))
        };
        let files = self.files.iter().filter(file).map(|(name, _)| name.clone());
        files.chain(self.links.iter().filter(link).map(|(name, _)| name.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_one_that_was_cut_off_is_none() {
        let mut manifest = Manifest {
            version: "580.95.05".parse().unwrap(),
            origin: Origin::Host,
            repairs: 0,
            glibc: "2.14".parse().ok(),
            files: vec![("libcuda.so.580.95.05".into(), 5), ("share/a b".into(), 0)],
            links: vec![("libcuda.so.1".into(), "libcuda.so.580.95.05".into())],
        };
        assert_eq!(Manifest::parse(&manifest.text()), Some(manifest.clone()));
        (manifest.origin, manifest.repairs) = (Origin::Runfile, 3);
        let text = manifest.text();
        assert_eq!(Manifest::parse(&text), Some(manifest));
        for length in 0..text.len() - 1 {
            assert_eq!(Manifest::parse(&text[..length]), None, "{length}");
        }
        assert_eq!(Manifest::parse(&text.replace("driver 1", "driver 2")), None);
    }
}
