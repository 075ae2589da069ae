//! The faults of a conf: what failed, why, and the remedy.

use crate::exit::{Code, Fault};
use crate::pve::conf::files::Conf;
use crate::pve::conf::open::{OpenError, TakeError};
use crate::sys::lock::LockError;
use nix::libc;
use std::io;
use std::path::Path;

/// Shows whether /etc/pve is mounted and answers.
pub const PVE_CLUSTER: &str = "systemctl status pve-cluster";

impl Conf {
    /// Adds to an error about a missing container which node has it.
    pub fn or_elsewhere(&self, error: anyhow::Error) -> anyhow::Error {
        let Some(node) = self.other_node() else { return error };
        let fault = Fault::new(Code::NoContainer, format!("container {} is on node {node}", self.ctid));
        error.context(fault.remedy(self.call_on(&node)))
    }

    pub(super) fn fault_at(&self, path: &Path, message: String) -> anyhow::Error {
        Fault::new(Code::Passthrough, message).remedy(format!("ls -l {}", path.display())).into()
    }

    pub(super) fn unreadable(&self, error: OpenError, missing: Code) -> anyhow::Error {
        let (ctid, path) = (self.ctid, &self.conf);
        match error {
            OpenError::Missing => self.missing(missing),
            OpenError::Io(error) => {
                let message = format!("cannot read {}: {error}", path.display());
                Fault::new(Code::Passthrough, message).remedy(PVE_CLUSTER).into()
            }
            other => self.fault_at(path, format!("container {ctid}: {}", describe(&other, path))),
        }
    }

    pub(super) fn missing(&self, code: Code) -> anyhow::Error {
        let ctid = self.ctid;
        let vanished = code != Code::NoContainer;
        if let Some(node) = self.other_node() {
            let what = if vanished { "was migrated: it is now" } else { "is" };
            let message = format!("container {ctid} {what} on node {node}");
            return Fault::new(code, message).remedy(self.call_on(&node)).into();
        }
        if let Some(node) = self.machine_on() {
            let message = format!("{ctid} is a virtual machine (on node {node}), not a container");
            return Fault::new(code, message).remedy("pct list").into();
        }
        let path = self.conf.display();
        let served = self.conf.parent().is_some_and(Path::is_dir);
        let (message, remedy) = if !served {
            (format!("{path} does not exist: /etc/pve is not mounted"), PVE_CLUSTER)
        } else if vanished {
            (format!("{path} is gone: container {ctid} was destroyed or migrated"), "pct list")
        } else {
            (format!("container {ctid} does not exist: no {path}"), "pct list")
        };
        Fault::new(code, message).remedy(remedy).into()
    }

    pub(super) fn not_locked(&self, error: TakeError) -> anyhow::Error {
        let error = match error {
            TakeError::Open(error) => return self.unreadable(error, Code::Passthrough),
            TakeError::Lock(error) => error,
        };
        let remedy = match &error {
            LockError::Busy { holder: Some(holder), .. } => {
                format!("wait for process {pid} to end (ps -fp {pid})", pid = holder.pid)
            }
            _ => "lslocks".to_owned(),
        };
        let message = format!("conf of container {} not changed", self.ctid);
        anyhow::Error::new(error).context(Fault::new(Code::Passthrough, message).remedy(remedy))
    }

    pub(super) fn not_written(&self, error: io::Error) -> anyhow::Error {
        let path = self.conf.display();
        let (why, remedy) = match error.raw_os_error() {
            Some(libc::EACCES | libc::EROFS | libc::EIO) => {
                ("no quorum: /etc/pve is read-only", "pvecm status")
            }
            Some(libc::ENOSPC | libc::EDQUOT) => ("no space left in /etc/pve", "df /etc/pve"),
            Some(libc::EFBIG) => ("too large for /etc/pve", "ls -l /etc/pve/lxc"),
            None | Some(libc::ENOENT) => ("another program keeps replacing it", "ls -l /etc/pve/lxc"),
            _ => ("nothing changed", PVE_CLUSTER),
        };
        let message = format!("cannot write {path}: {why}");
        anyhow::Error::new(error).context(Fault::new(Code::Passthrough, message).remedy(remedy))
    }
}

/// What is wrong with a file.
pub(super) fn describe(error: &OpenError, path: &Path) -> String {
    let path = path.display();
    match error {
        OpenError::Missing => format!("{path} does not exist"),
        OpenError::NotAFile(what) => format!("{path} is {what}, not a regular file"),
        OpenError::TooLarge => format!("{path} is larger than 1 MiB"),
        OpenError::Io(error) => format!("cannot read {path}: {error}"),
    }
}
