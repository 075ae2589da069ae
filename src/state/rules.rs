//! The note of the device rules that are in force, see [`crate::pve::in_force`]. It is
//! bound to one start of the container, and none of what a `detach` forgets.

use super::Record;
use crate::pve::in_force::{InForce, SUFFIX};
use crate::sys::replace::replace_own;

impl Record {
    /// Notes them. A failure is told as a warning and no more, and leaves no note: what
    /// an older one says may be less than what is in force.
    pub fn note_rules(&self, rules: &InForce) {
        let written = self.beside(SUFFIX).and_then(|path| {
            replace_own(&path, rules.text().as_bytes(), 0o600)
                .inspect_err(|_| drop(std::fs::remove_file(&path)))
                .map_err(anyhow::Error::from)
        });
        if let Err(error) = written {
            log::warn!("cannot note the device rules of container {}: {error:#}", self.ctid);
        }
    }

    /// Forgets them: of a container that does not run.
    pub fn forget_rules(&self) {
        if let Ok(path) = self.beside(SUFFIX) {
            let _ = std::fs::remove_file(path);
        }
    }
}
