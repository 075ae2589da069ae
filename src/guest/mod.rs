//! The container: running commands in it, and its NVIDIA user space.
//!
//! [`probe::check`] finds what is installed, [`install::install`] installs what
//! is [`Desired`](crate::driver::desired::Desired), [`verify::verify`] has
//! nvidia-smi confirm it. All output of a container is untrusted text: at worst
//! its own install is repeated or fails.

pub mod attached;
pub mod boot;
pub mod cdi;
pub mod changed;
pub mod driver_state;
pub mod exec;
pub mod install;
pub mod leftovers;
pub mod link;
pub mod mounted;
pub mod os;
pub mod own;
pub mod packaged;
pub mod probe;
pub mod smi;
pub mod uninstall;
pub mod verify;
