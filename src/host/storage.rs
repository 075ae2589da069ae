//! The storages of `/etc/pve/storage.cfg`, as far as hookscripts need them.

use super::look::Look;
use super::sections::{self, Section};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Where Proxmox keeps them.
pub const FILE: &str = "/etc/pve/storage.cfg";

/// A storage that is a directory, and so can hold snippets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Its name.
    pub id: String,
    /// What it may hold: `iso`, `snippets`, …
    pub content: Vec<String>,
    /// The same directory on every node.
    pub shared: bool,
    /// The nodes that have it; `None`: all.
    pub nodes: Option<Vec<String>>,
    /// Switched off.
    pub disabled: bool,
    /// Where it keeps snippets.
    pub snippets: PathBuf,
    /// What has to be mounted for it to be there.
    pub mount: Option<PathBuf>,
}

impl Storage {
    /// Whether hookscripts may lie there.
    pub fn has_snippets(&self) -> bool {
        !self.disabled && self.content.iter().any(|c| c == "snippets")
    }

    /// Whether it is there: a file that is put below an empty mount point is
    /// hidden as soon as the storage is mounted.
    pub fn is_mounted(&self) -> bool {
        let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
        self.mount.as_deref().is_none_or(|at| {
            let own = device(at);
            own.is_some() && own != at.parent().and_then(device)
        })
    }

    /// Whether a node has it.
    pub fn is_on(&self, node: &str) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.iter().any(|n| n == node))
    }

    /// The volume id of a snippet there.
    pub fn volume(&self, name: &str) -> String {
        format!("{}:snippets/{name}", self.id)
    }

    /// The command that lets it hold snippets too.
    pub fn allow_snippets(&self) -> String {
        let content: Vec<&str> =
            self.content.iter().map(String::as_str).filter(|c| *c != "none").chain(["snippets"]).collect();
        format!("pvesm set {} --content {}", self.id, content.join(","))
    }

    fn of(section: &Section) -> Option<Storage> {
        // The mount points that Proxmox chooses where none is given.
        let default = matches!(section.kind.as_str(), "nfs" | "cifs" | "cephfs" | "glusterfs");
        let path = match section.get("path") {
            Some(path) => PathBuf::from(path),
            None if default => Path::new("/mnt/pve").join(&section.id),
            None => return None,
        };
        if !default && !matches!(section.kind.as_str(), "dir" | "btrfs") {
            return None;
        }
        let directories = section.list("content-dirs").unwrap_or_default();
        let own = directories.iter().find_map(|d| d.strip_prefix("snippets=")).unwrap_or("snippets");
        Some(Storage {
            id: section.id.clone(),
            content: section.list("content").unwrap_or_else(|| vec!["images".to_owned()]),
            shared: default || section.flag("shared"),
            nodes: section.list("nodes"),
            disabled: section.flag("disable"),
            snippets: path.join(own.trim_start_matches('/')),
            mount: match section.get("is_mountpoint") {
                Some(elsewhere) if elsewhere.starts_with('/') => Some(elsewhere.into()),
                _ if default || section.flag("is_mountpoint") => Some(path),
                _ => None,
            },
        })
    }
}

/// The storages that are directories. `local` is there even where the file
/// does not name it, and then without snippets.
pub fn parse(text: &str) -> Vec<Storage> {
    let sections = sections::parse(text);
    let mut all: Vec<Storage> = sections.iter().filter_map(Storage::of).collect();
    if !sections.iter().any(|s| s.id == "local") {
        let implied = "dir: local\n\tpath /var/lib/vz\n\tcontent backup,iso,vztmpl\n";
        all.extend(sections::parse(implied).iter().filter_map(Storage::of));
    }
    all
}

/// Those of this host. An unreadable file is among the problems of `look`.
pub fn read(look: &mut Look) -> Vec<Storage> {
    parse(&look.text(FILE).unwrap_or_default())
}

/// The file that a volume id of type snippets stands for.
pub fn path_of(storages: &[Storage], volume: &str) -> Option<PathBuf> {
    let (id, name) = volume.split_once(":snippets/")?;
    // A name with a slash, or none, is no snippet.
    let plain = !name.is_empty() && !name.contains('/') && name != ".." && name != ".";
    let storage = storages.iter().find(|s| s.id == id).filter(|_| plain)?;
    Some(storage.snippets.join(name))
}

/// The volume id of a file, if a storage that holds snippets has it.
pub fn volume_of(storages: &[Storage], path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let storage = storages.iter().find(|s| s.has_snippets() && path.parent() == Some(&s.snippets))?;
    Some(storage.volume(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CFG: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,backup\n\nlvmthin: local-lvm\n\tvgname pve\n\
        \tcontent rootdir,images\n\nnfs: share\n\tserver 192.0.2.9\n\texport /x\n\tcontent snippets\n\n\
        dir: odd\n\tpath /srv/odd\n\tcontent snippets,iso\n\tcontent-dirs iso=a,snippets=hooks/own\n\tnodes alpha,beta\n";

    #[test]
    fn directories_are_read_with_their_defaults() {
        let all = parse(CFG);
        let ids: Vec<&str> = all.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["local", "share", "odd"]);
        assert!(!all[0].has_snippets() && all[1].has_snippets() && all[1].shared && !all[2].shared);
        assert_eq!(all[0].allow_snippets(), "pvesm set local --content iso,vztmpl,backup,snippets");
        assert!(all[2].is_on("alpha") && !all[2].is_on("gamma") && all[0].is_on("gamma"));
        assert_eq!((all[0].is_mounted(), all[1].is_mounted()), (true, false));
        let mounts =
            parse("dir: a\n\tpath /proc\n\tis_mountpoint yes\n\ndir: b\n\tpath /x\n\tis_mountpoint /proc\n");
        assert!(mounts[0].is_mounted() && mounts[1].is_mounted());
        let disabled = CFG.replace("content snippets\n", "content snippets\n\tdisable\n");
        assert!(!parse(&disabled)[1].has_snippets());
    }

    #[test]
    fn local_is_there_by_itself() {
        let all = parse("");
        assert_eq!((all[0].id.as_str(), all[0].has_snippets()), ("local", false));
    }

    #[test]
    fn volumes_and_files_lead_to_each_other() {
        let all = parse(CFG);
        let path = path_of(&all, "odd:snippets/x").unwrap();
        assert_eq!(path, Path::new("/srv/odd/hooks/own/x"));
        assert_eq!(volume_of(&all, &path).as_deref(), Some("odd:snippets/x"));
        assert_eq!(path_of(&all, "share:snippets/x").unwrap(), Path::new("/mnt/pve/share/snippets/x"));
        for bad in ["odd:snippets/", "odd:snippets/../x", "odd:iso/x", "none:snippets/x", "x"] {
            assert_eq!(path_of(&all, bad), None, "{bad}");
        }
        assert_eq!(volume_of(&all, Path::new("/root/x")), None);
    }
}
