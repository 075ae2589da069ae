//! A host in a temporary directory, for the tests of the conf as a file.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a failing helper fails its test; other writers are played here

use phoenix_nvidia::exit::{Code, code_of, one_line, remedy_of};
use phoenix_nvidia::pve::conf::document::Document;
use phoenix_nvidia::pve::conf::store::{Caller, Conf};
use phoenix_nvidia::sys::time::Deadline;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;
use std::time::Duration;

pub const TEXT: &str = "arch: amd64\nmemory: 512\n\n[snap]\nmemory: 256\n";

/// Set for the run on pmxcfs's rules.
pub const ON_PMXCFS: &str = "PHOENIX_TEST_ON_PMXCFS";

pub struct Host {
    // In this order: unmounted before the directory goes.
    pub pmxcfs: Option<phoenix_lab::fuse::Served>,
    pub root: tempfile::TempDir,
    pub conf: Conf,
}

impl Host {
    pub fn new() -> Host {
        let root = tempfile::tempdir().unwrap();
        let at = |inside: &str| root.path().join(inside);
        for directory in ["etc/pve/nodes/two/lxc", "var/lib/lxc/101", "run/lock/lxc", "control"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        let pmxcfs = match std::env::var_os(ON_PMXCFS) {
            Some(_) => Some(phoenix_lab::fuse::mount(&at("etc/pve"), "one", Some(at("control"))).unwrap()),
            None => {
                std::fs::create_dir_all(at("etc/pve/nodes/one/lxc")).unwrap();
                symlink("nodes/one/lxc", at("etc/pve/lxc")).unwrap();
                None
            }
        };
        let conf = Conf::under(root.path(), "101".parse().unwrap());
        let host = Host { pmxcfs, root, conf };
        std::fs::write(host.conf.path(), TEXT).unwrap();
        host
    }

    pub fn on_pmxcfs(&self) -> bool {
        self.pmxcfs.is_some()
    }

    /// Has each write on pmxcfs fail: `no-quorum`, `full` or `eio`.
    pub fn writes_meet(&self, what: &str) {
        std::fs::write(self.path("control").join(what), "").unwrap();
    }

    /// The conf, with little patience for each lock.
    pub fn impatient(&self) -> Conf {
        self.conf.clone().until(&Deadline::after(Duration::from_millis(400)))
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(self.conf.path()).unwrap()
    }

    pub fn inode(&self) -> u64 {
        self.conf.path().symlink_metadata().unwrap().ino()
    }

    /// The names in the directory of the confs.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("etc/pve/lxc")).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Replaces the conf as Proxmox does.
    pub fn replace_as_proxmox(&self, text: &str) {
        let temp = self.path("etc/pve/lxc/101.conf.tmp.1");
        std::fs::write(&temp, text).unwrap();
        std::fs::rename(temp, self.conf.path()).unwrap();
    }

    /// A lock as another process holds it: one of its own on an own opening.
    pub fn hold(&self, path: PathBuf) -> File {
        let file = File::options().append(true).create(true).open(path).unwrap();
        fs2::FileExt::try_lock_exclusive(&file).unwrap();
        file
    }

    pub fn hold_proxmox_lock(&self) -> File {
        self.hold(self.path("run/lock/lxc/pve-config-101.lock"))
    }

    pub fn set(&self, who: Caller, value: &str) -> anyhow::Result<bool> {
        self.impatient().edit(who, |document| set(document, value)).map(|done| done.is_some())
    }

    /// That an edit fails with code 4, says `what`, and leaves all as it was.
    pub fn refuses(&self, who: Caller, what: &str) {
        let before = (std::fs::read(self.conf.path()).ok(), self.names());
        let error = self.set(who, "9").unwrap_err();
        assert_eq!(code_of(&error), Code::Passthrough, "{error:#}");
        assert!(one_line(&error).contains(what), "{error:#} does not say {what:?}");
        assert!(remedy_of(&error).is_some(), "{error:#}");
        assert_eq!(before, (std::fs::read(self.conf.path()).ok(), self.names()));
    }
}

/// An edit that every document without the wanted value needs.
pub fn set(document: &Document, value: &str) -> Option<Document> {
    document.set_environment(&"A".parse().unwrap(), Some(&value.parse().unwrap()))
}
