//! NVIDIA's user space on the host: the runfiles and the repository, and the
//! software that the settings ask for.

pub mod cache;
pub mod cdi;
pub mod desired;
pub mod injection;
pub mod obtain;
pub mod packages;
mod progress;
pub mod repo;
pub mod runfile;
pub mod source;
pub mod supply;
pub mod template;
pub mod tree;
