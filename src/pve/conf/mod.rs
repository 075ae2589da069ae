//! The container's conf: lossless, semantic, atomic, and right beside
//! Proxmox's own writers.
//!
//! [`document`] keeps every byte, [`devices`] and [`mounts`] find our entries,
//! [`reconcile`] edits them, [`before`] puts back what stood there before us,
//! [`rules`] and [`host_files`] find what others wrote (all pure), [`store`]
//! locks, reads and replaces the file, and its stamp tells one writing from the next.

pub mod before;
pub mod devices;
pub mod document;
mod faults;
mod files;
pub mod host_files;
mod line;
pub mod mounts;
mod open;
pub mod reconcile;
pub mod rules;
mod stamp;
pub mod store;

pub use faults::PVE_CLUSTER;

#[cfg(test)]
mod tests;
