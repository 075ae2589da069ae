//! What is recorded of a container that has the host's driver mounted.

use serde::{Deserialize, Serialize};

/// What a look inside found, and was done there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Injected {
    /// The fingerprint of the software for which nothing is left to do inside:
    /// its starts look into it no more.
    pub complete: Option<String>,
    /// The driver version to which it has links.
    pub linked: Option<String>,
    /// Why no driver can be installed in it.
    pub impossible: Option<String>,
    /// Why it cannot use the host's driver.
    pub unfit: Option<String>,
}
