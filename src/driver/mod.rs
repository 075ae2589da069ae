//! NVIDIA's user space on the host: the runfiles that are fetched and kept,
//! the repository's keys, and what the settings ask for.

pub mod cache;
pub mod desired;
pub mod packages;
pub mod progress;
pub mod repo;
pub mod runfile;
pub mod template;
