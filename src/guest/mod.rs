//! The container: running commands in it, and its NVIDIA user space.
//!
//! [`probe::check`] looks, [`install::install`] brings the container to what
//! is [`Desired`](crate::driver::desired::Desired), [`verify::verify`] has nvidia-smi confirm it. All that
//! comes out of a container is untrusted text: the worst it can do here is to
//! have its own container reinstalled, or the step fail.

pub mod attached;
pub mod boot;
pub mod changed;
pub mod exec;
pub mod install;
pub mod leftovers;

pub mod os;
pub mod package;
pub mod probe;
pub mod smi;
pub mod verify;
