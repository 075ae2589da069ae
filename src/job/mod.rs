//! The work in a container as a process of its own: what starts it, follows
//! it, and keeps two of them apart.

pub mod again;
pub mod by_hand;
pub mod chain;
pub mod desired;
pub mod devices;
pub mod follow;
pub mod handover;
pub mod identity;
pub mod in_force;
pub mod injection;
pub mod install;
pub mod live;
pub mod locks;
pub mod mode;
pub mod nested;
pub mod occupied;
pub mod reboot;
pub mod seen;
pub mod startable;
pub mod undo;
pub mod worker;
