//! apt in the container: never at the driver's expense, never a package that
//! brings another driver.

use super::exec::Guest;
use super::os::Os;
use super::wishes::Wishes;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::time::{Deadline, human};

const KMOD: &str = include_str!("scripts/kmod.sh");

/// How long dpkg's lock is waited for, in seconds: a fresh container may run
/// unattended-upgrades.
pub(super) const LOCK_SECONDS: &str = "300";

/// Installs modprobe, which NVIDIA's installer insists on even without
/// kernel modules.
pub(super) fn install_kmod(guest: &Guest, os: &Os, wishes: &Wishes) -> anyhow::Result<()> {
    let what = || {
        Fault::new(
            Code::Software,
            format!("NVIDIA's installer needs modprobe, and kmod could not be installed in {}", os.shown()),
        )
        .remedy(format!("install the package kmod in container {}", guest.ctid()))
    };
    let deadline = Deadline::after(wishes.limits.apt);
    let output = guest.pct_sh(KMOD, [LOCK_SECONDS]).must(&deadline).fault(what)?;
    log::info!("driver: installed kmod, which the installer needs, in {}", human(output.took));
    Ok(())
}
