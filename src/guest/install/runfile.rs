//! The driver step: copies the runfile into the container, runs its installer
//! and confirms the result.

use super::apt;
use super::steps::{NoPlace, refuse};
use crate::driver::cache::Cache;
use crate::driver::desired::Desired;
use crate::driver::obtain::{Runfile, RunfileRequest, obtain};
use crate::driver::runfile;
use crate::exit::{self, Code, Context as _, Fault};
use crate::guest::driver_state::DriverState;
use crate::guest::exec::{self, ExecError, Guest, fields};
use crate::guest::probe::{self, Check};
use crate::sys::fetch;
use crate::sys::process::{Ended, Output};
use crate::sys::text::size;
use crate::sys::time::{Deadline, human};
use crate::types::Version;
use anyhow::Context as _;
use std::time::{Duration, Instant};

const PLACES: &str = include_str!("../scripts/places.sh");
const RECEIVE: &str = include_str!("../scripts/receive.sh");
const RUN_INSTALLER: &str = include_str!("../scripts/run-installer.sh");
const CLEAN: &str = include_str!("../scripts/clean.sh");
const INSTALLER_LOG: &str = include_str!("../scripts/installer-log.sh");
const CONFIRMED: &str = "rm -f /var/lib/phoenix-nvidia/driver.installing";

/// The installer's log in the container.
const LOG: &str = "/var/log/nvidia-installer.log";
/// The most space that a runfile needs to unpack, in bytes: 1.8 GB and some.
const UNPACKED: u64 = 2_500_000_000;
/// The most space that a driver needs below /usr, in bytes.
const INSTALLED: u64 = 1_000_000_000;
/// The limit of a small command, with the start of pct.
const SHORT: Duration = Duration::from_secs(60);

/// The deadline of a small command; the limit of an install applies too.
fn short(desired: &Desired) -> Deadline {
    Deadline::after(SHORT.min(desired.limits.install))
}

fn fault(what: String) -> impl FnOnce() -> Fault {
    move || Fault::new(Code::Software, what)
}

/// Installs the driver and confirms it.
///
/// # Errors
/// [`Code::Software`], with the part that failed.
pub fn install(guest: &Guest, desired: &Desired, check: &Check, cache: &Cache) -> anyhow::Result<()> {
    refuse(guest.ctid(), check)?;
    desired.matches_kernel()?;
    let request = RunfileRequest {
        version: &desired.driver,
        url: &desired.runfile_url,
        sha256: desired.sha256.as_ref(),
        limits: &desired.limits,
    };
    let runfile = obtain(cache, &request)?;
    let done = put_and_run(guest, desired, check, &runfile);
    if let Err(error) = &done {
        clean(guest, error);
    }
    done
}

fn put_and_run(guest: &Guest, desired: &Desired, check: &Check, runfile: &Runfile) -> anyhow::Result<()> {
    let placement = Placement::look(guest, desired, runfile.size)?;
    if !placement.modprobe {
        apt::install_kmod(guest, &check.os, desired)?;
    }
    let path = format!("{}/nvidia-driver-installer.run", placement.directory);
    copy(guest, desired, runfile, &path)?;
    let started = Instant::now();
    let unpack = format!("{}/phoenix-nvidia.unpack", placement.directory);
    let output = run(guest, desired, &path, &unpack)?;
    confirm(guest, desired, &output)?;
    log::info!("{}", installed_line(&check.driver, &desired.driver, started.elapsed()));
    Ok(())
}

fn installed_line(before: &DriverState, driver: &Version, took: Duration) -> String {
    let was = match before.version(driver) {
        Some(old) if old != driver => old.to_string(),
        _ => before.to_string(),
    };
    format!("driver: installed {driver} in {} (was {was})", human(took))
}

/// The kB of df in bytes; `None` without a number.
fn bytes(kb: &str) -> Option<u64> {
    kb.parse::<u64>().ok().map(|kb| kb.saturating_mul(1024))
}

/// Where in the container the runfile can be unpacked and run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Placement {
    directory: String,
    modprobe: bool,
}

impl Placement {
    fn look(guest: &Guest, desired: &Desired, runfile: u64) -> anyhow::Result<Placement> {
        let ctid = guest.ctid();
        let what = || fault(format!("cannot copy the runfile into container {ctid}"))();
        let output = guest.pct_sh(PLACES, []).must(&short(desired)).fault(what)?;
        let placement = Placement::choose(&output.stdout, runfile);
        placement.map_err(|none| what().remedy(none.remedy(ctid)).caused_by(none))
    }

    /// From the script's answer, for a runfile of this size.
    fn choose(answer: &[u8], runfile: u64) -> Result<Placement, NoPlace> {
        let none = |full: bool, why: String| NoPlace { why, full };
        let need = runfile + UNPACKED.min(runfile.saturating_mul(8));
        let (mut placement, mut refused, mut full) = (Placement::default(), Vec::new(), false);
        // Free space unknown: the second choice, and the installer finds out.
        let mut unknown = None;
        for (key, value) in fields(answer) {
            let words: Vec<&str> = value.split(' ').collect();
            match (key.as_str(), words.as_slice()) {
                ("place", [directory @ ("/tmp" | "/var/tmp"), kind, free, runs]) => {
                    let free = bytes(free);
                    match unusable(kind, runs, free, need) {
                        Some((why, is_full)) => {
                            refused.push(format!("{directory} {why}"));
                            full |= is_full;
                        }
                        None if free.is_none() => drop(unknown.get_or_insert((*directory).to_owned())),
                        None if placement.directory.is_empty() => {
                            placement.directory = (*directory).to_owned()
                        }
                        None => {}
                    }
                }
                ("usr", [free]) => {
                    let need = INSTALLED.min(runfile.saturating_mul(3));
                    if let Some(free) = bytes(free).filter(|free| *free < need) {
                        let why = format!("/usr has {} free, the driver needs {}", size(free), size(need));
                        return Err(none(true, why));
                    }
                }
                ("readonly", _) => return Err(none(false, "/usr/bin is read-only".into())),
                ("modprobe", _) => placement.modprobe = true,
                _ => {}
            }
        }
        match unknown {
            _ if !placement.directory.is_empty() => {}
            Some(directory) => {
                log::warn!("driver: free space of {directory} in the container unknown");
                placement.directory = directory;
            }
            None if refused.is_empty() => return Err(none(false, "no /tmp and no /var/tmp".into())),
            None => {
                let why = format!("unpacking needs {} on a disk: {}", size(need), refused.join("; "));
                return Err(none(full, why));
            }
        }
        Ok(placement)
    }
}

/// Why the runfile cannot be unpacked in a directory, and whether that is for want of
/// room. A tmpfs uses the container's memory, and may have less free than it says.
fn unusable(kind: &str, runs: &str, free: Option<u64>, need: u64) -> Option<(String, bool)> {
    match (kind, runs, free) {
        ("tmpfs" | "ramfs", ..) => Some(("is in memory".into(), false)),
        (_, "noexec", _) => Some(("is mounted noexec".into(), false)),
        (_, "readonly", _) => Some(("is read-only".into(), false)),
        (_, _, Some(free)) if free < need => Some((format!("has {} free", size(free)), true)),
        _ => None,
    }
}

/// Copies the runfile and verifies its size and checksum in the container.
fn copy(guest: &Guest, desired: &Desired, runfile: &Runfile, path: &str) -> anyhow::Result<()> {
    let what = || fault(format!("cannot copy the runfile to {path} in container {}", guest.ctid()))();
    let file =
        fetch::open_regular(&runfile.path).with_context(|| runfile.path.display().to_string()).fault(what)?;
    let output =
        guest.pct_sh(RECEIVE, [path]).stdin(file).must(&Deadline::after(desired.limits.copy)).fault(what)?;
    let arrived = Arrived::parse(&output.stdout);
    let expected = Arrived { size: Some(runfile.size), sha256: runfile.sha256.to_string() };
    if arrived.size != expected.size {
        let (got, of) = (arrived.size.unwrap_or_default(), runfile.size);
        let said = output.last_lines(2).join(" | ");
        return Err(anyhow::anyhow!("{} of {} arrived: {said}", size(got), size(of))).fault(what);
    }
    // Without sha256sum the size and the installer's own check must do.
    if arrived.sha256.is_empty() {
        log::debug!("copy: no sha256sum in the container");
    } else if arrived.sha256 != expected.sha256 {
        return Err(anyhow::anyhow!("its SHA-256 is {} there, expected {}", arrived.sha256, expected.sha256))
            .fault(what);
    }
    log::info!("driver: copied {} into the container in {}", size(runfile.size), human(output.took));
    Ok(())
}

/// What arrived, as the container says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arrived {
    size: Option<u64>,
    sha256: String,
}

impl Arrived {
    fn parse(answer: &[u8]) -> Arrived {
        let mut arrived = Arrived::default();
        for (key, value) in fields(answer) {
            match key.as_str() {
                "size" => arrived.size = value.trim().parse().ok(),
                "sha256" => arrived.sha256 = value.split(' ').next().unwrap_or_default().to_owned(),
                _ => {}
            }
        }
        arrived
    }
}

/// Runs the installer. Exit code 0 alone is not yet success.
fn run(guest: &Guest, desired: &Desired, path: &str, unpack: &str) -> anyhow::Result<Output> {
    let options = runfile::options(&desired.driver, unpack, LOG);
    let args = [path, unpack, desired.driver.as_str()].into_iter().chain(options.iter().map(String::as_str));
    let what = || fault(format!("driver: the installer of {} failed", desired.driver))();
    let output =
        guest.pct_sh(RUN_INSTALLER, args).run(&Deadline::after(desired.limits.install)).fault(what)?;
    if output.success() {
        return Ok(output);
    }
    let mut ended = output.ended.to_string();
    if matches!(output.ended, Ended::Code(135) | Ended::Signal(7)) {
        ended.push_str(" (SIGBUS: the container's disk is full)");
    }
    Err(anyhow::anyhow!("{ended}: {}", reasons(guest, desired, &output))).fault(what)
}

/// The errors in the installer's log, else its last lines of output.
fn reasons(guest: &Guest, desired: &Desired, output: &Output) -> String {
    let log = guest.pct_sh(INSTALLER_LOG, [LOG]).run(&short(desired));
    let mut lines = log.map(|log| log.last_lines(4)).unwrap_or_default();
    if lines.is_empty() {
        lines = output.last_lines(4);
    }
    match lines.is_empty() {
        true => "no output".to_owned(),
        false => lines.join(" | "),
    }
}

/// Success: the desired version answers.
fn confirm(guest: &Guest, desired: &Desired, output: &Output) -> anyhow::Result<()> {
    let now = probe::confirm(guest, desired)?;
    if now == DriverState::Matching {
        guest
            .pct_sh(CONFIRMED, [])
            .must(&short(desired))
            .fault(fault("driver: cannot record the result in the container".to_owned()))?;
        return Ok(());
    }
    let message = format!(
        "driver: the installer of {} ended with exit code 0, but the driver in the container is {now}: {}",
        desired.driver,
        reasons(guest, desired, output)
    );
    Err(Fault::new(Code::Software, message)
        .remedy(format!("pct exec {} -- tail -n 50 {LOG}", guest.ctid()))
        .into())
}

/// Removes the temporary files after a failure; also after a signal, which
/// leaves a moment for it.
fn clean(guest: &Guest, error: &anyhow::Error) {
    if exec::is_gone(error) {
        return;
    }
    let deadline = Deadline::secs(if exit::interrupted(error) { 1 } else { 30 });
    match guest.attach_sh(CLEAN, []).even_when_stopping().run(&deadline) {
        Ok(_) | Err(ExecError::Gone(_) | ExecError::Changed(_)) => {}
        Err(why) => log::warn!("driver: cannot remove the temporary files in the container: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000; // in kB

    fn choose(text: &str) -> Result<Placement, String> {
        Placement::choose(text.as_bytes(), 400_000_000).map_err(|e| e.to_string())
    }

    fn remedy(text: &str) -> String {
        Placement::choose(text.as_bytes(), 400_000_000).unwrap_err().remedy("101".parse().unwrap())
    }

    #[test]
    fn a_tmpfs_or_noexec_tmp_is_passed_over_for_var_tmp() {
        let usr = format!("usr {}\nmodprobe yes\n", 5 * GB);
        for tmp in
            [format!("tmpfs {} exec", 9 * GB), format!("ext2/ext3 {} noexec", 9 * GB), "zfs 100 exec".into()]
        {
            let text = format!("place /tmp {tmp}\nplace /var/tmp ext2/ext3 {} exec\n{usr}", 4 * GB);
            let placement = choose(&text).unwrap();
            assert_eq!((placement.directory.as_str(), placement.modprobe), ("/var/tmp", true), "{text}");
        }
        let both = format!("place /tmp zfs {0} exec\nplace /var/tmp zfs {0} exec\n{usr}", 4 * GB);
        assert_eq!(choose(&both).unwrap().directory, "/tmp");
    }

    #[test]
    fn a_full_disk_is_found_out_before() {
        let text =
            format!("place /tmp tmpfs {} exec\nplace /var/tmp zfs {} exec\nusr {}\n", 9 * GB, GB, 5 * GB);
        let error = choose(&text).unwrap_err();
        assert_eq!(error, "unpacking needs 2900 MB on a disk: /tmp is in memory; /var/tmp has 1024 MB free");
        let text = format!("place /tmp zfs {} exec\nusr 1000\n", 9 * GB);
        assert!(choose(&text).unwrap_err().contains("/usr has 1024 kB free"));
        let larger = "pct resize 101 rootfs +4G, or without an install: phoenix-nvidia attach 101 --inject";
        assert!(remedy(&text).starts_with(larger), "{}", remedy(&text));
        let none = format!("place /var/tmp zfs {GB} exec\nplace /tmp tmpfs 9 exec\nusr {}\n", 5 * GB);
        assert!(remedy(&none).starts_with(larger), "{}", remedy(&none));
        assert!(remedy("readonly /usr/bin\n").starts_with("phoenix-nvidia attach 101 --inject"));
        assert!(choose("readonly /usr/bin\n").unwrap_err().contains("/usr/bin"));
        assert!(choose("").unwrap_err().contains("no /tmp"));
    }

    #[test]
    fn a_df_that_does_not_tell_is_no_full_disk() {
        let text = "place /tmp zfs - exec\nplace /var/tmp zfs - exec\nusr -\n";
        assert_eq!(choose(text).unwrap().directory, "/tmp");
        let told = format!("place /tmp zfs - exec\nplace /var/tmp zfs {} exec\nusr -\n", 9 * GB);
        assert_eq!(choose(&told).unwrap().directory, "/var/tmp");
        assert!(choose("place /tmp zfs - noexec\nusr -\n").is_err());
    }

    #[test]
    fn a_directory_that_the_container_made_up_is_not_used() {
        let text = format!("place /etc zfs {0} exec\nplace /tmp zfs {0} exec\n", 9 * GB);
        assert_eq!(choose(&text).unwrap().directory, "/tmp");
    }

    #[test]
    fn the_line_names_the_change() {
        let (old, new): (Version, Version) = ("580.76.05".parse().unwrap(), "580.95.05".parse().unwrap());
        let line = installed_line(&DriverState::Other { version: old }, &new, Duration::from_secs(41));
        assert_eq!(line, "driver: installed 580.95.05 in 41 s (was 580.76.05)");
        let line = installed_line(&DriverState::Missing, &new, Duration::from_secs(41));
        assert_eq!(line, "driver: installed 580.95.05 in 41 s (was not installed)");
    }
}
