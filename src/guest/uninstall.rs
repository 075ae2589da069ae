//! Removing a driver that NVIDIA's installer put into a container, by its own
//! uninstaller: it removes what is still as it was installed, and puts back what
//! it had moved aside.

use super::driver_state::DriverState;
use super::exec::{ExecError, Guest, fields};
use super::probe::Check;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::time::{Deadline, human};
use crate::types::{Ctid, Version};
use std::time::Duration;

const UNINSTALL: &str = include_str!("scripts/uninstall.sh");
/// Where it writes; older ones would take the installer's log.
const LOG: &str = "/var/log/nvidia-uninstall.log";
/// It reads every file that it removes.
const LIMIT: Duration = Duration::from_secs(300);

/// The uninstaller's options. Without the second it would unload the kernel
/// modules, which are the host's; an unknown one makes it do nothing.
fn options(version: &Version) -> Vec<&'static str> {
    let mut options = vec!["--silent"];
    if version.at_least(&[361, 16]) {
        options.push("--skip-module-unload");
    }
    if version.at_least(&[418, 30]) {
        options.push("--skip-depmod");
    }
    options
}

/// The command that does it, to be pasted on the host; `version` is that of the
/// driver, where it is known.
pub fn command(ctid: Ctid, version: Option<&Version>) -> String {
    let options = version.map_or_else(|| vec!["--silent"], options);
    format!("pct exec {ctid} -- nvidia-uninstall {}", options.join(" "))
}

/// The command that removes the libraries of a version that no uninstaller and no
/// package knows. What is mounted stays.
pub fn remove_files(ctid: Ctid, version: &Version) -> String {
    format!("pct exec {ctid} -- find /usr/lib /usr/lib64 -xdev -name 'lib*.so.{version}' -delete")
}

/// Runs the uninstaller of `version`. What it came to, the next look tells.
///
/// # Errors
/// [`Code::Software`]: it could not be run.
pub fn run(guest: &Guest, version: &Version, limit: Duration) -> anyhow::Result<()> {
    let ctid = guest.ctid();
    let fault = || {
        let what = format!("cannot remove driver {version} of a runfile from container {ctid}");
        Fault::new(Code::Software, what).remedy(command(ctid, Some(version)))
    };
    let log = format!("--log-file-name={LOG}");
    let options = options(version).into_iter().chain([log.as_str()]);
    let output = guest.pct_sh(UNINSTALL, options).run(&Deadline::after(LIMIT.min(limit))).fault(fault)?;
    let mut said = Vec::new();
    for (key, value) in fields(&output.stdout) {
        match key.as_str() {
            "missing" => {
                let fault = fault().remedy(remove_files(ctid, version));
                return Err(anyhow::anyhow!("its nvidia-uninstall is gone").context(fault));
            }
            "says" => said.push(value),
            _ => {}
        }
    }
    if !output.success() {
        let error = ExecError::Exit { ended: output.ended, last: output.last_lines(4) };
        return Err(error).fault(fault);
    }
    said.iter().rev().take(3).rev().for_each(|line| log::debug!("nvidia-uninstall: {line}"));
    log::debug!("the uninstaller took {}", human(output.took));
    Ok(())
}

/// Fails if the driver is still there after it ran.
///
/// # Errors
/// [`Code::Software`].
pub fn must_be_gone(ctid: Ctid, version: &Version, now: &Check) -> anyhow::Result<()> {
    let what = format!("driver {version} of a runfile is still in container {ctid}");
    let fault = match (&now.runfile, &now.beside) {
        (Some(still), _) => {
            Fault::new(Code::Software, format!("{what} after its uninstaller ran: see {LOG}"))
                .remedy(command(ctid, Some(still)))
        }
        // It leaves what was changed since.
        (None, Some(DriverState::Incomplete { .. } | DriverState::Other { .. } | DriverState::Matching)) => {
            Fault::new(
                Code::Software,
                format!("files of driver {version} stay in container {ctid}: see {LOG}"),
            )
            .remedy(remove_files(ctid, version))
        }
        _ => return Ok(()),
    };
    Err(fault.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_modules_stay_and_no_uninstaller_gets_an_option_that_it_does_not_know() {
        let of = |version: &str| command("101".parse().unwrap(), version.parse().ok().as_ref());
        let new = "pct exec 101 -- nvidia-uninstall --silent --skip-module-unload --skip-depmod";
        assert_eq!(of("580.95.05"), new);
        assert_eq!(of("390.157"), "pct exec 101 -- nvidia-uninstall --silent --skip-module-unload");
        assert_eq!(of("340.108"), "pct exec 101 -- nvidia-uninstall --silent");
        assert_eq!(command("101".parse().unwrap(), None), "pct exec 101 -- nvidia-uninstall --silent");
    }
}
