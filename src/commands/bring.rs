//! Bringing a running container's software to what is wanted, whoever asks:
//! the install process of a hook, or a call by hand.

use super::{common, locks};
use crate::conf::store::Conf;
use crate::exit::{self, Context as _, Fault};
use crate::guest::cache::Cache;
use crate::guest::exec::{ExecError, Guest};
use crate::guest::found::{self, Check};
use crate::guest::install;
use crate::guest::steps::Steps;
use crate::guest::wishes::Wishes;
use crate::guest::{leftover, lifecycle, ready, verify};
use crate::plan;
use crate::settings::{Settings, keys};
use crate::state::State;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Version};
use std::time::{Duration, Instant};

/// Thirty containers may want an install after one boot, two at a time.
const PLACE_WAIT: Duration = Duration::from_secs(2 * 3600);

/// One container's work.
pub struct Work<'a> {
    /// The container.
    pub ctid: Ctid,
    /// Its settings.
    pub settings: &'a Settings,
    /// What they wish for.
    pub wishes: &'a Wishes,
    /// The paths of the nodes that it is to have, for the verification;
    /// `None` while they are not in place.
    pub nodes: Option<Vec<String>>,
    /// A step that failed in this boot with the same inputs is tried again.
    pub insist: bool,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Brought {
    /// The driver was changed, from (if there was one) to.
    pub driver_changed: Option<(Option<Version>, Version)>,
    /// The version that is there now.
    pub version: Option<Version>,
}

/// Whether the CUDA step failed already in this boot, with the same inputs:
/// then no start tries it again, and one warning says so.
pub fn cuda_failed_before(ctid: Ctid, wishes: &Wishes) -> bool {
    let failed = State::load(common::root(), ctid).cuda_failed;
    if failed.as_deref() != Some(&wishes.fingerprint()) {
        return false;
    }
    log::warn!(
        "driver {} is right; the CUDA packages failed earlier in this boot and are not tried again: \
         `phoenix-nvidia {ctid}` tries now",
        wishes.driver
    );
    true
}

impl Work<'_> {
    fn guest(&self) -> Guest {
        Guest::new(self.ctid)
    }

    /// Check, install what is needed, verify; under the lock that makes two
    /// at once do the work once.
    ///
    /// # Errors
    /// [`exit::Code::Software`]. The driver may have been changed all the same:
    /// that is in the first of the two.
    pub fn run(&self) -> (Brought, anyhow::Result<()>) {
        let mut brought = Brought::default();
        let result = self.steps(&mut brought);
        (brought, result)
    }

    fn steps(&self, brought: &mut Brought) -> anyhow::Result<()> {
        let limits = &self.wishes.limits;
        let _lock = locks::work(self.ctid, limits.install + limits.download)?;
        let asked = self.wishes.fingerprint();
        State::update(common::root(), self.ctid, |state| state.asked = Some(asked));
        ready::commands(&self.guest(), self.settings.limit(keys::READY_TIMEOUT))?;
        let check = found::check(&self.guest(), self.wishes, &Deadline::after(limits.check))?;
        let steps = Steps::of(&check, self.wishes, self.software_is_due(&check));
        if steps.is_empty() {
            self.tell_right(&check);
            brought.version = Some(self.wishes.driver.clone());
            return self.verify();
        }
        // What fails for certain fails before anything is waited for.
        steps.iter().next().map_or(Ok(()), |first| first.possible(self.ctid, &check))?;
        log::info!("to do: {steps}");
        let places = self.settings.get::<u32>(keys::MAX_INSTALLS).unwrap_or(2);
        let there = || match self.guest().runs() {
            Some(false) => Err(anyhow::Error::from(ExecError::Gone(self.ctid))),
            _ => Ok(()),
        };
        let _place = locks::place(places, PLACE_WAIT.max(limits.install), there)
            .fault(|| Fault::new(exit::Code::Software, "the install did not begin"))?;
        leftover::end(self.ctid);
        ready::boot(&self.guest(), self.settings.limit(keys::READY_TIMEOUT))?;
        // The services of this start keep the old driver until the next one.
        let init = lifecycle::init(self.ctid).ok().flatten();
        let guest = self.guest().until(Deadline::after(limits.install + limits.download));
        let outcome = install::install(&guest, self.wishes, &check, &steps, &Cache::system());
        self.record(&check, &outcome, init.as_ref());
        for warning in &outcome.installed.warnings {
            log::warn!("{warning}");
        }
        if outcome.installed.driver_changed.is_some() {
            brought.version = Some(self.wishes.driver.clone());
        }
        brought.driver_changed = outcome.installed.driver_changed;
        match outcome.result {
            Ok(()) => self.verify(),
            Err(error) => {
                // The driver stands alone: whether it works is worth knowing.
                if brought.driver_changed.is_some() {
                    if let Err(second) = self.verify() {
                        log::warn!("{}", exit::one_line(&second));
                    }
                }
                Err(error)
            }
        }
    }

    /// Whether a missing CUDA package is to be tried now.
    fn software_is_due(&self, check: &Check) -> bool {
        // With another driver to install, what failed before may work now.
        self.insist
            || !check.software_pending()
            || !check.driver_right()
            || !cuda_failed_before(self.ctid, self.wishes)
    }

    fn record(&self, check: &Check, outcome: &install::Outcome, init: Option<&lifecycle::Init>) {
        let changed = outcome.installed.driver_changed.is_some();
        // With the driver in place, what failed is what comes after it.
        let cuda_failed = outcome.result.is_err() && (changed || check.driver_right());
        let fingerprint = self.wishes.fingerprint();
        State::update(common::root(), self.ctid, |state| {
            if changed {
                state.restart_due = init.map(ToString::to_string);
            }
            state.cuda_failed = cuda_failed.then_some(fingerprint);
        });
    }

    fn tell_right(&self, check: &Check) {
        log::info!("driver {}: installed and right", self.wishes.driver);
        log::debug!("the look into the container took {}", crate::sys::time::human(check.took));
    }

    /// nvidia-smi's word, if the nodes are there to ask for it.
    ///
    /// # Errors
    /// [`exit::Code::Software`].
    pub fn verify(&self) -> anyhow::Result<()> {
        let Some(nodes) = &self.nodes else { return Ok(()) };
        let begun = Instant::now();
        let limit = self.wishes.limits.verify.max(Duration::from_secs(1));
        let mut wishes = self.wishes.clone();
        // As the container runs now: a restart may have applied what was pending.
        let beside = Conf::of(self.ctid).read().map_or(0, |conf| plan::gpus_beside(&conf.document, nodes));
        wishes.gpus = wishes.gpus.map(|gpus| gpus + beside);
        verify::verify(&self.guest(), &wishes, nodes, &Deadline::after(limit))?;
        log::debug!("verified in {}", common::since(begun));
        Ok(())
    }
}
