//! The host's driver that a running container has mounted, from its mount table:
//! no program is run, in it or here, where its control group shows a process.

use crate::driver::tree;
use crate::pve::pct;
use crate::sys::{file, mountinfo};
use crate::types::{Ctid, Version};
use std::path::Path;

/// So many processes are listed at most, in bytes.
const MOST: u64 = 64 * 1024;

/// The version that is mounted; `None` where none is.
///
/// # Errors
/// The container does not run, or its mounts cannot be read.
pub fn version(ctid: Ctid) -> anyhow::Result<Option<Version>> {
    let pid = match first_process(ctid) {
        Some(pid) => pid,
        None => pct::init(ctid)?.map(|init| init.pid).ok_or_else(|| anyhow::anyhow!("it does not run"))?,
    };
    Ok(tree::mounted(&mountinfo::of(pid)?))
}

fn first_process(ctid: Ctid) -> Option<i32> {
    let group = Path::new("/sys/fs/cgroup/lxc").join(ctid.to_string());
    let pid = |name: &&str| -> Option<i32> {
        let list = file::beginning(&group.join(name), MOST).ok()?;
        // 0 is a process of another PID namespace.
        String::from_utf8_lossy(&list).lines().next()?.parse().ok().filter(|pid| *pid > 0)
    };
    pct::GROUPS.iter().find_map(pid)
}
