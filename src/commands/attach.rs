//! `attach`: a container gets its settings and the hookscript, in one step
//! that is rolled back when a part of it fails.

mod changes;
mod effective;
mod entries;
mod features;
mod place;

use crate::cli::Attach;
use crate::device::DevicePath;
use crate::exit::{self, Code, Fault};
use crate::findings::finding::Finding;
use crate::findings::read::{Container, Host, Reader};
use crate::findings::{assigned, conf as lines, elsewhere, injected, inside, nested, start};
use crate::guest::driver_state::DriverState;
use crate::guest::os;
use crate::host::gpus::Inventory;
use crate::job::again;
use crate::job::undo::Undo;
use crate::pve::cluster;
use crate::pve::conf::before;
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts::mounts;
use crate::pve::conf::store::{Caller, Conf};
use crate::pve::hookscript::{Hookscript, Place, is_ours_by_name};
use crate::pve::storage::Storage;
use crate::pve::{pct, readiness};
use crate::settings::{Settings, keys};
use crate::sys::look::{Look, View};
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use changes::Changes;
use std::collections::BTreeMap;

/// The checks of an attached container.
const TOLD: &[fn(&Container) -> Vec<Finding>] = &[
    assigned::no_effect,
    assigned::undriven,
    assigned::secrets,
    elsewhere::ha_policy,
    start::obstacles,
    lines::allow_all,
    lines::wide_rules,
    lines::covered,
    lines::host_files,
    lines::unsupported,
    inside::foreseen,
    injected::mounted,
    nested::features,
];

/// What one container gets.
struct Attachment {
    ctid: Ctid,
    conf: Conf,
    before: Document,
    /// What a hook reads afterwards.
    settings: Settings,
    changes: Changes,
    place: Place,
    /// What `hookscript:` is now.
    hookscript: Option<String>,
    /// What `features:` becomes, where it lacks what engines need.
    features: Option<String>,
    /// What of `--nested` stays, where that goes.
    stays: Option<String>,
}

/// Attaches, once every container is checked. Returns the containers to start,
/// restart or change now.
///
/// # Errors
/// [`Code::Input`], [`Code::NoContainer`] and [`Code::Passthrough`]; then
/// everything is as it was.
pub fn run(options: &Attach) -> anyhow::Result<Vec<Ctid>> {
    let mut ctids = options.ctids.clone();
    ctids.sort();
    ctids.dedup();
    // First whether all of them exist, and here.
    let read = |ctid: &Ctid| {
        let conf = Conf::of(*ctid).called(call(options, *ctid));
        Ok((*ctid, conf.read()?, conf))
    };
    let confs: Vec<(Ctid, Document, Conf)> = ctids.iter().map(read).collect::<anyhow::Result<_>>()?;
    let host = read_host(options);
    let attachment = |(ctid, document, conf)| attachment(ctid, document, conf, options, &host);
    let attachments: Vec<Attachment> = confs.into_iter().map(attachment).collect::<anyhow::Result<_>>()?;
    if let Some(hint) = options.gpus.as_ref().filter(|_| !options.by_uuid) {
        changes::uuid_hint(hint, &host.inventory).iter().for_each(|hint| log::info!("{hint}"));
    }
    cluster::must_have_quorum(&Look::host())?;
    let mut undo = Undo::default();
    for attachment in &attachments {
        if let Err(error) = attachment.act(&host.storages, &mut undo) {
            undo.roll_back();
            return Err(error);
        }
    }
    for lack in readiness::of_places(&host.cluster, &host.storages, attachments.iter().map(|a| &a.place)) {
        log::warn!("{}", lack.what);
        log::warn!("{}", exit::fix(&lack.fix));
    }
    let taken: BTreeMap<Ctid, Vec<DevicePath>> =
        attachments.iter().map(|a| (a.ctid, before::recorded(&a.recorded()))).collect();
    let attached = tell(&ctids, &taken, options.live)?;
    let now = options.now || options.live;
    Ok(attached.into_iter().filter(|c| now && !c.conf.is_template()).map(|c| c.ctid).collect())
}

fn read_host(options: &Attach) -> Host {
    let mut look = Look::host();
    let mut host = Host::of(&mut look, Inventory::read(View::host()));
    let inventory = &mut host.inventory;
    if options.by_uuid && inventory.gpus.iter().any(|gpu| gpu.minor.is_some() && gpu.uuid.is_none()) {
        if let Err(error) = inventory.add_uuids(View::host(), &Deadline::secs(60)) {
            log::warn!("cannot read the UUIDs of the GPUs: {}", exit::one_line(&error));
        }
    }
    look.problems.iter().chain(&inventory.problems).for_each(|problem| log::warn!("{problem}"));
    host
}

/// Says what the user has to know of the containers as they are now.
fn tell(
    ctids: &[Ctid],
    taken: &BTreeMap<Ctid, Vec<DevicePath>>,
    live: bool,
) -> anyhow::Result<Vec<Container>> {
    let (mut reader, host, confs) = Reader::open(ctids, |ctid| format!("attach {ctid}"))?;
    let mut attached = Vec::new();
    for (ctid, conf) in confs {
        let container = reader.container(&host, ctid, conf);
        TOLD.iter().flat_map(|check| check(&container)).for_each(|finding| finding.of(ctid).warn());
        if let Some(check) = container.installed() {
            let told = os::foreseen(&container.conf).is_some();
            if let (DriverState::Unsupported { why }, false) = (&check.driver, told) {
                lines::unfit(&container, why).of(ctid).warn();
            }
            injected::before(&container, &check).into_iter().for_each(|finding| finding.of(ctid).warn());
        }
        entries::tell(&container, taken.get(&ctid).map_or(&[], Vec::as_slice));
        match (container.conf.is_template(), container.running) {
            (true, _) => log::info!("container {ctid} is a template: attached, and its clones with it"),
            (_, true) if live => log::info!("container {ctid}: attached"),
            (_, true) => {
                log::info!(
                    "container {ctid}: attached; to restart it with its GPUs: phoenix-nvidia {ctid}; without a restart: phoenix-nvidia apply {ctid}"
                );
            }
            (_, false) => log::info!("container {ctid}: attached; to start it: pct start {ctid}"),
        }
        attached.push(container);
    }
    Ok(attached)
}

/// The words of this call for one container.
fn call(options: &Attach, ctid: Ctid) -> String {
    let mut words = vec!["attach".to_owned(), ctid.to_string()];
    let valued = [
        ("--gpus", options.gpus.as_ref().map(ToString::to_string)),
        ("--capabilities", options.capabilities.as_ref().map(ToString::to_string)),
        ("--cuda", options.cuda.as_ref().map(ToString::to_string)),
        ("--driver", options.driver.as_ref().map(ToString::to_string)),
        ("--storage", options.storage.as_ref().map(ToString::to_string)),
    ];
    for (option, value) in valued {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), text::word(&value)]));
    }
    let flags = [
        ("--by-uuid", options.by_uuid),
        ("--inject", options.inject),
        ("--install", options.install),
        ("--nested", options.nested),
        ("--nested-replace", options.nested_replace),
        ("--no-nested", options.no_nested),
        ("--chain", options.chain),
        ("--now", options.now),
        ("--live", options.live),
    ];
    words.extend(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| (*flag).to_owned()));
    words.join(" ")
}

/// Checks one container and works out what it gets.
fn attachment(
    ctid: Ctid,
    before: Document,
    conf: Conf,
    options: &Attach,
    host: &Host,
) -> anyhow::Result<Attachment> {
    conf.may_edit(Caller::ByHand, &before)?;
    let mut changes = changes::of_options(options, &host.inventory)?;
    let place = hookscript(ctid, &before, options, host, &mut changes)?;
    let look = place::look(&host.storages, &place);
    place::check_mounted(&look, &host.storages, &place)?;
    place::check(&look, &place)?;
    effective::from_environment(ctid, &conf, &before, &mut changes)?;
    if !is_attached(&before) {
        changes.remember(&before);
    }
    let after = changes.apply(&before);
    let settings = effective::check(ctid, &conf, after.as_ref().unwrap_or(&before), host)?;
    let hookscript = before.get("hookscript");
    let features = nested::lacking(&before).filter(|_| options.nested || options.nested_replace);
    let stays = nested::staying(&before).filter(|_| options.no_nested);
    Ok(Attachment { ctid, conf, before, settings, changes, place, hookscript, features, stays })
}

/// Whether the device entries of a conf may be ours already.
fn is_attached(conf: &Document) -> bool {
    conf.get("hookscript").is_some_and(|volume| is_ours_by_name(&volume))
        || conf.environment().iter().any(|line| line.key == before::KEY)
        || !mounts(conf).is_empty()
}

/// Where the container's hookscript goes; another one is chained or refused.
fn hookscript(
    ctid: Ctid,
    conf: &Document,
    options: &Attach,
    host: &Host,
    changes: &mut Changes,
) -> anyhow::Result<Place> {
    let look = Look::at_files(View::host(), Hookscript::questions(&host.storages, conf));
    let now = Hookscript::of(&look, &host.storages, conf);
    let wanted = options.storage.as_ref().map(|id| id.as_str());
    match &now {
        Hookscript::Ours(place) if wanted.is_none() => return Ok(place.clone()),
        // Ours, and its file is gone or cannot be run: it is put there again.
        Hookscript::Missing(place) | Hookscript::NotExecutable(place)
            if now.is_meant() && wanted.is_none() =>
        {
            return Ok(place.clone());
        }
        Hookscript::Foreign(place) if options.chain => {
            changes.set(keys::HOOK_CHAIN, Some(&place.path.to_string_lossy()))?;
        }
        Hookscript::Foreign(place) => {
            let message = format!("container {ctid} already has hookscript {}", place.volume);
            let remedy = format!("phoenix-nvidia {} --chain", call(options, ctid));
            return Err(Fault::new(Code::Input, message).remedy(remedy).into());
        }
        // Whose it is cannot be seen; ours is moved where that is asked for.
        Hookscript::Unseen(place, why) if wanted.is_none() || !now.is_meant() => {
            return Err(place::silent(place, why));
        }
        Hookscript::Missing(Place { volume, .. })
        | Hookscript::NotExecutable(Place { volume, .. })
        | Hookscript::NoStorage(volume)
            if !now.is_meant() =>
        {
            let message = format!("hookscript {volume} of container {ctid} is missing or cannot be run");
            let remedy = format!("pct set {ctid} --delete hookscript");
            return Err(Fault::new(Code::Input, message).remedy(remedy).into());
        }
        _ => {}
    }
    Ok(place::in_storage(place::choose(&host.storages, wanted, &host.cluster.local)?))
}

impl Attachment {
    /// The conf that this call remembers entries of; empty for one that was
    /// attached before.
    fn recorded(&self) -> Document {
        let remembers = self.changes.has(before::KEY);
        let none = Document::parse(b"");
        if remembers { self.changes.apply(&self.before).unwrap_or(none) } else { none }
    }

    /// The snippet, the settings, the hookscript, in this order: whatever
    /// start happens in between finds either all or what it had.
    fn act(&self, storages: &[Storage], undo: &mut Undo) -> anyhow::Result<()> {
        let ctid = self.ctid;
        again::begin_again(ctid);
        if place::put(&self.place, storages, undo)? {
            log::info!("wrote hookscript {}", self.place.path.display());
        }
        self.note(undo);
        if let Some(features) = &self.features {
            features::set(ctid, &self.before, features, undo)?;
        }
        let changes = self.changes.clone();
        if self.conf.edit(Caller::ByHand, |conf| changes.apply(conf))?.is_some() {
            for line in self.changes.lines().into_iter().chain(self.stays.clone()) {
                log::info!("container {ctid}: {line}");
            }
        }
        effective::check_again(ctid, &self.conf, &self.settings)?;
        if self.hookscript.as_ref() != Some(&self.place.volume) {
            pct::set(ctid, &["--hookscript", &self.place.volume])?;
            log::info!("container {ctid}: hookscript {}", self.place.volume);
        }
        Ok(())
    }

    /// Notes how to roll back the container's settings and hookscript: the
    /// hookscript first, and where that fails the settings stay too, so that
    /// it starts as an attached one.
    fn note(&self, undo: &mut Undo) {
        let (ctid, conf, back) = (self.ctid, self.conf.clone(), self.changes.reverse(&self.before));
        let (old, new) = (self.hookscript.clone(), self.place.volume.clone());
        undo.push(format!("the settings and the hookscript of container {ctid}"), move || {
            let mut taken = false;
            if old.as_ref() != Some(&new) && conf.read()?.get("hookscript") == Some(new) {
                match &old {
                    Some(old) => pct::set(ctid, &["--hookscript", old])?,
                    None => pct::set(ctid, &["--delete", "hookscript"])?,
                }
                taken = true;
            }
            Ok(conf.edit(Caller::ByHand, |now| back.apply(now))?.is_some() || taken)
        });
    }
}
