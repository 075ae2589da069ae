//! Which mounts of a container are a tree of ours. A container's own user mounts what
//! they like, wherever they like, with numbers for names.

use crate::sys::mountinfo::{self, Mounted};
use crate::types::Version;
use std::path::Path;

/// Where copies are kept, below the root.
pub(super) const KEPT: &str = "var/lib/phoenix-nvidia/driver";
/// The directories of libraries in which containers have a tree.
const DIRECTORIES: [&str; 4] =
    ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"];
/// Where in these, that is the places that glibc looks at.
pub const HWCAPS: [&str; 2] = ["glibc-hwcaps/x86-64-v2", "x86_64"];
/// One that nothing looks at without the drop-in.
pub const OWN: &str = "phoenix-nvidia";

/// The version of the tree that a container's mount table shows, if any.
pub fn mounted(table: &str) -> Option<Version> {
    mountinfo::mounts(table).find_map(|mount| version_of(&mount))
}

/// The version of the tree that a container's mount is, if it is one.
pub fn version_of(mount: &Mounted<'_>) -> Option<Version> {
    version_by(mount, || Kept::read(Path::new("/")))
}

/// Whether a tree may be mounted here, in a container: just at one of the places.
pub fn is_place(at: &str) -> bool {
    let at = at.trim_start_matches('/');
    let below = DIRECTORIES.iter().filter_map(|directory| at.strip_prefix(directory)?.strip_prefix('/'));
    below.into_iter().any(|end| HWCAPS.contains(&end) || end == OWN)
}

/// The same, with where this host keeps its trees.
fn version_by(mount: &Mounted<'_>, kept: impl Fn() -> Option<Kept>) -> Option<Version> {
    if !is_place(mount.at) {
        return None;
    }
    let below = |path: &str| path.rsplit_once("/phoenix-nvidia/driver/")?.1.parse::<Version>().ok();
    // Of a bind mount a table has the path within the file system, which may begin anywhere above the trees.
    let bound = || {
        let (above, name) = mount.root.rsplit_once('/')?;
        let version = name.parse::<Version>().ok()?;
        kept()?.is(mount.device, above).then_some(version)
    };
    mount.lower().find_map(below).or_else(|| below(mount.root)).or_else(bound)
}

/// The directory of the trees, as a mount table tells what is bound of it.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    /// The device number of its file system.
    device: String,
    /// Its path in that, without a slash at the end.
    path: String,
}

impl Kept {
    /// This host's; none where nobody knows.
    fn read(root: &Path) -> Option<Kept> {
        let path = std::fs::canonicalize(root.join(KEPT)).ok()?;
        let table = mountinfo::of(i32::try_from(std::process::id()).ok()?).ok()?;
        Kept::of(&table, path.to_str()?)
    }

    /// That of a directory, by the table of those who see it.
    fn of(table: &str, path: &str) -> Option<Kept> {
        let rest = |at: &str| {
            let rest = path.strip_prefix(at.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
        };
        // The last one covers those before it.
        let (mount, rest) =
            mountinfo::mounts(table).filter_map(|mount| Some((mount, rest(mount.at)?))).last()?;
        let path = format!("{}{rest}", mount.root.trim_end_matches('/'));
        Some(Kept { device: mount.device.to_owned(), path })
    }

    fn is(&self, device: &str, path: &str) -> bool {
        self.device == device && self.path == path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2";

    fn version() -> Option<Version> {
        "580.95.05".parse().ok()
    }

    /// What this mount is where the trees lie on a file system of their own.
    fn of(line: &str) -> Option<Version> {
        let own = || {
            Kept::of("29 1 8:2 / / rw - ext4 /dev/sda rw\n30 29 8:9 / /kept rw - ext4 /dev/x rw\n", "/kept")
        };
        version_by(&mountinfo::mounts(line).next().unwrap(), own)
    }

    #[test]
    fn a_tree_in_a_mount_table_tells_its_version() {
        let line = |root: &str, options: &str| {
            format!("40 30 0:52 {root} {HERE} ro - overlay overlay ro,{options}\n")
        };
        let tree = "lowerdir=/var/lib/phoenix-nvidia/driver/580.95.05:/run/phoenix-nvidia/driver/empty";
        assert_eq!(of(&line("/", tree)), version());
        assert_eq!(of(&line("/lib/phoenix-nvidia/driver/580.95.05", "x=y")), version());
        for other in
            [line("/", "lowerdir=/var/lib/phoenix-nvidia/driver/empty:/x"), line("/x", "upperdir=/y")]
        {
            assert_eq!(of(&other), None, "{other}");
        }
        assert_eq!(of(&line("/", tree).replace(HERE, "/mnt")), None);
    }

    #[test]
    fn a_bound_tree_is_known_at_its_place_and_from_its_directory_alone() {
        let bound = |device: &str, root: &str, at: &str| {
            of(&format!("40 30 {device} {root} {at} ro - ext4 /dev/x ro\n"))
        };
        for at in [
            HERE,
            "/usr/lib64/glibc-hwcaps/x86-64-v2",
            "/usr/lib/x86_64-linux-gnu/x86_64",
            "/usr/lib/phoenix-nvidia",
        ] {
            assert_eq!(bound("8:9", "/580.95.05", at), version(), "{at}");
        }
        // The user's.
        for at in [
            "/srv/x",
            "/opt/tools/x86_64",
            "/x86_64",
            "/usr/lib64/tools/x86_64",
            "/usr/lib64x86_64",
            "/opt/usr/lib/x86_64",
        ] {
            assert_eq!(bound("8:9", "/580.95.05", at), None, "{at}");
        }
        for root in ["/srv/tools/2024.1", "/tools/580.95.05"] {
            assert_eq!(bound("8:9", root, HERE), None, "{root}");
            assert_eq!(bound("8:2", root, HERE), None, "{root}");
        }
        assert_eq!(bound("8:2", "/580.95.05", HERE), None);
    }

    #[test]
    fn the_directory_of_the_trees_is_found_in_its_file_system() {
        let of = |lines: &str, path: &str| Kept::of(lines, path).map(|kept| (kept.device, kept.path));
        let root = "29 1 0:30 /@root / rw - btrfs /dev/sda rw\n";
        let path = "/var/lib/phoenix-nvidia/driver";
        let found = |device: &str, path: &str| Some((device.to_owned(), path.to_owned()));
        assert_eq!(of(root, path), found("0:30", "/@root/var/lib/phoenix-nvidia/driver"));
        let var = format!(
            "{root}30 29 8:9 / /var rw - ext4 /dev/x rw\n31 29 8:10 / /var/lib/ph rw - ext4 /dev/y rw\n"
        );
        assert_eq!(of(&var, path), found("8:9", "/lib/phoenix-nvidia/driver"));
        assert_eq!(of(&format!("{var}32 30 8:11 / {path} rw - ext4 /dev/z rw\n"), path), found("8:11", ""));
        assert_eq!(of("", path), None);
    }
}
