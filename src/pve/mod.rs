//! Proxmox: its files, one parser each, and its programs.

pub mod cgroup;
pub mod cluster;
pub mod conf;
pub mod datacenter;
pub mod hookscript;
pub mod in_force;
pub mod net;
pub mod passthrough;
pub mod pct;
pub mod pending;
pub mod property;
pub mod readiness;
pub mod sections;
pub mod sharing;
pub mod startable;
pub mod storage;
pub mod vms;
