//! The machine: its GPUs, its driver, its device nodes.

pub mod assignment;
pub mod choose;
pub mod driver;
pub mod facts;
pub mod gpus;
pub mod look;
pub mod mig;
pub mod pci;
mod resolve;
