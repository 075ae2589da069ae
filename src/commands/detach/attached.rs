//! Whether a container is attached.

use super::bare::is_ours;
use crate::pve::conf::devices::{Present, present};
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts::mounts;
use crate::pve::net;
use crate::state::Record;
use crate::types::Ctid;

/// Whether a conf without our hookscript is one of ours all the same. What an
/// earlier `detach` put back is not.
pub(super) fn is_attached(conf: &Document, ctid: Ctid) -> bool {
    let pairs = present(conf);
    let as_written = |pair: &Present| pair.flaw.is_none() && pair.rule.is_some();
    conf.environment().iter().any(|line| is_ours(&line.key))
        || !mounts(conf).is_empty()
        || pairs.iter().any(|pair| pair.path.is_drm())
        || (pairs.iter().all(as_written) && Record::of(ctid).was_attached(&net::identity(conf)))
}
