//! A container's settings, read from all their places.

use super::keys;
use super::{CLUSTER_FILE, Call, Content, Given, NODE_FILE, Origin, Places, Settings};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::types::Ctid;
use std::io;
use std::path::Path;

/// The largest settings file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;

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
    from(call, lines, environment, Some(ctid))
}

/// What the next start of a container reads that has no settings of its own.
pub fn default_of_next_start() -> Settings {
    from(Call::Hook, Vec::new(), Vec::new(), None)
}

/// The settings of this node, without a container's.
pub fn of_node() -> Settings {
    from(Call::ByHand, Vec::new(), environment(), None)
}

fn from(call: Call, conf: Vec<Given>, environment: Vec<(String, String)>, ctid: Option<Ctid>) -> Settings {
    let (cluster, node) = (read(CLUSTER_FILE), read(NODE_FILE));
    Settings::of(call, Places { conf, cluster, node, environment }, ctid)
}

fn read(file: &str) -> Content {
    use io::ErrorKind::{NotADirectory, NotFound};
    match crate::sys::file::read(Path::new(file), MAX_FILE) {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(Vec::new()),
        read => read,
    }
}

/// Our settings in the environment of this process.
pub fn ours() -> Vec<(String, String)> {
    environment().into_iter().filter(|(key, _)| keys::by_name(key).is_some()).collect()
}

/// The environment of this process; a variable that is not UTF-8 is none of ours.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}
