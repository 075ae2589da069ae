//! By hand: `phoenix-nvidia CTID`, the requirements' `main()`.
//!
//! Check, configure, start it if it is stopped, install, restart once if
//! devices or software changed, verify with the nodes in place.

use crate::driver::injection::Injection;
use crate::exit::{self, Code, Context as _, Fault, code_of};
use crate::guest::boot;
use crate::guest::exec::Guest;
use crate::guest::install::steps::is_unfit;
use crate::guest::probe;
use crate::host::choose::Choice;
use crate::host::kernel_driver;
use crate::job::by_hand::{ByHand, Restart, TEMPLATE};
use crate::job::desired::{self, Software};
use crate::job::identity::Identity;
use crate::job::injection::{self, Given};
use crate::job::install::{Install, cuda_missing};
use crate::job::nested::{self, When};
use crate::job::{again, devices, locks, occupied, startable};
use crate::plan::{self, Intent};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::{Caller, Conf};
use crate::pve::net;
use crate::pve::pct::{self, RestartTimeouts, Status};
use crate::pve::startable::Obstacle;
use crate::settings::{Call, MARK, keys, load};
use crate::state::{Outcome, Record};
use crate::sys::look::View;
use crate::sys::time::{Deadline, human};
use crate::types::{Ctid, Version};
use std::time::{Duration, Instant};

/// The whole of it.
///
/// # Errors
/// The requirements' exit codes, strictly.
pub fn run(ctid: Ctid) -> anyhow::Result<Code> {
    let begun = Instant::now();
    log::info!("configuring container {ctid}");
    let hand = ByHand::read(ctid, Conf::of(ctid))?;
    // What is wrong with the inputs is this call's alone, and changed nothing.
    let (intent, software) = hand.validate()?;
    let mut seen = Seen::default();
    let result = carry_out(&hand, &intent, &software, &mut seen);
    if result.is_ok() && !hand.document.is_template() {
        nested(&hand);
    }
    record(&hand, &result, &seen, begun);
    result?;
    log::info!("container {ctid}: NVIDIA configuration completed ({})", human(begun.elapsed()));
    Ok(Code::Success)
}

/// What engines in the container read, now that devices and driver are right.
fn nested(hand: &ByHand) {
    let Ok(conf) = hand.conf.read() else { return };
    let version = kernel_driver::version(View::host());
    nested::bring(&Guest::new(hand.ctid), &hand.settings, &conf, version.as_ref(), When::Always);
}

/// What is known of the container's software in the end.
#[derive(Default)]
struct Seen {
    /// The driver version that it has.
    driver: Option<Version>,
    /// What removes it, where packages hold it.
    removal: Option<String>,
    /// Why CUDA packages that nobody named are missing.
    cuda: Option<anyhow::Error>,
    /// Why a driver that a runfile installed is still beside the host's.
    beside: Option<anyhow::Error>,
}

impl Seen {
    /// Tells that CUDA packages are missing: an error where somebody named them.
    fn without_cuda(&mut self, missing: Option<anyhow::Error>, named: bool) -> anyhow::Result<()> {
        match missing {
            Some(missing) if named => return Err(missing),
            Some(missing) => exit::tell(log::Level::Warn, self.cuda.insert(missing)),
            None => {}
        }
        Ok(())
    }
}

/// All of it.
fn carry_out(hand: &ByHand, intent: &Intent, software: &Software, seen: &mut Seen) -> anyhow::Result<()> {
    let ctid = hand.ctid;
    pct::check_exists(ctid).map_err(|error| hand.conf.or_elsewhere(error))?;
    // A conf that vanished, or that another node has, is told here.
    let document = hand.conf.read()?;
    let _lock = locks::by_hand(ctid, longest(hand))?;
    Record::of(ctid).take_over(&net::identity(&document));
    let (choice, injection) = configure(hand, intent, &document)?;
    if document.is_template() {
        log::info!("container {ctid} {TEMPLATE}");
        return Ok(());
    }
    let run = Run { hand, choice, injection, timeouts: startable::restart_timeouts(&hand.settings) };
    if pct::status(ctid)? != Status::Running {
        run.start()?;
    }
    let compared = hand.compare(&run.choice)?;
    compared.unseen.iter().for_each(|unseen| log::warn!("{unseen}"));
    let mut differences = compared.differences;
    // An install below the host's driver could not be verified, and one that is
    // not mounted has no links: the restart for it comes first.
    if let Some(difference) = run.driver_difference() {
        run.may_mount(software)?;
        differences.push(difference);
        run.hand.restart(std::mem::take(&mut differences), false).map_or(Ok(()), |why| run.restart(&why))?;
    }
    if !run.link(software)? {
        return run.hand.restart(differences, false).map_or(Ok(()), |why| run.restart(&why));
    }
    run.install_and_restart(software, differences, seen)
}

/// The requirements' `configure_passthrough`.
fn configure(hand: &ByHand, intent: &Intent, document: &Document) -> anyhow::Result<(Choice, Injection)> {
    let deadline = Deadline::after(hand.settings.value(keys::PRE_START_TIMEOUT));
    let provided = devices::give(hand.ctid, intent, &hand.settings, document, &deadline)?;
    let choice = &provided.choice;
    if let Some(fault) = plan::fault(choice) {
        return Err(fault.into());
    }
    let kernel = provided.inventory.driver.as_ref().map(|driver| &driver.version);
    again::look_again(hand.ctid);
    // A driver of which the host has no user space is downloaded, as for an install.
    let download = hand.settings.value(keys::DOWNLOAD_TIMEOUT);
    let supply = desired::supply(&hand.settings, Some(download));
    let deadline = Deadline::after(deadline.span().saturating_add(download));
    let Given { injection, fault } =
        injection::give(hand.ctid, intent, &hand.settings, document, kernel, supply, &deadline);
    fault.map_or(Ok(()), Err)?;
    if !plan::is_right(document, &choice.devices, &plan::mounts(hand.ctid, intent, document, &injection)) {
        hand.must_be_editable(document)?;
    }
    let mounts = devices::mounts(hand.ctid, intent, document, &provided, &injection);
    let changed = devices::write(&hand.conf, Caller::ByHand, intent, choice, &mounts)?;
    let already = if changed { "" } else { "already " };
    log::info!("{}: {already}configured", plan::describe(choice));
    Ok((provided.choice, injection))
}

/// The longest that another call by hand may take.
fn longest(hand: &ByHand) -> Duration {
    let limit = |key| hand.settings.value(key);
    limit(keys::INSTALL_TIMEOUT) * 2 + limit(keys::DOWNLOAD_TIMEOUT) + limit(keys::RESTART_TIMEOUT) * 4
}

fn record(hand: &ByHand, result: &anyhow::Result<()>, seen: &Seen, begun: Instant) {
    if let Err(error) = result {
        // Nothing is known of a container that is not there, and a failure is
        // not recorded of another one that has the number now.
        let unknown = matches!(code_of(error), Code::Input | Code::NoContainer | Code::General);
        let identity = net::identity(&hand.document);
        if unknown || hand.conf.read().is_ok_and(|now| net::identity(&now) != identity) {
            return;
        }
    }
    let kernel = kernel_driver::version(View::host());
    Record::of(hand.ctid).update(|state| {
        if result.is_ok() {
            // Devices that are missing are a fault by hand.
            state.start_warning = None;
        }
        match result {
            // What could be given is, as a start has it.
            Err(error) if is_unfit(error) => state.ended("by hand", &Ok(()), begun),
            _ => state.ended("by hand", result, begun),
        }
        state.kernel_driver = kernel.map(|v| v.to_string());
        if let Some(driver) = &seen.driver {
            state.container_driver = Some(driver.to_string());
            state.driver_removal.clone_from(&seen.removal);
        }
        if result.is_ok() && hand.settings.value(keys::INSTALL) {
            state.restart_due = None;
            state.outcome = Outcome::Ok;
            seen.beside.iter().chain(&seen.cuda).for_each(|missing| state.lacks(missing));
        }
        if !startable::runs_with_old_driver(state) {
            state.restart_due = None;
        }
    });
}

/// A container whose conf is right.
struct Run<'a> {
    hand: &'a ByHand,
    choice: Choice,
    injection: Injection,
    timeouts: RestartTimeouts,
}

impl Run<'_> {
    /// Fails where the mount that a restart brings would hide files of the container.
    fn may_mount(&self, software: &Software) -> anyhow::Result<()> {
        match (&self.injection, software.desired()) {
            (Injection::On(place), Ok(desired)) => occupied::must_not_be(self.hand.ctid, place, desired),
            _ => Ok(()),
        }
    }

    /// How the running container differs in the host's driver.
    fn driver_difference(&self) -> Option<String> {
        let kernel = kernel_driver::version(View::host());
        injection::difference(self.hand.ctid, &self.injection, kernel.as_ref())
    }

    /// What is done inside of a container with the host's driver. False if nothing
    /// else is to be done there.
    fn link(&self, software: &Software) -> anyhow::Result<bool> {
        let (Injection::On(place), Ok(desired)) = (&self.injection, software.desired()) else {
            return Ok(true);
        };
        injection::must_be_mounted(self.hand.ctid, desired)?;
        if injection::is_linked(self.hand.ctid, desired) {
            // Links that went meanwhile are made with the look for packages.
            let looks = probe::application(self.hand.ctid).is_none();
            if !looks {
                log::info!("{}", desired.right());
            }
            return Ok(looks);
        }
        let guest = Guest::new(self.hand.ctid);
        boot::wait_for_shell(&guest, self.hand.settings.value(keys::READY_TIMEOUT))?;
        let deadline =
            Deadline::after(desired.limits.check.max(self.hand.settings.value(keys::READY_TIMEOUT)));
        let linked = injection::link(self.hand.ctid, place, desired, &self.hand.settings, &deadline)?;
        log::info!("driver {}: the host's, mounted", desired.driver);
        if !linked.shell {
            log::info!("no shell in the container: no links to the driver, no packages");
        }
        // An application container gets no packages, and is not looked into for them.
        Ok(linked.shell && probe::application(self.hand.ctid).is_none())
    }

    /// Installs what is missing; then the restart that devices or the driver
    /// need, once.
    fn install_and_restart(
        &self,
        software: &Software,
        differences: Vec<String>,
        seen: &mut Seen,
    ) -> anyhow::Result<()> {
        let (ctid, settings) = (self.hand.ctid, &self.hand.settings);
        let mut desired = match software.desired() {
            Ok(desired) => desired.clone(),
            Err(skipped) => {
                log::info!("{skipped}");
                return self.hand.restart(differences, false).map_or(Ok(()), |why| self.restart(&why));
            }
        };
        desired.gpus = Some(self.choice.gpus.len());
        let document = self.hand.conf.read()?;
        let identity = Identity::of(ctid, &document, Call::ByHand, load::environment(), &desired.driver);
        let nodes = plan::nodes(&self.choice.devices, self.choice.monitor);
        // Until the restart nvidia-smi would not find what is new.
        let there = differences.is_empty().then(|| nodes.clone());
        let mut install =
            Install { ctid, settings, desired: &desired, nodes: there, insist: true, identity: &identity };
        let (mut progress, result) = install.run();
        seen.beside = progress.beside.take();
        seen.driver.clone_from(&progress.version);
        seen.removal.clone_from(&progress.removal);
        if result.is_err() && progress.driver_changed.is_none() && differences.is_empty() {
            return result;
        }
        // What the install changed in this very start is recorded by now.
        let missing = progress.cuda.map(|why| cuda_missing(ctid, &desired, why));
        let Some(restart) = self.hand.restart(differences, false) else {
            return result.and(seen.without_cuda(missing, desired.cuda_named));
        };
        identity.still().fault(|| Fault::new(Code::Restart, format!("container {ctid} not restarted")))?;
        self.restart(&restart)?;
        install.nodes = Some(nodes);
        if result.as_ref().is_err_and(is_unfit) {
            return result;
        }
        // What failed first is the error; nvidia-smi is asked in any case.
        let verified = install.verify();
        result.and(verified).and(seen.without_cuda(missing, desired.cuda_named))
    }

    fn start(&self) -> anyhow::Result<()> {
        let ctid = self.hand.ctid;
        if let Err(mut obstacles) = self.hand.startable(&self.choice)? {
            obstacles.retain(Obstacle::refuses_start);
            if !obstacles.is_empty() {
                return Err(startable::refused_start(ctid, &obstacles));
            }
        }
        pct::start(ctid, &self.timeouts, &self.environment()).map_err(|error| self.explained(error))
    }

    /// Once, and never so that the container stays down.
    fn restart(&self, restart: &Restart) -> anyhow::Result<()> {
        log::info!("{restart}");
        let refusal = |obstacles: Vec<Obstacle>| startable::refusal(self.hand.ctid, &obstacles);
        let look = || self.hand.startable(&self.choice)?.map_err(refusal);
        pct::restart(look()?, &look, &self.timeouts, &self.environment())
            .map_err(|error| self.explained(error))
    }

    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        startable::explained(self.hand.ctid, &self.hand.conf, &self.hand.settings, error)
    }

    /// What the hook of a start of ours finds: the orchestrator's settings, and
    /// that they are.
    fn environment(&self) -> Vec<(String, String)> {
        load::ours().into_iter().chain([(MARK.to_owned(), self.hand.ctid.to_string())]).collect()
    }
}
