//! `apply`: a running container gets what its settings say, without a restart.

use crate::driver::injection::{Injection, is_driver};
use crate::exit::{self, Code, Fault};
use crate::guest::exec::Guest;
use crate::host::choose::Choice;
use crate::host::provide::Provided;
use crate::job::by_hand::{ByHand, TEMPLATE};
use crate::job::desired::{self, Software};
use crate::job::injection::{self, Given};
use crate::job::live::difference::Wanted;
use crate::job::live::steps::Gone;
use crate::job::live::{self, Live};
use crate::job::nested::{self, When};
use crate::job::undo::Undo;
use crate::job::{again, devices, locks};
use crate::plan::{self, Intent};
use crate::pve::conf::document::{Document, Form};
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::reconcile::reconcile;
use crate::pve::conf::store::{Caller, Conf};
use crate::pve::{net, pct};
use crate::settings::keys;
use crate::state::{Outcome, Record};
use crate::sys::lock::Lock;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::time::Instant;

/// Does it; `force` takes away cards that are in use.
///
/// # Errors
/// As a call by hand; [`Code::Passthrough`] also for a card that is in use. The
/// container is as it was then.
pub fn run(ctid: Ctid, force: bool) -> anyhow::Result<Code> {
    let begun = Instant::now();
    let hand = ByHand::read(ctid, Conf::of(ctid).called(format!("apply {ctid}")))?;
    let (intent, software) = hand.validate()?;
    let _held = live::hold(ctid)?;
    let document = hand.conf.read()?;
    hand.conf.may_edit(Caller::ByHand, &document)?;
    if document.is_template() {
        log::info!("container {ctid} {TEMPLATE}");
        return Ok(Code::Success);
    }
    if pct::init(ctid)?.is_none() {
        log::info!("container {ctid} is stopped: its next start has what its settings say");
        return Ok(Code::Success);
    }
    Record::of(ctid).take_over(&net::identity(&document));
    let mut apply = Apply::prepare(&hand, intent, &software, document)?;
    let done = apply.carry_out(force);
    if let Some(live) = apply.conclude(done, begun)? {
        // They are of the driver that it is to have.
        if live.tree_waits.is_none() {
            apply.link();
        }
        apply.describe(&live);
    }
    Ok(Code::Success)
}

/// What the running container is to have, and what the host gives for it.
pub struct Apply<'a> {
    hand: &'a ByHand,
    intent: Intent,
    software: &'a Software,
    document: Document,
    provided: Provided,
    injection: Injection,
    mounts: Vec<Mount>,
    /// A refusal before it is told, and not recorded: it changed nothing.
    began: bool,
}

impl<'a> Apply<'a> {
    /// Makes what is missing on the host: nodes, and the driver tree.
    fn prepare(
        hand: &'a ByHand,
        intent: Intent,
        software: &'a Software,
        document: Document,
    ) -> anyhow::Result<Apply<'a>> {
        let (ctid, deadline) = (hand.ctid, &limit(hand));
        let provided = devices::give(ctid, &intent, &hand.settings, &document, deadline)?;
        if let Some(fault) = plan::fault(&provided.choice) {
            return Err(fault.into());
        }
        let kernel = provided.inventory.driver.as_ref().map(|driver| &driver.version);
        again::look_again(ctid);
        // Nothing is downloaded while the locks are held: `prepare` does that.
        let supply = desired::supply(&hand.settings, None);
        let Given { injection, fault } =
            injection::give(ctid, &intent, &hand.settings, &document, kernel, supply, deadline);
        fault.map_or(Ok(()), Err)?;
        let mounts = plan::mounts(ctid, &intent, &document, &injection);
        Ok(Apply { hand, intent, software, document, provided, injection, mounts, began: false })
    }

    fn wanted(&self) -> Wanted {
        let Provided { inventory, choice, .. } = &self.provided;
        Wanted::of(inventory, choice.devices.clone(), self.mounts.clone())
    }

    /// All steps, or none.
    fn carry_out(&mut self, force: bool) -> anyhow::Result<Live> {
        let (ctid, conf) = (self.hand.ctid, &self.hand.conf);
        let Some(mut live) = Live::of(ctid, conf, self.document.clone(), self.wanted())? else {
            return Err(Gone(ctid).into());
        };
        live.try_nodes(self.hand.settings.value(keys::CHECK_TIMEOUT));
        live.keep_tree_for(self.software);
        live.must_be_plain()?;
        let remedy =
            format!("end what uses them, or go on all the same: phoenix-nvidia apply {ctid} --force");
        live.must_be_unused(&self.provided.inventory, (!force).then_some(&remedy))?;
        if !plan::is_right(&self.document, &self.provided.choice.devices, &self.mounts) {
            self.hand.must_be_editable(&self.document)?;
        }
        let mut undo = Undo::default();
        match self.steps(&mut live, &mut undo) {
            Ok(()) => Ok(live),
            Err(error) if is_gone(&error, &live) => Err(Gone(ctid).into()),
            Err(error) => {
                if undo.roll_back() {
                    live.note_as_before();
                }
                Err(error)
            }
        }
    }

    /// Add: conf, node, rule. Take away: rule, node, conf.
    fn steps(&mut self, live: &mut Live, undo: &mut Undo) -> anyhow::Result<()> {
        self.claim(live, undo)?;
        live.carry_out(true, undo)?;
        live.carry_out(false, undo)?;
        // What it has no more is anybody's: that needs no lock.
        self.write(&self.provided.choice, &self.mounts, undo)
    }

    /// Has the conf name what comes, beside what is there: by it others see whose the cards
    /// are.
    fn claim(&mut self, live: &Live, undo: &mut Undo) -> anyhow::Result<()> {
        let _cards = self.cards()?;
        self.began = true;
        let (devices, mounts) = live.both();
        self.write(&Choice { devices, ..self.provided.choice.clone() }, &mounts, undo)
    }

    /// With `GPU_EXCLUSIVE` the lock for a claim. It is not held before, since nobody is to
    /// wait for what is done in the container: so one may have taken a card meanwhile.
    fn cards(&self) -> anyhow::Result<Option<Lock>> {
        let ByHand { ctid, settings, .. } = self.hand;
        if !settings.value(keys::GPU_EXCLUSIVE) {
            return Ok(None);
        }
        let deadline = limit(self.hand);
        let lock = locks::cards(&deadline)?;
        let (_, now) = devices::look(*ctid, &self.intent, settings, &self.document, &deadline);
        self.must_be(&now)?;
        Ok(Some(lock))
    }

    /// Fails where the host would give something else now.
    fn must_be(&self, now: &Choice) -> anyhow::Result<()> {
        if let Some(fault) = plan::fault(now) {
            return Err(fault.into());
        }
        if now.devices != self.provided.choice.devices {
            let ctid = self.hand.ctid;
            let what = format!("the devices for container {ctid} have changed meanwhile");
            let remedy = format!("phoenix-nvidia apply {ctid}");
            return Err(Fault::new(Code::Passthrough, what).remedy(remedy).into());
        }
        Ok(())
    }

    /// Edits the conf, and notes how to restore it.
    fn write(&self, choice: &Choice, mounts: &[Mount], undo: &mut Undo) -> anyhow::Result<()> {
        let conf = self.hand.conf.clone();
        let before = conf.read()?;
        if !devices::write(&conf, Caller::ByHand, &self.intent, choice, mounts)? {
            return Ok(());
        }
        let after = conf.read()?;
        undo.push(format!("{}", conf.path().display()), move || {
            let edit = |now: &Document| {
                if *now == after {
                    return Some(before.clone());
                }
                let (devices, mounts) = live::of_conf(&before);
                reconcile(now, &devices, &mounts, Form::Pve).map(|edit| edit.document)
            };
            Ok(conf.edit(Caller::ByHand, edit)?.is_some())
        });
        Ok(())
    }

    /// What comes after all steps, and can only be told; none if the container has stopped.
    fn conclude(&self, done: anyhow::Result<Live>, begun: Instant) -> anyhow::Result<Option<Live>> {
        let ctid = self.hand.ctid;
        let live = match done {
            Ok(live) => live,
            Err(error) if error.is::<Gone>() => return self.without_container().map(|()| None),
            Err(error) => {
                if self.began {
                    self.record(&Err(error_of(&error)), begun);
                }
                return Err(error);
            }
        };
        live.note_done(&self.hand.conf);
        let masks = plan::masks(&self.document, &self.provided.inventory, &self.provided.choice);
        let masked = !self.mounts.is_empty() && live.follow_masks(&masks);
        let told = live.difference.told();
        live.tell(begun);
        if told.is_empty() && live.waiting().is_empty() {
            let devices = plan::describe(&self.provided.choice);
            let what = if masked { "/proc/driver/nvidia shows its GPUs" } else { "nothing to change" };
            log::info!("container {ctid}: {devices}: {what}");
        }
        if !told.is_empty() {
            self.record(&Ok(()), begun);
        }
        Ok(Some(live))
    }

    /// The conf as wanted stays; nothing else is touched.
    fn without_container(&self) -> anyhow::Result<()> {
        let (ctid, conf) = (self.hand.ctid, &self.hand.conf);
        let _cards = self.cards()?;
        devices::write(conf, Caller::ByHand, &self.intent, &self.provided.choice, &self.mounts)?;
        log::warn!("container {ctid} has stopped meanwhile: its next start has what its settings say");
        if pct::init(ctid)?.is_some() {
            log::warn!("{}", exit::fix(&format!("phoenix-nvidia apply {ctid}")));
        }
        Ok(())
    }

    /// An install that failed is not forgotten for a card that came.
    fn record(&self, result: &anyhow::Result<()>, begun: Instant) {
        Record::of(self.hand.ctid).update(|state| {
            if matches!(state.outcome, Outcome::None | Outcome::Ok | Outcome::Warning) {
                state.start_warning = state.start_warning.take().filter(|_| result.is_err());
                state.ended("apply", result, begun);
            }
        });
    }

    /// Links to the driver that is mounted: after it was, and after each change of
    /// the conf.
    fn link(&self) {
        let (Injection::On(place), Ok(desired)) = (&self.injection, self.software.desired()) else { return };
        if !self.mounts.iter().any(is_driver) || injection::is_linked(self.hand.ctid, desired) {
            return;
        }
        let deadline = Deadline::after(desired.limits.check);
        if let Err(error) = injection::link(self.hand.ctid, place, desired, &self.hand.settings, &deadline) {
            exit::tell(log::Level::Warn, &error);
        }
    }

    /// For engines in the container: their description names its cards, and the driver that
    /// it has.
    fn describe(&self, live: &Live) {
        let Ok(conf) = self.hand.conf.read() else { return };
        let (ctid, settings) = (self.hand.ctid, &self.hand.settings);
        nested::note(ctid, settings, &conf, &self.provided);
        let loaded = self.provided.inventory.driver.as_ref().map(|driver| driver.version.clone());
        let version = match (&live.tree_waits, &self.injection) {
            (None, _) => loaded,
            (Some(_), Injection::On(_)) => live.mounted(),
            // It is not to have that any more.
            (Some(_), _) => None,
        };
        nested::bring(&Guest::new(ctid), settings, &conf, version.as_ref(), When::Changed);
    }
}

/// Until when the devices are chosen.
fn limit(hand: &ByHand) -> Deadline {
    Deadline::after(hand.settings.value(keys::PRE_START_TIMEOUT))
}

/// The error again, for the record.
fn error_of(error: &anyhow::Error) -> anyhow::Error {
    let fault = Fault::new(exit::code_of(error), exit::one_line(error));
    match exit::remedy_of(error) {
        Some(remedy) => fault.remedy(remedy).into(),
        None => fault.into(),
    }
}

/// Whether a step failed since the container has stopped.
fn is_gone(error: &anyhow::Error, live: &Live) -> bool {
    error.is::<Gone>() || !live.place.init.lives()
}
