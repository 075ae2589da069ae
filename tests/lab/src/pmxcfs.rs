//! /etc/pve of a lab as pmxcfs serves it, with a quorum that can be lost and found while containers run.

use std::time::{Duration, Instant};

use crate::command::Running;
use crate::files::Files;
use crate::lab::Lab;

/// Files in here have the file system refuse: see [`crate::fuse`].
const CONTROL: &str = "/run/lab/control";
/// The kernel keeps a mode for a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// The server of a lab's /etc/pve. Dropped, it ends, and /etc/pve with it.
pub struct Pmxcfs {
    server: Running,
    files: Files,
}

impl Lab {
    /// Has /etc/pve served with the rules of pmxcfs from now on; what is there is taken over.
    #[track_caller]
    pub fn pmxcfs(&self) -> Pmxcfs {
        self.sh(&format!("mkdir -p {CONTROL}; test -e /dev/fuse || mknod -m 600 /dev/fuse c 10 229")).ok();
        let arguments = ["/etc/pve", crate::ns::NODE, CONTROL];
        let command = self.command("/run/lab/bin/lab-pmxcfs").args(arguments);
        let mut server = command.timeout(Duration::from_secs(600)).spawn();
        let deadline = Instant::now() + PATIENCE;
        while !server.so_far().contains("serving") {
            assert!(!server.ended() && Instant::now() < deadline, "lab-pmxcfs: {}", server.so_far());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.sh("stat -f -c %T /etc/pve/lxc/").ok().says("fuse");
        Pmxcfs { server, files: self.files() }
    }

    /// Whether Proxmox takes this node to have quorum.
    pub fn quorate(&self) -> bool {
        self.sh("stat -c %A /etc/pve/local").ok().stdout.starts_with("lrw")
    }
}

impl Pmxcfs {
    /// From now on nothing in /etc/pve can be changed, not by root either. Returns once everybody sees it.
    #[track_caller]
    pub fn lose_quorum(&self, lab: &Lab) {
        self.files.write(format!("{CONTROL}/no-quorum"), "");
        self.wait(lab, false);
    }

    /// The quorum is back.
    #[track_caller]
    pub fn find_quorum(&self, lab: &Lab) {
        self.files.remove(format!("{CONTROL}/no-quorum"));
        self.wait(lab, true);
    }

    #[track_caller]
    fn wait(&self, lab: &Lab, wanted: bool) {
        let deadline = Instant::now() + PATIENCE;
        while lab.quorate() != wanted {
            assert!(Instant::now() < deadline, "quorum is not {wanted}: {}", self.server.so_far());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
