//! The device rules that are in force in a running container, as we noted them.
//!
//! Nobody can read LXC's program of rules back. The container's mount table does
//! not tell them, since root inside can bind a node elsewhere and unmount it; and
//! the generated config does not, since each `pct set` of a running container writes
//! it anew from the conf (pve-container, `update_lxc_config`).

use crate::device::{Device, Number};
use crate::pve::pct::{Init, start_time};
use crate::sys::look::Look;
use crate::sys::private;
use crate::types::Ctid;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The directory of the notes of this boot, root's alone.
const DIRECTORY: &str = "/run/phoenix-nvidia/state";
/// The end of a note's name.
pub const SUFFIX: &str = "rules";
/// A note larger than this is not ours, in bytes.
const MAX: u64 = 64 * 1024;

/// The rules of one start of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// The start.
    pub init: Init,
    /// The devices of our pairs whose rules are in force: no fewer than these.
    pub devices: Vec<Device>,
    /// There are no more; otherwise the start was not seen, and an older edit of the
    /// conf may have hidden some.
    pub all: bool,
}

/// Its form in the file.
#[derive(Serialize, Deserialize)]
struct Note {
    init: String,
    all: bool,
    /// Path and number, as they are shown.
    devices: Vec<(String, String)>,
}

impl InForce {
    /// What stands in a note; `None` for anything else.
    pub fn parse(bytes: &[u8]) -> Option<InForce> {
        let note: Note = serde_json::from_slice(bytes).ok()?;
        let device = |(path, number): &(String, String)| {
            let Number { major, minor } = number.parse().ok()?;
            Some(Device { path: path.parse().ok()?, major, minor })
        };
        let devices = note.devices.iter().map(device).collect::<Option<_>>()?;
        Some(InForce { init: note.init.parse().ok()?, devices, all: note.all })
    }

    /// The text of the note.
    pub fn text(&self) -> String {
        let device = |device: &Device| (device.path.to_string(), device.number().to_string());
        let devices = self.devices.iter().map(device).collect();
        let note = Note { init: self.init.to_string(), all: self.all, devices };
        // Serializing never fails: there is text alone.
        serde_json::to_string(&note).unwrap_or_default() + "\n"
    }
}

/// Where the note of a container is.
pub fn path(ctid: Ctid) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{ctid}.{SUFFIX}"))
}

/// What is noted of this start of a container.
pub fn of(ctid: Ctid, init: &Init) -> Option<InForce> {
    InForce::parse(&private::read(&path(ctid), MAX)?).filter(|noted| noted.init == *init)
}

/// What is noted of a container that runs, by files alone.
pub fn seen(look: &mut Look, ctid: Ctid) -> Option<InForce> {
    let noted = InForce::parse(&look.bytes(&path(ctid).to_string_lossy())?)?;
    let stat = look.text(&format!("/proc/{}/stat", noted.init.pid))?;
    (start_time(&stat) == Some(noted.init.started)).then_some(noted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is() {
        let device = |path: &str, major, minor| Device { path: path.parse().unwrap(), major, minor };
        let devices = vec![device("/dev/nvidia1", 195, 1), device("/dev/dri/card1", 226, 1)];
        let noted = InForce { init: Init { pid: 7, started: 42 }, devices, all: true };
        assert_eq!(InForce::parse(noted.text().as_bytes()), Some(noted.clone()));
        for (from, to) in [("7@42", "7"), ("c 195:1", "195:1"), ("/dev/nvidia1", "/dev/null"), ("{", "")] {
            assert_eq!(InForce::parse(noted.text().replace(from, to).as_bytes()), None, "{from}");
        }
    }

    #[test]
    fn a_note_is_of_the_start_that_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let ctid = "101".parse().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::sys::replace::replace_own(&path, text.as_bytes(), 0o600).unwrap();
        };
        let noted = InForce { init: Init { pid: 7, started: 4242 }, devices: Vec::new(), all: true };
        let look = || seen(&mut Look::new(dir.path()), ctid);
        put(&path(ctid).to_string_lossy(), &noted.text());
        assert_eq!(look(), None, "it does not run");
        let stat =
            |started: u32| format!("7 (a b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {started} 9 9");
        put("/proc/7/stat", &stat(4243));
        assert_eq!(look(), None, "another process");
        put("/proc/7/stat", &stat(4242));
        assert_eq!(look(), Some(noted));
    }
}
