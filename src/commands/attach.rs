//! `attach`: a container gets its settings and the hookscript, in one step
//! that is undone when a part of it fails.

mod changes;
mod effective;
mod place;

use crate::cli::Attach;
use crate::exit::{self, Code, Fault};
use crate::host::gpus::Inventory;
use crate::job::startable;
use crate::job::undo::Undo;
use crate::pve::cluster;
use crate::pve::cluster::Cluster;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Caller;
use crate::pve::conf::store::Conf;
use crate::pve::hookscript::Hookscript;
use crate::pve::hookscript::Place;
use crate::pve::pct;
use crate::pve::readiness;
use crate::pve::startable::Obstacle;
use crate::pve::storage;
use crate::pve::storage::Storage;
use crate::settings::secrets;
use crate::settings::{Settings, keys};
use crate::sys::look::Look;
use crate::sys::look::View;
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use changes::Changes;

/// What the checks found out, for all containers of the call.
struct Host {
    storages: Vec<Storage>,
    cluster: Cluster,
    inventory: Inventory,
}

/// What is to be done for one container.
struct Job {
    ctid: Ctid,
    conf: Conf,
    before: Document,
    after: Document,
    /// What a hook reads of `after`.
    settings: Settings,
    changes: Changes,
    place: Place,
    /// What `hookscript:` is now.
    hookscript: Option<String>,
}

/// Attaches. Every container is checked before anything is done to one.
///
/// # Errors
/// [`Code::Input`], [`Code::NoContainer`] and [`Code::Passthrough`]; then
/// everything is as it was.
pub fn run(options: &Attach) -> anyhow::Result<Code> {
    let mut ctids = options.ctids.clone();
    ctids.sort();
    ctids.dedup();
    // First whether all of them exist, and here.
    let confs: Vec<(Ctid, Conf)> =
        ctids.iter().map(|id| (*id, Conf::of(*id).called(call(options, *id)))).collect();
    confs.iter().try_for_each(|(_, conf)| conf.read().map(drop))?;
    let host = Host::read(options);
    let jobs: Vec<Job> = confs
        .into_iter()
        .map(|(ctid, conf)| job(ctid, conf, options, &host))
        .collect::<anyhow::Result<_>>()?;
    if let Some(hint) = options.gpus.as_ref().filter(|_| !options.by_uuid) {
        changes::uuid_hint(hint, &host.inventory).iter().for_each(|hint| log::info!("{hint}"));
    }
    cluster::must_have_quorum(&Look::host())?;
    let mut undo = Undo::default();
    for job in &jobs {
        if let Err(error) = job.act(&host.storages, &mut undo) {
            undo.roll_back();
            return Err(error);
        }
    }
    for lack in readiness::of_places(&host.cluster, &host.storages, jobs.iter().map(|job| &job.place)) {
        log::warn!("{}", lack.what);
        log::warn!("{}", exit::fix(&lack.fix));
    }
    for job in &jobs {
        job.tell(&host);
    }
    let mut code = Code::Success;
    for job in jobs.iter().filter(|job| options.now && !job.is_template()) {
        code = super::run::run(job.ctid)?;
    }
    Ok(code)
}

impl Host {
    fn read(options: &Attach) -> Host {
        let mut look = Look::host();
        let storages = storage::read(&mut look);
        let cluster = Cluster::read(&mut look);
        let mut inventory = Inventory::read(View::host());
        if options.by_uuid && inventory.gpus.iter().any(|gpu| gpu.minor.is_some() && gpu.uuid.is_none()) {
            if let Err(error) = inventory.add_uuids(View::host(), &Deadline::secs(60)) {
                log::warn!("the UUIDs of the GPUs are not known: {error:#}");
            }
        }
        for problem in look.problems.iter().chain(&inventory.problems) {
            log::warn!("{problem}");
        }
        Host { storages, cluster, inventory }
    }
}

/// The words of this call for one container.
fn call(options: &Attach, ctid: Ctid) -> String {
    let mut words = vec!["attach".to_owned(), ctid.to_string()];
    let valued = [
        ("--gpus", options.gpus.as_ref().map(ToString::to_string)),
        ("--cuda", options.cuda.as_ref().map(ToString::to_string)),
        ("--driver", options.driver.as_ref().map(ToString::to_string)),
        ("--storage", options.storage.as_ref().map(ToString::to_string)),
    ];
    for (option, value) in valued {
        words.extend(value.into_iter().flat_map(|value| [option.to_owned(), text::word(&value)]));
    }
    let flags = [("--by-uuid", options.by_uuid), ("--chain", options.chain), ("--now", options.now)];
    words.extend(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| (*flag).to_owned()));
    words.join(" ")
}

/// Checks one container and works out what is to be done.
fn job(ctid: Ctid, conf: Conf, options: &Attach, host: &Host) -> anyhow::Result<Job> {
    let before = conf.read()?;
    if let Some(owner) = before.get("lock") {
        let message = format!("container {ctid} is locked ({owner}): another operation owns its conf");
        return Err(Fault::new(Code::Passthrough, message).remedy("wait until that has ended").into());
    }
    let mut changes = changes::of_options(options, &host.inventory)?;
    let place = hookscript(ctid, &before, options, host, &mut changes)?;
    let look = place::look(&host.storages, &place);
    place::check_mounted(&look, &host.storages, &place)?;
    place::check(&look, &place)?;
    effective::from_environment(ctid, &conf, &before, &mut changes)?;
    let after = changes.apply(&before).unwrap_or_else(|| before.clone());
    let settings = effective::check(ctid, &conf, &after, &host.inventory)?;
    let hookscript = before.get("hookscript");
    Ok(Job { ctid, conf, before, after, settings, changes, place, hookscript })
}

/// Where the container's hookscript is to be; another one is chained or
/// refused.
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
            let message = format!("container {ctid} has a hookscript of its own, {}", place.volume);
            let remedy = "--chain keeps it: both run at every start";
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
            let message =
                format!("container {ctid} has the hookscript {volume}, which is not there or cannot be run");
            let remedy = format!("mend it, or: pct set {ctid} --delete hookscript");
            return Err(Fault::new(Code::Input, message).remedy(remedy).into());
        }
        _ => {}
    }
    Ok(place::in_storage(place::choose(&host.storages, wanted, &host.cluster.local)?))
}

impl Job {
    fn is_template(&self) -> bool {
        self.before.get("template").is_some_and(|v| v == "1")
    }

    /// The snippet, the settings, the hookscript, in this order: whatever
    /// start happens in between finds either all or what it had.
    fn act(&self, storages: &[Storage], undo: &mut Undo) -> anyhow::Result<()> {
        let ctid = self.ctid;
        if place::put(&self.place, storages, undo)? {
            log::info!("put the hookscript to {}", self.place.path.display());
        }
        self.note(undo);
        let changes = self.changes.clone();
        if self.conf.edit(Caller::ByHand, |conf| changes.apply(conf))?.is_some() {
            for line in self.changes.lines() {
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

    /// Notes how the container's settings and hookscript are taken back: the
    /// hookscript first, and where that fails the settings stay too, so that
    /// it starts as one that is attached.
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

    /// What the user has to know now.
    fn tell(&self, host: &Host) {
        let ctid = self.ctid;
        for secret in secrets::exposed(&self.settings, ctid) {
            log::warn!("{}; {}", secret.what, exit::fix(&secret.remedy));
        }
        let fails = self.settings.value(keys::START_POLICY).fails();
        if host.cluster.ha.contains(&ctid) && !fails {
            log::warn!(
                "container {ctid} is under HA and START_POLICY is continue: on a node without its GPUs it \
                 starts without them. To have HA try another node, add this line to {}: \
                 lxc.environment: START_POLICY=fail",
                self.conf.path().display()
            );
        }
        for obstacle in startable::obstacles_of(&self.after, &self.settings, None) {
            // Its hookscript is there by now, and a template is told below.
            if !matches!(obstacle, Obstacle::Template | Obstacle::Hookscript { .. }) {
                let would = if obstacle.is_certain() { "would" } else { "may" };
                log::warn!("container {ctid} {would} not start now: {obstacle}");
                log::warn!("{}", exit::fix(&obstacle.remedy(ctid)));
            }
        }
        if self.after.get("ostype").is_some_and(|os| os == "alpine") {
            log::warn!(
                "container {ctid} is an Alpine Linux, whose C library NVIDIA's driver does not support: it \
                 gets the devices and no driver"
            );
        }
        let running = crate::pve::sharing::is_running(&mut Look::host(), ctid);
        match (self.is_template(), running) {
            (true, _) => log::info!("container {ctid} is a template: its clones are attached too"),
            (_, true) => log::info!(
                "container {ctid} is attached and runs; `phoenix-nvidia {ctid}` restarts it with its GPUs"
            ),
            (_, false) => log::info!("container {ctid} is attached; start it with `pct start {ctid}`"),
        }
    }
}
