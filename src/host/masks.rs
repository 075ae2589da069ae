//! What a container sees of the host's `/proc/driver/nvidia`: copies that are
//! bound over its `params` and its `gpus`.
//!
//! NVML that runs as root in a privileged container makes the nodes of every
//! card that the driver shows, the others' too. With `ModifyDeviceFiles: 0`
//! and the container's own cards alone it makes none and names no other.
//! That is hygiene and no boundary: root inside can unmount the copies. The
//! device rule is the boundary.

use super::gpus::Inventory;
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::mounts::RUN;
use crate::pve::sharing;
use crate::sys::lock;
use crate::sys::look::Look;
use crate::sys::mount;
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

/// Applied as written, measured under every profile of Proxmox. Optional:
/// without a driver on the host there is nothing to bind over, and on a node
/// without the package nothing to bind.
const OPTIONS: &str = "bind,ro,nosuid,nodev,noexec,optional";

/// How long others have for theirs, a few small files each.
const PATIENCE: Duration = Duration::from_secs(5);

/// The texts for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// The driver's parameters, to make no nodes; `None` where the host shows
    /// none.
    params: Option<String>,
    /// The cards' `information`, by the names of their directories.
    cards: BTreeMap<String, String>,
}

impl Masks {
    /// Those for a container with the cards of these minors.
    pub fn of(inventory: &Inventory, minors: &BTreeSet<u32>) -> Masks {
        let shown = &inventory.shown;
        let its = |card: &&super::gpus::Shown| card.minor.is_some_and(|minor| minors.contains(&minor));
        Masks {
            params: shown.params.as_deref().map(without_making),
            cards: shown.cards.iter().filter(its).map(|c| (c.name.clone(), c.text.clone())).collect(),
        }
    }

    /// Has the container's copies be these; true if they were made anew. A
    /// container that runs keeps those of its start.
    ///
    /// # Errors
    /// What could not be written or mounted. There are no copies then, or
    /// those from before.
    pub fn write(&self, root: &Path, ctid: Ctid) -> io::Result<bool> {
        let at = shown_at(root, ctid);
        // A driver that shows nothing has nothing to be covered.
        if self.params.is_none() || (mount::is_mounted(&at) && self.is(&at)) {
            return Ok(false);
        }
        // Copies that are made and not shown yet look like left ones.
        let _lock =
            lock::take(&lock_file(root), &Deadline::after(PATIENCE), |_| ()).map_err(io::Error::other)?;
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
        let shown = mount::hide(&at).and_then(|()| mount::show(&source, &empty, &at));
        if shown.is_err() {
            let _ = fs::remove_dir_all(&source);
        }
        shown.map(|()| true)
    }

    /// Makes the copies in a directory of their own, which nobody has seen
    /// before: below one that is root's alone, since what is shown lies there
    /// unprotected.
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

    /// Whether a directory has just these copies.
    fn is(&self, at: &Path) -> bool {
        let gpus = at.join("gpus");
        let there = names(&gpus).unwrap_or_default();
        self.params.as_ref().is_some_and(|params| is(&at.join("params"), params))
            && there.len() == self.cards.len()
            && self.cards.iter().all(|(name, text)| is(&gpus.join(name).join("information"), text))
    }
}

/// The entries that bind them. They name the container and nothing that
/// changes with a boot, a driver or an assignment.
pub fn mounts(ctid: Ctid) -> Vec<Mount> {
    let over = |name: &str| Mount {
        source: format!("{RUN}/proc/{ctid}/{name}"),
        target: format!("proc/driver/nvidia/{name}"),
        options: OPTIONS.to_owned(),
    };
    vec![over("params"), over("gpus")]
}

/// Whether the container's copies are there.
pub fn are_there(root: &Path, ctid: Ctid) -> bool {
    let own = shown_at(root, ctid);
    own.join("params").is_file() && own.join("gpus").is_dir()
}

/// Takes a container's copies away. One that runs keeps what it has; what that
/// lies on goes with [`sweep`] once it does not.
///
/// # Errors
/// What could not be removed.
pub fn forget(root: &Path, ctid: Ctid) -> io::Result<()> {
    let at = shown_at(root, ctid);
    mount::hide(&at)?;
    gone(fs::remove_dir_all(&at))?;
    sweep(root);
    Ok(())
}

/// Removes what no container is shown any more: the copies of those that are
/// no longer on this node, and older ones. What lies below a running one stays.
///
/// Containers start side by side: while one is given its copies, nothing is
/// removed. Whoever comes next does it.
pub fn sweep(root: &Path) {
    let Ok(Some(_lock)) = lock::try_take(&lock_file(root)) else { return };
    let mut look = Look::new(root);
    // Without /etc/pve nobody knows which containers there are.
    let Some(confs) = look.names("/etc/pve/lxc") else { return };
    let number = |name: &str| name.split('.').next()?.parse::<Ctid>().ok();
    for ctid in names(&below_run(root, "proc")).iter().flatten().filter_map(|name| number(name)) {
        if confs.contains(&format!("{ctid}.conf")) || sharing::is_running(&mut look, ctid) {
            continue;
        }
        let at = shown_at(root, ctid);
        match mount::hide(&at).and_then(|()| gone(fs::remove_dir_all(&at))) {
            Ok(()) => {
                log::info!("removed what container {ctid} was shown of /proc/driver/nvidia: it is gone")
            }
            Err(error) => log::debug!("the copies for container {ctid}: {error}"),
        }
    }
    for name in names(&sources(root)).iter().flatten() {
        let Some(ctid) = number(name) else { continue };
        let own = sources(root).join(name);
        if lies_below(&own, &shown_at(root, ctid)) || sharing::is_running(&mut look, ctid) {
            continue;
        }
        if let Err(error) = gone(fs::remove_dir_all(&own)) {
            log::debug!("{}: {error}", own.display());
        }
    }
}

/// Whether the copies in `own` are those that are shown at `at`: an overlay
/// gives the numbers of the files that lie below it.
fn lies_below(own: &Path, at: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let number = |path: &Path| fs::metadata(path.join("params")).ok().map(|meta| meta.ino());
    number(own).is_some_and(|inode| number(at) == Some(inode))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Where a container's copies are bound from.
fn shown_at(root: &Path, ctid: Ctid) -> PathBuf {
    below_run(root, "proc").join(ctid.to_string())
}

/// Where they really lie.
fn sources(root: &Path) -> PathBuf {
    below_run(root, "masks")
}

/// What is held while copies are made and shown, or removed.
fn lock_file(root: &Path) -> PathBuf {
    root.join("run/lock/phoenix-nvidia/masks.lock")
}

fn below_run(root: &Path, name: &str) -> PathBuf {
    root.join(RUN.trim_start_matches('/')).join(name)
}

/// Whether a file has this content. Read through `take`: `fs::read` asks for
/// the size first, which is one call more. Nothing but a file of ours is to
/// stand there; nobody is waited for all the same.
fn is(path: &Path, text: &str) -> bool {
    let mut old = Vec::new();
    let most = text.len() as u64 + 1;
    let file = fs::OpenOptions::new().read(true).custom_flags(private::GUARDED).open(path);
    let read = file.and_then(|file| file.take(most).read_to_end(&mut old));
    read.is_ok() && old == text.as_bytes()
}

/// The names in a directory; none if there is no directory.
fn names(path: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(path).ok()?;
    Some(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The driver's parameters with `ModifyDeviceFiles: 0`, by which its user
/// space makes no device nodes.
fn without_making(params: &str) -> String {
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
    fn only_the_making_of_nodes_is_taken_from_the_parameters() {
        assert_eq!(without_making(PARAMS), PARAMS.replace("Files: 1", "Files: 0"));
        for text in [PARAMS, "", "DeviceFileMode: 432\n", "ModifyDeviceFiles: 1\nModifyDeviceFiles: 1"] {
            let now = facts::params(&without_making(text));
            assert!(!now.modify, "{text:?}");
            assert_eq!(now, facts::Params { modify: false, ..facts::params(text) }, "{text:?}");
        }
    }

    #[test]
    fn the_copies_are_those_of_the_assigned_cards_and_readable_by_all() {
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
    fn other_copies_are_made_only_when_the_driver_says_more() {
        let dir = tempfile::tempdir().unwrap();
        let own = make(dir.path(), &host("????"), &[0]);
        assert!(masks(&host("????"), &[0]).is(&own));
        for other in [masks(&host("5f2c"), &[0]), masks(&host("????"), &[0, 1]), masks(&host("????"), &[])] {
            assert!(!other.is(&own), "{other:?}");
        }
        // A driver that does not answer takes nothing away.
        assert!(!masks(&Inventory::default(), &[]).write(dir.path(), "101".parse().unwrap()).unwrap());
        assert!(own.exists());
        assert_ne!(make(dir.path(), &host("5f2c"), &[0]), own, "what was shown is not written to again");
    }

    #[test]
    fn copies_that_are_just_being_made_are_not_taken_for_left_ones() {
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
    fn what_no_container_is_shown_goes() {
        let dir = tempfile::tempdir().unwrap();
        let own = make(dir.path(), &host("a"), &[0]);
        let at = shown_at(dir.path(), "101".parse().unwrap());
        fs::create_dir_all(&at).unwrap();
        sweep(dir.path());
        assert!(own.exists() && at.exists(), "/etc/pve is not served");
        fs::create_dir_all(dir.path().join("etc/pve/lxc")).unwrap();
        sweep(dir.path());
        assert!(!own.exists() && !at.exists());
    }
}
