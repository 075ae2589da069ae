//! What lies in the host's directory of the capabilities. Up to version 0.2.0 it was
//! bound into containers: root of a privileged one could put anything there.

use super::facts::Majors;
use super::gpus::Inventory;
use crate::device::{CAPS_DIR, DevicePath, Number};
use crate::sys::look::Look;
use crate::sys::text;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, FileType, Metadata};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// So many names are looked at; the driver has some hundreds.
const MOST: usize = 4096;
/// The driver's lists of all capabilities, each line a name and a minor.
const LISTS: &str = "/proc/driver/nvidia-caps";

/// What is not as the driver's nodes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strange {
    /// The directory's mode and owner, where others than root may write to it.
    pub open: Option<String>,
    /// What is in it, and what that is; 4096 names are looked at.
    pub files: Vec<(OsString, String)>,
}

impl Strange {
    /// Looks at the names, and opens nothing.
    pub fn read(root: &Path, inventory: &Inventory) -> Strange {
        let directory = root.join(CAPS_DIR.trim_start_matches('/'));
        let mut strange = Strange::default();
        let Ok(meta) = fs::symlink_metadata(&directory) else { return strange };
        if !meta.is_dir() {
            return strange;
        }
        let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        let group = if gid == 0 { 0 } else { 0o020 };
        if uid != 0 || mode & (0o002 | group) != 0 {
            strange.open = Some(format!("has mode {mode:04o} of {uid}:{gid}"));
        }
        let known = known(root, inventory);
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten().take(MOST) {
            // A link is none of the driver's nodes: what it leads to does not matter.
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            let name = entry.file_name();
            if let Some(what) = judge(&name.to_string_lossy(), &meta, &inventory.majors, known.as_ref()) {
                strange.files.push((name, what));
            }
        }
        strange.files.sort();
        strange
    }
}

/// The minors that the driver lists; none where it has no list.
fn known(root: &Path, inventory: &Inventory) -> Option<BTreeSet<u32>> {
    let mut look = Look::new(root);
    let lists = look.names(LISTS)?;
    let lists = lists.iter().filter(|name| name.ends_with("-minors"));
    let texts: Vec<String> = lists.filter_map(|name| look.text(&format!("{LISTS}/{name}"))).collect();
    let listed = texts.iter().flat_map(|text| text.lines());
    let listed = listed.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok());
    let instances = inventory.mig.iter().flat_map(|mig| [mig.gi_minor, mig.ci_minor]);
    let own = inventory.monitor.into_iter().chain(inventory.others.keys().copied()).chain(instances);
    (!texts.is_empty()).then(|| listed.chain(own).collect())
}

/// What it is, unless it is a node of the driver's, or one that another load of the
/// driver left, whose major nobody has.
fn judge(name: &str, meta: &Metadata, majors: &Majors, known: Option<&BTreeSet<u32>>) -> Option<String> {
    let device = meta.rdev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    let kind = meta.file_type();
    if !kind.is_char_device() {
        return Some(other(kind, major, minor));
    }
    let number = Number { major, minor };
    match majors.owner(major) {
        Some("nvidia-caps") if known.is_some_and(|known| !known.contains(&minor)) => {
            return Some(format!("{number}, which the driver does not list"));
        }
        Some("nvidia-caps") | None => {}
        Some(owner) => return Some(format!("{number} of driver {}", text::message(owner))),
    }
    let right = DevicePath::CapFile(minor).to_string();
    (format!("{CAPS_DIR}/{name}") != right).then(|| format!("{number}, which is not its name"))
}

fn other(kind: FileType, major: u32, minor: u32) -> String {
    match kind {
        kind if kind.is_block_device() => format!("block device {major}:{minor}"),
        kind if kind.is_symlink() => "a symlink".to_owned(),
        kind if kind.is_dir() => "a directory".to_owned(),
        kind if kind.is_file() => "a regular file".to_owned(),
        _ => "another type of file".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test's own directory
mod tests {
    use super::*;
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    const DEVICES: &str =
        "Character devices:\n  1 mem\n195 nvidia\n236 nvidia-caps\n\nBlock devices:\n  8 sd\n";

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Root {
            let root = Root(tempfile::tempdir().unwrap());
            fs::create_dir_all(root.at("dev/nvidia-caps")).unwrap();
            fs::set_permissions(root.at("dev/nvidia-caps"), Permissions::from_mode(0o755)).unwrap();
            fs::create_dir_all(root.at("proc/driver/nvidia-caps")).unwrap();
            root
        }

        fn at(&self, path: &str) -> std::path::PathBuf {
            self.0.path().join(path)
        }

        fn node(&self, name: &str, kind: SFlag, major: u64, minor: u64) {
            let path = self.at("dev/nvidia-caps").join(name);
            mknod(&path, kind, Mode::from_bits_truncate(0o400), makedev(major, minor)).unwrap();
        }

        fn lists(&self) {
            fs::write(
                self.at("proc/driver/nvidia-caps/mig-minors"),
                "config 1\nmonitor 2\ngpu0/gi0/access 3\n",
            )
            .unwrap();
            fs::write(self.at("proc/driver/nvidia-caps/sys-minors"), "fabric-imex-mgmt 4323\n").unwrap();
        }

        fn read(&self) -> Strange {
            let majors = Majors::parse(DEVICES);
            Strange::read(self.0.path(), &Inventory { majors, ..Inventory::default() })
        }

        fn told(&self) -> Vec<String> {
            self.read()
                .files
                .iter()
                .map(|(name, what)| format!("{}: {what}", name.to_string_lossy()))
                .collect()
        }
    }

    #[test]
    fn the_drivers_nodes_are_no_finding_nor_are_those_of_another_load() {
        let root = Root::new();
        root.lists();
        for (minor, name) in [(1, "nvidia-cap1"), (3, "nvidia-cap3"), (4323, "nvidia-cap4323")] {
            root.node(name, SFlag::S_IFCHR, 236, minor);
        }
        root.node("nvidia-cap2", SFlag::S_IFCHR, 240, 2);
        assert_eq!(root.read(), Strange::default());
        assert_eq!(Strange::read(Path::new("/nonexistent"), &Inventory::default()), Strange::default());
    }

    #[test]
    fn what_a_container_could_use_is_told() {
        let root = Root::new();
        root.lists();
        root.node("a", SFlag::S_IFBLK, 8, 0);
        root.node("b", SFlag::S_IFCHR, 236, 1);
        root.node("nvidia-cap4", SFlag::S_IFCHR, 236, 4);
        root.node("nvidia-cap5", SFlag::S_IFCHR, 1, 5);
        symlink("/etc/shadow", root.at("dev/nvidia-caps/nvidia-cap6")).unwrap();
        fs::write(root.at("dev/nvidia-caps/s"), "").unwrap();
        fs::create_dir(root.at("dev/nvidia-caps/t")).unwrap();
        assert_eq!(
            root.told(),
            [
                "a: block device 8:0",
                "b: c 236:1, which is not its name",
                "nvidia-cap4: c 236:4, which the driver does not list",
                "nvidia-cap5: c 1:5 of driver mem",
                "nvidia-cap6: a symlink",
                "s: a regular file",
                "t: a directory",
            ]
        );
    }

    #[test]
    fn without_a_list_of_the_drivers_any_number_of_its_major_may_be_right() {
        let root = Root::new();
        root.node("nvidia-cap4", SFlag::S_IFCHR, 236, 4);
        assert_eq!(root.told(), [""; 0]);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_told() {
        let root = Root::new();
        fs::set_permissions(root.at("dev/nvidia-caps"), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(root.read().open.as_deref(), Some("has mode 0777 of 0:0"));
    }
}
