//! By hand: `phoenix-nvidia CTID`, the requirements' `main()`.
//!
//! Check, configure, start it if it is stopped, install, restart once if
//! devices or software changed, verify with the nodes in place.

use crate::commands::hook::pre_start::apply;
use crate::commands::hook::pre_start::devices;
use crate::commands::hook::pre_start::mounts;
use crate::device::{Device, DevicePath};
use crate::exit::{Code, Context as _, Fault, code_of};
use crate::guest::attached;
use crate::guest::exec::Guest;
use crate::guest::verify::{Opened, open_nodes};
use crate::host::choose::Choice;
use crate::host::kernel_driver;
use crate::job::chain;
use crate::job::desired;
use crate::job::desired::Software;
use crate::job::identity::Identity;
use crate::job::install::Install;
use crate::job::locks;
use crate::job::startable;
use crate::plan::{self, Intent};
use crate::pve::cluster;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Caller;
use crate::pve::conf::store::Conf;
use crate::pve::net;
use crate::pve::pct;
use crate::pve::pct::RestartTimeouts;
use crate::pve::pct::Status;
use crate::pve::startable::{Obstacle, Startable};
use crate::settings::load;
use crate::settings::values::AfterInstall;
use crate::settings::{self, Call, MARK, Settings, keys};
use crate::state::Outcome;
use crate::state::Record;
use crate::sys::look::Look;
use crate::sys::look::View;
use crate::sys::time::Deadline;
use crate::sys::time::human;
use crate::types::{Ctid, Version};
use std::time::{Duration, Instant};

/// The whole of it.
///
/// # Errors
/// The requirements' exit codes, strictly.
pub fn run(ctid: Ctid) -> anyhow::Result<Code> {
    let begun = Instant::now();
    log::info!("bringing container {ctid} to its settings");
    let conf = Conf::of(ctid);
    // First whether it exists, and here: what is said of its settings would
    // be said of a conf that is not.
    let document = conf.read()?;
    let settings = load::of(ctid, Call::ByHand, &conf, &document);
    let hand = Hand { ctid, conf, settings };
    let mut driver = None;
    // What is wrong with the inputs is this call's alone, and changed nothing.
    let (intent, software) = hand.validate()?;
    let result = hand.all(&intent, &software, &mut driver);
    let whom = net::identity(&document);
    let heir = |now: &Document| net::identity(now) != whom;
    // A failure is not recorded of another container that has the number now.
    if result.is_ok() || !hand.conf.read().is_ok_and(|now| heir(&now)) {
        hand.record(&result, driver, begun);
    }
    result?;
    log::info!("container {ctid}: NVIDIA configuration completed ({})", human(begun.elapsed()));
    Ok(Code::Success)
}

/// A call by hand, with what it goes by.
pub struct Hand {
    /// The container.
    pub ctid: Ctid,
    /// Its conf.
    pub conf: Conf,
    /// Its settings.
    pub settings: Settings,
}

impl Hand {
    /// All of it; `driver` becomes the version that the container has, once
    /// that is seen.
    fn all(&self, intent: &Intent, software: &Software, driver: &mut Option<Version>) -> anyhow::Result<()> {
        pct::check_exists(self.ctid).map_err(|error| self.conf.or_elsewhere(error))?;
        // A conf that vanished, or that another node has, is told here.
        let document = self.conf.read()?;
        let _lock = locks::by_hand(self.ctid, self.longest())?;
        Record::of(self.ctid).take_over(&net::identity(&document));
        let deadline = Deadline::after(self.settings.value(keys::PRE_START_TIMEOUT));
        let provided = devices(self.ctid, intent, &self.settings, &document, &deadline)?;
        let choice = &provided.choice;
        if let Some(fault) = plan::fault(choice) {
            return Err(fault.into());
        }
        let wanted = choice.devices.clone();
        let words = plan::describe(choice);
        if !plan::is_right(&document, &wanted, &plan::mounts(self.ctid, intent, &document)) {
            self.must_be_editable(&document)?;
        }
        let mounts = mounts(self.ctid, intent, &document, &provided);
        if apply(&self.conf, Caller::ByHand, &wanted, &mounts)? {
            log::info!("{words}: configured");
        } else {
            log::info!("{words}: already configured");
        }
        if document.get("template").as_deref() == Some("1") {
            log::info!(
                "container {} is a template: its clones inherit this, and get their driver at their first start",
                self.ctid
            );
            return Ok(());
        }
        let patience = startable::restart_timeouts(&self.settings);
        if pct::status(self.ctid)? != Status::Running {
            self.start(choice, &patience)?;
        }
        self.software_and_restart(software, choice, &wanted, &patience, driver)
    }

    /// The requirements' `validate_inputs`: everything is read before
    /// anything is changed.
    ///
    /// # Errors
    /// [`Code::Input`] with all that cannot be read; [`Code::Software`] for a
    /// driver version that cannot work.
    pub fn validate(&self) -> anyhow::Result<(Intent, Software)> {
        let problems = self.settings.all_problems();
        if !problems.is_empty() {
            return Err(settings::fault(&problems, self.ctid));
        }
        if let Some(lacks) = chain::lacks(&chain::look(&self.settings), &self.settings) {
            return Err(lacks.fault().into());
        }
        let (intent, _) = Intent::of(&self.settings);
        let software = desired::read(&self.settings, kernel_driver::version(View::host()), None)
            .map_err(|problems| settings::fault(&problems, self.ctid))?;
        if let Software::Desired(desired) = &software {
            desired.matches_kernel()?;
        }
        for (now, later) in &self.settings.overridden {
            log::warn!(
                "{}={} from {} is used now; the next start will use {} ({})",
                now.key,
                now.shown(),
                now.origin,
                later.shown(),
                later.origin
            );
        }
        Ok((intent, software))
    }

    /// Fails where the conf could not be edited, so that nothing else is begun
    /// and `plan` can tell.
    ///
    /// # Errors
    /// [`Code::Passthrough`].
    pub fn must_be_editable(&self, document: &Document) -> anyhow::Result<()> {
        self.conf.may_edit(Caller::ByHand, document)?;
        cluster::must_have_quorum(&Look::host())
    }

    fn software_and_restart(
        &self,
        software: &Software,
        choice: &Choice,
        wanted: &[Device],
        patience: &RestartTimeouts,
        driver: &mut Option<Version>,
    ) -> anyhow::Result<()> {
        let devices_changed = self.devices_changed(wanted)?;
        let nodes = nodes(choice);
        let left = |why: &str| {
            log::info!("the driver in the container is left as it is: {why}");
            if devices_changed || self.restart_due() { self.restart(choice, patience) } else { Ok(()) }
        };
        let desired = match software {
            Software::Desired(desired) => desired,
            Software::Off => return left("INSTALL is off"),
            Software::NoDriver => return left("no kernel driver is loaded on this host"),
        };
        let mut desired = desired.as_ref().clone();
        desired.gpus = Some(choice.gpus.len());
        let document = self.conf.read()?;
        let identity = Identity::of(self.ctid, &document, Call::ByHand, load::environment(), &desired.driver);
        let mut install = Install {
            ctid: self.ctid,
            settings: &self.settings,
            desired: &desired,
            nodes: (!devices_changed).then_some(nodes.clone()),
            insist: true,
            identity: &identity,
        };
        let (progress, result) = install.run();
        driver.clone_from(&progress.version);
        let restart = devices_changed || self.restart_due();
        if result.is_err() && progress.driver_changed.is_none() && !devices_changed {
            return result;
        }
        if restart {
            let fault = || Fault::new(Code::Restart, format!("container {} is not restarted", self.ctid));
            identity.still().fault(fault)?;
            self.restart(choice, patience)?;
            install.nodes = Some(nodes);
            // What failed first is the error; nvidia-smi has its say all the same.
            let verified = install.verify();
            return result.and(verified);
        }
        result
    }

    /// What keeps it from starting as it is now.
    fn startable(&self, choice: &Choice) -> anyhow::Result<Result<Startable, Vec<Obstacle>>> {
        startable::look(&self.conf, self.ctid, &self.settings, Some(choice))
    }

    fn start(&self, choice: &Choice, patience: &RestartTimeouts) -> anyhow::Result<()> {
        if let Err(mut obstacles) = self.startable(choice)? {
            obstacles.retain(Obstacle::refuses_start);
            if !obstacles.is_empty() {
                return Err(startable::refused_start(self.ctid, &obstacles));
            }
        }
        pct::start(self.ctid, patience, &self.environment())
            .map_err(|error| startable::explained(self.ctid, &self.conf, &self.settings, error))
    }

    /// Once, and never so that the container stays down.
    fn restart(&self, choice: &Choice, patience: &RestartTimeouts) -> anyhow::Result<()> {
        let look = || self.startable(choice)?.map_err(|obstacles| startable::refusal(self.ctid, &obstacles));
        pct::restart(look()?, &look, patience, &self.environment())
            .map_err(|error| startable::explained(self.ctid, &self.conf, &self.settings, error))
    }

    /// Whether a new driver is followed by a restart.
    pub fn software_restart(&self) -> bool {
        self.settings.value(keys::AFTER_INSTALL) == AfterInstall::Reboot
    }

    /// Whether the driver was changed under the services of this very start,
    /// by this run or by one that was cut off before its restart, and that is
    /// followed by one. It is due without an install too, INSTALL=off say.
    pub fn restart_due(&self) -> bool {
        startable::restart_is_due(&Record::of(self.ctid).load(), &self.settings)
    }

    /// Compares what the running container has with what is wanted: also a
    /// run that was killed after its edit of the conf leads to the restart.
    fn devices_changed(&self, wanted: &[Device]) -> anyhow::Result<bool> {
        let document = self.conf.read()?;
        let Some(init) = pct::init(self.ctid)? else { return Ok(false) };
        let limit = self.settings.value(keys::CHECK_TIMEOUT);
        let has = match attached::read(&init, &Deadline::after(limit / 2)) {
            Ok(has) => has,
            Err(error) => {
                log::warn!("which devices container {} has cannot be seen: {error}", self.ctid);
                return Ok(true);
            }
        };
        has.unseen().iter().for_each(|unseen| log::warn!("{unseen}"));
        let mut differences = plan::differences(&document, &has, wanted);
        if differences.is_empty() {
            differences = refused(self.ctid, wanted, limit);
        }
        differences.iter().for_each(|difference| log::info!("{difference}"));
        Ok(!differences.is_empty())
    }

    /// The longest that another call by hand may take.
    fn longest(&self) -> Duration {
        let s = &self.settings;
        let limit = |key| s.value(key);
        limit(keys::INSTALL_TIMEOUT) * 2 + limit(keys::DOWNLOAD_TIMEOUT) + limit(keys::RESTART_TIMEOUT) * 4
    }

    /// What the hook of a start of ours is to find: the orchestrator's
    /// settings, and that they are.
    fn environment(&self) -> Vec<(String, String)> {
        load::ours().into_iter().chain([(MARK.to_owned(), self.ctid.to_string())]).collect()
    }

    fn record(&self, result: &anyhow::Result<()>, driver: Option<Version>, begun: Instant) {
        // Nothing is known of a container that is not there.
        if result
            .as_ref()
            .is_err_and(|e| matches!(code_of(e), Code::Input | Code::NoContainer | Code::General))
        {
            return;
        }
        let kernel = kernel_driver::version(View::host());
        Record::of(self.ctid).update(|state| {
            if result.is_ok() {
                // Devices that are missing are a fault by hand.
                state.start_warning = None;
            }
            state.ended("by hand", result, begun);
            state.kernel_driver = kernel.map(|v| v.to_string());
            if let Some(driver) = driver {
                state.container_driver = Some(driver.to_string());
            }
            if result.is_ok() && self.software_on() {
                state.restart_due = None;
                state.outcome = Outcome::Ok;
            }
            if !startable::runs_with_old_driver(state) {
                state.restart_due = None;
            }
        });
    }

    fn software_on(&self) -> bool {
        self.settings.value(keys::INSTALL)
    }
}

/// The nodes that the running container has and may not open: its device rules
/// are those of its start, and the conf's may be right only since. A sentence
/// each; none where they could not be tried.
pub fn refused(ctid: Ctid, wanted: &[Device], limit: Duration) -> Vec<String> {
    let nodes = files(wanted);
    if nodes.is_empty() {
        return Vec::new();
    }
    let opened = open_nodes(&Guest::new(ctid), &nodes, &Deadline::after(limit));
    let shut = opened.into_iter().filter(|(_, opened)| *opened == Opened::NoRule);
    shut.map(|(node, _)| format!("the running container has no device rule for {node}")).collect()
}

/// The paths that the verification opens: files, not directories.
pub fn nodes(choice: &Choice) -> Vec<String> {
    files(&choice.devices)
}

fn files(devices: &[Device]) -> Vec<String> {
    let files = devices.iter().map(|device| device.path).filter(|path| *path != DevicePath::Caps);
    files.map(|path| path.to_string()).collect()
}
