//! The reader of the host's files, and what it sees of a device node.

use super::gpus::Node;
pub use crate::sys::look::{Look, View};
use crate::sys::look::{Seen, Stat};

/// What stands at a path under /dev. A link there is followed: udev rules
/// may have made one.
pub fn node(look: &mut Look<'_>, path: &str) -> Node {
    match look.stat(path) {
        Seen::Absent => Node::Absent,
        Seen::Is(stat) => of(&stat),
        Seen::Unseen(why) => {
            look.problems.push(format!("cannot look at {path}: {why}"));
            Node::Unknown
        }
    }
}

fn of(stat: &Stat) -> Node {
    if stat.is_char_device() {
        let (major, minor) = stat.rdev;
        return Node::Device { major, minor, mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid };
    }
    Node::Other(match stat {
        s if s.is_dir() => "a directory",
        s if s.is_file() => "a regular file",
        s if s.is_block_device() => "a block device",
        _ => "no device",
    })
}
