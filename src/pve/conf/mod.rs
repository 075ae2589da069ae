//! The container's conf: lossless, semantic, atomic, and right beside
//! Proxmox's own writers.
//!
//! [`document`] keeps every byte, [`devices`] works out the wanted pairs
//! (pure) and [`mounts`] the other entries of ours, [`store`] locks, reads and replaces the file.

pub mod devices;
pub mod document;
mod faults;
mod line;
pub mod mounts;
mod open;
pub mod reconcile;
pub mod store;

#[cfg(test)]
mod tests;
