//! post-start: one look into the container; if something is to be installed,
//! an install process is started, followed for a while, and left to go on.

use crate::driver::desired::Desired;
use crate::exit::{self, Code};
use crate::guest::exec::{self, Guest};
use crate::guest::probe::{self, Ask, Check};
use crate::host::kernel_driver;
use crate::job::chain;
use crate::job::desired;
use crate::job::desired::Software;
use crate::job::follow;
use crate::job::follow::Followed;
use crate::job::handover;
use crate::job::install::cuda_failed_before;
use crate::job::locks;
use crate::job::startable;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::net;
use crate::settings::load;
use crate::settings::{Call, MARK, Settings, keys};
use crate::state::Outcome;
use crate::state::Record;
use crate::sys::look::View;
use crate::sys::signal;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Phase};
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
    let ours = exit::caught(|| look_after(ctid, &settings, &document));
    // Theirs runs whatever became of ours, unless the whole task is stopped.
    if signal::check().is_err() {
        return ours.and(Ok(Code::Success));
    }
    let theirs = chain::run(&settings, ctid, &Phase::PostStart);
    ours?;
    theirs?;
    Ok(Code::Success)
}

fn look_after(ctid: Ctid, settings: &Settings, document: &Document) -> anyhow::Result<()> {
    if std::env::var_os(MARK).is_some_and(|v| v == ctid.to_string().as_str()) {
        log::debug!("the call by hand that made this start looks after the driver");
        return Ok(());
    }
    clear_due(ctid);
    if settings.text(keys::GPU_ASSIGNMENT).is_none() {
        // A restore without root's rights drops the settings and keeps the
        // hookscript: gigabytes of CUDA are not what was asked for.
        log::warn!("GPU_ASSIGNMENT is not set: the driver in the container is not looked after");
        return Ok(());
    }
    let begun = Instant::now();
    let kernel = kernel_driver::version(View::host());
    let desired = match desired::read(settings, kernel.clone(), None) {
        Ok(Software::Desired(desired)) => desired,
        Ok(Software::Off) => {
            log::info!("INSTALL is off: the driver in the container is not looked after");
            devices_only(ctid, document, begun);
            return Ok(());
        }
        Ok(Software::NoDriver) => {
            log::warn!(
                "no NVIDIA kernel driver is loaded on this host: the container keeps the driver it has"
            );
            devices_only(ctid, document, begun);
            return Ok(());
        }
        Err(problems) => return Err(desired::fault(&problems)),
    };
    Record::of(ctid).take_over(&net::identity(document));
    let result = desired.matches_kernel().and_then(|()| bring(ctid, settings, document, &desired, begun));
    if let Err(error) = &result {
        // An install process has written its own, more exact, result.
        if !follow::is_told(error) {
            Record::of(ctid).update(|state| {
                state.ended("check", &result, begun);
                state.asked = Some(desired.fingerprint());
                state.kernel_driver = kernel.map(|v| v.to_string());
            });
        }
    }
    result
}

/// Records a start in which nothing but the devices was ours.
fn devices_only(ctid: Ctid, document: &Document, begun: Instant) {
    Record::of(ctid).take_over(&net::identity(document));
    Record::of(ctid).update(|state| {
        state.ended("pre-start", &Ok(()), begun);
        state.kernel_driver = kernel_driver::version(View::host()).map(|v| v.to_string());
    });
}

fn bring(
    ctid: Ctid,
    settings: &Settings,
    document: &Document,
    desired: &Desired,
    begun: Instant,
) -> anyhow::Result<()> {
    let wait = patience(settings, document);
    let until = Deadline::after(wait);
    // An install of an earlier start may still be at work. One records how it
    // ended as its last step, so after a success nobody is looked for: that
    // look reads the locks of the whole node and takes longer than all else.
    if Record::of(ctid).load().outcome != Outcome::Ok && locks::worker_lives(ctid) {
        log::info!("an install that began earlier is still under way");
        say_why_not(settings, document);
        // It may have begun in another container of this number.
        handover::leave(ctid, &net::identity(document));
        let mut earlier = follow::Follow::new(ctid, follow::log_length(ctid)).born();
        if earlier.until(&until)? == Followed::GoesOn {
            return Ok(());
        }
    }
    let guest = Guest::new(ctid);
    // For the look and for what follows from it, together.
    let deadline = Deadline::after(desired.limits.check);
    let check = match probe::check(&guest, desired, Ask::Files, &deadline) {
        Ok(check) => check,
        Err(error) if exec::is_gone(&error) || exit::interrupted(&error) => return Err(error),
        Err(error) => {
            // "Could not look" is not "not installed".
            if exec::timed_out(&error) {
                log::warn!("{error:#}");
                match look_later(ctid, document) {
                    Ok(()) => return Ok(()),
                    Err(more) => log::warn!("{more:#}"),
                }
            }
            log::warn!("{error:#}; the driver is not looked after in this start");
            Record::of(ctid).update(|state| {
                state.ended("check", &Err(error), begun);
                state.asked = Some(desired.fingerprint());
                state.outcome = Outcome::Warning;
                state.code = 0;
            });
            return Ok(());
        }
    };
    if nothing_to_do(ctid, desired, &check) {
        Record::of(ctid).update(|state| {
            state.ended("check", &Ok(()), begun);
            state.asked = Some(desired.fingerprint());
            state.kernel_driver = desired.kernel.as_ref().map(ToString::to_string);
            state.container_driver = Some(desired.driver.to_string());
            // The reboot helped; a later change of the driver is another one.
            state.rebooted_for = None;
            if state.cuda_failed.is_some() {
                state.outcome = Outcome::Warning;
                "CUDA packages are missing".clone_into(&mut state.message);
            }
        });
        return Ok(());
    }
    say_why_not(settings, document);
    hand_over(ctid, &net::identity(document), wait, &until, &deadline)
}

/// A look that was not over in time is repeated by the install process, which
/// has more of it: the start goes on at once.
fn look_later(ctid: Ctid, document: &Document) -> anyhow::Result<()> {
    begins(ctid);
    follow::start(ctid, &net::identity(document), &Deadline::after(HAND_OVER))?;
    log::info!(
        "it looks again in the background; watch it with: tail -f {}",
        follow::log_path(ctid).display()
    );
    Ok(())
}

/// A reboot that an install left due is done by this start.
fn clear_due(ctid: Ctid) {
    let state = Record::of(ctid).load();
    if state.restart_due.is_some() && !startable::runs_with_old_driver(&state) {
        log::info!("this start is the restart that was due after the install of the driver");
        Record::of(ctid).update(|state| state.restart_due = None);
    }
}

/// Starts the install process and follows it for a while.
fn hand_over(
    ctid: Ctid,
    whom: &str,
    wait: Duration,
    until: &Deadline,
    deadline: &Deadline,
) -> anyhow::Result<()> {
    begins(ctid);
    let mut follow = follow::Follow::new(ctid, follow::log_length(ctid));
    let by_systemd = follow::start(ctid, whom, deadline)?;
    if wait.is_zero() {
        follow::say_goes_on(ctid);
        return Ok(());
    }
    let mut followed = follow.until(until)?;
    if (followed, by_systemd) == (Followed::NotBorn, true) {
        log::warn!("systemd did not start the install; it runs as a process of its own");
        follow::detach(ctid)?;
        followed = follow.until(until)?;
    }
    match followed {
        Followed::GoesOn => Ok(()),
        Followed::Ended | Followed::NotBorn => follow::result(ctid),
    }
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

/// Whether the container is as wanted, or what is missing failed already in
/// this boot with the same inputs.
fn nothing_to_do(ctid: Ctid, desired: &Desired, check: &Check) -> bool {
    if check.up_to_date() {
        log::info!("driver {}: installed and right", desired.driver);
        return true;
    }
    check.driver_matches() && cuda_failed_before(ctid, desired)
}

/// How long an install is followed. While a hook runs, Proxmox refuses to
/// stop, back up or change the container.
fn patience(settings: &Settings, document: &Document) -> Duration {
    let wait = settings.value(keys::INSTALL_WAIT);
    if net::is_host_managed(document) { Duration::ZERO } else { wait }
}

/// Why an install is not waited for, where the settings would have it.
fn say_why_not(settings: &Settings, document: &Document) {
    if net::is_host_managed(document) && !settings.value(keys::INSTALL_WAIT).is_zero() {
        log::info!(
            "Proxmox starts DHCP for a host-managed interface only after this hook: not waiting for an install"
        );
    }
}
