//! The container's conf: edited losslessly, atomically, and right beside Proxmox's own writers.

#[path = "support/mod.rs"]
mod conf_support;
#[path = "support/files.rs"]
mod files;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/on_pmxcfs.rs"]
mod on_pmxcfs;

mod concurrency;
mod corpus;
mod crash;
mod in_lab;
mod properties;
mod store;
