//! What is Proxmox's: the forms that its files share. (Its conf files are in
//! [`crate::conf`].)

pub mod passthrough;
pub mod property;
