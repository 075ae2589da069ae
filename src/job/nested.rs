//! The GPUs of a container for the engines in it: what NESTED means for a start,
//! and what is written inside, once after a change.

use crate::device::{Device, DevicePath};
use crate::driver::cdi::{self, Devices, describe};
use crate::driver::injection::Injection;
use crate::exit;
use crate::guest::cdi::{self as inside, Docker, Look, Podman, Source, Written};
use crate::guest::exec::Guest;
use crate::host::choose::Choice;
use crate::host::gpus::Inventory;
use crate::host::mig::MigInstance;
use crate::host::provide::Provided;
use crate::job::{devices, injection};
use crate::plan::{Intent, MOST_LINES};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::passthrough;
use crate::settings::values::Nested;
use crate::settings::{Settings, keys};
use crate::state::Record;
use crate::state::injected::done;
use crate::state::nested::Nested as Known;
use crate::sys::look::View;
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Version};
use anyhow::bail;
use std::collections::BTreeSet;

/// Another form of the files is a change too.
const FORM: &str = "1";

/// Whether anything is done for a container.
fn is_asked(settings: &Settings) -> bool {
    settings.value(keys::NESTED) != Nested::None
}

/// The devices that a choice describes, with those of the conf's `devN:` lines.
fn described(conf: &Document, choice: &Choice, inventory: &Inventory) -> Devices {
    let passed: BTreeSet<DevicePath> =
        passthrough::next(conf).iter().filter_map(passthrough::DevLine::device).collect();
    // A start reads them for its own devices only.
    if passed.iter().any(|path| path.is_drm()) {
        let mut inventory = inventory.clone();
        inventory.add_drm(View::host());
        return Devices::of(choice, &inventory, &passed);
    }
    Devices::of(choice, inventory, &passed)
}

/// Notes which devices a start gives: its post-start finds by that whether the
/// description is to be made anew.
pub fn note(ctid: Ctid, settings: &Settings, conf: &Document, provided: &Provided) {
    if !is_asked(settings) {
        return;
    }
    let devices = described(conf, &provided.choice, &provided.inventory).fingerprint();
    if Record::of(ctid).load().nested.devices.as_ref() != Some(&devices) {
        Record::of(ctid).update(|state| state.nested.devices = Some(devices));
    }
}

/// When the description is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After a change. Without one no program is run.
    Changed,
    /// In any case.
    Always,
}

/// Has the running container's description be right, with the driver of a version
/// in it. No start fails for it: what went wrong is a warning.
pub fn bring(guest: &Guest, settings: &Settings, conf: &Document, version: Option<&Version>, when: When) {
    let ctid = guest.ctid();
    // A typing error takes nothing away.
    if settings.get(keys::NESTED).is_err() {
        return;
    }
    let known = Record::of(ctid).load().nested;
    let deadline = Deadline::after(settings.value(keys::CHECK_TIMEOUT));
    let result = match version {
        _ if !is_asked(settings) && known.files => clear(guest, &deadline),
        Some(version) if is_asked(settings) => {
            let work = Work { ctid, settings, conf, version, deadline };
            work.bring(guest, &known, when)
        }
        _ => Ok(()),
    };
    if let Err(error) = result {
        exit::tell(log::Level::Warn, &error);
    }
}

/// What a look into a running container for `doctor` finds; `None` where nothing is
/// done for engines, or without a driver.
pub fn look(
    ctid: Ctid,
    settings: &Settings,
    conf: &Document,
    version: Option<&Version>,
    deadline: &Deadline,
) -> Option<Result<Look, String>> {
    let version = version.filter(|_| is_asked(settings))?;
    let source = source(ctid, settings, conf);
    Some(inside::look(&Guest::new(ctid), &source, version, deadline).map_err(|e| exit::one_line(&e)))
}

/// What a call by hand would do for engines, in one step.
pub fn planned(
    ctid: Ctid,
    settings: &Settings,
    conf: &Document,
    version: Option<&Version>,
    running: bool,
) -> Option<String> {
    let known = Record::of(ctid).load().nested;
    if !is_asked(settings) {
        return known
            .files
            .then(|| "remove the description of the GPUs for engines in the container".to_owned());
    }
    let deadline = Deadline::after(settings.value(keys::CHECK_TIMEOUT));
    let work = Work { ctid, settings, conf, version: version?, deadline };
    let (devices, _) = work.devices();
    let source = source(ctid, settings, conf);
    let made_of = work.fingerprint(&source, &devices.fingerprint());
    // What is seen there needs no stamp: a conf changes for other reasons too.
    let right = match running {
        true => known.written.as_ref().is_some_and(|written| written.starts_with(&made_of)),
        false => {
            known.written.is_some() && known.written == Conf::of(ctid).stamp().map(|s| done(&made_of, &s))
        }
    };
    let seen = running.then(|| look(ctid, settings, conf, version, &work.deadline)).flatten();
    let needed = match seen {
        Some(Ok(look)) if !look.shell => false,
        Some(Ok(look)) if work.gives_way(&look) => !look.ours.is_empty(),
        Some(Ok(look)) if !look.has_driver() && !work.gets_driver(&source) => !look.ours.is_empty(),
        Some(Ok(look)) => {
            !right || look.ours.is_empty() != devices.named.is_empty() || !look.others.is_empty()
        }
        _ => !right,
    };
    let step = || format!("describe the GPUs for Docker and Podman in the container: {}", cdi::FILES[0]);
    needed.then(step)
}

/// Where the driver of a container is.
fn source(ctid: Ctid, settings: &Settings, conf: &Document) -> Source {
    match injection::look(ctid, settings, conf) {
        Injection::On(place) => Source::Mounted(place),
        Injection::Off | Injection::Refused(_) => Source::Installed,
    }
}

/// Removes the files of a container, and what is recorded of them.
///
/// # Errors
/// [`exit::Code::Software`].
pub fn clear(guest: &Guest, deadline: &Deadline) -> anyhow::Result<()> {
    let (ctid, removed) = (guest.ctid(), inside::remove(guest, deadline)?);
    if !removed.is_empty() {
        log::info!("engines in container {ctid}: {}", text::few(removed, MOST_LINES).join(", "));
    }
    Record::of(ctid).update(|state| state.nested = Known::default());
    Ok(())
}

/// What a look at the host found.
struct Seen {
    inventory: Inventory,
    choice: Choice,
}

/// Why a description is not written, where the container has GPUs.
pub fn lacking(version: &Version) -> String {
    format!("no file of driver {version} in the container")
}

/// What gives the container the driver; where none can be, what asks for none.
pub fn mend(ctid: Ctid, settings: &Settings) -> String {
    let seen = Record::of(ctid).load().injected;
    if seen.unfit.or(seen.impossible).is_some() {
        return format!("phoenix-nvidia attach {ctid} --no-nested");
    }
    match settings.value(keys::INSTALL) {
        true => format!("phoenix-nvidia {ctid}"),
        false => format!("INSTALL=on phoenix-nvidia attach {ctid} && phoenix-nvidia {ctid}"),
    }
}

/// One container's description.
struct Work<'a> {
    ctid: Ctid,
    settings: &'a Settings,
    conf: &'a Document,
    version: &'a Version,
    deadline: Deadline,
}

impl Work<'_> {
    fn bring(&self, guest: &Guest, known: &Known, when: When) -> anyhow::Result<()> {
        let source = source(self.ctid, self.settings, self.conf);
        // What is written meanwhile may be of other contents.
        let stamp = Conf::of(self.ctid).stamp();
        let right_for =
            |devices: &str| stamp.as_ref().map(|stamp| done(&self.fingerprint(&source, devices), stamp));
        let right = known.devices.as_deref().and_then(right_for);
        if when == When::Changed && right.is_some() && known.written == right {
            return Ok(());
        }
        let devices = self.named(known)?;
        let look = inside::look(guest, &source, self.version, &self.deadline)?;
        if !look.shell {
            log::info!("no shell in the container: nothing is written for engines");
            self.record(&devices, right_for(&devices.fingerprint()), false);
            return Ok(());
        }
        if !look.has_driver() && !devices.named.is_empty() {
            return self.without_driver(guest, &look, &devices, known);
        }
        let replace = self.replaces();
        let daemon = look.docker.as_ref().is_some_and(Docker::lacks_cdi);
        // From here on there may be files of ours.
        Record::of(self.ctid).update(|state| state.nested.files = true);
        let contents = describe(&devices, &look.found);
        let written = inside::write(guest, &contents, replace, daemon, &self.deadline)?;
        let stays = self.gives_way(&look);
        // One that another file keeps away is tried again at each start.
        let written_of = right_for(&devices.fingerprint()).filter(|_| !stays);
        self.record(&devices, written_of, true);
        self.tell(&look, &devices, &written, stays);
        Ok(())
    }

    /// Without the driver's files there is nothing right to write: what a driver left
    /// that has gone is removed, and the next start looks again.
    fn without_driver(
        &self,
        guest: &Guest,
        look: &Look,
        devices: &Devices,
        known: &Known,
    ) -> anyhow::Result<()> {
        if !look.ours.is_empty() {
            let removed = inside::write(guest, &[None, None], false, false, &self.deadline)?.changed;
            removed.iter().for_each(|file| log::info!("engines in the container: removed {file}"));
        }
        self.record(devices, None, known.files);
        log::warn!("engines in the container: no description: {}", lacking(self.version));
        log::warn!("{}", exit::fix(&mend(self.ctid, self.settings)));
        Ok(())
    }

    /// Whether the driver is there after a run, where it is not yet.
    fn gets_driver(&self, source: &Source) -> bool {
        let seen = Record::of(self.ctid).load().injected;
        let installs = self.settings.value(keys::INSTALL) && seen.unfit.or(seen.impossible).is_none();
        installs || matches!(source, Source::Mounted(_))
    }

    fn replaces(&self) -> bool {
        self.settings.value(keys::NESTED) == Nested::Replace
    }

    /// Whether ours is not written beside another one.
    fn gives_way(&self, look: &Look) -> bool {
        !self.replaces() && !look.others.is_empty()
    }

    /// What the description is made of, but for the files that are found inside.
    fn fingerprint(&self, source: &Source, devices: &str) -> String {
        let (nested, version) = (self.settings.value(keys::NESTED).word(), self.version);
        cdi::fingerprint(&format!("{FORM} {nested} {version} {devices} {source:?}"))
    }

    /// For nvidia-smi of the host: the look inside is to have its time.
    fn half(&self) -> Deadline {
        self.deadline.at_most(self.deadline.span() / 2)
    }

    /// The devices as the host has them now, and what of them is not to be had.
    fn devices(&self) -> (Devices, Seen) {
        let (intent, _) = Intent::of(self.settings, self.conf);
        let (inventory, choice) = devices::look(self.ctid, &intent, self.settings, self.conf, &self.half());
        (described(self.conf, &choice, &inventory), Seen { inventory, choice })
    }

    /// The same with the names of MIG instances, which nvidia-smi alone knows.
    fn named(&self, known: &Known) -> anyhow::Result<Devices> {
        let (devices, Seen { mut inventory, choice }) = self.devices();
        if let (Some(missing), true) = (choice.missing.first(), devices.named.is_empty()) {
            // What its start had this look did not find.
            if known.devices.as_ref().is_some_and(|noted| *noted != devices.fingerprint()) {
                bail!("engines in the container: description kept as it is: {missing}");
            }
        }
        let has =
            |minor| choice.devices.iter().any(|device: &Device| device.path == DevicePath::CapFile(minor));
        let unnamed = |instance: &MigInstance| instance.uuid.is_none() && has(instance.ci_minor);
        if !inventory.mig.iter().any(unnamed) {
            return Ok(devices);
        }
        if let Err(error) = inventory.add_mig_uuids(View::host(), &self.half()) {
            log::info!("engines in the container: no UUIDs of MIG instances: {}", exit::one_line(&error));
        }
        Ok(described(self.conf, &choice, &inventory))
    }

    fn record(&self, devices: &Devices, written: Option<String>, files: bool) {
        Record::of(self.ctid).update(|state| {
            state.nested = Known { devices: Some(devices.fingerprint()), written, files };
        });
    }

    fn tell(&self, look: &Look, devices: &Devices, written: &Written, stays: bool) {
        let ctid = self.ctid;
        let aside = written.aside.iter().map(|path| text::message(path)).collect();
        for path in text::few(aside, MOST_LINES) {
            log::info!("engines in the container: a description of NVIDIA's toolkit put aside: {path}");
        }
        if written.no_cgroups {
            log::info!("engines in the container: set no-cgroups = true for NVIDIA's older runtime");
        }
        if stays {
            // The container's root makes as many of them as it likes.
            let others = look.others.iter().map(|other| theirs(other, self.version)).collect();
            for other in text::few(others, MOST_LINES) {
                log::warn!("engines in the container: {other}");
            }
            log::warn!(
                "{}",
                exit::fix(&format!("phoenix-nvidia attach {ctid} --nested-replace && phoenix-nvidia {ctid}"))
            );
        } else if devices.named.is_empty() {
            log::info!("engines in the container: no GPU to describe");
            // Nor is anything asked of the engines.
            return;
        } else if !written.changed.is_empty() {
            log::info!("engines in the container: {} = {}", cdi::KIND, devices.names());
        }
        if let Some(docker) = &look.docker {
            if docker.too_old() {
                log::warn!(
                    "Docker in the container is older than 25 and cannot use it; Podman can from 4.1 on"
                );
            } else if written.daemon {
                log::info!("Docker in the container: features.cdi set; it counts once Docker is restarted");
                log::info!("{}", exit::fix(&format!("pct exec {ctid} -- systemctl restart docker")));
            } else if docker.lacks_cdi() {
                log::warn!("Docker in the container: features.cdi is not set in /etc/docker/daemon.json");
                log::warn!("{}", exit::fix(&switch_on(ctid, docker)));
            }
        }
        if look.podman.as_ref().is_some_and(Podman::too_old) {
            log::warn!("Podman in the container is older than 4.1 and cannot use it; Docker can from 25 on");
        } else if look.podman.as_ref().is_some_and(Podman::lacks_indices) {
            log::info!(
                "Podman in the container finds the GPUs by UUID and all of them, by index only from 4.3 on"
            );
        }
    }
}

/// What is said of a description that keeps ours away.
pub fn theirs(other: &inside::Other, version: &Version) -> String {
    let path = text::message(&other.path);
    match &other.made_for {
        Some(made_for) if made_for != version.as_str() => {
            format!(
                "{path} was made for driver {made_for}, the driver is {version}; ours is not written beside it"
            )
        }
        _ => format!("{path} describes the GPUs; ours is not written beside it"),
    }
}

/// The command that switches CDI on in settings of Docker that somebody wrote.
pub fn switch_on(ctid: Ctid, docker: &Docker) -> String {
    match docker.daemon {
        // Into the object that is there.
        inside::Daemon::Features => format!("pct exec {ctid} -- nano /etc/docker/daemon.json"),
        // A copy keeps mode and owner. What Docker would refuse changes nothing, and
        // pasted twice it does nothing more.
        _ => format!(
            "pct exec {ctid} -- sh -c 'cd /etc/docker || exit; grep -q \\\"features\\\" daemon.json || {{ \
             cp -p daemon.json daemon.json.new && \
             sed \"0,/{{/s//{{\\\"features\\\":{{\\\"cdi\\\":true}},/\" daemon.json >daemon.json.new && \
             dockerd --validate --config-file=/etc/docker/daemon.json.new && \
             {{ [ -e daemon.json.old ] || cp -p daemon.json daemon.json.old; }} && \
             mv daemon.json.new daemon.json; }} && systemctl restart docker'"
        ),
    }
}
