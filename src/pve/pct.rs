//! Whether a container exists and runs; starting and stopping it.
//!
//! A hook phase may only use the status functions: Proxmox's locking commands
//! wait for the lock that the hook's parent holds.
//!
//! Functions that stop a container take a [`Startable`], the proof that it would
//! start again.

mod init;

pub use init::{GROUPS, Init, start_time};

use crate::exit::{self, Code, Context as _, Fault};
use crate::pve::conf::store::Conf;
use crate::pve::startable::Startable;
use crate::sys::process::{Cmd, Failure, Output};
use crate::sys::time::{Deadline, human};
use crate::sys::{signal, text};
use crate::types::Ctid;
use anyhow::{Context as _, anyhow};
use std::time::{Duration, Instant};

const PCT: &str = "/usr/sbin/pct";
const LXC_INFO: &str = "/usr/bin/lxc-info";
/// `pct` takes half a second, or ten if it waits for a lock.
const PCT_TIME: Duration = Duration::from_secs(30);
/// The shortest pause between two checks while waiting; `lxc-info` takes 4 ms.
const LOOK: Duration = Duration::from_millis(200);

/// The status of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It runs.
    Running,
    /// It does not.
    Stopped,
    /// Starting, stopping, frozen.
    Between,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Running => "running",
            Status::Stopped => "stopped",
            Status::Between => "starting or stopping",
        })
    }
}

/// The requirements' `check_container_exists`: `pct status`.
///
/// # Errors
/// [`Code::NoContainer`] if `pct` says no or cannot run.
pub fn check_exists(ctid: Ctid) -> anyhow::Result<()> {
    let fault = || Fault::new(Code::NoContainer, format!("container {ctid} not found")).remedy("pct list");
    let out = pct(&["status", &ctid.to_string()], PCT_TIME).fault(fault)?;
    if out.success() {
        log::debug!("container {ctid} exists");
        return Ok(());
    }
    Err(anyhow!(said(&out)).context(fault()))
}

/// The status, by `lxc-info` (4 ms; `pct status` takes 510).
///
/// # Errors
/// `lxc-info` failed.
pub fn status(ctid: Ctid) -> anyhow::Result<Status> {
    let out = lxc_info(ctid, "-sH")?;
    Ok(match out.text().trim() {
        "RUNNING" => Status::Running,
        "STOPPED" => Status::Stopped,
        _ => Status::Between,
    })
}

/// The container's first process; `None` if it does not run.
///
/// # Errors
/// `lxc-info` failed.
pub fn init(ctid: Ctid) -> anyhow::Result<Option<Init>> {
    let out = lxc_info(ctid, "-pH")?;
    let Ok(pid) = out.text().trim().parse::<i32>() else { return Ok(None) };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Ok(start_time(&stat).map(|started| Init { pid, started }))
}

fn lxc_info(ctid: Ctid, what: &str) -> Result<Output, Failure> {
    Cmd::new(LXC_INFO).args(["-n", &ctid.to_string(), what]).run(&Deadline::secs(10))
}

fn pct(args: &[&str], time: Duration) -> Result<Output, Failure> {
    Cmd::new(PCT).args(args).run(&Deadline::after(time))
}

/// The output of a failed command in one line; the reason comes last. Messages
/// of lxc-info about a container that is just ending are not the reason.
fn said(out: &Output) -> String {
    let noise = |line: &String| line.starts_with("lxc-info: ");
    let mut lines: Vec<String> = out.last_lines(8).into_iter().filter(|line| !noise(line)).collect();
    match lines.split_off(lines.len().saturating_sub(3)) {
        lines if lines.is_empty() => out.ended.to_string(),
        lines => format!("{} ({})", lines.join(" | "), out.ended),
    }
}

/// The timeouts of a restart: the requirements' 60 s and 3 s by default.
#[derive(Clone, Debug)]
pub struct RestartTimeouts {
    /// For the container to stop, and again to run.
    pub timeout: Duration,
    /// The longest pause between two checks.
    pub interval: Duration,
    /// What `pct start` may take in addition: pre-start runs in it.
    pub start: Duration,
}

impl RestartTimeouts {
    /// The longest that a stop and a start take, including the waits for
    /// Proxmox's lock.
    pub fn longest(&self) -> Duration {
        self.timeout * 7 + self.start * 2 + PCT_TIME * 3
    }
}

/// Starts the container unless it runs, and waits until it does. `env`: the
/// variables for the hook of this start.
///
/// # Errors
/// [`Code::Restart`].
pub fn start(ctid: Ctid, timeouts: &RestartTimeouts, env: &[(String, String)]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let fault = || {
        Fault::new(Code::Restart, format!("container {ctid} does not start"))
            .remedy(format!("journalctl -u pve-container@{ctid} -n 20"))
    };
    let deadline = Deadline::after(timeouts.start + timeouts.timeout);
    loop {
        let mut cmd = Cmd::new(PCT).args(["start", &ctid.to_string()]);
        for (key, value) in env {
            cmd = cmd.env(key, value);
        }
        let out = cmd.run(&deadline).fault(fault)?;
        // Another process may have started it.
        if out.success() || status(ctid).is_ok_and(|s| s == Status::Running) {
            break;
        }
        if !was_locked(&out) || deadline.passed() {
            return Err(anyhow!(said(&out)).context(fault()));
        }
        log::info!("container {ctid} is locked by another operation; retrying");
    }
    wait(ctid, Status::Running, timeouts)?;
    log::info!("container {ctid} started ({})", human(begun.elapsed()));
    Ok(())
}

/// The requirements' `restart_container`: shut down, stop if it still runs, wait
/// for stopped, start, wait for running. `again` checks anew whether it would
/// start, before a shutdown is retried.
///
/// Signals wait until the container runs again: between stop and start one would
/// leave it down.
///
/// # Errors
/// [`Code::Restart`]; [`signal::Interrupted`] after the restart.
pub fn restart(
    may: Startable,
    again: &dyn Fn() -> anyhow::Result<Startable>,
    timeouts: &RestartTimeouts,
    env: &[(String, String)],
) -> anyhow::Result<()> {
    let ctid = may.ctid();
    signal::check()?;
    let put_off = signal::put_off(timeouts.longest());
    if let Err(error) = stop(may, again, timeouts) {
        if !status(ctid).is_ok_and(|status| status == Status::Stopped) {
            return Err(error);
        }
        log::warn!("{}", exit::one_line(&error));
    }
    if let Some(signal) = signal::pending() {
        log::warn!("{signal}: starting container {ctid} first");
    }
    start(ctid, timeouts, env)?;
    drop(put_off);
    signal::check().with_context(|| format!("container {ctid} restarted; remaining steps skipped"))
}

/// One task that stops it after the timeout: without `--forceStop` the shutdown
/// would hold Proxmox's lock for longer, and no stop could get it.
fn shutdown(may: &Startable, timeouts: &RestartTimeouts) -> Result<Output, Failure> {
    let (id, seconds) = (may.ctid().to_string(), timeouts.timeout.as_secs().max(1).to_string());
    pct(&["shutdown", &id, "--timeout", &seconds, "--forceStop", "1"], timeouts.timeout + PCT_TIME)
}

/// Whether `pct` did nothing because Proxmox's lock was held for the ten seconds
/// that it waits.
fn was_locked(out: &Output) -> bool {
    let locked = |line: &String| line.contains("can't lock file") && line.contains("got timeout");
    !out.success() && out.last_lines(8).iter().any(locked)
}

fn stop(
    mut may: Startable,
    again: &dyn Fn() -> anyhow::Result<Startable>,
    timeouts: &RestartTimeouts,
) -> anyhow::Result<()> {
    let (ctid, begun) = (may.ctid(), Instant::now());
    let id = ctid.to_string();
    let fault = || {
        Fault::new(Code::Restart, format!("container {ctid} does not stop"))
            .remedy(format!("pct stop {ctid}"))
    };
    let until = Deadline::after(timeouts.start + timeouts.timeout);
    let out = loop {
        let out = shutdown(&may, timeouts).fault(fault)?;
        if !was_locked(&out) || status(ctid).fault(fault)? == Status::Stopped {
            break out;
        }
        // No shutdown was requested yet: do not kill it, and obey signals.
        if let Some(signal) = signal::pending() {
            return Err(anyhow!(signal).context(fault()));
        }
        if until.passed() {
            return Err(anyhow!(said(&out)).context(fault()));
        }
        log::info!("container {ctid} is locked by another operation; retrying");
        may = again()?;
    };
    // Under HA this only requests the shutdown: check the result.
    if out.success() && wait(ctid, Status::Stopped, timeouts).is_ok() {
        if out.took >= timeouts.timeout {
            log::warn!(
                "container {ctid} did not shut down within {} and was stopped",
                human(timeouts.timeout)
            );
        }
        log::info!("container {ctid} stopped ({})", human(begun.elapsed()));
        return Ok(());
    }
    if status(ctid).fault(fault)? == Status::Stopped {
        return Ok(());
    }
    let why = if out.success() { "it still runs".to_owned() } else { said(&out) };
    log::warn!("container {ctid} not shut down after {}: {why}; stopping it", human(begun.elapsed()));
    let out = pct(&["stop", &id], timeouts.timeout + PCT_TIME).fault(fault)?;
    if !out.success() && status(ctid).fault(fault)? != Status::Stopped {
        return Err(anyhow!(said(&out)).context(fault()));
    }
    wait(ctid, Status::Stopped, timeouts)
}

/// Waits for a status.
///
/// # Errors
/// [`Code::Restart`] after the timeout; a failed check counts as not yet.
pub fn wait(ctid: Ctid, wanted: Status, timeouts: &RestartTimeouts) -> anyhow::Result<()> {
    let (deadline, began) = (Deadline::after(timeouts.timeout), Instant::now());
    loop {
        let now = status(ctid);
        if matches!(now, Ok(s) if s == wanted) {
            return Ok(());
        }
        if deadline.passed() {
            let now = now.map_or_else(|e| format!("unknown ({})", exit::one_line(&e)), |s| s.to_string());
            let message = format!("container {ctid} not {wanted} after {}: {now}", human(timeouts.timeout));
            return Err(Fault::new(Code::Restart, message).remedy(format!("pct status {ctid}")).into());
        }
        signal::sleep(pause(began.elapsed(), timeouts.interval).min(deadline.remaining()))?;
    }
}

/// Until the next look, after so much waiting: a tenth of it, so that what took long is
/// seen a tenth later at most.
fn pause(waited: Duration, longest: Duration) -> Duration {
    (waited / 10).clamp(LOOK, longest.max(LOOK))
}

/// `pct set`, for `attach` and `detach`. Proxmox writes the conf before the config that
/// it generates: where that fails, on a `devN:` line without its node say, the conf is
/// as it should be all the same, and what keeps it from its start is told elsewhere.
///
/// # Errors
/// [`Code::Passthrough`], with what `pct` said.
pub fn set(ctid: Ctid, args: &[&str]) -> anyhow::Result<()> {
    let words = args.iter().map(|arg| text::word(arg)).collect::<Vec<_>>().join(" ");
    let fault = || {
        Fault::new(Code::Passthrough, format!("pct set {ctid} {words} failed"))
            .remedy(format!("pct set {ctid} {words}"))
    };
    let id = ctid.to_string();
    let all: Vec<&str> = ["set", &id].into_iter().chain(args.iter().copied()).collect();
    let out = pct(&all, PCT_TIME).fault(fault)?;
    if out.success() {
        return Ok(());
    }
    if is_set(ctid, args) {
        log::debug!("pct set {ctid} {words}: {}", said(&out));
        return Ok(());
    }
    Err(anyhow!(said(&out)).context(fault()))
}

/// Whether the conf has what was to be set, or has no more what was to be deleted.
fn is_set(ctid: Ctid, args: &[&str]) -> bool {
    let Ok(conf) = Conf::of(ctid).read() else { return false };
    match args {
        ["--delete", key] => conf.get(key).is_none(),
        [key, value] => key.strip_prefix("--").is_some_and(|key| conf.get(key).as_deref() == Some(*value)),
        _ => false,
    }
}

/// `pct reboot`, for the install process: runs all hook phases. Signals wait
/// until it has ended.
///
/// # Errors
/// [`Code::Restart`]; the container may be down then, unless it [`is_locked`].
pub fn reboot(may: Startable, timeouts: &RestartTimeouts) -> anyhow::Result<()> {
    let ctid = may.ctid();
    let fault = || {
        Fault::new(Code::Restart, format!("container {ctid} does not reboot"))
            .remedy(format!("pct reboot {ctid}"))
    };
    let seconds = timeouts.timeout.as_secs().max(1).to_string();
    let limit = timeouts.timeout + timeouts.start + PCT_TIME;
    signal::check()?;
    let _put_off = signal::put_off(limit);
    let out = pct(&["reboot", &ctid.to_string(), "--timeout", &seconds], limit).fault(fault)?;
    let said = || text::line(said(&out).as_bytes());
    match out.success() {
        true => Ok(()),
        false if was_locked(&out) => Err(anyhow::Error::new(Locked(said())).context(fault())),
        false => Err(anyhow!(said()).context(fault())),
    }
}

/// Somebody held Proxmox's lock on the conf; what `pct` said.
#[derive(Debug)]
struct Locked(String);

impl std::fmt::Display for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Locked {}

/// Whether nothing was done since somebody held Proxmox's lock on the conf.
pub fn is_locked(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Locked>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_further_apart_the_longer_it_takes() {
        let after = |seconds| pause(Duration::from_secs(seconds), Duration::from_secs(3));
        assert_eq!(after(0), LOOK);
        assert_eq!(after(10), Duration::from_secs(1));
        assert_eq!(after(100), Duration::from_secs(3));
        assert_eq!(pause(Duration::from_secs(100), Duration::ZERO), LOOK);
    }
}
