//! Container disks: an overlay of a cached image each, mounted where Proxmox keeps a subvolume.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::conf::Section;

/// The volume of a container's root.
pub(super) fn volume(id: u32) -> String {
    format!("local:{id}/subvol-{id}-disk-0.subvol")
}

/// Where the root's files are, from its volume id.
pub(super) fn root(conf: &Section) -> Option<String> {
    let volume = conf.get("rootfs")?.split(',').next()?;
    Some(format!("/var/lib/vz/images/{}", volume.strip_prefix("local:")?))
}

fn place(id: u32) -> String {
    format!("/var/lib/vz/images/{id}/subvol-{id}-disk-0.subvol")
}

fn layer(id: u32) -> String {
    format!("/run/lab/disks/{id}")
}

/// Makes a disk over the image `base`, with what `from` (another container's) changed of it.
pub(super) fn create(id: u32, base: &str, from: Option<u32>) -> Result<()> {
    let layer = layer(id);
    let below = format!("/run/lab/cache/{base}");
    if !Path::new(&below).is_dir() {
        bail!("the image {base} is not in the lab's cache");
    }
    for dir in [&place(id), &layer, &format!("{layer}/work")] {
        fs::create_dir_all(dir)?;
    }
    let upper = format!("{layer}/upper");
    match from {
        Some(from) => copy(&format!("{}/upper", self::layer(from)), &upper)?,
        None => {
            // The upper layer's top directory has the owner and mode that the container's / will have.
            let model = fs::metadata(&below)?;
            fs::create_dir(&upper)?;
            std::os::unix::fs::chown(&upper, Some(model.uid()), Some(model.gid()))?;
            fs::set_permissions(&upper, model.permissions())?;
        }
    }
    fs::write(format!("{layer}/base"), base)?;
    attach(id, &below)
}

fn attach(id: u32, below: &str) -> Result<()> {
    let layer = layer(id);
    let options = format!("lowerdir={below},upperdir={layer}/upper,workdir={layer}/work");
    mount(Some("overlay"), place(id).as_str(), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("the disk of container {id}"))
}

/// The image a container's disk lies on.
pub(super) fn base(id: u32) -> Result<String> {
    fs::read_to_string(format!("{}/base", layer(id))).with_context(|| format!("the disk of container {id}"))
}

fn copy(from: &str, to: &str) -> Result<()> {
    let output = Command::new("cp").args(["-aT", from, to]).output()?;
    if !output.status.success() {
        bail!("copying the disk {from}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn kept(id: u32, snapshot: &str) -> String {
    format!("{}/snapshots/{snapshot}", layer(id))
}

/// Keeps what the disk has now.
pub(super) fn snapshot(id: u32, name: &str) -> Result<()> {
    fs::create_dir_all(format!("{}/snapshots", layer(id)))?;
    copy(&format!("{}/upper", layer(id)), &kept(id, name))
}

/// Gives the disk what it had then; a snapshot that a test wrote into a conf is of the conf alone.
pub(super) fn rollback(id: u32, name: &str) -> Result<()> {
    let kept = kept(id, name);
    if !Path::new(&kept).exists() {
        return Ok(());
    }
    umount2(place(id).as_str(), MntFlags::MNT_DETACH)?;
    let layer = layer(id);
    for below in ["upper", "work"] {
        fs::remove_dir_all(format!("{layer}/{below}"))?;
    }
    fs::create_dir(format!("{layer}/work"))?;
    copy(&kept, &format!("{layer}/upper"))?;
    attach(id, &format!("/run/lab/cache/{}", base(id)?.trim()))
}

/// Removes what was kept.
pub(super) fn forget(id: u32, name: &str) -> Result<()> {
    let kept = kept(id, name);
    if Path::new(&kept).exists() {
        fs::remove_dir_all(&kept)?;
    }
    Ok(())
}

/// Removes a disk.
pub(super) fn destroy(id: u32) -> Result<()> {
    let _ = umount2(place(id).as_str(), MntFlags::MNT_DETACH);
    for dir in [format!("/var/lib/vz/images/{id}"), layer(id)] {
        if Path::new(&dir).exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("removing {dir}"))?;
        }
    }
    Ok(())
}
