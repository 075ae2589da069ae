//! What the store's failures are called: what failed, on what, why, and the
//! command that shows or mends it.

use crate::exit::{Code, Fault};
use crate::pve::conf::open::OpenError;
use crate::pve::conf::open::TakeError;
use crate::pve::conf::store::Conf;
use crate::sys::lock::LockError;
use nix::libc;
use std::io;
use std::path::Path;

impl Conf {
    /// Adds to an error about a missing container where it is, if that is
    /// another node.
    pub fn or_elsewhere(&self, error: anyhow::Error) -> anyhow::Error {
        let Some(node) = self.other_node() else { return error };
        let fault = Fault::new(Code::NoContainer, format!("container {} is on node {node}", self.ctid));
        error.context(fault.remedy(self.there(&node)))
    }

    /// The same call on the node that has the container.
    fn there(&self, node: &str) -> String {
        format!("ssh {node} phoenix-nvidia {}", self.call.clone().unwrap_or_else(|| self.ctid.to_string()))
    }

    /// A fault of the host's side.
    pub(super) fn fault_at(&self, path: &Path, message: String) -> anyhow::Error {
        Fault::new(Code::Passthrough, message).remedy(format!("look at `ls -l {}`", path.display())).into()
    }

    pub(super) fn unreadable(&self, error: OpenError, missing: Code) -> anyhow::Error {
        let (ctid, path) = (self.ctid, &self.conf);
        match error {
            OpenError::Missing => self.missing(missing),
            OpenError::Io(error) => {
                let message = format!("cannot read {}: {error}", path.display());
                let remedy = "`systemctl status pve-cluster` shows whether /etc/pve is served";
                Fault::new(Code::Passthrough, message).remedy(remedy).into()
            }
            other => self.fault_at(path, format!("container {ctid}: {}", describe(&other, path))),
        }
    }

    pub(super) fn missing(&self, code: Code) -> anyhow::Error {
        let ctid = self.ctid;
        let vanished = code != Code::NoContainer;
        if let Some(node) = self.other_node() {
            let what = if vanished { "was migrated meanwhile: it is now" } else { "is" };
            let message = format!("container {ctid} {what} on node {node}");
            return Fault::new(code, message).remedy(self.there(&node)).into();
        }
        if let Some(node) = self.machine_on() {
            let message = format!("{ctid} is a virtual machine (on node {node}), not a container");
            return Fault::new(code, message).remedy("pct list").into();
        }
        let path = self.conf.display();
        let served = self.conf.parent().is_some_and(Path::is_dir);
        let (message, remedy) = if !served {
            let what = format!("{path} does not exist, and neither does its directory");
            (what, "`systemctl status pve-cluster` shows whether /etc/pve is served")
        } else if vanished {
            let what = format!("{path} has vanished: container {ctid} was destroyed or migrated meanwhile");
            (what, "`pct list` shows the containers of this node")
        } else {
            let what = format!("container {ctid} does not exist: there is no {path}");
            (what, "`pct list` shows the containers of this node")
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
                format!("wait until it has ended; `ps -fp {}` shows it", holder.pid)
            }
            _ => "run it again; `lslocks` shows who holds what".to_owned(),
        };
        let message = format!("the conf of container {} was not changed", self.ctid);
        anyhow::Error::new(error).context(Fault::new(Code::Passthrough, message).remedy(remedy))
    }

    pub(super) fn not_written(&self, error: io::Error) -> anyhow::Error {
        let path = self.conf.display();
        let (why, remedy) = match error.raw_os_error() {
            Some(libc::EACCES | libc::EROFS | libc::EIO) => (
                "the cluster has no quorum, and without it nothing under /etc/pve can be changed",
                "`pvecm status` shows the quorum",
            ),
            Some(libc::ENOSPC | libc::EDQUOT) => ("no space is left there", "`df /etc/pve` shows it"),
            Some(libc::EFBIG) => ("it would be too large", "`ls -l /etc/pve/lxc` shows its size"),
            None | Some(libc::ENOENT) => (
                "somebody else replaced it again and again, or it vanished",
                "`ls -l /etc/pve/lxc` shows what is there; then run it again",
            ),
            _ => ("nothing was changed", "`systemctl status pve-cluster` shows whether /etc/pve is served"),
        };
        let message = format!("cannot write {path}: {why}");
        anyhow::Error::new(error).context(Fault::new(Code::Passthrough, message).remedy(remedy))
    }
}

/// What is wrong with a file, in one sentence.
pub(super) fn describe(error: &OpenError, path: &Path) -> String {
    let path = path.display();
    match error {
        OpenError::Missing => format!("{path} does not exist"),
        OpenError::NotAFile(what) => format!("{path} is {what}, so it is left alone"),
        OpenError::TooLarge => format!("{path} is larger than 1 MiB, so it is left alone"),
        OpenError::Io(error) => format!("cannot read {path}: {error}"),
    }
}
