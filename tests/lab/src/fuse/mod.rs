//! A small file system with the rules of pmxcfs, which serves /etc/pve: modes
//! and owners are fixed, there are no symlinks but the built-in ones, a file
//! ends at 1 MiB, times are whole seconds, and without quorum nothing can be
//! changed.
//!
//! ```no_run
//! let served = phoenix_lab::fuse::mount(std::path::Path::new("/etc/pve"), "pve1", None).unwrap();
//! drop(served); // unmounts
//! ```
//!
//! The program `lab-pmxcfs DIRECTORY NODE [CONTROL]` does the same until it is
//! killed. It takes over what lies in the directory. While there is a file
//! `no-quorum`, `full` or `eio` in the control directory, each write meets that;
//! while there is `stuck`, a read does not return and its reader can't be killed.

/// A served file system; unmounted when it is dropped.
pub use fuser::BackgroundSession as Served;

mod serve;
mod tree;

use anyhow::{Context as _, Result};
use fuser::{Config, MountOption, SessionACL};
use std::path::{Path, PathBuf};

/// Whether this process can mount it; else the reason.
pub fn unavailable() -> Option<String> {
    match std::fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/fuse: {error}")),
    }
}

/// Serves `directory` as node `node` until the result is dropped.
///
/// # Errors
/// When it can't be mounted.
pub fn mount(directory: &Path, node: &str, control: Option<PathBuf>) -> Result<Served> {
    let mut served = serve::Pmxcfs::new(node, control);
    served.take_over(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("/dev/fuse".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    config.acl = SessionACL::All;
    fuser::spawn_mount(served, directory, &config)
        .with_context(|| format!("mounting on {}", directory.display()))
}
