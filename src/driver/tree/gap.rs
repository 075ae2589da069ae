//! What is there of a tree, what is not, and what it would be made of.

use crate::driver::supply::Place;
use crate::pve::conf::mounts::RUN;
use crate::types::Version;
use std::fmt;

/// The source of a container's mount.
pub fn source() -> String {
    format!("{RUN}/driver/current")
}

/// What a tree would be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Possible {
    /// Nothing: it is there.
    Kept,
    /// The host's own files.
    Host,
    /// A runfile.
    Runfile(Place),
}

impl fmt::Display for Possible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Possible::Kept => f.write_str("from its copy"),
            Possible::Host => f.write_str("from the host's own files"),
            Possible::Runfile(Place::Cached(file)) => write!(f, "unpacked from {}", file.display()),
            Possible::Runfile(Place::Download) => {
                f.write_str("unpacked from its runfile, which is downloaded")
            }
        }
    }
}

/// How a tree is shown to containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Behind an overlay.
    Overlay,
    /// By a bind mount: the kernel has no overlayfs that can be used here.
    Bind,
}

/// What is not there of a version's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Nobody made it.
    Tree,
    /// It lacks so many files.
    Files(usize),
    /// It is not mounted: nothing to bind.
    Mount,
    /// `current` leads to another version, or nowhere.
    Current,
}

impl Gap {
    /// In words.
    pub fn of(&self, version: &Version) -> String {
        match self {
            Gap::Tree => format!("no copy of driver {version} for containers"),
            Gap::Files(count) => format!("the copy of driver {version} for containers lacks {count} files"),
            Gap::Mount => format!("the copy of driver {version} for containers is not mounted"),
            Gap::Current => format!("{} does not lead to driver {version}", source()),
        }
    }
}

/// What is there of a tree, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// How it is shown, or what it lacks.
    pub shown: Result<Shown, Gap>,
    /// What one that is missing would be made of, or why of nothing.
    pub material: Option<Result<Possible, String>>,
}
