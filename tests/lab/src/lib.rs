//! A Proxmox-shaped host on real LXC, in private namespaces, for the end-to-end tests.

pub mod cache;
pub mod nvidia;
pub mod repo;
pub mod web;
