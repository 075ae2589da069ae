//! Things that are made once and kept between test runs.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where they are kept: `$PHOENIX_LAB_CACHE`, or `lab-cache` in cargo's target directory.
pub fn dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("PHOENIX_LAB_CACHE") {
        return PathBuf::from(dir);
    }
    // A test's executable lies in the target directory, which cargo marks with this file.
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    let beside_source = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    target.map_or_else(beside_source, Path::to_owned).join("lab-cache")
}

/// The file or directory of this name in the cache, made by `make` at a path beside it when it isn't there yet. Two who
/// make it at once both do, and the second finds the first's: what is made must depend on nothing but the name.
pub fn once(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let place = dir().join(name);
    if place.exists() {
        return Ok(place);
    }
    let parent = place.parent().unwrap_or(&place);
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let fresh = PathBuf::from(format!("{}.{}.{count}.new", place.display(), std::process::id()));
    let made = make(&fresh).and_then(|()| match fs::rename(&fresh, &place) {
        // A directory that isn't empty can't be replaced: somebody else was faster.
        Err(_) if place.is_dir() => Ok(()),
        renamed => renamed.with_context(|| format!("naming {}", place.display())),
    });
    // After success there is nothing left of a file; of a directory that came second there is.
    let _ = fs::remove_dir_all(&fresh).or_else(|_| fs::remove_file(&fresh));
    made.map(|()| place).with_context(|| format!("making {name} for the lab's cache"))
}
