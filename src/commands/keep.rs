//! `keep`: the loaded driver's files are kept for containers before apt replaces
//! them, called by apt (`packaging/phoenix-nvidia.apt`) ahead of every change of
//! packages, whatever they are.
//!
//! Until the host's next boot its kernel driver is the one that is loaded, and only
//! this copy has the user space that fits. A runfile's installer calls nobody; what
//! `prepare` copied at boot is there by then.

use super::prepare::read_confs;
use crate::driver::tree::Trees;
use crate::exit::Code;
use crate::host::kernel_driver;
use crate::job::injection;
use crate::sys::look::View;
use crate::sys::mountinfo;
use crate::sys::time::Deadline;
use std::path::Path;
use std::time::Duration;

/// The time for all of it, in seconds: apt waits for it. A copy of half a gigabyte
/// takes one or two on a quick disk.
pub const LIMIT: u64 = 60;

/// The time for reading who asks for it: /etc/pve may not answer.
const ASKING: Duration = Duration::from_secs(5);

/// Makes, repairs or completes the tree of the loaded driver, where containers of
/// this node ask for one. Silent if there is nothing to do.
///
/// # Errors
/// [`Code::Software`]: the files could not be kept.
pub fn run() -> anyhow::Result<Code> {
    let deadline = Deadline::secs(LIMIT);
    let host = View::host_until(&deadline);
    let trees = Trees::host();
    // Files that are not there any more are no news: starts and `doctor` tell it.
    let Some(kernel) = kernel_driver::version(host).filter(|kernel| trees.can_gain(kernel)) else {
        return Ok(Code::Success);
    };
    let read = read_confs(View::host_until(&deadline.at_most(ASKING)));
    // Whoever cannot be asked was asked when the last tree was made.
    let asked = match read.problems.is_empty() {
        true => injection::is_asked_for(&read.confs, &read.files),
        false => trees.exist(),
    };
    if !asked {
        return Ok(Code::Success);
    }
    match mountinfo::is_own_namespace(Path::new("/")) {
        true => trees.make_ahead(&kernel, &deadline)?,
        false => trees.make(&kernel, &deadline).map(drop)?,
    }
    Ok(Code::Success)
}
