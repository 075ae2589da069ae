//! Where the files of one container are, and which node has it.

use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As long as Proxmox itself waits for its lock.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The conf of one container, the config that Proxmox generates from it, and
/// their lock.
#[derive(Clone, Debug)]
pub struct Conf {
    pub(super) ctid: Ctid,
    pub(super) conf: PathBuf,
    pub(super) generated: PathBuf,
    pub(super) pve_lock: PathBuf,
    nodes: PathBuf,
    until: Option<Deadline>,
    /// The words of the present call, to be repeated on another node.
    call: Option<String>,
}

impl Conf {
    /// Those of this host.
    pub fn of(ctid: Ctid) -> Conf {
        Conf::under(Path::new("/"), ctid)
    }

    /// Those of the host whose root directory is `root`.
    pub fn under(root: &Path, ctid: Ctid) -> Conf {
        Conf {
            ctid,
            conf: root.join(format!("etc/pve/lxc/{ctid}.conf")),
            generated: root.join(format!("var/lib/lxc/{ctid}/config")),
            pve_lock: root.join(format!("run/lock/lxc/pve-config-{ctid}.lock")),
            nodes: root.join("etc/pve/nodes"),
            until: None,
            call: None,
        }
    }

    /// Sets the words of this call (`plan 101`): a remedy for a container on
    /// another node repeats them.
    #[must_use]
    pub fn called(mut self, words: impl Into<String>) -> Conf {
        self.call = Some(words.into());
        self
    }

    /// The command of this call.
    pub fn again(&self) -> String {
        format!("phoenix-nvidia {}", self.call.clone().unwrap_or_else(|| self.ctid.to_string()))
    }

    /// Waits for no lock beyond this deadline.
    #[must_use]
    pub fn until(mut self, deadline: &Deadline) -> Conf {
        self.until = Some(*deadline);
        self
    }

    /// The deadline for a lock that is taken now.
    pub(super) fn deadline(&self) -> Deadline {
        self.until.map_or_else(|| Deadline::after(LOCK_WAIT), |until| until.at_most(LOCK_WAIT))
    }

    /// The container.
    pub fn ctid(&self) -> Ctid {
        self.ctid
    }

    /// The path of the conf.
    pub fn path(&self) -> &Path {
        &self.conf
    }

    /// The node that has the container, if it is not this one.
    pub(super) fn other_node(&self) -> Option<String> {
        self.node_with("lxc")
    }

    /// The node that has a virtual machine of this number.
    pub(super) fn machine_on(&self) -> Option<String> {
        self.node_with("qemu-server")
    }

    fn node_with(&self, kind: &str) -> Option<String> {
        let name = self.conf.file_name()?;
        let mut nodes = std::fs::read_dir(&self.nodes).ok()?.flatten();
        let there = nodes.find(|node| node.path().join(kind).join(name).exists())?;
        Some(there.file_name().to_string_lossy().into_owned())
    }

    /// The command for the same call on another node.
    pub(super) fn call_on(&self, node: &str) -> String {
        format!("ssh {node} {}", self.again())
    }
}
