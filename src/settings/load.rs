//! A container's settings, read from all their places.

use super::keys;
use super::{CLUSTER_FILE, Call, Content, Given, NODE_FILE, Origin, Places, Settings};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::sys::file;
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
    Files::with(read(CLUSTER_FILE)).settings(call, lines(conf, document), environment, Some(ctid))
}

/// The settings in a conf. A later line wins, as it does in LXC.
fn lines(conf: &Conf, document: &Document) -> Vec<Given> {
    let lines = document.environment().into_iter().map(|line| Given {
        key: line.key,
        value: line.value,
        origin: Origin::File(conf.path().to_owned(), line.line),
    });
    lines.rev().collect()
}

/// The files of settings, for a process that must not wait for the cluster's: /etc/pve
/// may not answer, so that another one reads it.
#[derive(Debug)]
pub struct Files {
    cluster: Content,
    node: Content,
}

impl Files {
    /// With what was read of [`CLUSTER_FILE`].
    pub fn with(cluster: Content) -> Files {
        Files { cluster, node: read(NODE_FILE) }
    }

    /// The settings of this node, without a container's.
    pub fn of_node(&self) -> Settings {
        self.settings(Call::ByHand, Vec::new(), environment(), None)
    }

    /// What the next start of a container reads; none: of one without settings of its own.
    pub fn of_next_start(&self, container: Option<(Ctid, &Document)>) -> Settings {
        let lines = container.map(|(ctid, document)| lines(&Conf::of(ctid), document));
        let ctid = container.map(|(ctid, _)| ctid);
        self.settings(Call::Hook, lines.unwrap_or_default(), Vec::new(), ctid)
    }

    fn settings(
        &self,
        call: Call,
        conf: Vec<Given>,
        environment: Vec<(String, String)>,
        ctid: Option<Ctid>,
    ) -> Settings {
        let again = |content: &Content| match content {
            Ok(bytes) => Ok(bytes.clone()),
            Err(error) => Err(match file::in_its_place(error) {
                Some(what) => io::Error::other(what),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
        };
        let (cluster, node) = (again(&self.cluster), again(&self.node));
        Settings::of(call, Places { conf, cluster, node, environment }, ctid)
    }
}

fn read(file: &str) -> Content {
    use io::ErrorKind::{NotADirectory, NotFound};
    match file::read(Path::new(file), MAX_FILE) {
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
