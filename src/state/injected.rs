//! What is recorded of a container that has the host's driver mounted.

use serde::{Deserialize, Serialize};

/// What a look inside found, and was done there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Injected {
    /// The fingerprint of the software for which nothing is left to do inside, and
    /// the stamp of the conf then: its starts look into it no more.
    pub complete: Option<String>,
    /// The driver version to which it has links, and the stamp of the conf then.
    pub linked: Option<String>,
    /// Why no driver can be installed in it.
    pub impossible: Option<String>,
    /// Why it cannot use the host's driver.
    pub unfit: Option<String>,
    /// A directory with files of its own, which the mount would hide.
    pub hides: Option<String>,
    /// For which contents these reasons hold; none: for any.
    pub of: Option<String>,
}

/// What was done inside a container, for the contents that it has now: a rollback
/// or a restore takes it away, and writes the conf anew.
pub fn done(what: &str, stamp: &str) -> String {
    format!("{what} {stamp}")
}
