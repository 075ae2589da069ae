//! `features:` of a container for the engines in it.

use crate::job::undo::Undo;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::{pct, pending};
use crate::types::Ctid;

/// Sets them, and notes how to put back what was there.
///
/// # Errors
/// `pct set` failed.
pub fn set(ctid: Ctid, before: &Document, features: &str, undo: &mut Undo) -> anyhow::Result<()> {
    // Those of a running container wait for its next start.
    let (had, old) = (before.get("features"), pending::get(before, "features"));
    let new = Some(features.to_owned());
    undo.push(format!("the features of container {ctid}"), move || {
        let now = Conf::of(ctid).read()?;
        if pending::get(&now, "features") != new {
            return Ok(false);
        }
        let waits = now.get("features") != new;
        if waits {
            // A deletion beside a value that waits would leave the value.
            pct::set(ctid, &["--revert", "features"])?;
        }
        match &old {
            _ if waits && old == had => {}
            Some(old) => pct::set(ctid, &["--features", old])?,
            None => pct::set(ctid, &["--delete", "features"])?,
        }
        Ok(true)
    });
    pct::set(ctid, &["--features", features])?;
    log::info!("container {ctid}: features {features}; in effect from its next start");
    Ok(())
}
