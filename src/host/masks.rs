//! Masks: copies of `params` and `gpus` of the host's `/proc/driver/nvidia`,
//! bound over the originals in a container.
//!
//! NVML, run as root in a privileged container, creates the nodes of every card
//! that the driver lists, also of cards not assigned. With `ModifyDeviceFiles:
//! 0` and only the assigned cards it creates none and names no other card.
//! This is hygiene, not a security boundary: root inside can unmount the
//! copies. The boundary is the device rule.

use super::gpus::Inventory;
use crate::pve::cluster;
use crate::pve::conf::mounts::{Mount, RUN};
use crate::pve::sharing;
use crate::sys::lock;
use crate::sys::look::{Look, View};
use crate::sys::mount::{self, Holds};
use crate::sys::mountinfo;
use crate::sys::private;
use crate::sys::replace::replace_own;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Applied as written under every AppArmor profile of Proxmox (measured).
/// Optional: without a driver on the host there is nothing to bind over, and on
/// a node without the package nothing to bind.
const OPTIONS: &str = "bind,ro,nosuid,nodev,noexec,optional";

/// The timeout of the lock: others write a few small files under it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest look at the mounts of all processes.
const LOOK: Duration = Duration::from_secs(10);

/// The masks of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// The driver's parameters, changed to create no nodes; `None` if the host
    /// has none.
    params: Option<String>,
    /// The `information` of each card, by the name of its directory.
    cards: BTreeMap<String, String>,
}

impl Masks {
    /// The masks for a container with the cards of these minors.
    pub fn of(inventory: &Inventory, minors: &BTreeSet<u32>) -> Masks {
        let shown = &inventory.shown;
        let its = |card: &&super::gpus::Shown| card.minor.is_some_and(|minor| minors.contains(&minor));
        Masks {
            params: shown.params.as_deref().map(without_creating),
            cards: shown.cards.iter().filter(its).map(|c| (c.name.clone(), c.text.clone())).collect(),
        }
    }

    /// Writes and mounts the container's copies if they differ; true if it did.
    /// A running container keeps the copies of its start.
    ///
    /// # Errors
    /// What could not be written or mounted. There are no copies then, or
    /// those from before.
    pub fn write<'a>(&self, host: impl Into<View<'a>>, ctid: Ctid) -> io::Result<bool> {
        let root = host.into().root();
        let at = mount_point(root, ctid);
        // No params: the driver is not loaded or does not answer.
        if self.params.is_none() || (mount::is_mounted(&at) && self.is(&at)) {
            return Ok(false);
        }
        // Without the lock, sweep() takes copies that are not mounted yet for leftovers.
        let _lock =
            lock::take(&lock_file(root), &Deadline::after(LOCK_TIMEOUT), |_| ()).map_err(io::Error::other)?;
        let (above, empty) = (sources(root), sources(root).join("empty"));
        let directories = [
            (below_run(root, ""), 0o755),
            (below_run(root, "proc"), 0o755),
            (at.clone(), 0o755),
            (above, 0o700),
            (empty.clone(), 0o755),
        ];
        for (directory, mode) in &directories {
            private::directory(directory, *mode).map_err(io::Error::other)?;
        }
        let source = self.make(root, ctid)?;
        let shown = mount::unmount(&at).and_then(|()| mount::read_only(&source, &empty, &at, Holds::Data));
        if shown.is_err() {
            let _ = fs::remove_dir_all(&source);
        }
        shown.map(|()| true)
    }

    /// Writes the copies to a new directory, never mounted before. Its parent
    /// is accessible to root only, since the files in it are not read-only.
    fn make(&self, root: &Path, ctid: Ctid) -> io::Result<PathBuf> {
        let above = sources(root);
        private::directory(&below_run(root, ""), 0o755).map_err(io::Error::other)?;
        private::directory(&above, 0o700).map_err(io::Error::other)?;
        let taken = names(&above).unwrap_or_default();
        let new = (0u32..).map(|n| format!("{ctid}.{n}")).find(|name| !taken.contains(name));
        let own = above.join(new.unwrap_or_default());
        let directory = |path: &Path| private::directory(path, 0o755).map_err(io::Error::other);
        directory(&own)?;
        directory(&own.join("gpus"))?;
        let file = |path: PathBuf, text: &str| replace_own(&path, text.as_bytes(), 0o444);
        file(own.join("params"), self.params.as_deref().unwrap_or_default())?;
        for (name, text) in &self.cards {
            directory(&own.join("gpus").join(name))?;
            file(own.join("gpus").join(name).join("information"), text)?;
        }
        Ok(own)
    }

    /// Whether a directory has exactly these copies.
    fn is(&self, at: &Path) -> bool {
        let gpus = at.join("gpus");
        let there = names(&gpus).unwrap_or_default();
        self.params.as_ref().is_some_and(|params| is(&at.join("params"), params))
            && there.len() == self.cards.len()
            && self.cards.iter().all(|(name, text)| is(&gpus.join(name).join("information"), text))
    }
}

/// The mount entries that bind the masks. They depend on the CTID only, not on
/// boot, driver or assignment.
pub fn mounts(ctid: Ctid) -> Vec<Mount> {
    let over = |name: &str| Mount {
        source: format!("{RUN}/proc/{ctid}/{name}"),
        target: format!("proc/driver/nvidia/{name}"),
        options: OPTIONS.to_owned(),
    };
    vec![over("params"), over("gpus")]
}

/// Whether the container's copies exist.
pub fn exist<'a>(host: impl Into<View<'a>>, ctid: Ctid) -> bool {
    let own = mount_point(host.into().root(), ctid);
    own.join("params").is_file() && own.join("gpus").is_dir()
}

/// Removes a container's copies. A running container keeps its own; [`sweep`]
/// removes their source once it has stopped.
///
/// # Errors
/// What could not be removed.
pub fn remove<'a>(host: impl Into<View<'a>>, ctid: Ctid) -> io::Result<()> {
    let root = host.into().root();
    {
        // A start may be mounting them.
        let _lock =
            lock::take(&lock_file(root), &Deadline::after(LOCK_TIMEOUT), |_| ()).map_err(io::Error::other)?;
        let at = mount_point(root, ctid);
        mount::unmount(&at)?;
        unless_absent(fs::remove_dir_all(&at))?;
    }
    sweep(root);
    Ok(())
}

/// Removes unused copies: those of containers that are no longer on this node,
/// and replaced ones. Copies that a running container uses stay.
///
/// Does nothing while another process writes masks; the next call removes them.
pub fn sweep<'a>(host: impl Into<View<'a>>) {
    let root = host.into().root();
    let Ok(Some(_lock)) = lock::try_take(&lock_file(root)) else { return };
    let mut look = Look::new(root);
    // Without /etc/pve the containers of this node are unknown.
    let Some(containers) = cluster::containers(&mut look) else { return };
    let number = |name: &str| name.split('.').next()?.parse::<Ctid>().ok();
    for ctid in names(&below_run(root, "proc")).iter().flatten().filter_map(|name| number(name)) {
        if containers.contains(&ctid) || sharing::is_running(&mut look, ctid) {
            continue;
        }
        let at = mount_point(root, ctid);
        match mount::unmount(&at).and_then(|()| unless_absent(fs::remove_dir_all(&at))) {
            Ok(()) => {
                log::info!("removed the masks of container {ctid}: no such container on this node")
            }
            Err(error) => log::debug!("cannot remove the masks of container {ctid}: {error}"),
        }
    }
    for name in names(&sources(root)).iter().flatten() {
        let Some(ctid) = number(name) else { continue };
        let own = sources(root).join(name);
        if lies_below(&own, &mount_point(root, ctid)) || sharing::is_running(&mut look, ctid) {
            continue;
        }
        if let Err(error) = unless_absent(fs::remove_dir_all(&own)) {
            log::debug!("cannot remove {}: {error}", own.display());
        }
    }
}

/// Removes replaced copies of a container that runs, as far as they are mounted
/// nowhere any more.
pub fn forget_unused<'a>(host: impl Into<View<'a>>, ctid: Ctid) {
    let root = host.into().root();
    let at = mount_point(root, ctid);
    let locked = || lock::try_take(&lock_file(root)).ok().flatten();
    // Copies are mounted under the lock, and never a second time: what is replaced now stays so.
    let mut unused = locked().map(|_lock| replaced(root, ctid)).unwrap_or_default();
    if unused.is_empty() {
        return;
    }
    // Without the lock: a start does not wait for this.
    let looked = mountinfo::all(&Deadline::after(LOOK), |mount| {
        unused.retain(|own| !mount.is_over(&own.to_string_lossy()));
    });
    let Some(_lock) = locked().filter(|_| looked.is_ok()) else {
        // Could not look: the stop of the container makes them leftovers.
        return;
    };
    for own in unused.iter().filter(|own| !lies_below(own, &at)) {
        if let Err(error) = unless_absent(fs::remove_dir_all(own)) {
            log::debug!("cannot remove {}: {error}", own.display());
        }
    }
}

/// A container's copies that are not those mounted on the host.
fn replaced(root: &Path, ctid: Ctid) -> Vec<PathBuf> {
    let at = mount_point(root, ctid);
    let own =
        |name: &String| name.strip_prefix(&format!("{ctid}.")).is_some_and(|n| n.parse::<u32>().is_ok());
    let all = names(&sources(root)).unwrap_or_default().into_iter().filter(own);
    all.map(|name| sources(root).join(name)).filter(|own| !lies_below(own, &at)).collect()
}

/// Whether a lower layer of an overlay has masks.
pub fn is_source(lower: &str) -> bool {
    Path::new(lower).starts_with(sources(Path::new("/")))
}

/// Whether the copies in `own` are those mounted at `at`: an overlay passes
/// through the inode numbers of its lower layer.
fn lies_below(own: &Path, at: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let number = |path: &Path| fs::metadata(path.join("params")).ok().map(|meta| meta.ino());
    number(own).is_some_and(|inode| number(at) == Some(inode))
}

fn unless_absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Where a container's copies are mounted on the host.
fn mount_point(root: &Path, ctid: Ctid) -> PathBuf {
    below_run(root, "proc").join(ctid.to_string())
}

/// The parent of the directories that hold the copies.
fn sources(root: &Path) -> PathBuf {
    below_run(root, "masks")
}

/// The lock held while masks are written and mounted, or removed.
fn lock_file(root: &Path) -> PathBuf {
    root.join("run/lock/phoenix-nvidia/masks.lock")
}

fn below_run(root: &Path, name: &str) -> PathBuf {
    root.join(RUN.trim_start_matches('/')).join(name)
}

/// Whether a file has this content. Never blocks, whatever the file is. Read
/// through `take`, since `fs::read` asks for the size first, one call more.
fn is(path: &Path, text: &str) -> bool {
    let mut old = Vec::new();
    let most = text.len() as u64 + 1;
    let file = fs::OpenOptions::new().read(true).custom_flags(private::GUARDED).open(path);
    let read = file.and_then(|file| file.take(most).read_to_end(&mut old));
    read.is_ok() && old == text.as_bytes()
}

/// The names in a directory; `None` if there is none.
fn names(path: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(path).ok()?;
    Some(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The driver's parameters with `ModifyDeviceFiles: 0`: its user space then
/// creates no device nodes.
fn without_creating(params: &str) -> String {
    const KEY: &str = "ModifyDeviceFiles:";
    let mut lines: Vec<&str> = params.lines().filter(|line| !line.trim_start().starts_with(KEY)).collect();
    let place = params.lines().position(|line| line.trim_start().starts_with(KEY)).unwrap_or(lines.len());
    lines.insert(place, "ModifyDeviceFiles: 0");
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts;
    use crate::host::gpus::{Proc, Shown};
    use std::os::unix::fs::PermissionsExt as _;

    const PARAMS: &str =
        "RmLogonRC: 1\nModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileMode: 438\nRegistryDwords: \"\"\n";

    fn host(uuid: &str) -> Inventory {
        let card = |minor: u32| Shown {
            name: format!("0000:0{}:00.0", minor + 1),
            text: format!("GPU UUID: \t GPU-{uuid}{minor}\nDevice Minor: \t {minor}\n"),
            minor: Some(minor),
        };
        let shown = Proc { params: Some(PARAMS.to_owned()), cards: vec![card(0), card(1)] };
        Inventory { shown, ..Inventory::default() }
    }

    fn masks(host: &Inventory, minors: &[u32]) -> Masks {
        Masks::of(host, &minors.iter().copied().collect())
    }

    fn make(root: &Path, host: &Inventory, minors: &[u32]) -> PathBuf {
        masks(host, minors).make(root, "101".parse().unwrap()).unwrap()
    }

    fn shown(own: &Path) -> Vec<String> {
        let mut names = names(&own.join("gpus")).unwrap();
        names.sort();
        names
    }

    #[test]
    fn only_the_parameter_that_creates_nodes_is_changed() {
        assert_eq!(without_creating(PARAMS), PARAMS.replace("Files: 1", "Files: 0"));
        for text in [PARAMS, "", "DeviceFileMode: 432\n", "ModifyDeviceFiles: 1\nModifyDeviceFiles: 1"] {
            let now = facts::params(&without_creating(text));
            assert!(!now.modify, "{text:?}");
            assert_eq!(now, facts::Params { modify: false, ..facts::params(text) }, "{text:?}");
        }
    }

    #[test]
    fn masks_hold_the_assigned_cards_and_are_readable_by_all() {
        let dir = tempfile::tempdir().unwrap();
        let own = make(dir.path(), &host("a"), &[0]);
        assert_eq!(shown(&own), ["0000:01:00.0"]);
        for (path, mode) in [("", 0o755), ("params", 0o444), ("gpus", 0o755), ("gpus/0000:01:00.0", 0o755)] {
            assert_eq!(own.join(path).metadata().unwrap().permissions().mode() & 0o777, mode, "{path}");
        }
        let above = dir.path().join("run/phoenix-nvidia/masks");
        assert_eq!(above.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(shown(&make(dir.path(), &host("a"), &[0, 1])).len(), 2);
        assert!(shown(&make(dir.path(), &host("a"), &[])).is_empty());
    }

    #[test]
    fn masks_are_rewritten_only_when_the_driver_shows_other_text() {
        let dir = tempfile::tempdir().unwrap();
        let own = make(dir.path(), &host("????"), &[0]);
        assert!(masks(&host("????"), &[0]).is(&own));
        for other in [masks(&host("5f2c"), &[0]), masks(&host("????"), &[0, 1]), masks(&host("????"), &[])] {
            assert!(!other.is(&own), "{other:?}");
        }
        // A driver that does not answer removes nothing.
        assert!(!masks(&Inventory::default(), &[]).write(dir.path(), "101".parse().unwrap()).unwrap());
        assert!(own.exists());
        assert_ne!(make(dir.path(), &host("5f2c"), &[0]), own, "mounted files are not written again");
    }

    #[test]
    fn masks_being_written_are_not_swept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc/pve/lxc")).unwrap();
        let held = lock::try_take(&lock_file(dir.path())).unwrap();
        let own = make(dir.path(), &host("a"), &[0]);
        sweep(dir.path());
        assert!(own.exists());
        drop(held);
        sweep(dir.path());
        assert!(!own.exists());
    }

    #[test]
    fn unused_masks_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let own = make(dir.path(), &host("a"), &[0]);
        let at = mount_point(dir.path(), "101".parse().unwrap());
        fs::create_dir_all(&at).unwrap();
        sweep(dir.path());
        assert!(own.exists() && at.exists(), "/etc/pve is not mounted");
        fs::create_dir_all(dir.path().join("etc/pve/lxc")).unwrap();
        sweep(dir.path());
        assert!(!own.exists() && !at.exists());
    }
}
