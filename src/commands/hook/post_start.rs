//! post-start: one look into the container; if something is missing, an install
//! process is started, followed for a while, and left to continue.

use crate::driver::desired::Desired;
use crate::driver::injection::Injection;
use crate::exit::{self, Code};
use crate::guest::exec::{self, Guest};
use crate::guest::install::steps;
use crate::guest::probe::{self, Ask, Check};
use crate::guest::{link, os, own};
use crate::host::kernel_driver;
use crate::job::desired::{self, Software};
use crate::job::follow::{self, Follow, Followed};
use crate::job::install::{cuda_failed_before, tell_obstacle};
use crate::job::nested::{self, When};
use crate::job::{again, chain, handover, injection, locks, startable};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::net;
use crate::settings::{Call, MARK, Settings, keys, load};
use crate::state::injected::done;
use crate::state::{Outcome, Record, State};
use crate::sys::look::View;
use crate::sys::signal;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Phase, Version};
use std::time::{Duration, Instant};

/// How long systemd may take to be told of a look that was not over in time.
const HAND_OVER: Duration = Duration::from_secs(3);

/// The phase. A failure is shown by Proxmox as a warning; the container runs.
///
/// # Errors
/// [`Code::Software`], or what the chained hookscript failed with.
pub fn run(ctid: Ctid) -> anyhow::Result<Code> {
    let conf = Conf::of(ctid);
    let document = conf.read()?;
    let settings = load::of(ctid, Call::Hook, &conf, &document);
    let (settings, _) = injection::settled(ctid, &document, settings);
    let ours = exit::caught(|| check_driver(ctid, &settings, &document));
    // Theirs runs whatever became of ours, unless the whole task is stopped.
    if signal::check().is_err() {
        return ours.and(Ok(Code::Success));
    }
    let theirs = chain::run(&settings, ctid, &Phase::PostStart);
    ours?;
    theirs?;
    Ok(Code::Success)
}

fn check_driver(ctid: Ctid, settings: &Settings, document: &Document) -> anyhow::Result<()> {
    if std::env::var_os(MARK).is_some_and(|v| v == ctid.to_string().as_str()) {
        log::debug!("driver check left to the call by hand that started the container");
        return Ok(());
    }
    clear_due(ctid);
    if settings.text(keys::GPU_ASSIGNMENT).is_none() {
        // A restore without root's rights drops the settings and keeps the
        // hookscript: gigabytes of CUDA are not what was asked for.
        log::warn!("driver check skipped: GPU_ASSIGNMENT not set");
        return Ok(());
    }
    let kernel = kernel_driver::version(View::host());
    let identity = net::identity(document);
    let start = Start { ctid, settings, document, identity, kernel: kernel.clone(), begun: Instant::now() };
    let software = desired::read(settings, kernel, None).map_err(|problems| desired::fault(&problems))?;
    match software.desired() {
        Ok(desired) => start.check(desired),
        Err(why) => {
            let wanted = matches!(software, Software::NoDriver);
            log::log!(if wanted { log::Level::Warn } else { log::Level::Info }, "{why}");
            start.devices_only();
            if !wanted {
                start.unlink();
            }
            Ok(())
        }
    }
}

/// A reboot that an install left due is done by this start.
fn clear_due(ctid: Ctid) {
    let state = Record::of(ctid).load();
    if state.restart_due.is_some() && !startable::runs_with_old_driver(&state) {
        log::info!("this start is the restart that the driver install needed");
        Record::of(ctid).update(|state| state.restart_due = None);
    }
}

/// A container that has just been started.
struct Start<'a> {
    ctid: Ctid,
    settings: &'a Settings,
    document: &'a Document,
    identity: String,
    kernel: Option<Version>,
    begun: Instant,
}

impl Start<'_> {
    /// Records a start in which nothing but the devices was ours.
    fn devices_only(&self) {
        Record::of(self.ctid).take_over(&self.identity);
        self.record("pre-start", &Ok(()), |_| ());
        self.nested(self.kernel.as_ref());
    }

    /// What engines in the container read, once nothing is left to do for the driver.
    fn nested(&self, driver: Option<&Version>) {
        nested::bring(&Guest::new(self.ctid), self.settings, self.document, driver, When::Changed);
    }

    /// Removes the links to the host's driver, which the container does not get any
    /// more, with INSTALL=off.
    fn unlink(&self) {
        if !Record::of(self.ctid).load().injected.links {
            return;
        }
        let deadline = Deadline::after(self.settings.value(keys::CHECK_TIMEOUT));
        match link::unlink(&Guest::new(self.ctid), &deadline) {
            Ok(_) => Record::of(self.ctid).update(|state| state.injected.unlinked()),
            Err(error) => {
                log::warn!("{}", exit::one_line(&error));
                log::warn!("{}", exit::fix(&format!("pct reboot {}", self.ctid)));
            }
        }
    }

    fn record(&self, phase: &str, result: &anyhow::Result<()>, change: impl FnOnce(&mut State)) {
        Record::of(self.ctid).update(|state| {
            state.ended(phase, result, self.begun);
            state.kernel_driver = self.kernel.as_ref().map(ToString::to_string);
            change(state);
        });
    }

    /// Checks the driver, and has it installed.
    fn check(&self, desired: &Desired) -> anyhow::Result<()> {
        Record::of(self.ctid).take_over(&self.identity);
        let result = desired.matches_kernel().and_then(|()| self.install(desired));
        if let Err(error) = &result {
            // An install process has written its own, more exact, result.
            if !follow::is_told(error) {
                self.record("check", &result, |state| state.asked = Some(desired.fingerprint()));
            }
        }
        result
    }

    fn install(&self, desired: &Desired) -> anyhow::Result<()> {
        let wait = self.wait();
        let until = Deadline::after(wait);
        if self.earlier_continues(&until)? {
            return Ok(());
        }
        let guest = Guest::new(self.ctid);
        // For the look and for what follows from it, together.
        let deadline = Deadline::after(desired.limits.check);
        // What is written while we look may be of other contents.
        let stamp = desired.injected.then(|| Conf::of(self.ctid).stamp()).flatten();
        if desired.injected {
            match self.mounted(desired, stamp.as_deref(), &deadline)? {
                Mounted::Done => return Ok(()),
                Mounted::Restart => return self.hand_over(wait, &until, &deadline),
                Mounted::Look => {}
            }
        }
        let mut check = match probe::check(&guest, desired, Ask::Files, &deadline) {
            Ok(check) => check,
            Err(error) if exec::ended(&error) => return Err(error),
            Err(error) => {
                self.not_seen(error, desired);
                return Ok(());
            }
        };
        if let Err(unfit) = steps::fit(self.ctid, &check) {
            // Nothing failed: it has its devices, and can take no more.
            exit::tell(log::Level::Warn, &unfit);
            injection::note_impossible(self.ctid, &unfit);
            // With DRIVER_MODE=auto the host's is what is left, if it may have that.
            if let Some(refusal) = again::found_before(self.ctid, self.document) {
                again::still(self.ctid, refusal, desired, self.document, &deadline);
            }
            self.devices_only();
            return Ok(());
        }
        if let Some(twice) = &check.source_twice {
            own::give_way(&guest, &twice.file, &deadline);
        }
        self.tell_beside(&check);
        let removable = check.runfile.take_if(|_| injection::gave_up(self.ctid)).is_some();
        let restart = desired.injected && injection::restart_is_due(self.ctid, self.settings);
        if let Some(Right { cuda }) = nothing_to_do(self.ctid, desired, &check).filter(|_| !restart) {
            let removal = check.packages.as_ref().and_then(|packages| packages.remove(self.ctid));
            // Once that is gone there are links to make, and a removal inside changes no conf.
            let settled = !removable && check.beside.is_none();
            self.record_right(desired, cuda, removal, stamp.as_deref().filter(|_| settled));
            return Ok(());
        }
        self.tell_why_not_waiting();
        self.hand_over(wait, &until, &deadline)
    }

    /// Follows the install of an earlier start, if one still runs; true if it
    /// outlasts the time.
    fn earlier_continues(&self, until: &Deadline) -> anyhow::Result<bool> {
        // One records how it ended as its last step, so after a success nobody
        // is looked for: that look reads the locks of the whole node and takes
        // longer than all else.
        if Record::of(self.ctid).load().outcome == Outcome::Ok || !locks::worker_lives(self.ctid) {
            return Ok(false);
        }
        log::info!("an earlier install is still running");
        self.tell_why_not_waiting();
        // It may have begun in another container of this number.
        handover::leave(self.ctid, &self.identity);
        let mut earlier = Follow::new(self.ctid, follow::log_length(self.ctid)).started();
        let continues = earlier.until(until)? == Followed::Continues;
        if !continues {
            handover::forget(self.ctid);
        }
        Ok(continues)
    }

    /// The host's driver: it is mounted, or that is the error. Where nothing is
    /// left to do inside no program is started.
    fn mounted(
        &self,
        desired: &Desired,
        stamp: Option<&str>,
        deadline: &Deadline,
    ) -> anyhow::Result<Mounted> {
        let place = match injection::look(self.ctid, self.settings, self.document) {
            Injection::On(place) => place,
            Injection::Refused(refusal) => {
                return Err(again::refused(self.ctid, refusal, desired, self.document, deadline).into());
            }
            Injection::Off => return Ok(Mounted::Look),
        };
        injection::must_be_mounted(self.ctid, desired)?;
        if !injection::is_complete(self.ctid, desired) {
            match injection::link(self.ctid, &place, desired, self.settings, deadline) {
                // An application container gets no packages.
                Ok(linked) if linked.shell && os::application(self.document).is_none() => {
                    return Ok(Mounted::Look);
                }
                // Its program may have found another driver. It is not looked into.
                Ok(linked) if linked.shell => {
                    if injection::restart_is_due(self.ctid, self.settings) {
                        return Ok(Mounted::Restart);
                    }
                }
                Ok(_) => log::info!("no shell in the container: no links to the driver, no packages"),
                Err(error) if exec::timed_out(&error) => {
                    self.not_seen(error, desired);
                    return Ok(Mounted::Done);
                }
                Err(error) => return Err(error),
            }
        }
        log::info!("{}", desired.right());
        self.record_right(desired, !cuda_failed_before(self.ctid, desired), None, stamp);
        Ok(Mounted::Done)
    }

    /// A driver that is installed although the host's is mounted: programs use
    /// the host's.
    fn tell_beside(&self, check: &Check) {
        let Some(beside) = &check.beside else { return };
        log::info!("a driver is installed in the container too ({beside}); programs use the host's");
        // Its own uninstaller is run next, unless that failed too often.
        if check.runfile.is_none() || injection::gave_up(self.ctid) {
            let fix = injection::remove_beside(self.ctid, beside, check);
            log::info!("{}", exit::fix(&fix));
        }
    }

    /// "Could not look" is not "not installed".
    fn not_seen(&self, error: anyhow::Error, desired: &Desired) {
        if exec::timed_out(&error) {
            log::warn!("{}", exit::one_line(&error));
            match self.look_later() {
                Ok(()) => return,
                Err(more) => log::warn!("{}", exit::one_line(&more)),
            }
        }
        log::warn!("driver check skipped: {}", exit::one_line(&error));
        self.record("check", &Err(error), |state| {
            state.asked = Some(desired.fingerprint());
            state.outcome = Outcome::Warning;
            state.code = 0;
        });
    }

    /// A look that was not over in time is repeated by the install process,
    /// which has more of it: the start goes on at once.
    fn look_later(&self) -> anyhow::Result<()> {
        begins(self.ctid);
        follow::start(self.ctid, &self.identity, &Deadline::after(HAND_OVER))?;
        let log = follow::log_path(self.ctid);
        log::info!("driver check continues in the background: tail -f {}", log.display());
        Ok(())
    }

    /// Records that the container is as wanted; `stamp` is that of the conf, where
    /// no start needs to look into it again before the conf changes.
    fn record_right(&self, desired: &Desired, cuda: bool, removal: Option<String>, stamp: Option<&str>) {
        self.record("check", &Ok(()), |state| {
            state.asked = Some(desired.fingerprint());
            state.container_driver = Some(desired.driver.to_string());
            state.driver_removal.clone_from(&removal);
            state.injected.complete = stamp.map(|stamp| done(&desired.fingerprint(), stamp));
            // The reboot helped; a later change of the driver is another one.
            state.rebooted_for = None;
            if !cuda {
                state.outcome = Outcome::Warning;
                "CUDA packages missing".clone_into(&mut state.message);
            }
        });
        self.nested(Some(&desired.driver));
    }

    /// Starts the install process and follows it for a while.
    fn hand_over(&self, wait: Duration, until: &Deadline, deadline: &Deadline) -> anyhow::Result<()> {
        let ctid = self.ctid;
        begins(ctid);
        let mut follow = Follow::new(ctid, follow::log_length(ctid));
        let by_systemd = follow::start(ctid, &self.identity, deadline)?;
        if wait.is_zero() {
            follow::tell_continues(ctid);
            return Ok(());
        }
        let mut followed = follow.until(until)?;
        if (followed, by_systemd) == (Followed::NotStarted, true) {
            log::warn!("systemd did not start the install; starting it without systemd");
            follow::detach(ctid)?;
            followed = follow.until(until)?;
        }
        match followed {
            Followed::Continues => Ok(()),
            Followed::Ended | Followed::NotStarted => follow::result(ctid),
        }
    }

    /// How long an install is followed. While a hook runs, Proxmox refuses to
    /// stop, back up or change the container.
    fn wait(&self) -> Duration {
        let wait = self.settings.value(keys::INSTALL_WAIT);
        if net::is_host_managed(self.document) { Duration::ZERO } else { wait }
    }

    /// Why an install is not waited for, where the settings would have it.
    fn tell_why_not_waiting(&self) {
        if self.wait().is_zero() && !self.settings.value(keys::INSTALL_WAIT).is_zero() {
            log::info!(
                "not waiting for the install: Proxmox starts DHCP for a host-managed interface only after this hook"
            );
        }
    }
}

/// What is left to do in a container with the host's driver.
enum Mounted {
    /// Nothing, or it is left to the install process.
    Done,
    /// Its packages are to be looked at.
    Look,
    /// A restart: its program started with another driver.
    Restart,
}

/// What an earlier install left is not to be taken for this one's result.
fn begins(ctid: Ctid) {
    Record::of(ctid).update(|state| {
        "install".clone_into(&mut state.phase);
        state.outcome = Outcome::Running;
        state.message = String::new();
        state.job = None;
    });
}

/// The driver is as desired, and nothing is left to install.
struct Right {
    /// The CUDA packages are there too.
    cuda: bool,
}

/// Whether the container is as wanted, or what is missing cannot be installed or
/// failed already in this boot with the same inputs.
fn nothing_to_do(ctid: Ctid, desired: &Desired, check: &Check) -> Option<Right> {
    if check.up_to_date() {
        log::info!("{}", desired.right());
        return Some(Right { cuda: !tell_obstacle(ctid, desired, check) });
    }
    let due = check.unlink || check.runfile.is_some() || !check.driver_matches();
    (!due && cuda_failed_before(ctid, desired)).then_some(Right { cuda: false })
}
