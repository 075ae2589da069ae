//! What is recorded of a container whose engines get its GPUs.

use serde::{Deserialize, Serialize};

/// The description in the container, as it was written last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nested {
    /// The fingerprint of the devices that its last start gave it.
    pub devices: Option<String>,
    /// The fingerprint of all that the description was made of, and the stamp of the
    /// conf then; none: it is to be made at the next start.
    pub written: Option<String>,
    /// There may be files of ours for engines in it.
    pub files: bool,
}
