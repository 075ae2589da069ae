//! The reboot after an install that changed the driver: once, and never so
//! that the container stays down.

use crate::exit;
use crate::host::nvidia_smi;
use crate::job::identity::Identity;
use crate::job::{devices, locks, startable};
use crate::plan::Intent;
use crate::pve::conf::store::Conf;
use crate::pve::pct::{self, RestartTimeouts, Status};
use crate::pve::startable::{Obstacle, Startable, list};
use crate::settings::{Settings, keys, load};
use crate::state::{Outcome, Record};
use crate::sys::time::{Deadline, human};
use crate::sys::{signal, text};
use crate::types::{Ctid, Version};
use std::time::Duration;

/// How long a reboot waits for the hook's task to give the lock back.
const UNLOCK: Duration = Duration::from_secs(150);
/// The longest wait for the reboot: systemd ends an install process after a day,
/// in the middle of whatever it does.
const LONGEST: Duration = Duration::from_secs(20 * 3600);
/// How long a container that a failed reboot stopped waits for its start.
const BRING_UP: Duration = Duration::from_secs(2 * 3600);
/// Between two looks for what is in the way.
const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// Between two looks at the container. A start meanwhile ends the wait, and
/// soon: while this process is there, systemd starts no other install of it.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the reboot waits for what is in the way.
fn wait(settings: &Settings) -> Duration {
    settings.value(keys::REBOOT_WAIT).min(LONGEST)
}

/// One reboot for a changed driver: never twice for one version, never
/// while a call by hand runs, which restarts the container itself, and
/// never so that the container stays down. What passes by itself is waited
/// for; otherwise the reboot stays due, which `status` and `doctor` tell.
///
/// # Errors
/// [`Code::Restart`](crate::exit::Code::Restart).
pub fn after_install(
    ctid: Ctid,
    identity: &Identity,
    settings: &Settings,
    version: Option<&Version>,
) -> anyhow::Result<()> {
    if !startable::restarts_after_install(settings) {
        log::info!("no reboot (AFTER_INSTALL=none): services started before the install keep the old driver");
        return Ok(());
    }
    let reboot = Reboot { ctid, identity, settings, version: version.map(ToString::to_string) };
    let until = Deadline::after(wait(settings));
    let mut told = Vec::new();
    let mut look = Deadline::after(Duration::ZERO);
    loop {
        // Asked before the lock: it may be that very reboot which holds it.
        if !reboot.is_due()? {
            return Ok(());
        }
        if !look.passed() {
            signal::sleep(AGAIN)?;
            continue;
        }
        look = Deadline::after(LOOK_AGAIN);
        match reboot.startable()? {
            Ok(_) => match reboot.now()? {
                Some(Err(error)) => return BringUp::new(&reboot, error).run(),
                Some(Ok(())) => return Ok(()),
                // Somebody was quicker with a lock: looked at again.
                None => told.clear(),
            },
            Err(obstacles) if !obstacles.iter().all(Obstacle::passes) || until.passed() => {
                log::warn!("reboot still due: the container would not start again: {}", list(&obstacles));
                for obstacle in &obstacles {
                    let remedy = obstacle.remedy_then(ctid, &format!("phoenix-nvidia {ctid}"));
                    log::warn!("{}", exit::fix(&remedy));
                }
                return Ok(());
            }
            Err(obstacles) if told != obstacles => {
                let limit = human(until.remaining());
                log::info!("reboot waits up to {limit}: {}", list(&obstacles));
                told = obstacles;
            }
            Err(_) => {}
        }
    }
}

/// The one reboot after an install.
struct Reboot<'a> {
    ctid: Ctid,
    identity: &'a Identity,
    settings: &'a Settings,
    version: Option<String>,
}

impl Reboot<'_> {
    /// Whether it is still to be made; if not, it was told why.
    fn is_due(&self) -> anyhow::Result<bool> {
        let state = Record::of(self.ctid).load();
        if state.rebooted_for == self.version {
            let version = self.version.clone().unwrap_or_default();
            log::warn!("container already rebooted for driver {version}: not rebooting again");
            return Ok(false);
        }
        if let Err(changed) = self.identity.still() {
            log::warn!("no reboot: {changed}");
            return Ok(false);
        }
        let now = pct::init(self.ctid)?.map(|init| init.to_string());
        if now.is_none() || state.restart_due != now {
            log::info!("no reboot needed: container stopped or restarted meanwhile");
            return Ok(false);
        }
        Ok(true)
    }

    fn startable(&self) -> anyhow::Result<Result<Startable, Vec<Obstacle>>> {
        let conf = Conf::of(self.ctid);
        let document = conf.read()?;
        // Those of the start that is to come: an install takes minutes.
        let settings = load::of_next_start(self.ctid, &conf, &document);
        let (intent, _) = Intent::of(&settings, &document);
        let (_, choice) = devices::here(&intent, &document, &Deadline::after(nvidia_smi::LIMIT));
        startable::look(&conf, self.ctid, &settings, Some(&choice))
    }

    /// Makes it under the lock of a call by hand; `None` when something came
    /// in the way meanwhile.
    fn now(&self) -> anyhow::Result<Option<anyhow::Result<()>>> {
        let ctid = self.ctid;
        let Some(_lock) = locks::try_by_hand(ctid) else {
            log::info!("restart left to the phoenix-nvidia {ctid} that is running");
            return Ok(Some(Ok(())));
        };
        if !self.is_due()? {
            return Ok(Some(Ok(())));
        }
        let Ok(may) = self.startable()? else { return Ok(None) };
        self.identity.update(|state| state.rebooted_for.clone_from(&self.version));
        log::info!("rebooting the container once: its services need the new driver");
        let result = self.tried(may);
        // No program is asked: none runs once a signal has come.
        let untouched = startable::runs_with_old_driver(&Record::of(ctid).load());
        let result = result.map_err(|e| startable::explained(ctid, &Conf::of(ctid), self.settings, e));
        self.identity.update(|state| {
            if untouched {
                // It was not stopped: the reboot is still due.
                state.rebooted_for = None;
            } else {
                state.restart_due = None;
            }
            if let Err(error) = &result {
                let why = text::line(exit::one_line(error).as_bytes());
                state.outcome = Outcome::Warning;
                state.message = format!("driver installed, but the reboot for it failed: {why}");
            }
        });
        Ok(Some(result))
    }

    /// `pct reboot`, again while the hook's task still holds Proxmox's lock.
    fn tried(&self, mut may: Startable) -> anyhow::Result<()> {
        let (ctid, settings) = (self.ctid, self.settings);
        let timeouts = startable::restart_timeouts(self.settings);
        let until = Deadline::after(UNLOCK.max(settings.value(keys::INSTALL_WAIT) * 2));
        let now = pct::init(ctid)?;
        loop {
            match pct::reboot(may, &timeouts) {
                Ok(()) => {
                    log::info!("container rebooted");
                    return Ok(());
                }
                // The hook's task still holds the lock on the conf.
                Err(error) if pct::is_locked(&error) => {
                    log::debug!("{}", exit::one_line(&error));
                    // Whoever holds it may be stopping or restarting the container.
                    if pct::init(ctid)? != now {
                        log::info!("no reboot needed: container stopped or restarted meanwhile");
                        return Ok(());
                    }
                    if until.passed() {
                        return Err(error);
                    }
                    self.identity.still()?;
                    may = match self.startable()? {
                        Ok(may) => may,
                        Err(obstacles) => return Err(startable::refusal(ctid, &obstacles)),
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A start that was tried.
enum Tried {
    Started,
    Failed,
    /// Something prevents it that passes.
    Waits,
}

/// The reboot failed: what it took down is started again.
struct BringUp<'a> {
    reboot: &'a Reboot<'a>,
    error: anyhow::Error,
    timeouts: RestartTimeouts,
    until: Deadline,
    /// The error was told, and what prevents the start.
    told: bool,
}

impl<'a> BringUp<'a> {
    fn new(reboot: &'a Reboot<'a>, error: anyhow::Error) -> BringUp<'a> {
        let timeouts = startable::restart_timeouts(reboot.settings);
        BringUp { reboot, error, timeouts, until: Deadline::after(BRING_UP), told: false }
    }

    /// At once if nothing prevents it, or as soon as that has passed.
    fn run(mut self) -> anyhow::Result<()> {
        let (ctid, identity) = (self.reboot.ctid, self.reboot.identity);
        let settled = Deadline::after(self.timeouts.timeout + self.timeouts.start);
        loop {
            // A start that is possible now is made, also when a signal has come.
            let put_off = signal::put_off(self.timeouts.longest());
            if let Err(changed) = identity.still() {
                log::warn!("container not started: {changed}");
                return Err(self.error);
            }
            let lock = locks::try_by_hand(ctid);
            match pct::status(ctid) {
                Ok(Status::Running) if startable::runs_with_old_driver(&Record::of(ctid).load()) => {
                    return Err(self.error);
                }
                Ok(Status::Running) => break,
                // The call by hand that runs starts it.
                Ok(Status::Stopped) if lock.is_none() && !self.until.passed() => {}
                Ok(Status::Stopped) => match self.start()? {
                    Tried::Started => break,
                    Tried::Failed => return Err(self.error),
                    Tried::Waits => {}
                },
                // Still on its way down, or not to be seen just now.
                Ok(Status::Between) | Err(_) if settled.passed() => return Err(self.error),
                Ok(Status::Between) | Err(_) => {}
            }
            drop((put_off, lock));
            signal::sleep(LOOK_AGAIN)?;
        }
        identity.update(|state| {
            state.outcome = Outcome::Ok;
            state.message = String::new();
        });
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<Tried> {
        let Reboot { ctid, settings, .. } = *self.reboot;
        match self.reboot.startable()? {
            Ok(_) => {
                self.tell(|| "starting the container: nothing prevents it any more".to_owned());
                let Err(failed) = pct::start(ctid, &self.timeouts, &[]) else { return Ok(Tried::Started) };
                self.error = startable::explained(ctid, &Conf::of(ctid), settings, failed);
                self.told = false;
                // Only what came between that look and Proxmox's own is waited for.
                Ok(if self.reboot.startable()?.is_ok() { Tried::Failed } else { Tried::Waits })
            }
            Err(found) if !found.iter().all(Obstacle::passes) || self.until.passed() => Ok(Tried::Failed),
            Err(found) => {
                self.tell(|| format!("starting the container as soon as this has passed: {}", list(&found)));
                Ok(Tried::Waits)
            }
        }
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if !std::mem::replace(&mut self.told, true) {
            log::error!("{}", exit::one_line(&self.error));
            log::info!("{}", what());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Call, Places};

    /// The unit ends the process in the middle of whatever it does.
    #[test]
    fn no_reboot_is_waited_for_longer_than_the_install_process_lives() {
        let unit = include_str!("../../packaging/phoenix-nvidia-install@.service");
        assert!(unit.contains("\nRuntimeMaxSec=1d\n"), "{unit}");
        let settings = |lines: &str| {
            let (cluster, node) = (Ok(Vec::new()), Ok(lines.as_bytes().to_vec()));
            Settings::of(
                Call::Hook,
                Places { conf: Vec::new(), cluster, node, environment: Vec::new() },
                None,
            )
        };
        let hours = |lines: &str| wait(&settings(lines)).as_secs_f64() / 3600.0;
        assert_eq!((hours(""), hours("REBOOT_WAIT=28800")), (2.0, 8.0));
        // With time for the installs before it.
        assert!(hours("REBOOT_WAIT=259200") <= 20.0);
    }
}
