//! The containers of this node that have anything of ours.

use crate::pve::cluster;
use crate::pve::conf::devices::present;
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts::mounts;
use crate::pve::conf::store::Conf;
use crate::pve::hookscript::Hookscript;
use crate::pve::storage::Storage;
use crate::settings::keys;
use crate::sys::look::Look;
use crate::types::Ctid;

/// Containers with their confs.
pub(super) type Confs = Vec<(Ctid, Document)>;

/// The containers of this node; one that was destroyed or migrated meanwhile is
/// none.
pub(super) fn all(look: &mut Look) -> Confs {
    let read = |ctid: Ctid| Some((ctid, Conf::of(ctid).read().ok()?));
    cluster::containers(look).unwrap_or_default().into_iter().filter_map(read).collect()
}

/// Whether a conf has settings, entries or a hookscript of ours.
pub(super) fn is_ours(files: &Look, storages: &[Storage], conf: &Document) -> bool {
    conf.environment().iter().any(|line| keys::by_name(&line.key).is_some())
        || present(conf).iter().any(|p| !p.path.is_drm())
        || !mounts(conf).is_empty()
        || Hookscript::of(files, storages, conf).is_meant()
}
