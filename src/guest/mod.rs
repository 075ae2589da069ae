//! The container: running commands in it, and its NVIDIA user space.

pub mod lifecycle;
