//! `features:` of a container for the engines in it.

use crate::findings::nested::lacking;
use crate::job::undo::Undo;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::pct;
use crate::types::Ctid;

/// The value with what engines need; `None` where it has that, or where Proxmox
/// could not read it.
pub fn of_engines(conf: &Document) -> Option<String> {
    lacking(conf)
}

/// Sets them, and notes how to put back what was there.
///
/// # Errors
/// `pct set` failed.
pub fn set(ctid: Ctid, before: &Document, features: &str, undo: &mut Undo) -> anyhow::Result<()> {
    let (old, new) = (before.get("features"), features.to_owned());
    undo.push(format!("the features of container {ctid}"), move || {
        if Conf::of(ctid).read()?.get("features") != Some(new) {
            return Ok(false);
        }
        match &old {
            Some(old) => pct::set(ctid, &["--features", old])?,
            None => pct::set(ctid, &["--delete", "features"])?,
        }
        Ok(true)
    });
    pct::set(ctid, &["--features", features])?;
    log::info!("container {ctid}: features {features}; in effect from its next start");
    Ok(())
}
