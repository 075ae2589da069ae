//! Why an install that began in a container must end.

use crate::types::{Ctid, Version};
use std::fmt;

/// What has changed since the install began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Another container has its number.
    Replaced {
        /// The number.
        ctid: Ctid,
        /// The identity of the former one.
        was: String,
        /// The identity of the present one.
        is: String,
    },
    /// It is not on this node: destroyed, or migrated.
    NotHere(Ctid),
    /// Whether it is the same is unknown, and why.
    Unseen(Ctid, String),
    /// Its hookscript is no longer ours: detached, or rolled back.
    Detached(Ctid),
    /// `GPU_ASSIGNMENT` is no longer set.
    Unassigned(Ctid),
    /// `INSTALL` is now off.
    Off(Ctid),
    /// Its settings now ask for another driver.
    OtherDriver(Ctid, Version),
    /// `NVIDIA_DRIVER_VERSION` is `host`, and no kernel driver is loaded.
    NoDriver,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Changed::Replaced { ctid, was, is } => {
                write!(f, "container {ctid} was replaced by another one ({is}, was {was})")
            }
            Changed::NotHere(ctid) => write!(f, "container {ctid} is no longer on this node"),
            Changed::Unseen(ctid, why) => {
                write!(f, "cannot verify that container {ctid} is still the same: {why}")
            }
            Changed::Detached(ctid) => write!(f, "container {ctid} no longer has the hookscript"),
            Changed::Unassigned(ctid) => write!(f, "GPU_ASSIGNMENT of container {ctid} is no longer set"),
            Changed::Off(ctid) => write!(f, "INSTALL of container {ctid} is now off"),
            Changed::OtherDriver(ctid, version) => {
                write!(f, "the settings of container {ctid} now ask for driver {version}")
            }
            Changed::NoDriver => f.write_str("the NVIDIA kernel driver is no longer loaded"),
        }
    }
}

impl std::error::Error for Changed {}
