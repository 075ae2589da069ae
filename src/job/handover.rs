//! What the hook passes on to the install process: the settings in its
//! environment, which a unit of systemd does not inherit.

use crate::settings::load;
use crate::state::Record;
use crate::sys::replace::replace_own;
use crate::types::Ctid;
use serde::{Deserialize, Serialize};

/// The suffix of the file, beside the state.
const FILE: &str = "job";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Handover {
    /// Names and values, only those of our settings.
    environment: Vec<(String, String)>,
    /// Which container that was for, where its number may be another's now.
    #[serde(default, rename = "whom")]
    identity: Option<String>,
}

/// The environment that the last hook left for the container of this identity;
/// nothing if there is none that can be read.
pub fn load(ctid: Ctid, identity: &str) -> Vec<(String, String)> {
    let bytes = Record::of(ctid).read_beside(FILE);
    let left: Option<Handover> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let left = left.filter(|left| left.identity.as_deref().is_none_or(|for_whom| for_whom == identity));
    left.unwrap_or_default().environment
}

/// Leaves this process's settings to the install process of the container.
pub fn leave(ctid: Ctid, identity: &str) {
    let environment = load::ours();
    if let Err(error) = (Handover { environment, identity: Some(identity.to_owned()) }).save(ctid) {
        log::warn!("cannot pass the settings in the environment to the install process: {error:#}");
    }
}

impl Handover {
    fn save(&self, ctid: Ctid) -> anyhow::Result<()> {
        let path = Record::of(ctid).beside(FILE)?;
        // Settings may be secret (a URL with a password): root's alone.
        replace_own(&path, &serde_json::to_vec(self)?, 0o600)?;
        Ok(())
    }
}
