//! What is Proxmox's: the forms that its files share, and what it asks before
//! it starts a container. (Its conf files are in [`crate::conf`].)

pub mod passthrough;
pub mod pending;
pub mod property;
pub mod startable;
