//! Whether Proxmox would start a container again.
//!
//! `pct reboot` stops a container without asking, and so does `pct shutdown`
//! without quorum; only the start is refused, and the container stays down.
//! So this is asked before anything that stops one, and a stop is not to be
//! had without the answer: [`crate::pve::pct`] wants a [`Startable`].
//!
//! Read in pve-container 6.1.10: `pct start` asks quorum, template and
//! `lock:`; `update_lxc_config` the `devN` nodes; `PVE::GuestHelpers` the
//! hookscript; LXC's own pre-start hook quorum and `lock:` once more, and the
//! mount points. HA changes none of that.

use super::passthrough::{self, DevLine};
use super::{pending, property};
use crate::pve::cluster;
use crate::pve::conf::document::Document;
use crate::pve::hookscript;
use crate::pve::storage;
use crate::pve::storage::FILE as STORAGES;
use crate::pve::storage::Storage;
use crate::sys::look::{Look, Op, Question, Seen, Stat};
use crate::sys::text::word;
use crate::types::Ctid;
use serde::Serialize;
use std::fmt;

/// What keeps a container from starting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Obstacle {
    /// It is a template.
    Template,
    /// Another operation owns it: `backup`, `migrate`, …
    Lock {
        /// The word in its conf.
        owner: String,
    },
    /// This node has no quorum.
    NoQuorum,
    /// Its hookscript cannot be run.
    Hookscript {
        /// As the conf has it.
        volume: String,
        /// What is wrong with it.
        why: &'static str,
        /// The file that would have to be executable.
        path: Option<String>,
    },
    /// A `devN` line's node is missing.
    Device {
        /// `dev0`
        key: String,
        /// The node.
        path: String,
    },
    /// A `devN` line that Proxmox cannot read.
    DeviceLine {
        /// `dev0`
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// What a mount point shows is missing.
    MountPoint {
        /// `mp0`
        key: String,
        /// The directory or device on the host.
        source: String,
    },
    /// What a start needs could not be looked at. That is not to say that it
    /// is missing; but what does not answer us keeps the start waiting too.
    Silent {
        /// `mp0`, `hookscript`, `HOOK_CHAIN`
        key: String,
        /// The file or directory on the host.
        source: String,
        /// Why it could not.
        why: String,
    },
    /// A volume's storage is not defined.
    Storage {
        /// `mp0`, `rootfs`
        key: String,
        /// The storage.
        storage: String,
    },
    /// Our pre-start would refuse: the chained hookscript.
    Chain {
        /// What is wrong with it, in one sentence.
        why: String,
        /// What mends that.
        fix: String,
    },
    /// Our pre-start would refuse: START_POLICY is fail.
    Policy {
        /// What is missing.
        missing: String,
    },
}

/// The answer that a container could be started again, just now. Only
/// [`judge`] makes one, and each stop takes one.
#[derive(Debug)]
#[must_use = "it allows one stop"]
pub struct Startable(Ctid);

impl Startable {
    /// Whose it is.
    pub fn ctid(&self) -> Ctid {
        self.0
    }
}

/// Allows one stop, if nothing is in the way.
///
/// # Errors
/// What is in the way.
pub fn judge(ctid: Ctid, obstacles: Vec<Obstacle>) -> Result<Startable, Vec<Obstacle>> {
    if obstacles.is_empty() { Ok(Startable(ctid)) } else { Err(obstacles) }
}

/// All that Proxmox would refuse the next start for. `files` is a look at what
/// [`questions`] ask: it lies on storages, which may never answer.
pub fn obstacles(look: &mut Look<'_>, files: &Look<'_>, conf: &Document) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if conf.get("template").as_deref() == Some("1") {
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
    let why = match files.stat(&path) {
        Seen::Is(stat) if !stat.is_file() => "is no file",
        Seen::Is(stat) if stat.mode & 0o111 == 0 => "cannot be executed",
        Seen::Is(_) => return None,
        Seen::Absent => "does not exist",
        Seen::Unseen(why) => {
            return Some(Obstacle::Silent { key: "hookscript".to_owned(), source: path, why });
        }
    };
    Some(Obstacle::Hookscript { volume, why, path: Some(path) })
}

fn devices(look: &Look<'_>, conf: &Document) -> Vec<Obstacle> {
    let missing = |DevLine { key, device, .. }: DevLine| match device {
        Err(why) => Some(Obstacle::DeviceLine { key, why: format!("{why:#}") }),
        Ok(device) if is_missing(look, &device.path) => Some(Obstacle::Device { key, path: device.path }),
        Ok(_) => None,
    };
    passthrough::next(conf).into_iter().filter_map(missing).collect()
}

/// Of a node in /dev itself, which the kernel answers from its memory.
fn is_missing(look: &Look<'_>, path: &str) -> bool {
    look.stat(path) == Seen::Absent
}

/// The root file system and the mount points of the next start: the key, and
/// a volume or an absolute path.
fn sources(conf: &Document) -> Vec<(String, String)> {
    let mount_points = pending::numbered(conf, "mp").into_iter().map(|(key, entry)| (key, entry.value));
    let root = pending::get(conf, "rootfs").map(|value| ("rootfs".to_owned(), value));
    let source = |(key, value): (String, String)| Some((key, property::get(&value, "volume", "volume")?));
    mount_points.chain(root).filter_map(source).collect()
}

fn volumes(files: &Look<'_>, conf: &Document, storages: &str) -> Vec<Obstacle> {
    let defined = storage::names(storages);
    let fault = |(key, source): (String, String)| {
        // Proxmox mounts a device, and binds nothing but a directory.
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
    /// Whether it goes by itself, so that waiting helps.
    pub fn passes(&self) -> bool {
        matches!(self, Obstacle::Lock { .. } | Obstacle::NoQuorum | Obstacle::Silent { .. })
    }

    /// Whether it is known. What could not be looked at may be as it should be.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Obstacle::Silent { .. })
    }

    /// Whether a stopped container would not start for it. What `pct mount`
    /// left is refused at a shutdown alone.
    pub fn refuses_start(&self) -> bool {
        !matches!(self, Obstacle::Lock { owner } if owner == "mounted")
    }

    /// What takes it away, on a running and on a stopped container alike.
    pub fn remedy(&self, ctid: Ctid) -> String {
        match self {
            Obstacle::Template => format!("pct clone {ctid} NEWID, and start the clone"),
            Obstacle::Lock { owner } if owner == "mounted" => format!("pct unmount {ctid}"),
            Obstacle::Lock { owner } => {
                format!(
                    "wait until the task that set the lock ({owner}) has ended; if none runs: pct unlock {ctid}"
                )
            }
            Obstacle::NoQuorum => "pvecm status, which shows the votes that are missing".to_owned(),
            Obstacle::Hookscript { volume, .. } if hookscript::is_ours_by_name(volume) => {
                format!("phoenix-nvidia attach {ctid}")
            }
            Obstacle::Hookscript { why: "cannot be executed", path: Some(path), .. } => {
                format!("chmod 755 {}", word(path))
            }
            Obstacle::Hookscript { .. } => format!("pct set {ctid} --delete hookscript"),
            Obstacle::Device { key, path } if path.starts_with("/dev/nvidia") => {
                format!(
                    "phoenix-nvidia prepare, which makes it; without the device: pct set {ctid} --delete {key}"
                )
            }
            Obstacle::Device { key, .. } | Obstacle::DeviceLine { key, .. } => {
                format!("pct set {ctid} --delete {key}")
            }
            Obstacle::MountPoint { key, source } => {
                format!("mount or make {}; without it: pct set {ctid} --delete {key}", word(source))
            }
            Obstacle::Silent { source, .. } => {
                format!("findmnt -T {}, which shows the storage to look after", word(source))
            }
            Obstacle::Storage { key, storage } => {
                format!(
                    "define storage {} (pvesm add); without it: pct set {ctid} --delete {key}",
                    word(storage)
                )
            }
            Obstacle::Chain { fix, .. } => fix.clone(),
            Obstacle::Policy { .. } => format!("phoenix-nvidia doctor {ctid}"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Template => f.write_str("it is a template"),
            Obstacle::Lock { owner } => write!(f, "its conf is locked ({owner})"),
            Obstacle::NoQuorum => f.write_str("this node has no quorum"),
            Obstacle::Hookscript { volume, why, .. } => write!(f, "its hookscript {volume} {why}"),
            Obstacle::Device { key, path } => write!(f, "{key} passes {path}, which does not exist"),
            Obstacle::DeviceLine { key, why } => write!(f, "{key} cannot be read: {why}"),
            Obstacle::MountPoint { key, source } => write!(f, "{key} mounts {source}, which does not exist"),
            Obstacle::Silent { key, source, why } => write!(f, "{key}: cannot check {source}: {why}"),
            Obstacle::Storage { key, storage } => {
                write!(f, "{key} is on storage {storage}, which does not exist")
            }
            Obstacle::Chain { why, .. } => f.write_str(why),
            Obstacle::Policy { missing } => write!(f, "START_POLICY is fail, and {missing}"),
        }
    }
}

/// Several in one line.
pub fn list(obstacles: &[Obstacle]) -> String {
    obstacles.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
