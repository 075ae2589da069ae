//! The driver step: the runfile into the container, its installer run, the
//! result confirmed.

use crate::driver::cache::Cache;
use crate::driver::cache::Order;
use crate::driver::cache::Runfile;
use crate::driver::desired::Desired;
use crate::driver::runfile;
use crate::exit::{Code, Context as _, Fault};
use crate::guest::exec::{ExecError, Guest, fields};
use crate::guest::probe::{self, Check, DriverState};
use crate::sys::fetch::{self, size};
use crate::sys::process::{Ended, Output};
use crate::sys::time::{Deadline, human};
use crate::types::{Ctid, Version};
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
/// A real runfile unpacks to 1.8 GB; with some air, in bytes.
const UNPACKED: u64 = 2_500_000_000;
/// What ends up below /usr, at most, in bytes.
const INSTALLED: u64 = 1_000_000_000;
/// Small commands inside may take this long, pct's own start included.
const SHORT: Duration = Duration::from_secs(60);

/// The deadline of a small command: a short time limit of the whole is its
/// too.
fn short(desired: &Desired) -> Deadline {
    Deadline::after(SHORT.min(desired.limits.install))
}

fn fault(what: String) -> impl FnOnce() -> Fault {
    move || Fault::new(Code::Software, what)
}

/// Puts the wanted driver into the container and confirms that it is there.
/// What it was before is in `check`.
///
/// # Errors
/// [`Code::Software`], naming the step that failed.
pub fn install(guest: &Guest, desired: &Desired, check: &Check, cache: &Cache) -> anyhow::Result<()> {
    refuse(guest.ctid(), check)?;
    desired.fit_the_kernel()?;
    let order = Order {
        version: &desired.driver,
        url: &desired.runfile_url,
        sha256: desired.sha256.as_ref(),
        limits: &desired.limits,
    };
    let runfile = cache.obtain(&order)?;
    let done = put_and_run(guest, desired, check, &runfile);
    if let Err(error) = &done {
        clean(guest, error);
    }
    done
}

/// What must not be touched, and why.
///
/// # Errors
/// [`Code::Software`].
pub(super) fn refuse(ctid: Ctid, check: &Check) -> anyhow::Result<()> {
    match &check.found {
        DriverState::Unsupported { why } => Err(Fault::new(
            Code::Software,
            format!("no NVIDIA driver can be installed in container {}: {why}", ctid),
        )
        .into()),
        DriverState::Packaged { .. } => {
            let fault = Fault::new(
                Code::Software,
                format!(
                    "container {} has a driver of its distribution's packages ({}); a runfile on top would break both",
                    ctid,
                    check.found.owners()
                ),
            );
            Err(match check.found.remove(ctid) {
                Some(remove) => fault.remedy(remove).into(),
                None => fault.into(),
            })
        }
        _ => Ok(()),
    }
}

fn put_and_run(guest: &Guest, desired: &Desired, check: &Check, runfile: &Runfile) -> anyhow::Result<()> {
    let places = Places::look(guest, desired, runfile.size)?;
    if !places.modprobe {
        super::apt::install_kmod(guest, &check.os, desired)?;
    }
    let path = format!("{}/nvidia-driver-installer.run", places.directory);
    copy(guest, desired, runfile, &path)?;
    let started = Instant::now();
    let unpack = format!("{}/phoenix-nvidia.unpack", places.directory);
    let output = run(guest, desired, &path, &unpack)?;
    confirm(guest, desired, &output)?;
    log::info!("{}", installed_line(&check.found, &desired.driver, started.elapsed()));
    Ok(())
}

fn installed_line(before: &DriverState, driver: &Version, took: Duration) -> String {
    let took = human(took);
    match before.version(driver) {
        Some(old) if old != driver => {
            format!("driver: installed {driver} in {took} (was {old}): {old} → {driver}")
        }
        _ => format!("driver: installed {driver} in {took} (was {before})"),
    }
}

/// What df says in kB, in bytes; `None` where it did not tell.
fn bytes(kb: &str) -> Option<u64> {
    kb.parse::<u64>().ok().map(|kb| kb.saturating_mul(1024))
}

/// Where in the container the runfile can be unpacked and run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    directory: String,
    modprobe: bool,
}

impl Places {
    fn look(guest: &Guest, desired: &Desired, runfile: u64) -> anyhow::Result<Places> {
        let what = || fault(format!("container {} cannot take the runfile", guest.ctid()))();
        let output = guest.pct_sh(PLACES, []).must(&short(desired)).fault(what)?;
        Places::choose(&output.stdout, runfile).fault(what)
    }

    /// A tmpfs is never taken: it counts against the container's memory, and
    /// what it says to be free need not be.
    fn choose(answer: &[u8], runfile: u64) -> anyhow::Result<Places> {
        let unpacked = UNPACKED.min(runfile.saturating_mul(8));
        let need = runfile + unpacked;
        let mut places = Places::default();
        let mut refused = Vec::new();
        // df that does not tell is no full disk: second choice, and the
        // installer's own word decides.
        let mut untold = None;
        for (key, value) in fields(answer) {
            let words: Vec<&str> = value.split(' ').collect();
            match (key.as_str(), words.as_slice()) {
                ("place", [directory @ ("/tmp" | "/var/tmp"), kind, free, runs]) => {
                    let free = bytes(free);
                    let why = match (*kind, *runs) {
                        ("tmpfs" | "ramfs", _) => "is in memory".to_owned(),
                        (_, "noexec") => "is mounted noexec".to_owned(),
                        (_, "readonly") => "cannot be written to".to_owned(),
                        _ if free.is_some_and(|free| free < need) => {
                            format!("has {} free", size(free.unwrap_or_default()))
                        }
                        _ if free.is_none() => {
                            untold.get_or_insert_with(|| (*directory).to_owned());
                            continue;
                        }
                        _ if places.directory.is_empty() => {
                            places.directory = (*directory).to_owned();
                            continue;
                        }
                        _ => continue,
                    };
                    refused.push(format!("{directory} {why}"));
                }
                ("usr", [free]) => {
                    let need = INSTALLED.min(runfile.saturating_mul(3));
                    if let Some(free) = bytes(free).filter(|free| *free < need) {
                        anyhow::bail!("/usr has {} free, the driver needs {}", size(free), size(need));
                    }
                }
                ("readonly", _) => anyhow::bail!("its /usr/bin cannot be written to"),
                ("modprobe", _) => places.modprobe = true,
                _ => {}
            }
        }
        if places.directory.is_empty() {
            if let Some(directory) = untold {
                log::warn!("driver: df in the container does not tell how much room {directory} has");
                places.directory = directory;
                return Ok(places);
            }
            let refused =
                if refused.is_empty() { "no /tmp and no /var/tmp".into() } else { refused.join("; ") };
            anyhow::bail!("it needs {} on a disk to unpack the driver: {refused}", size(need));
        }
        Ok(places)
    }
}

/// Streams the runfile in, and has its size and checksum confirmed inside.
fn copy(guest: &Guest, desired: &Desired, runfile: &Runfile, path: &str) -> anyhow::Result<()> {
    let what = || fault(format!("the runfile could not be copied to {path} in container {}", guest.ctid()))();
    let file =
        fetch::open_regular(&runfile.path).with_context(|| runfile.path.display().to_string()).fault(what)?;
    let output =
        guest.pct_sh(RECEIVE, [path]).stdin(file).must(&Deadline::after(desired.limits.copy)).fault(what)?;
    let arrived = Arrived::parse(&output.stdout);
    let wanted = Arrived { size: Some(runfile.size), sha256: runfile.sha256.to_string() };
    if arrived.size != wanted.size {
        let (got, of) = (arrived.size.unwrap_or_default(), runfile.size);
        let said = output.last_lines(2).join(" | ");
        return Err(anyhow::anyhow!("{} of {} arrived: {said}", size(got), size(of))).fault(what);
    }
    // A container without sha256sum: the size and the installer's own check
    // have to do.
    if arrived.sha256.is_empty() {
        log::debug!("copy: no sha256sum in the container");
    } else if arrived.sha256 != wanted.sha256 {
        return Err(anyhow::anyhow!("its SHA-256 inside is {}, not {}", arrived.sha256, wanted.sha256))
            .fault(what);
    }
    log::info!("driver: copied {} into the container in {}", size(runfile.size), human(output.took));
    Ok(())
}

/// What the container says it received.
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

/// Runs the installer. Its exit code 0 is not success, another one is failure.
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

/// What the installer gave as its reasons: its log's errors, else what it
/// printed last.
fn reasons(guest: &Guest, desired: &Desired, output: &Output) -> String {
    let log = guest.pct_sh(INSTALLER_LOG, [LOG]).run(&short(desired));
    let mut lines = log.map(|log| log.last_lines(4)).unwrap_or_default();
    if lines.is_empty() {
        lines = output.last_lines(4);
    }
    match lines.is_empty() {
        true => "it printed nothing".to_owned(),
        false => lines.join(" | "),
    }
}

/// Success is the version that answers afterwards.
fn confirm(guest: &Guest, desired: &Desired, output: &Output) -> anyhow::Result<()> {
    let now = probe::confirm(guest, desired)?;
    if now == DriverState::Matching {
        guest
            .pct_sh(CONFIRMED, [])
            .must(&short(desired))
            .fault(fault("driver: the result could not be noted in the container".to_owned()))?;
        return Ok(());
    }
    let message = format!(
        "driver: the installer of {} ended with exit code 0, but the container's driver is {now}: {}",
        desired.driver,
        reasons(guest, desired, output)
    );
    Err(Fault::new(Code::Software, message)
        .remedy(format!("pct exec {} -- tail -n 50 {LOG}", guest.ctid()))
        .into())
}

/// Takes the temporary files away after a failure; also when we are being
/// stopped, which leaves a moment for it.
fn clean(guest: &Guest, error: &anyhow::Error) {
    if crate::guest::exec::is_gone(error) {
        return;
    }
    let deadline = Deadline::secs(if crate::guest::exec::is_interrupted(error) { 1 } else { 30 });
    match guest.attach_sh(CLEAN, []).even_when_stopping().run(&deadline) {
        Ok(_) | Err(ExecError::Gone(_) | ExecError::Changed(_)) => {}
        Err(why) => log::warn!("driver: temporary files may be left in the container: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000; // in kB

    fn choose(text: &str) -> Result<Places, String> {
        Places::choose(text.as_bytes(), 400_000_000).map_err(|e| e.to_string())
    }

    #[test]
    fn a_tmpfs_or_noexec_tmp_is_passed_over_for_var_tmp() {
        let usr = format!("usr {}\nmodprobe yes\n", 5 * GB);
        for tmp in
            [format!("tmpfs {} exec", 9 * GB), format!("ext2/ext3 {} noexec", 9 * GB), "zfs 100 exec".into()]
        {
            let text = format!("place /tmp {tmp}\nplace /var/tmp ext2/ext3 {} exec\n{usr}", 4 * GB);
            let places = choose(&text).unwrap();
            assert_eq!((places.directory.as_str(), places.modprobe), ("/var/tmp", true), "{text}");
        }
        let both = format!("place /tmp zfs {0} exec\nplace /var/tmp zfs {0} exec\n{usr}", 4 * GB);
        assert_eq!(choose(&both).unwrap().directory, "/tmp");
    }

    #[test]
    fn a_full_disk_is_found_out_before() {
        let text =
            format!("place /tmp tmpfs {} exec\nplace /var/tmp zfs {} exec\nusr {}\n", 9 * GB, GB, 5 * GB);
        let error = choose(&text).unwrap_err();
        assert_eq!(
            error,
            "it needs 2900 MB on a disk to unpack the driver: /tmp is in memory; /var/tmp has 1024 MB free"
        );
        let text = format!("place /tmp zfs {} exec\nusr 1000\n", 9 * GB);
        assert!(choose(&text).unwrap_err().contains("/usr has 1024 kB free"));
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
        assert_eq!(line, "driver: installed 580.95.05 in 41 s (was 580.76.05): 580.76.05 → 580.95.05");
        let line = installed_line(&DriverState::Missing, &new, Duration::from_secs(41));
        assert_eq!(line, "driver: installed 580.95.05 in 41 s (was not installed)");
    }
}
