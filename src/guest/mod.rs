//! The container: running commands in it, and its NVIDIA user space.
//!
//! [`found::check`] looks, [`install::install`] brings the container to what
//! the [`wishes`] say, [`verify::verify`] has nvidia-smi confirm it. All that
//! comes out of a container is untrusted text: the worst it can do here is to
//! have its own container reinstalled, or the step fail.

pub mod apt;
pub mod attached;
pub mod changed;
mod driver;
pub mod exec;
pub mod found;
pub mod install;
pub mod leftover;
pub mod os;
pub mod package;
pub mod ready;
pub mod smi;
pub mod steps;
pub mod verify;
