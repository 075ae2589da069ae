//! The NVIDIA devices that a running container has, from its mount table, and from
//! the note of its rules: its conf may have changed since its start.

use crate::device::{CAPS_DIR, DevicePath, Number};
use crate::pve::in_force::{self, InForce};
use crate::pve::pct::Init;
use crate::sys::look::{Look, Op, Question, Seen, View};
use crate::sys::mountinfo;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The limit of our paths in it.
const MOST: usize = 512;

/// The NVIDIA devices of a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Device nodes mounted from the host, with their numbers; none for a
    /// directory.
    pub nodes: BTreeMap<DevicePath, Option<Number>>,
    /// Nodes that could not be checked, and why.
    pub unseen: BTreeMap<DevicePath, String>,
    /// The rules that are in force, if this start was noted: root inside can hide a
    /// node.
    pub noted: Option<InForce>,
    /// The host's own directory of the capabilities is mounted in it, wherever: whoever
    /// may write there writes into the host's /dev.
    pub host_directory: bool,
}

impl Attached {
    /// One line for each node that could not be checked.
    pub fn unseen(&self) -> Vec<String> {
        let line = |(path, why): (&DevicePath, &String)| {
            format!("cannot check {path} in the running container: {why}")
        };
        self.unseen.iter().map(line).collect()
    }
}

/// Reads the mount table of the container's first process and the numbers of
/// the nodes; the container may have mounted something there that never answers.
///
/// # Errors
/// The process is gone, /proc cannot be read, or the container has grown its table too long.
pub fn read(ctid: Ctid, init: &Init, deadline: &Deadline) -> std::io::Result<Attached> {
    let table = mountinfo::of(init.pid)?;
    let host = std::fs::symlink_metadata(CAPS_DIR).ok().map(|meta| mountinfo::device(meta.dev()));
    let host_directory = host.is_some_and(|device| shows_directory(&table, &device));
    let points = points(&table);
    // Never follow: the container can put a link anywhere.
    let question = |path: &DevicePath| Question::new(Op::StatLink, format!("/proc/{}/root{path}", init.pid));
    let questions: Vec<Question> = points.iter().map(question).collect();
    let look = Look::at_files(View::apart(Path::new("/"), deadline), questions.clone());
    let mut attached = Attached { noted: in_force::of(ctid, init), host_directory, ..Attached::default() };
    for (path, question) in points.into_iter().zip(questions) {
        match look.stat_link(&question.path) {
            // One that is not the host's is the container's own.
            Seen::Is(stat) if stat.is_dir() => {
                attached.nodes.extend((path != DevicePath::Caps || host_directory).then_some((path, None)));
            }
            Seen::Is(stat) if stat.is_char_device() => {
                let (major, minor) = stat.rdev;
                attached.nodes.insert(path, Some(Number { major, minor }));
            }
            Seen::Is(_) | Seen::Absent => {}
            Seen::Unseen(why) => drop(attached.unseen.insert(path, why)),
        }
    }
    Ok(attached)
}

/// The mount points of NVIDIA and DRM devices in the text of
/// /proc/PID/mountinfo (proc(5)): the fifth field.
pub fn points(table: &str) -> Vec<DevicePath> {
    let point = |line: &str| line.split(' ').nth(4)?.parse().ok();
    table.lines().filter_map(point).take(MOST).collect()
}

/// Whether the table has a mount of a directory with the capabilities' name, from the
/// file system with this number.
fn shows_directory(table: &str, device: &str) -> bool {
    let name = CAPS_DIR.trim_start_matches("/dev");
    mountinfo::mounts(table).any(|mount| mount.device == device && mount.root.ends_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_directory_is_known_wherever_it_is_mounted_and_no_other_is_taken_for_it() {
        let shows = |line: &str| shows_directory(&format!("{line}\n"), "0:5");
        assert!(shows("606 500 0:5 /nvidia-caps /dev/nvidia-caps rw - devtmpfs udev rw"));
        assert!(shows("606 500 0:5 /nvidia-caps /mnt rw - devtmpfs udev rw"));
        assert!(!shows(
            "606 500 0:5 /nvidia-caps/nvidia-cap2 /dev/nvidia-caps/nvidia-cap2 rw - devtmpfs udev rw"
        ));
        assert!(!shows("606 500 0:61 /nvidia-caps /dev/nvidia-caps rw - tmpfs none rw"));
    }

    #[test]
    fn only_mounted_nvidia_nodes_count() {
        let table = "\
604 500 0:5 /nvidia0 /dev/nvidia0 rw,nosuid - devtmpfs udev rw\n\
605 500 0:5 /null /dev/null rw - devtmpfs udev rw\n\
606 500 0:5 /nvidia-caps /dev/nvidia-caps rw - devtmpfs udev rw\n\
607 500 0:5 /x /mnt/dev/nvidia1 rw - devtmpfs udev rw\n\
608 500 0:5 /x /dev/nvidia\\040x rw - devtmpfs udev rw\n\n";
        assert_eq!(points(table), [DevicePath::Gpu(0), DevicePath::Caps]);
    }
}
