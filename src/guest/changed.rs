//! Why work that was begun in a container must not go on in it.

use crate::types::{Ctid, Version};
use std::fmt;
use std::rc::Rc;

use super::exec::ExecError;

/// What is asked before each command of a work: whether the container is still
/// the one that it was begun in, and still asks for it.
pub type Guard = Rc<dyn Fn() -> Result<(), ExecError>>;

/// What is not any more as it was when the work began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Another container has its number.
    Replaced {
        /// The number.
        ctid: Ctid,
        /// What told the former one from others.
        was: String,
        /// The same of the present one.
        is: String,
    },
    /// This node has none of its number: destroyed, or migrated.
    NotHere(Ctid),
    /// Whether it is the same cannot be seen, and why.
    Unseen(Ctid, String),
    /// Its hookscript is not ours any more: detached, or rolled back.
    Detached(Ctid),
    /// `GPU_ASSIGNMENT` is set nowhere any more.
    Unassigned(Ctid),
    /// `INSTALL` is off now.
    Off(Ctid),
    /// Its settings want another driver now.
    OtherDriver(Ctid, Version),
    /// No kernel driver is loaded any more, whose version was wanted.
    NoDriver,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Changed::Replaced { ctid, was, is } => {
                write!(f, "container {ctid} is another one now ({is}, not {was})")
            }
            Changed::NotHere(ctid) => write!(f, "container {ctid} is not on this node any more"),
            Changed::Unseen(ctid, why) => {
                write!(f, "cannot tell whether container {ctid} is the same: {why}")
            }
            Changed::Detached(ctid) => write!(f, "container {ctid} no longer has the hookscript"),
            Changed::Unassigned(ctid) => write!(f, "GPU_ASSIGNMENT of container {ctid} is no longer set"),
            Changed::Off(ctid) => write!(f, "INSTALL of container {ctid} is off now"),
            Changed::OtherDriver(ctid, version) => {
                write!(f, "the settings of container {ctid} want driver {version} now")
            }
            Changed::NoDriver => f.write_str("no NVIDIA kernel driver is loaded any more"),
        }
    }
}

impl std::error::Error for Changed {}
