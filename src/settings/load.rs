//! A container's settings, read from all their places.

use super::{Call, Given, Origin, Settings};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::types::Ctid;
use std::path::Path;

/// All settings of a container, from its conf, the files and the environment.
pub fn of(ctid: Ctid, call: Call, conf: &Conf, document: &Document) -> Settings {
    with(ctid, call, conf, document, environment())
}

/// What the next start reads: conf, cluster and node. The environment of this
/// process is no part of that.
pub fn of_next_start(ctid: Ctid, conf: &Conf, document: &Document) -> Settings {
    with(ctid, Call::Hook, conf, document, Vec::new())
}

/// The same with another environment than that of this process.
pub fn with(
    ctid: Ctid,
    call: Call,
    conf: &Conf,
    document: &Document,
    environment: Vec<(String, String)>,
) -> Settings {
    let lines = document.environment().into_iter().map(|line| Given {
        key: line.key,
        value: line.value,
        origin: Origin::File(conf.path().to_owned(), line.line),
    });
    // A later line wins, as it does in LXC.
    let lines: Vec<Given> = lines.rev().collect();
    Settings::load(Path::new("/"), call, lines, environment, Some(ctid))
}

/// The settings of this node, without a container's.
pub fn of_node() -> Settings {
    Settings::load(Path::new("/"), Call::ByHand, Vec::new(), environment(), None)
}

/// The environment of this process; a variable that is not UTF-8 is none of ours.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}
