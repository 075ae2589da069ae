//! Whether Proxmox would start a container again.
//!
//! `pct reboot` stops a container without asking, and so does `pct shutdown`
//! without quorum; only the start is refused, and the container stays down.
//! So this is asked before anything that stops one, and a stop is not to be
//! had without the answer: [`crate::guest::lifecycle`] wants a [`Startable`].
//!
//! Read in pve-container 6.1.10: `pct start` asks quorum, template and
//! `lock:`; `update_lxc_config` the `devN` nodes; `PVE::GuestHelpers` the
//! hookscript; LXC's own pre-start hook quorum and `lock:` once more, and the
//! mount points. HA changes none of that.

use super::passthrough::{self, DevLine};
use super::{pending, property};
use crate::conf::document::Document;
use crate::host::cluster;
use crate::host::look::Look;
use crate::host::sections;
use crate::host::storage::{self, FILE as STORAGES, Storage};
use crate::sys::look::{Op, Question, Seen};
use crate::sys::process::{Cmd, Failure};
use crate::sys::time::Deadline;
use crate::types::Ctid;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// A directory of a storage that does not answer keeps a start waiting too.
const STORAGE_TIME: Duration = Duration::from_secs(5);
const TEST: &str = "/usr/bin/test";

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
    /// The same, and nobody knows: it does not answer.
    Silent {
        /// `mp0`
        key: String,
        /// The directory on the host.
        source: String,
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

/// All that Proxmox would refuse the next start for. `files` is a look at the
/// storage that the hookscript is on, which may never answer.
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
    found.extend(volumes(look, conf, &storages));
    found
}

/// What [`obstacles`] asks of `files`.
pub fn questions(storages: &[Storage], conf: &Document) -> Vec<Question> {
    let volume = pending::get(conf, "hookscript").unwrap_or_default();
    let path = storage::path_of(storages, &volume);
    path.iter().map(|path| Question::new(Op::Stat, path.to_string_lossy())).collect()
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
        Seen::Unseen(_) => return Some(Obstacle::Silent { key: "hookscript".to_owned(), source: path }),
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

/// The value of a property that may stand without its key.
fn part(value: &str, key: &str) -> Option<String> {
    let parts = property::parse(value, key).ok()?;
    parts.into_iter().find(|(k, _)| *k == key).map(|(_, value)| value.to_owned())
}

fn is_missing(look: &Look<'_>, path: &str) -> bool {
    std::fs::metadata(look.at(path)).is_err_and(|error| is_absent(&error))
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn volumes(look: &Look<'_>, conf: &Document, storages: &str) -> Vec<Obstacle> {
    let defined = sections::parse(storages);
    let known = |storage: &str| storage == "local" || defined.iter().any(|s| s.id == storage);
    let mut all: Vec<(String, String)> =
        pending::numbered(conf, "mp").into_iter().map(|(key, entry)| (key, entry.value)).collect();
    all.extend(pending::get(conf, "rootfs").map(|value| ("rootfs".to_owned(), value)));
    let fault = |(key, value): (String, String)| {
        let source = part(&value, "volume")?;
        if source.starts_with("/dev/") {
            return is_missing(look, &source).then_some(Obstacle::MountPoint { key, source });
        }
        if source.starts_with('/') {
            return directory(look, key, source);
        }
        let storage = source.split_once(':')?.0.to_owned();
        (!known(&storage)).then_some(Obstacle::Storage { key, storage })
    };
    all.into_iter().filter_map(fault).collect()
}

/// The directory of a bind mount, which may lie on a share whose server is
/// gone: a process that can be left behind looks.
fn directory(look: &Look<'_>, key: String, source: String) -> Option<Obstacle> {
    let path = look.at(&source);
    match Cmd::new(TEST).arg("-d").arg(path).run(&Deadline::after(STORAGE_TIME)) {
        Ok(out) if out.code() == Some(1) => Some(Obstacle::MountPoint { key, source }),
        Err(Failure::TimedOut { .. }) => Some(Obstacle::Silent { key, source }),
        _ => None,
    }
}

impl Obstacle {
    /// Whether it goes by itself, so that waiting helps.
    pub fn passes(&self) -> bool {
        matches!(self, Obstacle::Lock { .. } | Obstacle::NoQuorum | Obstacle::Silent { .. })
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
            Obstacle::Hookscript { volume, .. } if volume.ends_with(":snippets/phoenix-nvidia") => {
                format!("phoenix-nvidia attach {ctid}")
            }
            Obstacle::Hookscript { why: "cannot be executed", path: Some(path), .. } => {
                format!("chmod 755 {path}")
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
                format!("mount or make {source}; without it: pct set {ctid} --delete {key}")
            }
            Obstacle::Silent { source, .. } => {
                format!("findmnt -T {source}, which shows the storage to look after")
            }
            Obstacle::Storage { key, storage } => {
                format!("define storage {storage} (pvesm add); without it: pct set {ctid} --delete {key}")
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
            Obstacle::Silent { key, source } => write!(f, "{key}: {source} does not answer"),
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
mod tests {
    use super::*;
    use std::path::Path;

    /// A host with quorum, a hookscript, a directory and a device.
    fn host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in ["etc/pve/nodes/pve1", "dev", "srv/there", "var/lib/vz/snippets"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::os::unix::fs::symlink("nodes/pve1", dir.path().join("etc/pve/local")).unwrap();
        let file = |path: &str, mode| {
            crate::sys::replace::replace_own(&dir.path().join(path), b"x", mode).unwrap();
        };
        file("dev/there", 0o644);
        file("var/lib/vz/snippets/mine", 0o755);
        file("var/lib/vz/snippets/plain", 0o644);
        dir
    }

    fn of(root: &Path, conf: &str) -> Vec<Obstacle> {
        obstacles(&mut Look::new(root), &Look::new(root), &Document::parse(conf.as_bytes()))
    }

    #[test]
    fn a_container_with_all_that_it_needs_is_startable() {
        let dir = host();
        let conf = "rootfs: local:101/x.raw,size=4G\nhookscript: local:snippets/mine\ndev0: /dev/there,gid=4\n\
                    mp0: /srv/there,mp=/there\nmp1: local:101/y.raw,mp=/y\ntemplate: 0\n\n[snap]\nlock: backup\n";
        assert_eq!(of(dir.path(), conf), []);
        let ctid: Ctid = "101".parse().unwrap();
        assert_eq!(judge(ctid, Vec::new()).unwrap().ctid(), ctid);
        assert_eq!(judge(ctid, vec![Obstacle::NoQuorum]).unwrap_err(), [Obstacle::NoQuorum]);
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        let dir = host();
        let said = |conf: &str| list(&of(dir.path(), conf));
        for (line, wanted) in [
            ("template: 1", "it is a template"),
            ("lock: backup", "its conf is locked (backup)"),
            ("hookscript: local:snippets/gone", "its hookscript local:snippets/gone does not exist"),
            ("hookscript: local:snippets/plain", "its hookscript local:snippets/plain cannot be executed"),
            (
                "hookscript: gone:snippets/mine",
                "its hookscript gone:snippets/mine is in no storage of this node",
            ),
            ("dev3: gid=4,path=/dev/gone", "dev3 passes /dev/gone, which does not exist"),
            ("dev3: gid=4", "dev3 cannot be read: no path is given"),
            ("mp0: /srv/gone,mp=/x", "mp0 mounts /srv/gone, which does not exist"),
            ("mp0: mp=/x,volume=/dev/gone", "mp0 mounts /dev/gone, which does not exist"),
            ("mp1: gone:vm-101-disk-1,mp=/x", "mp1 is on storage gone, which does not exist"),
        ] {
            assert_eq!(said(&format!("{line}\n")), wanted, "{line}");
        }
        // What is pending is what the next start goes by.
        assert_eq!(said("dev0: /dev/gone\n[pve:pending]\ndelete: dev0\n"), "");
        assert_eq!(said("[pve:pending]\ndev0: /dev/gone\n"), "dev0 passes /dev/gone, which does not exist");
    }

    #[test]
    fn without_a_local_directory_there_is_no_quorum() {
        let dir = host();
        std::fs::remove_file(dir.path().join("etc/pve/local")).unwrap();
        assert_eq!(of(dir.path(), ""), [Obstacle::NoQuorum]);
    }

    #[test]
    fn the_lock_of_a_mounted_container_refuses_no_start() {
        let lock = |owner: &str| Obstacle::Lock { owner: owner.to_owned() };
        assert!(!lock("mounted").refuses_start() && lock("backup").refuses_start());
        assert!(lock("backup").passes() && !Obstacle::Template.passes());
    }

    #[test]
    fn a_field_tells_what_it_is() {
        let text = serde_json::to_string(&Obstacle::Lock { owner: "backup".into() }).unwrap();
        assert_eq!(text, r#"{"kind":"lock","owner":"backup"}"#);
        assert_eq!(serde_json::to_string(&Obstacle::NoQuorum).unwrap(), r#"{"kind":"no-quorum"}"#);
    }
}
