//! The host's driver for a container: what DRIVER_MODE means for it, the tree
//! that it binds, and what is done inside once after a change.

use crate::driver::desired::Desired;
use crate::driver::injection::{Injection, Machine, Place, Refusal, is_driver};
use crate::driver::supply::Supply;
use crate::driver::tree::{Shown, Trees};
use crate::exit::{self, Code, Fault};
use crate::guest::driver_state::DriverState;
use crate::guest::exec::Guest;
use crate::guest::install::steps;
use crate::guest::link::{self, Linked};
use crate::guest::mounted;
use crate::guest::os;
use crate::guest::probe::{self, Check};
use crate::guest::uninstall;
use crate::job::mode::{self, is_asked};
use crate::job::seen::{contents_now, found, holds};
use crate::job::startable;
use crate::plan::{self, Intent};
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts;
use crate::pve::conf::store::Conf;
use crate::pve::{net, pct};
use crate::settings::load::Files;
use crate::settings::values::DriverMode;
use crate::settings::{Settings, keys};
use crate::state::injected::done;
use crate::state::{Record, State};
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Version};

/// What a container gets.
#[derive(Debug, Default)]
pub struct Given {
    /// What DRIVER_MODE means for it.
    pub injection: Injection,
    /// Why it does not get the host's driver, where it should.
    pub fault: Option<anyhow::Error>,
}

/// So often in one boot starts try to remove a driver that a runfile installed.
const UNINSTALLS: u8 = 3;

/// The settings with the mode that `auto` stands for, and why it is not an install.
pub fn settled(ctid: Ctid, conf: &Document, settings: Settings) -> (Settings, Option<String>) {
    if settings.value(keys::DRIVER_MODE) != DriverMode::Auto {
        return (settings, None);
    }
    let seen = Record::of(ctid).load_of(&net::identity(conf)).injected;
    let application = os::application(conf).map(|entry| format!("an application container ({entry})"));
    let possible = Injection::of(conf, Machine::here(), found(&seen, conf)).is_on();
    let why = application.or(seen.impossible.clone().filter(|_| holds(&seen, conf))).filter(|_| possible);
    let mode = if why.is_some() { DriverMode::Inject } else { DriverMode::Install };
    (settings.with(keys::DRIVER_MODE, mode.word()), why)
}

/// Notes that no driver can be installed, for the next start.
pub fn note_impossible(ctid: Ctid, error: &anyhow::Error) {
    if steps::is_unfit(error) || steps::has_no_place(error) {
        let why = text::line(exit::one_line(error).as_bytes());
        let of = contents_now(ctid);
        Record::of(ctid).update(|state| {
            state.injected.found_in(of);
            state.injected.impossible = Some(why);
        });
    }
}

/// What DRIVER_MODE means for a container, as far as conf and record say.
pub fn look(ctid: Ctid, settings: &Settings, conf: &Document) -> Injection {
    if !is_asked(settings, conf) {
        return Injection::Off;
    }
    let seen = Record::of(ctid).load_of(&net::identity(conf)).injected;
    Injection::of(conf, Machine::here(), found(&seen, conf))
}

/// The same, with the tree of the loaded driver made if it is missing: of the
/// host's files, or of a runfile that `supply` has.
pub fn give(
    ctid: Ctid,
    intent: &Intent,
    settings: &Settings,
    conf: &Document,
    kernel: Option<&Version>,
    supply: Supply,
    deadline: &Deadline,
) -> Given {
    let injection = look(ctid, settings, conf);
    if let Injection::Refused(refusal) = &injection {
        return Given { fault: Some(refused(ctid, refusal).into()), injection };
    }
    let asked = plan::mounts(ctid, intent, conf, &injection).iter().any(is_driver);
    // Without a kernel driver there is no version; that it is missing is told
    // with the GPUs.
    let Some(kernel) = kernel.filter(|_| asked) else { return Given { injection, fault: None } };
    match Trees::host().with(supply).ensure(kernel, deadline) {
        Ok(shown) => may_have(ctid, conf, shown, injection),
        Err(error) => Given { injection, fault: Some(error) },
    }
}

/// Whether the container may have a tree that is shown like this.
fn may_have(ctid: Ctid, conf: &Document, shown: Shown, injection: Injection) -> Given {
    match mode::refused_as(conf, shown) {
        Some(refusal) => {
            Given { fault: Some(refusal.fault(ctid).into()), injection: Injection::Refused(refusal) }
        }
        None => Given { injection, fault: None },
    }
}

/// How the running container differs, in one sentence. Only its mount table
/// tells: conf and record may have forgotten what it was started with.
pub fn difference(ctid: Ctid, injection: &Injection, kernel: Option<&Version>) -> Option<String> {
    let has = mounted::version(ctid).ok()?;
    match (injection, has, kernel) {
        (Injection::On(_), Some(has), Some(kernel)) if has == *kernel => None,
        (Injection::On(_), Some(has), Some(_)) => {
            Some(format!("the running container has the host's driver {has} mounted"))
        }
        (Injection::On(_), None, Some(kernel)) => {
            Some(format!("the running container does not have the host's driver {kernel} mounted yet"))
        }
        (Injection::Off | Injection::Refused(_), Some(has), _) => {
            Some(format!("the running container still has the host's driver {has} mounted"))
        }
        _ => None,
    }
}

/// Fails unless the running container has the desired driver mounted.
///
/// # Errors
/// [`Code::Software`].
pub fn must_be_mounted(ctid: Ctid, desired: &Desired) -> anyhow::Result<()> {
    let driver = &desired.driver;
    let fault = |what: String| {
        let fault = Fault::new(Code::Software, what).remedy(format!("phoenix-nvidia doctor {ctid}"));
        Err(fault.into())
    };
    match mounted::version(ctid) {
        Ok(Some(has)) if has == *driver => Ok(()),
        Ok(Some(has)) => {
            fault(format!("container {ctid} has the host's driver {has} mounted, {driver} desired"))
        }
        Ok(None) => fault(format!("container {ctid} does not have the host's driver {driver} mounted")),
        Err(error) => fault(format!("cannot see what container {ctid} has mounted: {error:#}")),
    }
}

/// Whether nothing was left to do inside when somebody looked last, with the
/// same software desired and the conf as it was.
pub fn is_complete(ctid: Ctid, desired: &Desired) -> bool {
    let Some(complete) = Record::of(ctid).load().injected.complete else { return false };
    Conf::of(ctid).stamp().is_some_and(|stamp| complete == done(&desired.fingerprint(), &stamp))
}

/// Whether the links of the desired driver were made, with the conf as it was.
pub fn is_linked(ctid: Ctid, desired: &Desired) -> bool {
    let Some(linked) = Record::of(ctid).load().injected.linked else { return false };
    Conf::of(ctid).stamp().is_some_and(|stamp| linked == done(desired.driver.as_str(), &stamp))
}

/// Whether no start of this boot tries again to remove a driver that a runfile
/// installed.
pub fn gave_up(ctid: Ctid) -> bool {
    Record::of(ctid).load().uninstall_failed >= UNINSTALLS
}

/// Whether the services of this very start found another driver, or none, and
/// the settings have it restarted for that.
pub fn restart_is_due(ctid: Ctid, settings: &Settings) -> bool {
    startable::restart_is_due(&Record::of(ctid).load(), settings)
}

/// Makes the links inside, and records what was found there.
///
/// # Errors
/// [`Code::Software`]: the container cannot use the driver, or could not be
/// looked into.
pub fn link(
    ctid: Ctid,
    place: &Place,
    desired: &Desired,
    settings: &Settings,
    deadline: &Deadline,
) -> anyhow::Result<Linked> {
    link_in(&Guest::new(ctid), place, desired, settings, deadline)
}

/// The same in a container that may be another one by now.
///
/// # Errors
/// As [`link()`].
pub fn link_in(
    guest: &Guest,
    place: &Place,
    desired: &Desired,
    settings: &Settings,
    deadline: &Deadline,
) -> anyhow::Result<Linked> {
    let (ctid, driver) = (guest.ctid(), &desired.driver);
    // What is written meanwhile may be of other contents.
    let (stamp, of) = (Conf::of(ctid).stamp(), contents_now(ctid));
    let linked = link::link(guest, place, driver, deadline);
    if linked.as_ref().map_or(true, |linked| linked.mounted.is_some()) {
        Record::of(ctid).update(|state| state.injected.links = true);
    }
    let linked = linked?;
    let unfit = linked.unfit(Trees::host().glibc(driver), place.drop_in);
    let late = unfit.is_none() && linked.hidden.is_none() && linked.late(place.drop_in);
    let init = late.then(|| pct::init(ctid).ok().flatten()).flatten();
    Record::of(ctid).update(|state| {
        state.injected.found_in(of);
        state.injected.unfit.clone_from(&unfit);
        state.injected.hides.clone_from(&linked.hidden);
        let stamp = stamp.filter(|_| linked.mounted.is_some() && unfit.is_none());
        state.injected.linked = stamp.map(|stamp| done(driver.as_str(), &stamp));
        if let Some(init) = init {
            state.restart_due = Some(init.to_string());
        }
    });
    if late {
        let found =
            linked.other.as_ref().map(|other| format!("found driver {other}, which is installed in it"));
        let found = found.unwrap_or_else(|| "did not find the driver".to_owned());
        tell_late(ctid, &found, settings);
    }
    match (unfit, &linked.hidden) {
        (Some(why), _) => Err(Refusal::Seen(why).fault(ctid).into()),
        (None, Some(path)) => Err(refused(ctid, &Refusal::Hides(path.clone())).into()),
        (None, None) => Ok(linked),
    }
}

/// Says that the services of this start need a restart, and the command only
/// where nobody else makes it.
fn tell_late(ctid: Ctid, found: &str, settings: &Settings) {
    let what = format!("services that started before this step {found}");
    if startable::restarts_after_install(settings) {
        log::info!("{what}: the container is restarted once (AFTER_INSTALL=reboot)");
    } else {
        log::warn!("{what}: they need one restart (AFTER_INSTALL=none)");
        log::warn!("{}", crate::exit::fix(&format!("pct reboot {ctid}")));
    }
}

/// The command that removes a driver that is installed beside the host's, which its
/// own uninstaller did not, if it has one. What it had at the places of our links is
/// gone then, nvidia-smi for one: they are made after it.
pub fn remove_beside(ctid: Ctid, beside: &DriverState, check: &Check) -> String {
    let command = match (beside, &check.runfile) {
        (DriverState::Packaged { packages, .. }, _) => packages.remove(ctid),
        (DriverState::HostFiles { .. }, _) => return format!("nano /etc/pve/lxc/{ctid}.conf"),
        (_, Some(noted)) => Some(uninstall::without_uninstaller(ctid, noted, check)),
        (_, None) => check.versions.first().map(|found| uninstall::without_uninstaller(ctid, found, check)),
    };
    let command = command.unwrap_or_else(|| uninstall::command(ctid, None));
    format!("{command} && phoenix-nvidia {ctid}")
}

/// The fault of a container that cannot have the host's driver. In one that runs its
/// program alone nothing can be installed instead.
pub fn refused(ctid: Ctid, refusal: &Refusal) -> Fault {
    let fault = refusal.fault(ctid);
    match refusal {
        Refusal::Hides(_) if probe::application(ctid).is_some() => {
            fault.remedy(format!("INSTALL=off phoenix-nvidia attach {ctid}"))
        }
        _ => fault,
    }
}

/// What is of a container's host driver, for reports.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What DRIVER_MODE means for it.
    pub injection: Injection,
    /// What it has mounted while it runs, or why nobody knows.
    pub mounted: Option<Result<Version, String>>,
}

impl Facts {
    /// Reads them; runs no program.
    pub fn read(ctid: Ctid, settings: &Settings, conf: &Document, state: &State, running: bool) -> Facts {
        let asked = is_asked(settings, conf);
        let injection = match asked {
            true => Injection::of(conf, Machine::here(), found(&state.injected, conf)),
            false => Injection::Off,
        };
        let concerned = running && (asked || mounts::mounts(conf).iter().any(is_driver));
        let mounted = if concerned { mounted::version(ctid).map_err(|e| format!("{e:#}")) } else { Ok(None) };
        Facts { injection, mounted: mounted.transpose() }
    }
}

/// Whether any of these containers is to have the host's driver, or by default one
/// that comes to this node.
pub fn is_asked_for(confs: &[(Ctid, Document)], files: &Files) -> bool {
    if is_default(&files.of_next_start(None)) {
        return true;
    }
    let asks = |(ctid, conf): &(Ctid, Document)| {
        let settings = files.of_next_start(Some((*ctid, conf)));
        is_asked(&settled(*ctid, conf, settings).0, conf)
    };
    confs.iter().any(asks)
}

/// Whether the node or the cluster gives containers the host's driver unless they
/// say otherwise.
pub fn is_default(of_node: &Settings) -> bool {
    of_node.value(keys::DRIVER_MODE) == DriverMode::Inject && of_node.value(keys::INSTALL)
}

/// What a run would do about the tree.
#[derive(Debug, Default)]
pub struct Planned {
    /// Making it.
    pub step: Option<String>,
    /// What it would fail with.
    pub refused: Option<anyhow::Error>,
}

/// What a run by hand would do about the tree of the loaded driver.
pub fn plan(
    ctid: Ctid,
    conf: &Document,
    injection: &Injection,
    kernel: Option<&Version>,
    supply: Supply,
) -> Planned {
    match (injection, kernel) {
        (Injection::Refused(refusal), _) => {
            Planned { refused: Some(refused(ctid, refusal).into()), ..Planned::default() }
        }
        (Injection::On(_), Some(kernel)) => match Trees::host().shown(kernel) {
            Ok(shown) => {
                let fault = may_have(ctid, conf, shown, injection.clone()).fault;
                Planned { refused: fault, ..Planned::default() }
            }
            Err(gap) => {
                let step = format!("prepare driver {kernel} of this host for containers: {}", gap.of(kernel));
                match Trees::host().with(supply).possible(kernel) {
                    Ok(how) => Planned { step: Some(format!("{step} ({how})")), refused: None },
                    Err(refused) => Planned { step: Some(step), refused: Some(refused) },
                }
            }
        },
        _ => Planned::default(),
    }
}
