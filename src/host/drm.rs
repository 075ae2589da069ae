//! Our own DRM nodes: those of udev are 0660 of groups that mean nothing in an
//! unprivileged container. They lie on a tmpfs of ours, since /run is mounted
//! nodev, which a bind mount keeps: opening a node of it is EACCES.

use crate::device::DRM_NODES;
use crate::pve::cluster;
use crate::sys::lock;
use crate::sys::look::{Look, View};
use crate::sys::mount;
use crate::sys::mountinfo;
use crate::sys::private;
use crate::sys::time::Deadline;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The timeout of the lock: others mount a file system under it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the file system for the nodes is there.
pub(super) fn is_mounted(look: &Look<'_>) -> bool {
    is_right(&look.at(DRM_NODES))
}

fn is_right(at: &Path) -> bool {
    mount::is_mounted(at) && mount::takes_devices(at)
}

/// Mounts the file system for the nodes unless it is there, in the place of
/// anything else.
///
/// # Errors
/// What could not be made or mounted.
pub(super) fn mount(root: &Path, deadline: &Deadline) -> anyhow::Result<()> {
    let at = below(root, DRM_NODES);
    // Two of them would lie on each other.
    let _lock = lock::take(&lock_file(root), &deadline.at_most(LOCK_TIMEOUT), |_| ())?;
    if let Some(run) = at.parent() {
        private::directory(run, 0o755)?;
    }
    if !is_right(&at) {
        if mountinfo::is_own_namespace(root) {
            anyhow::bail!(mountinfo::OWN_NAMESPACE);
        }
        mount::unmount(&at)?;
        private::directory(&at, 0o755)?;
        mount::for_devices(&at)?;
    }
    private::directory(&at, 0o755)?;
    private::directory(&at.join("dri"), 0o755)?;
    Ok(())
}

/// Removes the nodes where no container of this node names one. Running
/// containers keep theirs.
pub fn sweep<'a>(host: impl Into<View<'a>>) {
    let root = host.into().root();
    let at = below(root, DRM_NODES);
    let mut look = Look::new(root);
    let Some(containers) = cluster::containers(&mut look).filter(|_| mount::is_mounted(&at)) else { return };
    let names_one = |conf: &[u8]| conf.windows(DRM_NODES.len()).any(|part| part == DRM_NODES.as_bytes());
    for ctid in containers {
        match look.bytes(&format!("/etc/pve/lxc/{ctid}.conf")) {
            Some(conf) if !names_one(&conf) => {}
            _ => return,
        }
    }
    let Ok(Some(_lock)) = lock::try_take(&lock_file(root)) else { return };
    if let Err(error) = remove(&at) {
        log::debug!("cannot remove {}: {error}", at.display());
    }
}

fn remove(at: &Path) -> io::Result<()> {
    mount::unmount(at)?;
    fs::remove_dir(at)
}

fn lock_file(root: &Path) -> PathBuf {
    below(root, "/run/lock/phoenix-nvidia/drm.lock")
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
