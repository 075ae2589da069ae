//! phoenix-nvidia: NVIDIA GPUs and the matching driver for Proxmox VE
//! containers.
//!
//! One way for the data: settings and facts are read, [`plan`](crate) joins
//! them into steps, apply carries them out, report tells. The rooms depend on
//! one another in one direction only: commands → {settings, conf, host,
//! guest} → sys.

pub mod conf;
pub mod exit;
pub mod guest;
pub mod host;
pub mod settings;
pub mod sys;
pub mod types;
