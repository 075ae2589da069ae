//! Whether this node may change the cluster's files.

use std::os::unix::fs::MetadataExt;

use anyhow::Result;

use super::die;

/// Without quorum pmxcfs shows no write bit: that, and not access(2), tells root too.
pub(super) fn quorate() -> bool {
    std::fs::symlink_metadata("/etc/pve/local").is_ok_and(|found| found.mode() & 0o200 != 0)
}

/// What each start asks first, in `pct` and once more inside LXC's start.
pub(super) fn check_quorum() -> Result<()> {
    if quorate() { Ok(()) } else { Err(die("cluster not ready - no quorum?")) }
}
