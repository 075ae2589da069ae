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
/// driver, where it is known. One that nobody knows keeps its hands off the modules,
/// or does nothing.
pub fn command(ctid: Ctid, version: Option<&Version>) -> String {
    let options = version.map_or_else(|| vec!["--silent", "--skip-module-unload"], options);
    format!("pct exec {ctid} -- nvidia-uninstall {}", options.join(" "))
}

/// The command that removes the libraries of these versions, which no uninstaller and
/// no package removes. What another file system has mounted there stays; a directory
/// of the same one would not.
pub fn remove_files(ctid: Ctid, versions: &[Version]) -> String {
    let name = |version: &Version| format!("-name 'lib*.so.{version}'");
    let names = match versions {
        [one] => name(one),
        all => format!("\\( {} \\)", all.iter().map(name).collect::<Vec<_>>().join(" -o ")),
    };
    format!("pct exec {ctid} -- find /usr/lib /usr/lib64 -xdev {names} -delete")
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
                let fault = fault().remedy(remove_files(ctid, std::slice::from_ref(version)));
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
    let what = match (&now.runfile, &now.beside) {
        (Some(_), _) => {
            format!(
                "driver {version} of a runfile is still in container {ctid} after its uninstaller ran: see {LOG}"
            )
        }
        // It leaves what was changed since.
        (None, Some(DriverState::Incomplete { .. } | DriverState::Other { .. } | DriverState::Matching)) => {
            format!("files of driver {version} stay in container {ctid}: see {LOG}")
        }
        _ => return Ok(()),
    };
    Err(Fault::new(Code::Software, what).remedy(without_uninstaller(ctid, version, now)).into())
}

/// The command that removes a driver whose own uninstaller does not. What is there
/// may be of another version than what the installer noted.
pub fn without_uninstaller(ctid: Ctid, noted: &Version, now: &Check) -> String {
    match now.versions.as_slice() {
        [] => remove_files(ctid, std::slice::from_ref(noted)),
        found => remove_files(ctid, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::desired::Desired;
    use crate::exit::remedy_of;
    use crate::guest::probe;

    #[test]
    fn the_hosts_modules_stay_and_no_uninstaller_gets_an_option_that_it_does_not_know() {
        let of = |version: &str| command("101".parse().unwrap(), version.parse().ok().as_ref());
        let new = "pct exec 101 -- nvidia-uninstall --silent --skip-module-unload --skip-depmod";
        assert_eq!(of("580.95.05"), new);
        assert_eq!(of("390.157"), "pct exec 101 -- nvidia-uninstall --silent --skip-module-unload");
        assert_eq!(of("340.108"), "pct exec 101 -- nvidia-uninstall --silent");
        let unknown = "pct exec 101 -- nvidia-uninstall --silent --skip-module-unload";
        assert_eq!(command("101".parse().unwrap(), None), unknown);
    }

    /// Its libraries and what the installer noted are of different versions.
    #[test]
    fn what_an_uninstaller_leaves_is_removed_by_another_command_and_by_the_names_that_are_there() {
        let (ctid, version) = ("101".parse().unwrap(), "570.86.15".parse().unwrap());
        let lib = "/usr/lib/x86_64-linux-gnu/lib";
        let look = |libs: &str, state: &str| {
            let desired = Desired { injected: true, ..Desired::sample() };
            let system = "os ID=debian\nloader /lib64/ld-linux-x86-64.so.2\ninit /sbin/init\n";
            probe::understand(format!("{system}{libs}{state}end 1\n").as_bytes(), &desired).unwrap()
        };
        let libs = format!("lib {lib}nvidia-ml.so.570.124.06\nlib {lib}cuda.so.570.124.06\n");
        let fix = |check: &Check| {
            must_be_gone(ctid, &version, check).err().map(|e| remedy_of(&e).unwrap().to_owned())
        };
        let find = "pct exec 101 -- find /usr/lib /usr/lib64 -xdev";
        let theirs = format!("{find} -name 'lib*.so.570.124.06' -delete");
        assert_eq!(fix(&look(&libs, "state 1.0-x (570.86.15)\n")), Some(theirs.clone()));
        assert_eq!(fix(&look(&libs, "")), Some(theirs));
        let two = format!("{libs}lib {lib}cuda.so.570.86.15\n");
        let both = "\\( -name 'lib*.so.570.124.06' -o -name 'lib*.so.570.86.15' \\)";
        assert_eq!(fix(&look(&two, "")), Some(format!("{find} {both} -delete")));
        assert_eq!(fix(&look("", "state 1.0-x (570.86.15)\n")), None, "no library is left");
    }
}
