//! The machine: its GPUs, its driver, its device nodes.

pub mod caps_dir;
pub mod cards;
pub mod choose;
pub mod device_node;
pub mod diagnose;
pub mod drm;
pub mod facts;
pub mod gpus;
pub mod kernel_driver;
pub mod kernel_log;
pub mod masks;
pub mod mig;
pub mod modules;
mod new_node;
pub mod nodes;
pub mod nvidia_smi;
pub mod provide;
pub mod resolve;
pub mod supported;
