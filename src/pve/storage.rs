//! `/etc/pve/storage.cfg`: the storages that can hold snippets.

use crate::pve::sections;
use crate::pve::sections::Section;
use crate::sys::look::{Look, Op, Question, Seen};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Its path.
pub const FILE: &str = "/etc/pve/storage.cfg";

/// The path of the storage `local`, on every node.
const LOCAL_PATH: &str = "/var/lib/vz";
/// Proxmox's own definition of `local`, used if the file has none or another
/// path.
const LOCAL: &str = "dir: local\n\tpath /var/lib/vz\n\tcontent backup,images,iso,rootdir,snippets,vztmpl\n";

/// A storage that is a directory and so can hold snippets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Its name.
    pub id: String,
    /// Its content types: `iso`, `snippets`, …
    pub content: Vec<String>,
    /// The same directory on every node.
    pub shared: bool,
    /// The nodes that have it; `None`: all.
    pub nodes: Option<Vec<String>>,
    /// Disabled.
    pub disabled: bool,
    /// The directory of its snippets.
    pub snippets: PathBuf,
    /// The mount point that it needs.
    pub mount: Option<PathBuf>,
}

impl Storage {
    /// Whether it is enabled and may hold snippets.
    pub fn has_snippets(&self) -> bool {
        !self.disabled && self.content.iter().any(|c| c == "snippets")
    }

    /// Whether it is mounted: a file written to the empty mount point would be
    /// hidden by the mount.
    pub fn is_mounted(&self, look: &Look) -> Seen<bool> {
        let device = |path: &Path| look.stat(&path.to_string_lossy()).map(|stat| stat.dev);
        let Some(at) = self.mount.as_deref() else { return Seen::Is(true) };
        match device(at) {
            Seen::Is(own) => Seen::Is(at.parent().map(device) != Some(Seen::Is(own))),
            Seen::Absent => Seen::Is(false),
            Seen::Unseen(why) => Seen::Unseen(why),
        }
    }

    /// The checks of [`Storage::is_mounted`].
    pub fn mount_questions(&self) -> Vec<Question> {
        let at = self.mount.as_deref();
        let both = at.into_iter().chain(at.and_then(Path::parent));
        both.map(|path| Question::new(Op::Stat, path.to_string_lossy())).collect()
    }

    /// Whether the node has it.
    pub fn is_on(&self, node: &str) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.iter().any(|n| n == node))
    }

    /// The volume id of a snippet there.
    pub fn volume(&self, name: &str) -> String {
        format!("{}:snippets/{name}", self.id)
    }

    /// The command that adds snippets to its content types. `pvesm set` replaces
    /// the list, so it repeats the present ones.
    pub fn allow_snippets(&self) -> String {
        let there = self.content.iter().map(String::as_str).filter(|c| !matches!(*c, "none" | "snippets"));
        let content: Vec<&str> = there.chain(["snippets"]).collect();
        format!("pvesm set {} --content {}", self.id, content.join(","))
    }

    fn of(section: &Section) -> Option<Storage> {
        // Types with a default mount point.
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
            content: section.list("content").unwrap_or_else(|| of_kind(&section.kind)),
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

/// The default content types, as in Proxmox's plugins.
fn of_kind(kind: &str) -> Vec<String> {
    let content: &[&str] = match kind {
        "dir" | "btrfs" => &["images", "rootdir"],
        "cephfs" => &["backup"],
        _ => &["images"],
    };
    content.iter().map(|c| (*c).to_owned()).collect()
}

/// The storages that are directories, and always `local`: Proxmox takes the
/// file's entry if it has the right path (but not its nodes), else its own.
pub fn parse(text: &str) -> Vec<Storage> {
    let sections = sections::parse(text);
    let (local, others): (Vec<&Section>, Vec<&Section>) = sections.iter().partition(|s| s.id == "local");
    let sound = |s: &&&Section| s.kind == "dir" && s.get("path").is_none_or(|path| path == LOCAL_PATH);
    let local = local.iter().rev().find(sound).and_then(|s| Storage::of(s));
    let local = local.or_else(|| sections::parse(LOCAL).first().and_then(Storage::of));
    let local = local.map(|local| Storage { nodes: None, ..local });
    local.into_iter().chain(others.into_iter().filter_map(Storage::of)).collect()
}

/// The names of all storages, whatever their type.
pub fn names(text: &str) -> BTreeSet<String> {
    let defined = sections::parse(text).into_iter().map(|section| section.id);
    defined.chain(["local".to_owned()]).collect()
}

/// The storage in a volume id.
pub fn of_volume(volume: &str) -> Option<&str> {
    Some(volume.split_once(':')?.0)
}

/// Storage and name in the volume id of a snippet.
pub fn snippet(volume: &str) -> Option<(&str, &str)> {
    let (id, name) = volume.split_once(":snippets/")?;
    let is_name = !name.is_empty() && !name.contains('/') && name != ".." && name != ".";
    is_name.then_some((id, name))
}

/// Those of this host. A file that cannot be read becomes a problem of `look`.
pub fn read(look: &mut Look) -> Vec<Storage> {
    parse(&look.text(FILE).unwrap_or_default())
}

/// The file of a snippet's volume id.
pub fn path_of(storages: &[Storage], volume: &str) -> Option<PathBuf> {
    let (id, name) = snippet(volume)?;
    let storage = storages.iter().find(|s| s.id == id)?;
    Some(storage.snippets.join(name))
}

/// The volume id of a snippet's file. Proxmox checks the path only, not whether
/// the storage may hold snippets.
pub fn volume_of(storages: &[Storage], path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let has = |s: &&Storage| path.parent() == Some(&s.snippets);
    let storage = storages.iter().filter(has).max_by_key(|s| s.has_snippets())?;
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
        let look = Look::new(Path::new("/"));
        let mounted = |storage: &Storage| storage.is_mounted(&look) == Seen::Is(true);
        assert_eq!((mounted(&all[0]), mounted(&all[1])), (true, false));
        let mounts =
            parse("dir: a\n\tpath /proc\n\tis_mountpoint yes\n\ndir: b\n\tpath /x\n\tis_mountpoint /proc\n");
        assert!(mounted(&mounts[0]) && mounted(&mounts[1]));
        let disabled = CFG.replace("content snippets\n", "content snippets\n\tdisable\n");
        assert!(!parse(&disabled)[1].has_snippets());
    }

    /// As recorded of Proxmox: no file, one without `local`, one with another
    /// path, content and nodes.
    #[test]
    fn local_is_what_proxmox_takes_it_to_be() {
        let recorded = include_str!("../../tests/recorded/implied-local.txt");
        let lines: Vec<&str> = recorded.lines().filter_map(|l| l.strip_prefix("local: ")).collect();
        let files = [
            "",
            "dir: mine\n\tpath /srv\n\tcontent snippets\n",
            "dir: local\n\tpath /srv/local\n\tcontent iso\n\tnodes beta\n",
        ];
        assert_eq!(lines.len(), files.len());
        for (line, file) in lines.iter().zip(files) {
            let all = parse(file);
            let local = all.iter().find(|s| s.id == "local").unwrap();
            let has = format!("{} path /var/lib/vz", local.content.join(","));
            assert!(line.starts_with(&has), "{file}: {has}");
            assert_eq!(local.snippets, Path::new("/var/lib/vz/snippets"));
            assert!(local.has_snippets() && local.is_on("alpha"));
            assert_eq!(all.len(), if file.contains("mine") { 2 } else { 1 });
        }
        let zfs = parse("zfspool: local\n\tpool rpool\n\tcontent images\n");
        assert!(zfs[0].has_snippets());
        // An entry of that very directory is the administrator's own, but for its nodes.
        let own = parse("dir: local\n\tpath /var/lib/vz\n\tcontent iso,rootdir\n\tnodes beta\n");
        assert!(!own[0].has_snippets() && own[0].is_on("alpha"));
    }

    #[test]
    fn no_command_takes_away_what_a_storage_holds() {
        let command = |text: &str| parse(text).last().unwrap().allow_snippets();
        assert_eq!(
            command("dir: local\n\tpath /var/lib/vz\n"),
            "pvesm set local --content images,rootdir,snippets"
        );
        assert_eq!(command("nfs: x\n\texport /x\n"), "pvesm set x --content images,snippets");
        assert_eq!(command("cephfs: x\n"), "pvesm set x --content backup,snippets");
        assert_eq!(
            command("dir: x\n\tpath /x\n\tcontent rootdir,snippets,import\n\tdisable\n"),
            "pvesm set x --content rootdir,import,snippets"
        );
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
