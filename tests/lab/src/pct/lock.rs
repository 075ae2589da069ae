//! Proxmox' lock on a container's configuration.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{die_with, warn};

/// How long a call waits for the lock.
const LIMIT: Duration = Duration::from_secs(10);

/// Takes the lock; it is held for as long as what comes back lives.
pub(super) fn take(id: u32) -> Result<Flock<File>> {
    let path = format!("/run/lock/lxc/pve-config-{id}.lock");
    std::fs::create_dir_all("/run/lock/lxc")?;
    let mut file =
        OpenOptions::new().append(true).create(true).mode(0o644).open(&path).with_context(|| path.clone())?;
    let deadline = Instant::now() + LIMIT;
    let mut waited = false;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => {
                if waited {
                    warn(" OK");
                }
                return Ok(held);
            }
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(errno).with_context(|| format!("can't lock file '{path}'")),
        };
        if !waited {
            warn("trying to acquire lock...");
            waited = true;
        }
        if Instant::now() > deadline {
            // The exit code of the genuine one is the errno of the interrupted flock.
            return Err(die_with(4, format!("can't lock file '{path}' - got timeout")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
