//! `devN` settings, as strictly read as the genuine program reads them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use anyhow::Result;

use super::die;

/// What a `devN` setting passes.
pub(super) struct Device<'a> {
    pub(super) path: &'a str,
    pub(super) deny_write: bool,
    /// Mode, user and group of the container's node.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Reads a setting; a part without a key is the path, wherever it stands.
pub(super) fn read(setting: &str) -> Result<Device<'_>> {
    let mut device = Device { path: "", deny_write: false, mode: 0o660, uid: 0, gid: 0 };
    for part in setting.split(',').filter(|part| !part.trim().is_empty()) {
        let invalid = || die(format!("invalid key or value in comma-separated list property: {part}"));
        let (key, value) = part.split_once('=').unwrap_or(("path", part));
        match key {
            "path" if device.path.is_empty() && value.starts_with("/dev/") => device.path = value,
            "deny-write" if matches!(value, "0" | "1") => device.deny_write = value == "1",
            "mode" => device.mode = u32::from_str_radix(value, 8).map_err(|_| invalid())?,
            "uid" => device.uid = value.parse().map_err(|_| invalid())?,
            "gid" => device.gid = value.parse().map_err(|_| invalid())?,
            _ => return Err(invalid()),
        }
    }
    if device.path.is_empty() {
        return Err(die("Path has to be defined"));
    }
    Ok(device)
}

/// Major and minor of a device node.
pub(super) fn number(path: &str) -> Result<(u64, u64)> {
    let found = fs::metadata(path).map_err(|_| die(format!("Device {path} does not exist")))?;
    if !found.file_type().is_char_device() && !found.file_type().is_block_device() {
        return Err(die(format!("{path} is not a device")));
    }
    Ok((nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev())))
}
