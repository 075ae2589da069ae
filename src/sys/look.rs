//! Reads files, distinguishes "absent" from "not readable", and reads files that
//! may block forever in another process.
//!
//! A file that can block in a system call that no signal ends is read only
//! through [`View::apart`]:
//!
//! | what | because |
//! | --- | --- |
//! | anything below `/proc/PID/root` | a container can mount a FUSE file system over a device node |
//! | `/proc/PID/environ`, `cmdline`, `maps`, `smaps` | they wait for the lock on the process's memory, or for a page of it |
//! | `/proc/driver/nvidia` | the driver holds the lock of a card while it waits for a lost card |
//! | files of a storage, the source of a mount point | NFS without its server, FUSE |
//!
//! Files that the kernel answers from memory are read directly:
//! `/proc/PID/stat`, `status`, `cgroup`, `mountinfo`, `comm` and `ns`,
//! `/proc/devices`, `/proc/locks`, `/sys/module`, `/sys/bus/pci` (but
//! `config`), `/sys/fs/cgroup`, `/dev` itself. So is `/etc/pve` in a
//! start and by hand: while pmxcfs does not answer, Proxmox starts nothing. At boot, for
//! apt's hook, and before a download it is read apart.
//!
//! The other process is our own program, `phoenix-nvidia look` ([`serve`]). It
//! makes the same [`Walk`] as the caller does afterwards over its answers, and so
//! reads a whole tree at once.

mod client;
mod protocol;
mod reader;
mod server;
mod shared;

pub use protocol::{Op, Question, Stat};
pub use reader::{Look, Questions, Seen, View, Walk};
pub use server::{entry, serve};

#[cfg(test)]
#[path = "look/tests.rs"]
mod tests;
