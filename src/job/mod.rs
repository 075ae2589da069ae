//! The work in a container as a process of its own: what starts it, follows
//! it, and keeps two of them apart.

pub mod bring;
pub mod chain;
pub mod desired;
pub mod follow;
pub mod locks;
pub mod reboot;
pub mod recorded;
pub mod same;
pub mod startable;
pub mod undo;
pub mod worker;
