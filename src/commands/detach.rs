//! `detach`: removes the hookscript, the settings and the device entries.

mod attached;
mod bare;
mod live;

use crate::cli::Detach;
use crate::device::{DevicePath, joined};
use crate::driver::cdi;
use crate::driver::desired::CudaPackages;
use crate::driver::injection::is_driver;
use crate::driver::repo;
use crate::exit::{self, Code};
use crate::guest::exec::Guest;
use crate::guest::{link, own, uninstall};
use crate::host::drm;
use crate::host::facts::Majors;
use crate::host::masks;
use crate::job::undo::Undo;
use crate::job::{in_force, nested};
use crate::pve::cluster;
use crate::pve::conf::devices::present;
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts::mounts;
use crate::pve::conf::store::{Caller, Conf};
use crate::pve::hookscript::Hookscript;
use crate::pve::net;
use crate::pve::pct;
use crate::pve::sharing;
use crate::pve::storage::{self, Storage};
use crate::settings::keys;
use crate::settings::load;
use crate::settings::values::Nested;
use crate::state::{Record, State};
use crate::sys::look::{Look, View};
use crate::sys::out::Out;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use attached::is_attached;
use bare::{bare, removed, restored};
use live::Taken;

/// What may be installed of CUDA and the utilities; by name alone apt fails for what
/// it does not know. NVIDIA's keyring is not ours.
const INSTALLED_BY_APT: &str =
    "?and(?installed,?or(?name(^cuda-),?exact-name(nvtop)),?not(?exact-name(cuda-keyring)))";

/// What is removed from one container.
struct Detachment {
    ctid: Ctid,
    conf: Conf,
    before: Document,
    /// Our hookscript.
    ours: Option<String>,
    /// The user's own, which replaces it.
    chained: Option<String>,
    /// Whether it is attached: otherwise its device entries are the user's.
    attached: bool,
    /// Its repository needs a login.
    has_login: bool,
    /// CUDA packages are installed in it.
    has_cuda: bool,
    /// The majors of this boot.
    majors: Majors,
}

/// What is left of our files in a container.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    /// There were none.
    None,
    /// They were removed.
    Removed,
    /// They may be there.
    Left,
}

/// What of ours may be in a container.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Have {
    /// [`own::FILES`].
    files: bool,
    /// Links to the host's driver.
    links: bool,
}

/// Detaches, once every container is checked.
///
/// # Errors
/// [`Code::NoContainer`], [`Code::Passthrough`]; the container at which it
/// failed is then as it was, and so are those before it.
pub fn run(options: &Detach) -> anyhow::Result<Code> {
    let mut look = Look::host();
    let storages = storage::read(&mut look);
    let mut ctids = options.ctids.clone();
    ctids.sort();
    ctids.dedup();
    let detachments: Vec<Detachment> =
        ctids.iter().map(|ctid| detachment(*ctid, options, &storages)).collect::<anyhow::Result<_>>()?;
    // Without anything to remove nothing is written.
    if detachments.iter().any(Detachment::has_some) {
        cluster::must_have_quorum(&look)?;
    }
    let look = |it: &Detachment| match options.live && it.attached {
        true => live::look(it.ctid, &it.conf, &it.before, &it.majors, options.force),
        false => Ok(None),
    };
    let mut running: Vec<Option<Taken>> = detachments.iter().map(look).collect::<anyhow::Result<_>>()?;
    let mut undo = Undo::default();
    for (detachment, live) in detachments.iter().zip(&mut running) {
        let taken = live.as_mut().map_or(Ok(()), |live| live.take(&mut undo));
        if let Err(error) = taken.and_then(|()| detachment.act(&mut undo)) {
            undo.roll_back();
            return Err(error);
        }
    }
    for (detachment, live) in detachments.iter().zip(&running) {
        if let Some(live) = live {
            live.conclude(&detachment.conf);
        }
        detachment.tell(options, live.is_some());
    }
    Ok(Code::Success)
}

fn detachment(ctid: Ctid, options: &Detach, storages: &[Storage]) -> anyhow::Result<Detachment> {
    let keep = if options.keep_driver { " --keep-driver" } else { "" };
    let live = if options.live { " --live" } else { "" };
    let conf = Conf::of(ctid).called(format!("detach {ctid}{keep}{live}"));
    let before = conf.read()?;
    conf.may_edit(Caller::ByHand, &before)?;
    let look = Look::at_files(View::host(), Hookscript::questions(storages, &before));
    let hook = Hookscript::of(&look, storages, &before);
    if let Hookscript::Unseen(place, why) = &hook {
        // By its name it is ours, or not.
        log::warn!("container {ctid}: cannot check hookscript {}: {why}", place.volume);
    }
    let ours = before.get("hookscript").filter(|_| hook.is_meant());
    let chain = before.environment().into_iter().rfind(|line| line.key == keys::HOOK_CHAIN.name);
    let chain =
        chain.filter(|_| ours.is_some()).and_then(|line| (keys::HOOK_CHAIN.read)(&line.value).ok()?);
    let chained = chain.and_then(|path| {
        let volume = storage::volume_of(storages, &path);
        if volume.is_none() {
            log::warn!(
                "container {ctid}: cannot restore hookscript {}: it is in no storage for snippets",
                path.display()
            );
        }
        volume
    });
    let settings = load::of_next_start(ctid, &conf, &before);
    let repository = settings.get(keys::NVIDIA_REPO_URL);
    let has_login = repository.is_ok_and(|url| url.has_login());
    let has_cuda = settings.get(keys::CUDA_PACKAGES).is_ok_and(|cuda| cuda != CudaPackages::None);
    let majors = Look::host().text("/proc/devices").map(|text| Majors::parse(&text)).unwrap_or_default();
    let attached = ours.is_some() || is_attached(&before, ctid);
    Ok(Detachment { ctid, conf, before, ours, chained, attached, has_login, has_cuda, majors })
}

/// How many links to the host's driver were removed; an error where some may be left.
type Unlinked = anyhow::Result<usize>;

impl Detachment {
    /// Whether there is anything of ours to remove.
    fn has_some(&self) -> bool {
        self.attached && (bare(&self.before, &self.majors).is_some() || self.ours.is_some())
    }

    /// The hookscript first, then settings and devices: in between the
    /// container starts without us, with the devices that it has.
    fn act(&self, undo: &mut Undo) -> anyhow::Result<()> {
        let ctid = self.ctid;
        if !self.attached {
            let theirs: Vec<DevicePath> = present(&self.before).iter().map(|pair| pair.path).collect();
            if !theirs.is_empty() {
                log::info!(
                    "container {ctid} is not attached: its device entries stay: {}",
                    joined(&theirs, ", ")
                );
            }
            return Ok(());
        }
        self.note(undo);
        if let Some(ours) = &self.ours {
            match &self.chained {
                Some(theirs) => {
                    pct::set(ctid, &["--hookscript", theirs])?;
                    log::info!("container {ctid}: restored hookscript {theirs}, removed {ours}");
                }
                None => {
                    pct::set(ctid, &["--delete", "hookscript"])?;
                    log::info!("container {ctid}: removed hookscript {ours}");
                }
            }
        }
        for line in removed(&self.before) {
            log::info!("container {ctid}: {line}");
        }
        in_force::note_before_edit(&self.conf);
        self.conf.edit(Caller::ByHand, |conf| bare(conf, &self.majors))?;
        Ok(())
    }

    /// Notes how to roll that back, in reverse. Where the settings cannot be
    /// restored the hookscript is not either: without them it could stop a start.
    fn note(&self, undo: &mut Undo) {
        let (ctid, conf, before, ours) =
            (self.ctid, self.conf.clone(), self.before.clone(), self.ours.clone());
        undo.push(format!("the settings, the devices and the hookscript of container {ctid}"), move || {
            let mut taken = conf.edit(Caller::ByHand, |now| restored(now, &before))?.is_some();
            if let Some(ours) =
                ours.filter(|ours| conf.read().is_ok_and(|now| now.get("hookscript").as_ref() != Some(ours)))
            {
                pct::set(ctid, &["--hookscript", &ours])?;
                taken = true;
            }
            Ok(taken)
        });
    }

    /// The command that removes later what stays inside: only in a running container
    /// it can be removed.
    fn later(&self, options: &Detach, running: bool) -> String {
        let ctid = self.ctid;
        let keep = if options.keep_driver { " --keep-driver" } else { "" };
        let start = if running { String::new() } else { format!("pct start {ctid} && ") };
        format!("{start}phoenix-nvidia detach {ctid}{keep}")
    }

    /// Removes our files inside, all but what belongs to a driver that is kept; in a
    /// stopped one there are some where it may `have` them.
    fn remove_files(
        &self,
        options: &Detach,
        running: bool,
        have: Have,
        nested: Files,
        unlinked: &Unlinked,
    ) -> Files {
        let (ctid, keep) = (self.ctid, options.keep_driver);
        let stays = |why: String| {
            let mut files: Vec<&str> = match have.files {
                true => own::FILES.into_iter().filter(|file| !keep || *file != repo::PREFERENCES).collect(),
                false => vec![own::MARKS],
            };
            files.extend(have.links.then_some("the links to the host's driver, which it lists"));
            log::warn!("container {ctid}: files of phoenix-nvidia stay in it: {}: {why}", files.join(", "));
            log::warn!("{}", exit::fix(&self.later(options, running)));
        };
        if !running {
            if have == Have::default() {
                return Files::None;
            }
            stays("it is stopped, and they can be removed once it runs".to_owned());
            return Files::Left;
        }
        // What they list is still there.
        let left = unlinked.is_err();
        let lists = [(left, own::LINKS), (nested == Files::Left, own::ASIDE)];
        let lists = lists.into_iter().filter_map(|(keep, list)| keep.then_some(list));
        let files = match own::remove(&Guest::new(ctid), keep, lists, &Deadline::secs(15)) {
            Ok(removed) if removed.is_empty() && !left => return Files::None,
            Ok(removed) => {
                if !removed.is_empty() {
                    log::info!("container {ctid}: removed in it: {}", removed.join(", "));
                }
                if left {
                    log::warn!("container {ctid}: {} stays in it: it lists the links", own::MARKS);
                    log::warn!("{}", exit::fix(&self.later(options, running)));
                }
                if left { Files::Left } else { Files::Removed }
            }
            Err(why) => {
                stays(why);
                Files::Left
            }
        };
        if keep {
            log::info!(
                "container {ctid}: {} keeps apt from replacing the driver, and stays with it",
                repo::PREFERENCES
            );
        }
        files
    }

    /// Removes the links to the host's driver, before their list goes, and names what
    /// stays. How many there were.
    fn remove_links(&self, running: bool) -> Unlinked {
        let ctid = self.ctid;
        let gone = match running {
            true => link::unlink(&Guest::new(ctid), &Deadline::secs(15)),
            false => Ok(0),
        };
        if let Err(error) = &gone {
            log::warn!("{}", exit::one_line(error));
        }
        let places = self.driver_places();
        if !places.is_empty() {
            log::info!(
                "container {ctid}: empty directories stay where the driver was mounted: {}",
                places.join(" ")
            );
        }
        gone
    }

    /// Removes the description for engines; before what lies beside it.
    fn remove_descriptions(&self, options: &Detach, state: &State, running: bool) -> Files {
        let ctid = self.ctid;
        let asked = load::of_next_start(ctid, &self.conf, &self.before).value(keys::NESTED) != Nested::None;
        let may_have = state.nested.files || asked && self.attached;
        if !may_have {
            return Files::None;
        }
        if running {
            return match nested::clear(&Guest::new(ctid), &Deadline::secs(15)) {
                Ok(()) => Files::Removed,
                Err(error) => {
                    log::warn!("{}", exit::one_line(&error));
                    log::warn!("{}", exit::fix(&self.later(options, running)));
                    Files::Left
                }
            };
        }
        if state.nested.files {
            log::warn!("container {ctid}: {} stay in it: it is stopped", cdi::FILES.join(" and "));
            log::warn!("{}", exit::fix(&self.later(options, running)));
            return Files::Left;
        }
        Files::None
    }

    /// Where the host's driver was mounted.
    fn driver_places(&self) -> Vec<String> {
        let ours = mounts(&self.before).into_iter().filter(is_driver);
        ours.map(|mount| format!("/{}", mount.target)).collect()
    }

    fn tell(&self, options: &Detach, live: bool) {
        let ctid = self.ctid;
        let (record, identity) = (Record::of(ctid), net::identity(&self.before));
        let seen = record.last_driver(&identity);
        // Without an install there was never a file, and a mounted driver has links alone.
        let files = self.attached && (self.has_login || seen.is_some() && self.has_cuda);
        let driver = seen.filter(|_| self.driver_places().is_empty());
        let files = files || driver.is_some() || record.left_files(&identity);
        let links = self.attached && record.load_of(&identity).injected.links;
        let have = Have { files, links };
        if let Err(error) = masks::remove(View::host(), ctid) {
            log::warn!(
                "container {ctid}: its copies of /proc/driver/nvidia stay until the next boot: {error}"
            );
        }
        drm::sweep(View::host());
        let running = sharing::is_running(&mut Look::host(), ctid);
        if !running {
            record.forget_rules();
        } else if !live {
            log::info!("container {ctid} keeps its GPUs until it is restarted: pct reboot {ctid}");
        }
        let unlinked = self.remove_links(running);
        let nested = self.remove_descriptions(options, &record.load_of(&identity), running);
        let files = self.remove_files(options, running, have, nested, &unlinked);
        let noted = match files {
            _ if nested == Files::Left => record.keep_left_files(&identity, driver.clone()),
            Files::Left => record.keep_left_files(&identity, driver.clone()),
            Files::None | Files::Removed => record.forget(),
        };
        if let Err(error) = noted {
            log::warn!("container {ctid}: cannot delete its record: {error}");
        }
        if !self.has_some()
            && files == Files::None
            && !unlinked.is_ok_and(|links| links > 0)
            && nested == Files::None
        {
            log::info!("container {ctid}: nothing to remove");
        } else if let Some((driver, removal)) = driver.filter(|_| !options.keep_driver) {
            let out = Out::stdout();
            out.line(format_args!(
                "Driver {driver} stays in container {ctid}. To remove it while the container runs:"
            ));
            let uninstall = || uninstall::command(ctid, driver.parse().ok().as_ref());
            out.line(format_args!("  {}", removal.unwrap_or_else(uninstall)));
            out.line("To remove what apt installed with it:");
            out.line(format_args!(
                "  pct exec {ctid} -- sh -c \"apt-get purge '{INSTALLED_BY_APT}' && apt-get autoremove\""
            ));
        }
    }
}
