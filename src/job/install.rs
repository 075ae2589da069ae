//! Installing what a running container lacks, whoever asks:
//! the install process of a hook, or a call by hand.

use crate::device::DevicePath;
use crate::driver::cache::Cache;
use crate::driver::desired::Desired;
use crate::driver::injection::Injection;
use crate::exit::{self, Code, Context as _, Fault};
use crate::guest::exec::{self, ExecError, Guest};
use crate::guest::install::steps::{self, InstallSteps, cuda_refused};
use crate::guest::install::{self, Installed};
use crate::guest::probe::{self, Ask, Check};
use crate::guest::{boot, leftovers, link, mounted, uninstall, verify};
use crate::job::identity::Identity;
use crate::job::injection;
use crate::job::locks;
use crate::plan;
use crate::pve::conf::store::Conf;
use crate::pve::pct;
use crate::settings::{Settings, keys};
use crate::state::Record;
use crate::sys::lock::Lock;
use crate::sys::time::{Deadline, human};
use crate::types::{Ctid, Version};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Thirty containers may want an install after one boot, two at a time.
const PLACE_WAIT: Duration = Duration::from_secs(2 * 3600);

/// One container's work.
pub struct Install<'a> {
    /// The container.
    pub ctid: Ctid,
    /// Its settings.
    pub settings: &'a Settings,
    /// What they ask for inside.
    pub desired: &'a Desired,
    /// The nodes that it gets, for the verification;
    /// `None` while they are not in place.
    pub nodes: Option<Vec<DevicePath>>,
    /// A step that failed in this boot with the same inputs is tried again.
    pub insist: bool,
    /// Whether the container is still the one, and asks for this.
    pub identity: &'a Rc<Identity>,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Progress {
    /// The driver was changed, from (if there was one) to.
    pub driver_changed: Option<(Option<Version>, Version)>,
    /// The version that is there now.
    pub version: Option<Version>,
    /// What removes it, where packages hold it.
    pub removal: Option<String>,
    /// It failed before the container was probed.
    pub unseen: bool,
    /// Why CUDA packages are missing: the driver does not depend on them.
    pub cuda: Option<anyhow::Error>,
    /// Why a driver that a runfile installed is still beside the host's.
    pub beside: Option<anyhow::Error>,
}

/// Whether the CUDA step failed already in this boot, with the same inputs:
/// then no start tries it again, and one warning says so.
pub fn cuda_failed_before(ctid: Ctid, desired: &Desired) -> bool {
    let failed = Record::of(ctid).load().cuda_failed;
    if failed.as_deref() != Some(&desired.fingerprint()) {
        return false;
    }
    let level = if desired.cuda_named { log::Level::Warn } else { log::Level::Info };
    log::log!(
        level,
        "driver {}: installed; CUDA packages failed earlier in this boot: not tried again",
        desired.driver
    );
    if desired.cuda_named {
        log::warn!("{}", exit::fix(&format!("phoenix-nvidia {ctid}")));
    }
    true
}

/// Says once a boot that CUDA packages cannot be installed, where the probe
/// shows it; true if they are missing.
pub fn tell_obstacle(ctid: Ctid, desired: &Desired, check: &Check) -> bool {
    let matters = check.cuda_obstacle.as_ref().is_some_and(|obstacle| obstacle.matters(desired));
    let Some(refused) = cuda_refused(ctid, check).filter(|_| matters) else { return false };
    if !cuda_failed_before(ctid, desired) {
        exit::tell(log::Level::Warn, &cuda_missing(ctid, desired, refused.into()));
        Record::of(ctid).update(|state| state.cuda_failed = Some(desired.fingerprint()));
    }
    true
}

/// CUDA packages are missing, and what is not.
pub fn cuda_missing(ctid: Ctid, desired: &Desired, why: anyhow::Error) -> anyhow::Error {
    let what = format!("driver {} is right, CUDA packages are missing", desired.driver);
    let remedy = exit::remedy_of(&why).map(str::to_owned);
    let remedy = remedy.unwrap_or_else(|| format!("phoenix-nvidia attach {ctid} --cuda none"));
    why.context(Fault::new(Code::Software, what).remedy(remedy))
}

impl Install<'_> {
    /// The container in its present start, and no longer than it is the one.
    fn guest(&self) -> Guest {
        Guest::new(self.ctid).guarded(self.identity.guard())
    }

    /// Check, install what is needed, verify; under the lock that makes two
    /// at once do the work once. CUDA packages that cannot be installed are no
    /// error: they are in the first of the two.
    ///
    /// # Errors
    /// [`Code::Software`]. The driver may have changed nevertheless:
    /// that is in the first of the two.
    pub fn run(&self) -> (Progress, anyhow::Result<()>) {
        let mut progress = Progress::default();
        let result = self.steps(&mut progress);
        (progress, result)
    }

    fn steps(&self, progress: &mut Progress) -> anyhow::Result<()> {
        let limits = &self.desired.limits;
        let _lock = locks::work(self.ctid, limits.install + limits.download)?;
        // Whoever held that lock may have had it for an hour.
        self.identity.still().fault(|| Fault::new(Code::Software, "nothing installed"))?;
        let asked = self.desired.fingerprint();
        self.identity.update(|state| state.asked = Some(asked));
        let guest = self.guest();
        progress.unseen = true;
        let mut check = self.probe(&guest)?;
        progress.unseen = false;
        steps::fit(self.ctid, &check)?;
        self.link(&guest, &check, progress)?;
        if self.desired.injected && probe::application(self.ctid).is_some() {
            // It gets no packages, and no program of ours more than that.
            progress.version = Some(self.desired.driver.clone());
            return Ok(());
        }
        if !self.insist && injection::gave_up(self.ctid) {
            check.runfile = None;
        }
        let steps = InstallSteps::of(&check, self.desired, self.cuda_is_due(&check));
        let refused = cuda_refused(self.ctid, &check).map(anyhow::Error::from);
        let matters = check.cuda_obstacle.as_ref().is_some_and(|obstacle| obstacle.matters(self.desired));
        if matters {
            progress.cuda = refused;
        } else if let (Some(refused), true) = (&refused, steps.driver()) {
            // No packages are the default there: said with the install, and never again.
            exit::tell(log::Level::Warn, refused);
        }
        if steps.is_empty() {
            log::info!("{}", self.desired.right());
            log::debug!("probe of the container took {}", human(check.took));
            progress.version = Some(self.desired.driver.clone());
            progress.removal = check.packages.as_ref().and_then(|packages| packages.remove(self.ctid));
            return self.verify();
        }
        if steps.driver() {
            self.not_below_a_mount()?;
        }
        // What fails for certain fails before anything is waited for.
        steps.iter().next().map_or(Ok(()), |first| first.possible(self.ctid, &check))?;
        log::info!("to do: {steps}");
        let _place = self.place(&guest)?;
        match self.carry_out(guest, &check, &steps, progress) {
            Ok(()) => self.verify(),
            Err(error) => {
                // The driver stands alone: whether it works is worth knowing.
                if progress.driver_changed.is_some() {
                    if let Err(second) = self.verify() {
                        log::warn!("{}", exit::one_line(&second));
                    }
                }
                Err(error)
            }
        }
    }

    /// Nothing is installed where the host's driver lies over it: what is below
    /// could not be checked.
    fn not_below_a_mount(&self) -> anyhow::Result<()> {
        match mounted::version(self.ctid) {
            Ok(Some(version)) => {
                let message = format!(
                    "container {} still runs with the host's driver {version} mounted: nothing is installed in it",
                    self.ctid
                );
                Err(Fault::new(Code::Software, message).remedy(format!("pct reboot {}", self.ctid)).into())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                let message =
                    format!("cannot see what container {} has mounted: nothing is installed", self.ctid);
                let fix = format!("phoenix-nvidia {}", self.ctid);
                Err(error.context(Fault::new(Code::Software, message).remedy(fix)))
            }
        }
    }

    /// What the host's driver needs inside, unless that was done. The services of
    /// this start may need a restart after it, as after a driver's install.
    fn link(&self, guest: &Guest, check: &Check, progress: &mut Progress) -> anyhow::Result<()> {
        if !self.desired.injected {
            return Ok(());
        }
        injection::must_be_mounted(self.ctid, self.desired)?;
        // What is not probed shows no links.
        let gone = (!check.links || check.lost) && probe::application(self.ctid).is_none();
        if gone || !injection::is_linked(self.ctid, self.desired) {
            self.link_now(guest)?;
        }
        if injection::restart_is_due(self.ctid, self.settings) {
            progress.driver_changed = Some((None, self.desired.driver.clone()));
        }
        Ok(())
    }

    fn link_now(&self, guest: &Guest) -> anyhow::Result<()> {
        let conf = Conf::of(self.ctid).read()?;
        if let Injection::On(place) = injection::look(self.ctid, self.settings, &conf) {
            let limit = self.link_limit();
            injection::link_in(guest, &place, self.desired, self.settings, &Deadline::after(limit))?;
        }
        Ok(())
    }

    /// For the links: `ldconfig` reads every library, on a node that may be busy.
    fn link_limit(&self) -> Duration {
        self.settings.value(keys::READY_TIMEOUT).max(self.desired.limits.check)
    }

    /// Removes what a runfile installed beside the host's driver, and gives its
    /// places to the links. Where that fails, programs use the host's all the same.
    fn uninstall(&self, guest: &Guest, version: &Version, progress: &mut Progress) -> anyhow::Result<()> {
        let begun = Instant::now();
        let gone = uninstall::run(guest, version, self.desired.limits.install).and_then(|()| {
            let now = self.probe(guest)?;
            uninstall::must_be_gone(self.ctid, version, &now)
        });
        match gone {
            Err(error) if exec::ended(&error) => return Err(error),
            Err(error) => {
                exit::tell(log::Level::Warn, &error);
                progress.beside = Some(error);
            }
            Ok(()) => {
                let took = human(begun.elapsed());
                log::info!("driver: removed {version}, which a runfile had installed, in {took}");
                self.link_now(guest)?;
            }
        }
        let failed = progress.beside.is_some();
        self.identity.update(|state| {
            state.uninstall_failed = if failed { state.uninstall_failed.saturating_add(1) } else { 0 };
        });
        Ok(())
    }

    /// One of the node's places for installs, as long as there is a container
    /// to install in.
    fn place(&self, guest: &Guest) -> anyhow::Result<Lock> {
        let there = || match guest.runs() {
            Some(false) => Err(anyhow::Error::from(ExecError::Gone(self.ctid))),
            _ => Ok(guest.check_guard()?),
        };
        let limit = PLACE_WAIT.max(self.desired.limits.install);
        locks::place(self.settings.value(keys::MAX_INSTALLS), limit, there)
            .fault(|| Fault::new(Code::Software, "install not started"))
    }

    fn carry_out(
        &self,
        guest: Guest,
        check: &Check,
        steps: &InstallSteps,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        guest.check_guard()?;
        leftovers::end(self.ctid);
        boot::wait_until_booted(&guest, self.settings.value(keys::READY_TIMEOUT))?;
        // The services of this start keep the old driver until the next one.
        let init = pct::init(self.ctid).ok().flatten();
        let limits = &self.desired.limits;
        let guest = guest.until(Deadline::after(limits.install + limits.download));
        if steps.unlink() {
            // No installer runs over them: it would follow them, or put them aside as somebody's files.
            let removed = link::unlink(&guest, &Deadline::after(self.link_limit()));
            let fix = || format!("phoenix-nvidia {}", self.ctid);
            removed.fault(|| Fault::new(Code::Software, "nothing installed").remedy(fix()))?;
            self.identity.update(|state| state.injected.unlinked());
        }
        if let Some(version) = steps.uninstall() {
            self.uninstall(&guest, version, progress)?;
        }
        let installed = install::install(&guest, self.desired, check, steps, &Cache::system());
        self.record(installed.as_ref().ok(), progress.cuda.is_some(), init.as_ref());
        let installed = installed?;
        installed.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        progress.version = Some(self.desired.driver.clone());
        progress.removal = check.packages.as_ref().and_then(|packages| packages.remove(self.ctid));
        progress.driver_changed = installed.driver_changed.or(progress.driver_changed.take());
        match installed.cuda {
            Some(error) if exec::ended(&error) => return Err(error),
            Some(error) => progress.cuda = Some(error),
            None => {}
        }
        Ok(())
    }

    /// What is in the container. On a busy node a look may take many times what
    /// a start gives it: one that was not over in time is repeated with twice
    /// the time, as long as an install waits for its container at all.
    fn probe(&self, guest: &Guest) -> anyhow::Result<Check> {
        let limit = self.settings.value(keys::READY_TIMEOUT);
        if probe::application(self.ctid).is_none() {
            boot::wait_for_shell(guest, limit)?;
        }
        let mut desired = self.desired.clone();
        let until = Deadline::after(limit.max(desired.limits.check));
        loop {
            match probe::check(guest, &desired, Ask::Files, &until) {
                Err(error) if exec::timed_out(&error) && !until.passed() => {
                    log::info!("{}; trying again", exit::one_line(&error));
                    desired.limits.check *= 2;
                }
                other => return other,
            }
        }
    }

    /// Whether to try a missing CUDA package now.
    fn cuda_is_due(&self, check: &Check) -> bool {
        // With another driver to install, what failed before may work now.
        self.insist
            || !check.cuda_pending()
            || !check.driver_matches()
            || !cuda_failed_before(self.ctid, self.desired)
    }

    /// Notes for later starts what changed, and whether CUDA packages could not
    /// be installed; `None` for a driver that could not.
    fn record(&self, installed: Option<&Installed>, refused: bool, init: Option<&pct::Init>) {
        let changed = installed.is_some_and(|installed| installed.driver_changed.is_some());
        let failed = installed.and_then(|installed| installed.cuda.as_ref());
        let cuda_failed = refused || failed.is_some_and(|error| !exec::ended(error));
        let fingerprint = self.desired.fingerprint();
        self.identity.update(|state| {
            if changed {
                state.restart_due = init.map(ToString::to_string);
            }
            state.cuda_failed = cuda_failed.then_some(fingerprint);
        });
    }

    /// Asks nvidia-smi, if the nodes are there for it.
    ///
    /// # Errors
    /// [`Code::Software`].
    pub fn verify(&self) -> anyhow::Result<()> {
        let Some(nodes) = &self.nodes else { return Ok(()) };
        let begun = Instant::now();
        let limit = self.desired.limits.verify.max(Duration::from_secs(1));
        let mut desired = self.desired.clone();
        // As the container runs now: a restart may have applied what was pending.
        let beside = Conf::of(self.ctid).read().map_or(0, |conf| plan::gpus_beside(&conf, nodes));
        desired.gpus = desired.gpus.map(|gpus| gpus + beside);
        verify::verify(&self.guest(), &desired, nodes, &Deadline::after(limit))?;
        log::debug!("verified in {}", human(begun.elapsed()));
        Ok(())
    }
}
