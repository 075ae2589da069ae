//! A Proxmox-shaped host on real LXC, in private namespaces, for the end-to-end tests.
//!
//! A lab is a machine of its own as far as files, processes, devices and network go: its root is an overlay of this
//! machine's root whose changes live in memory, so a test uses the real paths (`/etc/pve/lxc/101.conf`,
//! `/dev/nvidia0`, `/usr/sbin/pct`) and leaves nothing behind. Labs run in parallel. It needs root and LXC; where
//! they are missing, a test is skipped, or fails if `CI=true` or `PHOENIX_REQUIRE_LAB=1`.
//!
//! ```no_run
//! use phoenix_lab::{Lab, Rootfs};
//!
//! // None: no lab on this machine; the reason has been printed.
//! let Some(lab) = Lab::builder().gpus(2).driver("580.95.05").start() else { return };
//! // The binary under test at /usr/sbin/phoenix-nvidia, and the snippet; in a test of the root crate:
//! // lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
//! let ct = lab.create(101, Rootfs::Busybox.privileged());
//! lab.append("/etc/pve/lxc/101.conf", "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n");
//! lab.append("/etc/pve/lxc/101.conf", "lxc.cgroup2.devices.allow: c 195:0 rwm\n");
//! // ok(), code(3), says("…") panic with the command, its status and both of its outputs.
//! lab.run(["pct", "start", "101"]).ok();
//! ct.exec(["sh", "-c", "echo hello from inside"]).ok().says("hello");
//! // Allowed, and no driver behind it.
//! assert_eq!(ct.open_node("/dev/nvidia0"), Err(phoenix_lab::Errno::ENXIO));
//! // A command of any other shape: environment, input, time limit, in the background.
//! let slow = lab.command("sleep").arg("5").spawn();
//! lab.nvidia().set_driver("590.48.01");
//! assert!(lab.read("/proc/driver/nvidia/version").contains("590.48.01"));
//! drop(slow);
//! ```
//!
//! Rooms: `ns` makes the namespaces and the root, `host` is the files and programs of the lab's host, `gpus` what its
//! NVIDIA driver shows, `rootfs` the cached container images, `container` one container, `command` runs programs,
//! `kmod` has kernel modules and what reads them,
//! `leftovers` counts what they leave, `cases` runs cases where
//! cargo's test harness is not, `pct` is the program that stands in for Proxmox', and `pmxcfs` serves /etc/pve with
//! a quorum that can be lost. `nvidia`, `repo` and `web`
//! are NVIDIA's runfile and programs, package repositories, and the server that offers them.

pub mod cache;
pub mod cases;
pub mod command;
pub mod container;
pub mod files;
pub mod fuse;
pub mod gpus;
pub mod host;
pub mod kmod;
pub mod leftovers;
pub mod ns;
pub mod nvidia;
pub mod pct;
pub mod repo;
pub mod rootfs;
pub mod web;

mod lab;
mod pmxcfs;
mod program;
mod starting;

pub use command::{Command, Output, Running};
pub use container::Container;
pub use gpus::Nvidia;
pub use lab::{Builder, Lab, required, skipped, thorough};
pub use nix::errno::Errno;
pub use nix::sys::signal::Signal;
pub use pmxcfs::Pmxcfs;
pub use rootfs::{Rootfs, Spec};
