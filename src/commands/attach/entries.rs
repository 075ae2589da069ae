//! What `attach` says of the device entries that it finds.

use crate::device::{DevicePath, joined};
use crate::exit;
use crate::findings::read::Container;
use crate::plan::{self, Intent, dropped};
use crate::pve::conf::devices::passes_drm;
use crate::pve::conf::document::Form;
use crate::pve::conf::reconcile::{Change, reconcile};

/// Tells which entries are taken over, which go at the next start and why, and
/// the option that keeps those of graphics.
pub fn tell(container: &Container, taken: &[DevicePath]) {
    let (intent, _) = Intent::of(&container.settings, &container.conf);
    // Without a driver nobody knows what the host has.
    if !matches!(intent, Intent::Assigned(..)) || container.kernel.is_none() {
        return;
    }
    let (ctid, conf, choice) = (container.ctid, &container.conf, &container.choice);
    let wanted = plan::wanted_once_made(choice);
    let edit = reconcile(conf, &wanted, &container.mounts, Form::Pve);
    let changes = edit.map(|edit| edit.changes).unwrap_or_default();
    let gone = |change: &Change| match change {
        Change::Removed(path, _) => Some((*path, dropped::why(*path, &intent, choice, conf)?)),
        _ => None,
    };
    let gone: Vec<(DevicePath, String)> = changes.iter().filter_map(gone).collect();
    let stays = |path: &&DevicePath| !gone.iter().any(|(other, _)| other == *path);
    let kept: Vec<DevicePath> = taken.iter().filter(stays).copied().collect();
    if !kept.is_empty() {
        log::info!("container {ctid}: takes over its device entries of {}", joined(&kept, ", "));
    }
    for (path, why) in &gone {
        log::warn!("container {ctid}: its next start removes the entry of {path}: {why}");
    }
    let of_graphics =
        gone.iter().any(|(path, _)| path.is_display()) || (!taken.is_empty() && passes_drm(conf));
    if let Some(keep) = dropped::kept_by(ctid, &intent).filter(|_| of_graphics) {
        log::warn!("container {ctid}: its entries are of a container for graphics, and its settings are not");
        log::warn!("{}", exit::fix(&keep));
    }
}
