//! What the hook passes on to the install process: the settings in its
//! environment, which a unit of systemd does not inherit.

use crate::job::locks;
use crate::settings::load;
use crate::state::{HANDED_OVER, Record, beside};
use crate::sys::replace::replace_own;
use crate::types::Ctid;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Older than this it was left by a hook whose install process never ran: systemd has
/// started one long before.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Handover {
    /// Names and values, only those of our settings.
    environment: Vec<(String, String)>,
    /// Which container that was for, where its number may be another's now.
    #[serde(default, rename = "whom")]
    identity: Option<String>,
}

/// The environment that the last hook left for the container of this identity; nothing if
/// there is none that can be read. It is there only once: it may hold a password.
pub fn take(ctid: Ctid, identity: &str) -> Vec<(String, String)> {
    let bytes = Record::of(ctid).read_beside(HANDED_OVER);
    let left: Option<Handover> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let is_other = |left: &Handover| left.identity.as_deref().is_some_and(|whom| whom != identity);
    if left.as_ref().is_some_and(is_other) {
        // Whoever has the number now may be next, in the same process.
        return Vec::new();
    }
    forget(ctid);
    left.unwrap_or_default().environment
}

/// Leaves this process's settings to the install process of the container.
pub fn leave(ctid: Ctid, identity: &str) {
    let environment = load::ours();
    if let Err(error) = (Handover { environment, identity: Some(identity.to_owned()) }).save(ctid) {
        log::warn!("cannot pass the settings in the environment to the install process: {error:#}");
    }
}

/// Removes what was left: no install process needs it any more.
pub fn forget(ctid: Ctid) {
    if let Err(error) = Record::of(ctid).remove_beside(HANDED_OVER) {
        log::warn!(
            "container {ctid}: settings that may hold a password stay in /run/phoenix-nvidia: {error}"
        );
    }
}

/// Removes what was left for an install process that never ran.
pub fn forget_old(ctid: Ctid) {
    let age = Record::of(ctid).age_of_beside(HANDED_OVER);
    if age.is_some_and(|age| age > PATIENCE) && !locks::worker_lives(ctid) {
        forget(ctid);
    }
}

/// The same for all containers.
pub fn sweep() {
    if let Err(error) = beside::sweep(HANDED_OVER, PATIENCE, locks::worker_lives) {
        log::warn!("settings that may hold a password stay in /run/phoenix-nvidia: {error}");
    }
}

impl Handover {
    fn save(&self, ctid: Ctid) -> anyhow::Result<()> {
        let path = Record::of(ctid).beside(HANDED_OVER)?;
        // Settings may be secret (a URL with a password): root's alone.
        replace_own(&path, &serde_json::to_vec(self)?, 0o600)?;
        Ok(())
    }
}
