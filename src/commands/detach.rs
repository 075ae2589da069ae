//! `detach`: removes the hookscript, the settings and the device entries.

use crate::cli::Detach;
use crate::device::{Device, Number, joined};
use crate::driver::injection::is_driver;
use crate::driver::repo;
use crate::exit::{self, Code};
use crate::guest::exec::Guest;
use crate::guest::{link, own};
use crate::host::drm;
use crate::host::masks;
use crate::job::undo::Undo;
use crate::pve::cluster;
use crate::pve::conf::before;
use crate::pve::conf::devices::{Present, present};
use crate::pve::conf::document::{ConfValue, Document, EnvKey, Form};
use crate::pve::conf::mounts::{Mount, mounts};
use crate::pve::conf::reconcile::{Change, reconcile};
use crate::pve::conf::store::{Caller, Conf};
use crate::pve::hookscript::Hookscript;
use crate::pve::net;
use crate::pve::pct;
use crate::pve::sharing;
use crate::pve::storage::{self, Storage};
use crate::settings::keys;
use crate::settings::load;
use crate::state::Record;
use crate::sys::look::{Look, View};
use crate::sys::out::Out;
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::Ctid;

/// What may be installed of CUDA and the utilities; by name alone apt fails for what
/// it does not know. NVIDIA's keyring is not ours.
const INSTALLED_BY_APT: &str =
    "?and(?installed,?or(?name(^cuda-),?exact-name(nvtop)),?not(?exact-name(cuda-keyring)))";
/// So many removed lines are told one by one.
const MOST_LINES: usize = 40;

/// What is removed from one container.
struct Detachment {
    ctid: Ctid,
    conf: Conf,
    before: Document,
    /// Our hookscript.
    ours: Option<String>,
    /// The user's own, which replaces it.
    chained: Option<String>,
    /// Its repository needs a login.
    has_login: bool,
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
    let mut undo = Undo::default();
    for detachment in &detachments {
        if let Err(error) = detachment.act(&mut undo) {
            undo.roll_back();
            return Err(error);
        }
    }
    for detachment in &detachments {
        detachment.tell(options);
    }
    Ok(Code::Success)
}

fn detachment(ctid: Ctid, options: &Detach, storages: &[Storage]) -> anyhow::Result<Detachment> {
    let keep = if options.keep_driver { " --keep-driver" } else { "" };
    let conf = Conf::of(ctid).called(format!("detach {ctid}{keep}"));
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
    Ok(Detachment { ctid, conf, before, ours, chained, has_login })
}

impl Detachment {
    /// Whether there is anything of ours to remove.
    fn has_some(&self) -> bool {
        bare(&self.before).is_some() || self.ours.is_some()
    }

    /// The hookscript first, then settings and devices: in between the
    /// container starts without us, with the devices that it has.
    fn act(&self, undo: &mut Undo) -> anyhow::Result<()> {
        let ctid = self.ctid;
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
        self.conf.edit(Caller::ByHand, bare)?;
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

    /// Removes our files inside, all but what belongs to a driver that is kept.
    /// Returns whether there were any, or may be.
    fn remove_files(&self, options: &Detach, running: bool, driver: bool) -> bool {
        let (ctid, keep) = (self.ctid, options.keep_driver);
        let stays = |why: String| {
            let files: Vec<&str> =
                own::FILES.into_iter().filter(|file| !keep || *file != repo::PREFERENCES).collect();
            log::warn!("container {ctid}: files of phoenix-nvidia stay in it: {}: {why}", files.join(", "));
            let keep = if keep { " --keep-driver" } else { "" };
            log::warn!("{}", exit::fix(&format!("phoenix-nvidia detach {ctid}{keep}")));
        };
        if !running {
            // Without an install there was never one.
            if driver || self.has_login {
                stays("it is stopped, and they can be removed once it runs".to_owned());
            }
            return driver || self.has_login;
        }
        match own::remove(&Guest::new(ctid), keep, &Deadline::secs(15)) {
            Ok(removed) if removed.is_empty() => return false,
            Ok(removed) => log::info!("container {ctid}: removed in it: {}", removed.join(", ")),
            Err(why) => stays(why),
        }
        if keep {
            log::info!(
                "container {ctid}: {} keeps apt from replacing the driver, and stays with it",
                repo::PREFERENCES
            );
        }
        true
    }

    /// Removes the links to the host's driver, and names what stays.
    fn remove_links(&self, running: bool) {
        let ctid = self.ctid;
        let places: Vec<String> = self.driver_places();
        if places.is_empty() {
            return;
        }
        if !running {
            log::info!(
                "container {ctid} is stopped: links to the host's driver stay in it, and lead nowhere"
            );
        } else if let Err(error) = link::unlink(&Guest::new(ctid), &Deadline::secs(15)) {
            log::warn!("container {ctid}: links to the host's driver may still be in it: {error:#}");
        }
        log::info!(
            "container {ctid}: empty directories stay where the driver was mounted: {}",
            places.join(" ")
        );
    }

    /// Where the host's driver was mounted.
    fn driver_places(&self) -> Vec<String> {
        let ours = mounts(&self.before).into_iter().filter(is_driver);
        ours.map(|mount| format!("/{}", mount.target)).collect()
    }

    fn tell(&self, options: &Detach) {
        let ctid = self.ctid;
        let driver = Record::of(ctid)
            .last_driver(&net::identity(&self.before))
            .filter(|_| self.driver_places().is_empty());
        if let Err(error) = Record::of(ctid).forget() {
            log::warn!("container {ctid}: cannot delete its record: {error}");
        }
        if let Err(error) = masks::remove(View::host(), ctid) {
            log::warn!(
                "container {ctid}: its copies of /proc/driver/nvidia stay until the next boot: {error}"
            );
        }
        drm::sweep(View::host());
        let running = sharing::is_running(&mut Look::host(), ctid);
        if running {
            log::info!("container {ctid} keeps its GPUs until it is restarted: pct reboot {ctid}");
        }
        self.remove_links(running);
        let files = self.remove_files(options, running, driver.is_some());
        if !self.has_some() && !files {
            log::info!("container {ctid}: nothing to remove");
        } else if let Some(driver) = driver.filter(|_| !options.keep_driver) {
            let out = Out::stdout();
            out.line(format_args!(
                "Driver {driver} stays in container {ctid}. To remove it while the container runs:"
            ));
            out.line(format_args!("  pct exec {ctid} -- nvidia-uninstall --silent"));
            out.line("To remove what apt installed with it:");
            out.line(format_args!(
                "  pct exec {ctid} -- sh -c \"apt-get purge '{INSTALLED_BY_APT}' && apt-get autoremove\""
            ));
        }
    }
}

/// The conf without anything of ours; `None` when there is nothing.
fn bare(conf: &Document) -> Option<Document> {
    let names = keys::ALL.iter().map(|key| key.name).chain([before::KEY]);
    let keys: Vec<(EnvKey, Option<ConfValue>)> =
        names.filter_map(|name| Some((name.parse().ok()?, None))).collect();
    match before::put_back(conf) {
        Some(back) => back.set_all(&keys).or(Some(back)),
        None => with(conf, &keys, &[], &[]),
    }
}

/// Whether a variable is a setting of ours, or what attach remembers.
fn is_ours(name: &str) -> bool {
    keys::by_name(name).is_some() || name == before::KEY
}

/// The conf with these settings, pairs and mounts; `None` when it has them.
fn with(
    conf: &Document,
    settings: &[(EnvKey, Option<ConfValue>)],
    devices: &[Device],
    mounts: &[Mount],
) -> Option<Document> {
    let set = conf.set_all(settings);
    let edit = reconcile(set.as_ref().unwrap_or(conf), devices, mounts, Form::Pve);
    edit.map(|edit| edit.document).or(set)
}

/// What [`bare`] removes, for messages.
fn removed(conf: &Document) -> Vec<String> {
    let settings = conf.environment().into_iter().filter(|line| keys::by_name(&line.key).is_some());
    let mut lines: Vec<String> =
        settings.map(|line| format!("removed setting {}={}", line.key, text::hidden(&line.value))).collect();
    let back = before::recorded(conf);
    let goes = |change: &&Change| match change {
        Change::Removed(path, _) | Change::Doubled(path) => !back.contains(path),
        _ => true,
    };
    let pairs = reconcile(conf, &[], &[], Form::Pve);
    lines.extend(pairs.iter().flat_map(|edit| &edit.changes).filter(goes).map(ToString::to_string));
    if !back.is_empty() {
        lines.push(format!("restored the entries from before attach: {}", joined(&back, ", ")));
    }
    text::few(lines, MOST_LINES)
}

/// The conf with the settings, pairs and mounts that `before` had.
fn restored(now: &Document, before: &Document) -> Option<Document> {
    let ours = before.environment().into_iter().filter(|line| is_ours(&line.key));
    let settings = ours.filter_map(|line| Some((line.key.parse().ok()?, Some(line.value.parse().ok()?))));
    let device = |pair: Present| {
        let Number { major, minor } = pair.rule?;
        Some(Device { path: pair.path, major, minor })
    };
    let devices: Vec<Device> = present(before).into_iter().filter_map(device).collect();
    with(now, &settings.collect::<Vec<_>>(), &devices, &mounts(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "arch: amd64\nmemory: 512\nlxc.mount.entry: /srv srv none bind 0 0\nlxc.environment: LANG=C\n\n[snap]\nmemory: 1\n";
    const ATTACHED: &str = "arch: amd64\nmemory: 512\nlxc.mount.entry: /srv srv none bind 0 0\nlxc.environment: LANG=C\n\
        lxc.environment: GPU_ASSIGNMENT=0\nlxc.environment: CUDA_PACKAGES=none\n\
        lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\nlxc.cgroup2.devices.allow: c 195:0 rwm\n\
        lxc.mount.entry: /run/phoenix-nvidia/proc/101/gpus proc/driver/nvidia/gpus none bind,ro,optional 0 0\n\n[snap]\nmemory: 1\n";

    #[test]
    fn all_of_ours_is_removed_and_nothing_else() {
        let attached = Document::parse(ATTACHED.as_bytes());
        let bare_again = bare(&attached).unwrap();
        assert_eq!(String::from_utf8_lossy(bare_again.as_bytes()), BARE);
        assert_eq!(bare(&bare_again), None);
        assert_eq!(
            removed(&attached),
            [
                "removed setting GPU_ASSIGNMENT=0",
                "removed setting CUDA_PACKAGES=none",
                "removed /dev/nvidia0 (c 195:0)",
                "removed the mount over /proc/driver/nvidia/gpus"
            ]
        );
    }

    #[test]
    fn what_was_removed_can_be_restored() {
        let drm = "lxc.mount.entry: /run/phoenix-nvidia/dev/dri/card1 dev/dri/card1 none bind,optional,create=file 0 0\n\
            lxc.cgroup2.devices.allow: c 226:1 rwm\n";
        let graphics = ATTACHED.replace("lxc.mount.entry: /run", &format!("{drm}lxc.mount.entry: /run"));
        let attached = Document::parse(graphics.as_bytes());
        assert_eq!(restored(&bare(&attached).unwrap(), &attached), Some(attached));

        let bare = Document::parse(BARE.as_bytes());
        let again = restored(&bare, &Document::parse(ATTACHED.as_bytes())).unwrap();
        assert_eq!(String::from_utf8_lossy(again.as_bytes()), ATTACHED);
    }
}
