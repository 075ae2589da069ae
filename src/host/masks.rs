//! What a container sees of the host's `/proc/driver/nvidia`: copies that are
//! bound over its `params` and its `gpus`.
//!
//! NVML that runs as root in a privileged container makes the nodes of every
//! card that the driver shows, the others' too. With `ModifyDeviceFiles: 0`
//! and the container's own cards alone it makes none and names no other.
//! That is hygiene and no boundary: root inside can unmount the copies. The
//! device rule is the boundary.

use super::gpus::Inventory;
use super::look::Look;
use super::sharing;
use crate::conf::mounts::{Mount, RUN};
use crate::sys::private;
use crate::sys::replace::replace_own;
use crate::types::Ctid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Applied as written, measured under every profile of Proxmox. Optional:
/// without a driver on the host there is nothing to bind over, and on a node
/// without the package nothing to bind.
const OPTIONS: &str = "bind,ro,nosuid,nodev,noexec,optional";

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

    /// Brings the container's copies to this; true if anything was written.
    /// Each file is replaced whole, and a directory that is mounted somewhere
    /// stays the same one, so a running container sees the change.
    ///
    /// # Errors
    /// What could not be written. What is there is then older or incomplete.
    pub fn write(&self, root: &Path, ctid: Ctid) -> io::Result<bool> {
        // A driver that shows nothing has nothing to be covered.
        let Some(params) = &self.params else { return Ok(false) };
        let above = below_run(root, "proc");
        let own = above.join(ctid.to_string());
        let gpus = own.join("gpus");
        let new = |path: &Path, text: &str| replace_own(path, text.as_bytes(), 0o444);
        let there = names(&gpus);
        let mut written = there.is_none();
        if written {
            for directory in [&below_run(root, ""), &above, &own, &gpus] {
                private::directory(directory, 0o755).map_err(io::Error::other)?;
            }
        }
        if !is(&own.join("params"), params) {
            new(&own.join("params"), params)?;
            written = true;
        }
        for name in there.iter().flatten().filter(|name| !self.cards.contains_key(*name)) {
            remove(&gpus.join(name))?;
            written = true;
        }
        for (name, text) in &self.cards {
            let card = gpus.join(name);
            if !is(&card.join("information"), text) {
                if fs::symlink_metadata(&card).is_ok_and(|meta| !meta.is_dir()) {
                    remove(&card)?;
                }
                private::directory(&card, 0o755).map_err(io::Error::other)?;
                let file = card.join("information");
                if fs::symlink_metadata(&file).is_ok_and(|meta| meta.is_dir()) {
                    remove(&file)?;
                }
                new(&file, text)?;
                written = true;
            }
        }
        Ok(written)
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
    let own = below_run(root, "proc").join(ctid.to_string());
    own.join("params").is_file() && own.join("gpus").is_dir()
}

/// Removes the copies of a container.
///
/// # Errors
/// What could not be removed.
pub fn forget(root: &Path, ctid: Ctid) -> io::Result<()> {
    match fs::remove_dir_all(below_run(root, "proc").join(ctid.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the copies of containers that are no longer on this node.
pub fn sweep(root: &Path) {
    let Some(copies) = names(&below_run(root, "proc")) else { return };
    let mut look = Look::new(root);
    // Without /etc/pve nobody knows which containers there are.
    let Some(confs) = look.names("/etc/pve/lxc") else { return };
    let is_here = |ctid: Ctid| confs.contains(&format!("{ctid}.conf"));
    for ctid in copies.iter().filter_map(|name| name.parse::<Ctid>().ok()) {
        // A conf that is being replaced can be away for a moment.
        if is_here(ctid) || sharing::is_running(&mut look, ctid) {
            continue;
        }
        match forget(root, ctid) {
            Ok(()) => {
                log::info!("removed what container {ctid} was shown of /proc/driver/nvidia: it is gone")
            }
            Err(error) => log::debug!("the copies for container {ctid}: {error}"),
        }
    }
}

fn below_run(root: &Path, name: &str) -> PathBuf {
    root.join(RUN.trim_start_matches('/')).join(name)
}

/// Whether a file has this content. Root of a privileged container can write
/// to what is bound into it, read-only or not: nothing is followed there, and
/// nobody waited for. Read through `take`: `fs::read` asks for the size first,
/// which is one call more.
fn is(path: &Path, text: &str) -> bool {
    let mut old = Vec::new();
    let most = text.len() as u64 + 1;
    let flags = private::GUARDED | nix::libc::O_NOCTTY;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let read = file.and_then(|file| file.take(most).read_to_end(&mut old));
    read.is_ok() && old == text.as_bytes()
}

/// Removes whatever is there; a link is not followed.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        other => other,
    }
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
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

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

    fn write(root: &Path, host: &Inventory, minors: &[u32]) -> bool {
        Masks::of(host, &minors.iter().copied().collect()).write(root, "101".parse().unwrap()).unwrap()
    }

    fn shown(root: &Path) -> Vec<String> {
        let mut names = names(&root.join("run/phoenix-nvidia/proc/101/gpus")).unwrap();
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
        assert!(write(dir.path(), &host("a"), &[0]));
        assert_eq!(shown(dir.path()), ["0000:01:00.0"]);
        let own = dir.path().join("run/phoenix-nvidia/proc/101");
        for (path, mode) in [("", 0o755), ("params", 0o444), ("gpus", 0o755), ("gpus/0000:01:00.0", 0o755)] {
            assert_eq!(own.join(path).metadata().unwrap().permissions().mode() & 0o777, mode, "{path}");
        }
        assert!(write(dir.path(), &host("a"), &[0, 1]) && shown(dir.path()).len() == 2);
        assert!(write(dir.path(), &host("a"), &[]) && shown(dir.path()).is_empty());
    }

    #[test]
    fn nothing_is_written_again_until_the_driver_says_more() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run/phoenix-nvidia/proc/101/gpus/0000:01:00.0/information");
        assert!(write(dir.path(), &host("????"), &[0]));
        let inode = file.metadata().unwrap().ino();
        assert!(!write(dir.path(), &host("????"), &[0]));
        assert_eq!(file.metadata().unwrap().ino(), inode);
        assert!(write(dir.path(), &host("5f2c"), &[0]));
        assert!(fs::read_to_string(&file).unwrap().contains("GPU-5f2c0"));
        // A driver that does not answer takes nothing away.
        assert!(!write(dir.path(), &Inventory::default(), &[]));
        assert!(file.exists());
    }

    /// What root of a privileged container can put there.
    #[test]
    fn whatever_stands_in_a_copy_s_place_is_replaced_and_waited_for_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &host("a"), &[0, 1]));
        let gpus = dir.path().join("run/phoenix-nvidia/proc/101/gpus");
        let (fifo, elsewhere) = (gpus.join("0000:01:00.0/information"), dir.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        fs::remove_file(&fifo).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::remove_dir_all(gpus.join("0000:02:00.0")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, gpus.join("0000:02:00.0")).unwrap();
        drop(fs::File::create(gpus.join("planted")).unwrap());
        assert!(write(dir.path(), &host("a"), &[0, 1]));
        assert_eq!(shown(dir.path()), ["0000:01:00.0", "0000:02:00.0"]);
        assert!(fifo.symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert!(!write(dir.path(), &host("a"), &[0, 1]));
    }

    #[test]
    fn the_copies_of_containers_that_are_gone_go() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &host("a"), &[0]));
        let own = dir.path().join("run/phoenix-nvidia/proc/101");
        sweep(dir.path());
        assert!(own.exists(), "/etc/pve is not served");
        let confs = dir.path().join("etc/pve/lxc");
        fs::create_dir_all(&confs).unwrap();
        let file = fs::File::create(confs.join("101.conf")).unwrap();
        drop(file);
        sweep(dir.path());
        assert!(own.exists());
        fs::remove_file(confs.join("101.conf")).unwrap();
        sweep(dir.path());
        assert!(!own.exists());
    }
}
