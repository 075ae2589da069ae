//! The device rules of a running container. They are a program of the kernel's
//! that LXC made and can replace; nobody can read them back.

use crate::device::Number;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::process::Cmd;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::time::Duration;

const LXC_CGROUP: &str = "/usr/bin/lxc-cgroup";
/// It takes 4 ms; LXC's monitor answers while the container runs.
const LIMIT: Duration = Duration::from_secs(10);

/// What a container may do with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Open it.
    Allow,
    /// Not open it; what is open stays open.
    Deny,
}

/// Changes what the running container may do with the device. One that is so already
/// is no error.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn change(ctid: Ctid, rule: Rule, number: Number) -> anyhow::Result<()> {
    let key = match rule {
        Rule::Allow => "devices.allow",
        Rule::Deny => "devices.deny",
    };
    let (id, rule) = (ctid.to_string(), format!("{number} rwm"));
    let fault = || {
        Fault::new(Code::Passthrough, format!("{key} {rule} of container {ctid} failed"))
            .remedy(format!("phoenix-nvidia {ctid}"))
    };
    let out = Cmd::new(LXC_CGROUP).args(["-n", &id, key, &rule]).run(&Deadline::after(LIMIT)).fault(fault)?;
    if out.success() {
        return Ok(());
    }
    Err(anyhow::anyhow!("{} ({})", out.last_lines(2).join(" | "), out.ended).context(fault()))
}
