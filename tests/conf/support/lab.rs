//! A lab with one container whose conf is edited, on the lab's own file
//! system or on one with pmxcfs's rules.
#![allow(dead_code)] // each test file uses a part
#![allow(clippy::unwrap_used, clippy::expect_used)]

use phoenix_lab::{Lab, Pmxcfs, Rootfs};

/// Where the container's files are, as the program sees them.
pub const CONF: &str = "/etc/pve/lxc/101.conf";
pub const GENERATED: &str = "/var/lib/lxc/101/config";
pub const PVE_LOCK: &str = "/run/lock/lxc/pve-config-101.lock";
/// Files that have writes on pmxcfs fail.
pub const CONTROL: &str = "/run/lab/control";

/// What /etc/pve is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The lab's own tmpfs.
    Plainly,
    /// FUSE, with pmxcfs's rules.
    AsPmxcfs,
}

/// A lab and, if need be, its file system server. Dropped in this order.
pub struct Host {
    _pmxcfs: Option<Pmxcfs>,
    pub lab: Lab,
}

impl Host {
    /// Container 101, stopped, on a host with `gpus` GPUs; `None` where there
    /// can be no lab.
    pub fn start(gpus: u32, served: Served) -> Option<Host> {
        let lab = Lab::builder().gpus(gpus).driver("580.95.05").start()?;
        lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
        let pmxcfs = (served == Served::AsPmxcfs).then(|| lab.pmxcfs());
        lab.create(101, Rootfs::Busybox.privileged());
        Some(Host { _pmxcfs: pmxcfs, lab })
    }

    /// The names in a directory that are temp files of anybody's.
    pub fn temp_files(&self) -> String {
        self.lab.sh("ls -A /etc/pve/lxc /var/lib/lxc/101 | grep -E 'phoenix-nvidia|tmp' || :").ok().stdout
    }
}
