//! What is recorded of a container that was detached while files of ours are in it.

use super::nested::Nested;
use super::{Record, State, now};

/// The phase of a `detach` that left them.
const DETACHED: &str = "detach";

impl Record {
    /// Whether anything was done to that container since it was detached.
    pub fn was_attached(&self, identity: &str) -> bool {
        self.states(identity).any(|state| !state.phase.is_empty() && state.phase != DETACHED)
    }

    /// Whether a `detach` left files of ours in that container.
    pub fn left_files(&self, identity: &str) -> bool {
        self.states(identity).any(|state| state.phase == DETACHED)
    }

    /// Forgets all but that files of ours are in the container, and its driver.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep_left_files(
        &self,
        identity: &str,
        driver: Option<(String, Option<String>)>,
    ) -> std::io::Result<()> {
        let nested = Nested { files: self.load_of(identity).nested.files, ..Nested::default() };
        self.forget()?;
        let (container_driver, removal) = driver.unzip();
        let state = State {
            identity: Some(identity.to_owned()),
            phase: DETACHED.to_owned(),
            container_driver,
            driver_removal: removal.flatten(),
            nested,
            at: now(),
            ..self.fresh()
        };
        self.write(&self.lib, &state);
        Ok(())
    }
}
