//! What is at a path under /dev.

use super::drm;
use crate::device::{DevicePath, Number};
use crate::sys::look::{Look, Seen, Stat};

/// What is at a path under /dev.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceNode {
    /// Nothing.
    Absent,
    /// A character device.
    Device {
        /// Its number.
        number: Number,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Something else: a regular file, a directory.
    Other(&'static str),
    /// Could not be read; the reason is in the problems.
    Unknown,
}

impl DeviceNode {
    /// Reads the node at `path`. Follows a symlink, since udev rules may make one; but
    /// none in the capabilities' directory: up to version 0.2.0 containers had it, and
    /// root of a privileged one could put a link to anything there.
    pub fn at(look: &mut Look<'_>, path: DevicePath) -> DeviceNode {
        let seen = match path {
            DevicePath::CapFile(_) => look.stat_link(&path.on_host()),
            _ => look.stat(&path.on_host()),
        };
        match seen {
            Seen::Absent => DeviceNode::Absent,
            Seen::Is(_) if path.is_drm() && !drm::is_mounted(look) => DeviceNode::Absent,
            Seen::Is(stat) => DeviceNode::of(&stat),
            Seen::Unseen(why) => {
                look.problems.push(format!("cannot access {}: {why}", path.on_host()));
                DeviceNode::Unknown
            }
        }
    }

    fn of(stat: &Stat) -> DeviceNode {
        if stat.is_char_device() {
            let (major, minor) = stat.rdev;
            let (number, mode) = (Number { major, minor }, stat.mode & 0o7777);
            return DeviceNode::Device { number, mode, uid: stat.uid, gid: stat.gid };
        }
        DeviceNode::Other(match stat {
            s if s.is_dir() => "a directory",
            s if s.is_file() => "a regular file",
            s if s.is_block_device() => "a block device",
            s if s.is_link() => "a symlink",
            _ => "another type of file",
        })
    }

    /// Whether this is the character device with this number.
    pub fn is(&self, wanted: Number) -> bool {
        matches!(self, DeviceNode::Device { number, .. } if *number == wanted)
    }
}
