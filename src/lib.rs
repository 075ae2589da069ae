//! phoenix-nvidia: NVIDIA GPUs and the matching driver for Proxmox VE
//! containers.
//!
//! The data flows one way: settings and facts are read, [`plan`] joins them
//! into what is wanted, [`job`] carries it out, [`state`] records it. The rooms
//! depend on one another in one direction only: commands → findings → job →
//! {settings, state, plan} → guest → driver → host → pve → device → sys.

pub mod cli;
pub mod commands;
pub mod device;
pub mod driver;
pub mod exit;
pub mod findings;
pub mod guest;
pub mod host;
pub mod job;
pub mod plan;
pub mod pve;
pub mod settings;
pub mod state;
pub mod sys;
pub mod types;
