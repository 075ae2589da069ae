//! Whether Proxmox would start a container again.
//!
//! `pct reboot` stops a container without any check, and so does `pct shutdown`
//! without quorum; Proxmox then rejects the start, and the container stays down.
//! So every stop in [`crate::pve::pct`] takes a [`Startable`], which only this
//! check gives.
//!
//! As in pve-container 6.1.10: `pct start` checks quorum, template and `lock:`;
//! `update_lxc_config` the `devN` nodes; `PVE::GuestHelpers` the hookscript;
//! LXC's own pre-start hook again quorum and `lock:`, and the mount points. HA
//! changes none of that.

use super::passthrough::{self, DevLine};
use super::{pending, property};
use crate::device::DevicePath;
use crate::pve::cluster;
use crate::pve::conf::document::Document;
use crate::pve::hookscript;
use crate::pve::storage;
use crate::pve::storage::FILE as STORAGES;
use crate::pve::storage::Storage;
use crate::sys::look::{Look, Op, Question, Seen, Stat};
use crate::sys::text::{few, word};
use crate::types::Ctid;
use serde::Serialize;
use std::fmt;

/// What keeps a container from starting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Obstacle {
    /// It is a template.
    Template,
    /// Another operation holds `lock:`: `backup`, `migrate`, …
    Lock {
        /// Its value.
        owner: String,
    },
    /// This node has no quorum.
    NoQuorum,
    /// Its hookscript is missing or cannot be executed.
    Hookscript {
        /// Its volume id.
        volume: String,
        /// What is wrong with it.
        why: &'static str,
        /// The file, if only its mode is wrong.
        path: Option<String>,
    },
    /// A `devN` line's node is missing.
    Device {
        /// `dev0`
        key: String,
        /// The node.
        path: String,
        /// Whether `prepare` makes it.
        made: bool,
    },
    /// A `devN` line that Proxmox cannot read.
    DeviceLine {
        /// `dev0`
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The source of a mount point is missing.
    MountPoint {
        /// `mp0`
        key: String,
        /// The directory or device on the host.
        source: String,
    },
    /// A file that the start needs cannot be checked. It may be there, but the
    /// start waits for it as well.
    Silent {
        /// `mp0`, `hookscript`, `HOOK_CHAIN`
        key: String,
        /// The file or directory on the host.
        source: String,
        /// Why not.
        why: String,
    },
    /// The storage of a volume is not defined.
    Storage {
        /// `mp0`, `rootfs`
        key: String,
        /// The storage.
        storage: String,
    },
    /// Our pre-start would fail: the chained hookscript cannot run.
    Chain {
        /// What is wrong with it.
        why: String,
        /// The remedy.
        fix: String,
    },
    /// Our pre-start would fail: START_POLICY=fail and a device is missing.
    Policy {
        /// What is missing.
        missing: String,
    },
}

/// Proof that a container would start again now. Only [`judge`] makes one, and
/// each stop takes one.
#[derive(Debug)]
#[must_use = "it allows one stop"]
pub struct Startable(Ctid);

impl Startable {
    /// The container.
    pub fn ctid(&self) -> Ctid {
        self.0
    }
}

/// Allows one stop if there are no obstacles.
///
/// # Errors
/// The obstacles.
pub fn judge(ctid: Ctid, obstacles: Vec<Obstacle>) -> Result<Startable, Vec<Obstacle>> {
    if obstacles.is_empty() { Ok(Startable(ctid)) } else { Err(obstacles) }
}

/// Everything for which Proxmox would reject the next start. `files` has the
/// answers to [`questions`]: storages may never answer.
pub fn obstacles(look: &mut Look<'_>, files: &Look<'_>, conf: &Document) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if conf.is_template() {
        found.push(Obstacle::Template);
    }
    found.extend(conf.get("lock").map(|owner| Obstacle::Lock { owner }));
    if !cluster::has_quorum(look) {
        found.push(Obstacle::NoQuorum);
    }
    let storages = look.text(STORAGES).unwrap_or_default();
    found.extend(hookscript(files, conf, &storages));
    found.extend(devices(look, conf));
    found.extend(volumes(files, conf, &storages));
    found
}

/// What [`obstacles`] asks of `files`.
pub fn questions(storages: &[Storage], conf: &Document) -> Vec<Question> {
    let volume = pending::get(conf, "hookscript").unwrap_or_default();
    let hookscript = storage::path_of(storages, &volume).map(|path| path.to_string_lossy().into_owned());
    let sources =
        sources(conf).into_iter().map(|(_, source)| source).filter(|source| source.starts_with('/'));
    hookscript.into_iter().chain(sources).map(|path| Question::new(Op::Stat, path)).collect()
}

fn hookscript(files: &Look<'_>, conf: &Document, storages: &str) -> Option<Obstacle> {
    let volume = pending::get(conf, "hookscript")?;
    let Some(path) = storage::path_of(&storage::parse(storages), &volume) else {
        return Some(Obstacle::Hookscript { volume, why: "is in no storage of this node", path: None });
    };
    let path = path.to_string_lossy().into_owned();
    let (why, path) = match files.stat(&path) {
        Seen::Is(stat) if !stat.is_file() => ("is not a file", None),
        Seen::Is(stat) if stat.mode & 0o111 == 0 => ("cannot be executed", Some(path)),
        Seen::Is(_) => return None,
        Seen::Absent => ("does not exist", None),
        Seen::Unseen(why) => {
            return Some(Obstacle::Silent { key: "hookscript".to_owned(), source: path, why });
        }
    };
    Some(Obstacle::Hookscript { volume, why, path })
}

fn devices(look: &Look<'_>, conf: &Document) -> Vec<Obstacle> {
    let missing = |DevLine { key, value, .. }: DevLine| match value {
        Err(why) => Some(Obstacle::DeviceLine { key, why: format!("{why:#}") }),
        Ok(value) if is_missing(look, &value.path) => {
            let made = value.path.parse().is_ok_and(|path: DevicePath| !path.is_drm());
            Some(Obstacle::Device { key, path: value.path, made })
        }
        Ok(_) => None,
    };
    passthrough::next(conf).into_iter().filter_map(missing).collect()
}

/// Of a node in /dev, which the kernel answers at once.
fn is_missing(look: &Look<'_>, path: &str) -> bool {
    look.stat(path) == Seen::Absent
}

/// The root file system and the mount points of the next start: key, and volume
/// or absolute path.
fn sources(conf: &Document) -> Vec<(String, String)> {
    let mount_points = pending::numbered(conf, "mp").into_iter().map(|(key, entry)| (key, entry.value));
    let root = pending::get(conf, "rootfs").map(|value| ("rootfs".to_owned(), value));
    let source = |(key, value): (String, String)| Some((key, property::get(&value, "volume", "volume")?));
    mount_points.chain(root).filter_map(source).collect()
}

fn volumes(files: &Look<'_>, conf: &Document, storages: &str) -> Vec<Obstacle> {
    let defined = storage::names(storages);
    let fault = |(key, source): (String, String)| {
        // Proxmox mounts a device and binds a directory, nothing else.
        if source.starts_with("/dev/") {
            return mount_point(files, key, source, |_| true);
        }
        if source.starts_with('/') {
            return mount_point(files, key, source, Stat::is_dir);
        }
        let storage = storage::of_volume(&source)?.to_owned();
        (!defined.contains(&storage)).then_some(Obstacle::Storage { key, storage })
    };
    sources(conf).into_iter().filter_map(fault).collect()
}

fn mount_point(
    files: &Look<'_>,
    key: String,
    source: String,
    fits: impl Fn(&Stat) -> bool,
) -> Option<Obstacle> {
    match files.stat(&source) {
        Seen::Is(stat) if fits(&stat) => None,
        Seen::Is(_) | Seen::Absent => Some(Obstacle::MountPoint { key, source }),
        Seen::Unseen(why) => Some(Obstacle::Silent { key, source, why }),
    }
}

impl Obstacle {
    /// Whether waiting helps.
    pub fn passes(&self) -> bool {
        matches!(self, Obstacle::Lock { .. } | Obstacle::NoQuorum | Obstacle::Silent { .. })
    }

    /// Whether it is certain: a file that cannot be checked may be there.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Obstacle::Silent { .. })
    }

    /// Whether it keeps a stopped container from starting. The lock of `pct mount`
    /// only prevents a shutdown.
    pub fn refuses_start(&self) -> bool {
        !matches!(self, Obstacle::Lock { owner } if owner == "mounted")
    }

    /// The remedy, and the command that is due once it has helped: one line to
    /// paste where the remedy is a command that ends the obstacle.
    pub fn remedy_then(&self, ctid: Ctid, then: &str) -> String {
        let ends_it = match self {
            Obstacle::Lock { owner } => owner == "mounted",
            Obstacle::Hookscript { .. } | Obstacle::Device { .. } | Obstacle::DeviceLine { .. } => true,
            _ => false,
        };
        let joint = if ends_it { " && " } else { "; then: " };
        format!("{}{joint}{then}", self.remedy(ctid))
    }

    /// The remedy, for a running and for a stopped container.
    pub fn remedy(&self, ctid: Ctid) -> String {
        match self {
            Obstacle::Template => format!("pct clone {ctid} NEWID"),
            Obstacle::Lock { owner } if owner == "mounted" => format!("pct unmount {ctid}"),
            Obstacle::Lock { owner } => {
                format!("wait for the task that set the lock ({owner}); if none runs: pct unlock {ctid}")
            }
            Obstacle::NoQuorum => "pvecm status".to_owned(),
            Obstacle::Hookscript { volume, .. } if hookscript::is_ours_by_name(volume) => {
                format!("phoenix-nvidia attach {ctid}")
            }
            Obstacle::Hookscript { path: Some(path), .. } => {
                format!("chmod 755 {}", word(path))
            }
            Obstacle::Hookscript { .. } => format!("pct set {ctid} --delete hookscript"),
            Obstacle::Device { made: true, .. } => "phoenix-nvidia prepare".to_owned(),
            Obstacle::Device { key, .. } | Obstacle::DeviceLine { key, .. } => {
                format!("pct set {ctid} --delete {key}")
            }
            Obstacle::MountPoint { key, source } => {
                format!("mount or create {}{}", word(source), without(ctid, key))
            }
            Obstacle::Silent { source, .. } => format!("findmnt -T {}", word(source)),
            Obstacle::Storage { key, storage } => {
                format!("define storage {}{}", word(storage), without(ctid, key))
            }
            Obstacle::Chain { fix, .. } => fix.clone(),
            Obstacle::Policy { .. } => format!("phoenix-nvidia doctor {ctid}"),
        }
    }
}

/// The other way than a volume that is there again: no container is without its root file system.
fn without(ctid: Ctid, key: &str) -> String {
    match key {
        "rootfs" => String::new(),
        _ => format!(", or, to start without what is on it: pct set {ctid} --delete {key}"),
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Template => f.write_str("it is a template"),
            Obstacle::Lock { owner } => write!(f, "its conf is locked ({owner})"),
            Obstacle::NoQuorum => f.write_str("this node has no quorum"),
            Obstacle::Hookscript { volume, why, .. } => write!(f, "its hookscript {volume} {why}"),
            Obstacle::Device { key, path, .. } => write!(f, "{key} passes {path}, which does not exist"),
            Obstacle::DeviceLine { key, why } => write!(f, "{key} cannot be read: {why}"),
            Obstacle::MountPoint { key, source } => write!(f, "{key} mounts {source}, which does not exist"),
            Obstacle::Silent { key, source, why } => write!(f, "{key}: cannot check {source}: {why}"),
            Obstacle::Storage { key, storage } => {
                write!(f, "{key} is on storage {storage}, which does not exist")
            }
            Obstacle::Chain { why, .. } => f.write_str(why),
            Obstacle::Policy { missing } => write!(f, "START_POLICY=fail and {missing}"),
        }
    }
}

/// So many are named in one line: a dead server may have the sources of many mount points.
const NAMED: usize = 3;

/// Several, in one line.
pub fn list(obstacles: &[Obstacle]) -> String {
    few(obstacles.iter().map(ToString::to_string).collect(), NAMED).join("; ")
}

#[cfg(test)]
mod tests;
