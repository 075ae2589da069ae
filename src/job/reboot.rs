//! The reboot after an install that changed the driver: once, and never so
//! that the container stays down.

use crate::exit;
use crate::host::gpus::Inventory;
use crate::job::identity::Identity;
use crate::job::locks;
use crate::job::startable;
use crate::plan::Intent;
use crate::pve::conf::store::Conf;
use crate::pve::pct;
use crate::pve::pct::Status;
use crate::pve::startable::{Obstacle, Startable, list};
use crate::settings::load;
use crate::settings::{Settings, keys};
use crate::state::Outcome;
use crate::state::Record;
use crate::sys::look::View;
use crate::sys::time::{Deadline, human};
use crate::sys::{signal, text};
use crate::types::{Ctid, Version};
use std::time::Duration;

/// How long a reboot waits for the hook's task to give the lock back.
const UNLOCK: Duration = Duration::from_secs(150);
/// How long a container that a failed reboot stopped waits for its start.
const BRING_UP: Duration = Duration::from_secs(2 * 3600);
/// Between two looks for what is in the way.
const LOOK_AGAIN: Duration = Duration::from_secs(4);
/// Between two looks at the container. A start meanwhile ends the wait, and
/// soon: while this process is there, systemd starts no other install of it.
const AGAIN: Duration = Duration::from_secs(1);

/// One reboot for a changed driver: never twice for one version, never
/// while a call by hand is at work, which restarts the container itself, and
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
    let until = Deadline::after(settings.value(keys::REBOOT_WAIT));
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
                Some(Err(error)) => return reboot.bring_up(error),
                Some(Ok(())) => return Ok(()),
                // Somebody was quicker with a lock: looked at again.
                None => told.clear(),
            },
            Err(obstacles) if !obstacles.iter().all(Obstacle::passes) || until.passed() => {
                log::warn!("reboot still due: the container would not start again: {}", list(&obstacles));
                for obstacle in &obstacles {
                    let remedy = format!("{}; then: phoenix-nvidia {ctid}", obstacle.remedy(ctid));
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
        let (intent, _) = Intent::of(&settings);
        let inventory = Inventory::read_for(View::host(), intent.display(&document));
        let choice = intent.on(&inventory, &document);
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

    /// The reboot failed. What we took down is started as soon as it can be:
    /// at once, if nothing is in the way any more.
    fn bring_up(&self, mut error: anyhow::Error) -> anyhow::Result<()> {
        let until = Deadline::after(BRING_UP);
        let (ctid, timeouts) = (self.ctid, startable::restart_timeouts(self.settings));
        let settled = Deadline::after(timeouts.timeout + timeouts.start);
        let mut told = false;
        loop {
            // A start that is possible now is made, also when a signal has come.
            let put_off = signal::put_off(timeouts.longest());
            if let Err(changed) = self.identity.still() {
                log::warn!("container not started: {changed}");
                return Err(error);
            }
            let lock = locks::try_by_hand(ctid);
            match pct::status(ctid) {
                Ok(Status::Running) if startable::runs_with_old_driver(&Record::of(ctid).load()) => {
                    return Err(error);
                }
                Ok(Status::Running) => break,
                // The call by hand that is at work starts it.
                Ok(Status::Stopped) if lock.is_none() && !until.passed() => {}
                Ok(Status::Stopped) => match self.startable()? {
                    Ok(_) => {
                        if !told {
                            log::error!("{}", exit::one_line(&error));
                            log::info!("starting the container: nothing prevents it any more");
                        }
                        let Err(failed) = pct::start(ctid, &timeouts, &[]) else { break };
                        error = startable::explained(ctid, &Conf::of(ctid), self.settings, failed);
                        // Only what came between that look and Proxmox's own is waited for.
                        if self.startable()?.is_ok() {
                            return Err(error);
                        }
                        told = false;
                    }
                    Err(found) if !found.iter().all(Obstacle::passes) || until.passed() => return Err(error),
                    Err(found) if !told => {
                        log::error!("{}", exit::one_line(&error));
                        log::info!("starting the container as soon as this has passed: {}", list(&found));
                        told = true;
                    }
                    Err(_) => {}
                },
                // Still on its way down, or not to be seen just now.
                Ok(Status::Between) | Err(_) if settled.passed() => return Err(error),
                Ok(Status::Between) | Err(_) => {}
            }
            drop((put_off, lock));
            signal::sleep(LOOK_AGAIN)?;
        }
        self.identity.update(|state| {
            state.outcome = Outcome::Ok;
            state.message = String::new();
        });
        Ok(())
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
