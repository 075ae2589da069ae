//! The machine: its GPUs, its driver, its device nodes.
