//! The machine: its GPUs, its driver, its device nodes.

pub mod assignment;
pub mod choose;
pub mod diagnose;
pub mod driver;
pub mod facts;
pub mod gpus;
pub mod look;
pub mod masks;
pub mod mig;
pub mod nodes;
pub mod pci;
pub mod provide;
pub mod resolve;
pub mod smi;
