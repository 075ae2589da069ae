//! Starts under bad conditions: programs that hang, files that lie, processes that are killed.

#[path = "../robust/support/mod.rs"]
mod robust_support;

mod changed;
mod guest;
mod inherited;
mod install;
mod kill;
mod locks;
mod odd_files;
mod phases;
mod programs;
mod reads;
mod restarts;
mod startable;
mod systemd;
mod terminal;
