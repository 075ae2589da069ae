//! Whether the other nodes are ready for a container that comes to them.

use crate::pve::cluster;
use crate::pve::cluster::Cluster;
use crate::pve::cluster::Node;
use crate::pve::cluster::Readiness;
use crate::pve::hookscript::Place;
use crate::pve::storage::{self, Storage};
use std::collections::BTreeMap;
use std::path::Path;

/// What another node lacks for a container that comes to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What it is.
    pub kind: LackKind,
    /// In one sentence.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

/// What a node lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LackKind {
    /// The storage of the hookscript.
    Storage,
    /// The package or the hookscript.
    Files,
    /// Nobody knows: the node does not answer.
    Unknown,
}

/// What the other nodes lack, each asked once a hookscript.
pub fn of_places<'a>(
    cluster: &Cluster,
    storages: &[Storage],
    places: impl Iterator<Item = &'a Place>,
) -> Vec<Lack> {
    let places: BTreeMap<&Path, &Place> = places.map(|p| (p.path.as_path(), p)).collect();
    let mut found = Vec::new();
    for place in places.values() {
        for node in &cluster.others {
            let lacks = || lacking(node, place, storages, cluster::ask(node, &place.path));
            found.extend(without_storage(node, place, storages).or_else(lacks));
        }
    }
    found
}

/// A node that the storage is not on needs no asking.
pub fn without_storage(node: &Node, place: &Place, storages: &[Storage]) -> Option<Lack> {
    let storage = storage_of(place, storages)?;
    (!storage.is_on(&node.name)).then(|| Lack {
        kind: LackKind::Storage,
        what: format!(
            "node {} does not have storage {}: no container with hookscript {} starts there",
            node.name, storage.id, place.volume
        ),
        fix: "attach the container with --storage and a storage that all nodes have".to_owned(),
    })
}

fn storage_of<'a>(place: &Place, storages: &'a [Storage]) -> Option<&'a Storage> {
    let id = storage::of_volume(&place.volume)?;
    storages.iter().find(|s| s.id == id)
}

/// What the node's answer means; `None` when it is ready.
pub fn lacking(node: &Node, place: &Place, storages: &[Storage], answer: Readiness) -> Option<Lack> {
    let (name, path) = (&node.name, place.path.display());
    let shared = storage_of(place, storages).is_some_and(|s| s.shared);
    let install = "install the package phoenix-nvidia on that node";
    let put = format!("ssh {name} install -D -m 755 /usr/share/phoenix-nvidia/phoenix-nvidia {path}");
    let (kind, what, fix) = match answer {
        Readiness::Known { package: true, snippet } if snippet || shared => return None,
        Readiness::Unknown(why) => {
            let file = if shared { String::new() } else { format!(" and the hookscript {path}") };
            let what = format!("cannot ask node {name} for the package phoenix-nvidia{file}: {why}");
            (LackKind::Unknown, what, format!("ssh {name} phoenix-nvidia --version"))
        }
        Readiness::Known { package, snippet } => {
            let (what, fix) = match (package, snippet || shared) {
                (false, true) => (
                    "the package phoenix-nvidia: starts there have no GPU setup".to_owned(),
                    install.to_owned(),
                ),
                (false, false) => (
                    format!("the package phoenix-nvidia and the hookscript {path}: starts fail there"),
                    format!("{install}, then: {put}"),
                ),
                _ => (format!("the hookscript {path}: starts fail there"), put),
            };
            let what = format!("node {name} lacks {what}");
            (LackKind::Files, what, fix)
        }
    };
    Some(Lack { kind, what, fix })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;

    #[test]
    fn what_a_node_lacks_is_named_with_its_remedy() {
        let node = Node { name: "beta".into(), address: None, online: true };
        let storages = storage::parse(
            "dir: some\n\tpath /srv/some\n\tcontent snippets\n\tnodes alpha\n\nnfs: share\n\tcontent snippets\n",
        );
        let place = |volume: &str| Place { volume: volume.into(), path: "/s/phoenix-nvidia".into() };
        let local = place("local:snippets/phoenix-nvidia");
        let some = place("some:snippets/phoenix-nvidia");
        let share = place("share:snippets/phoenix-nvidia");
        let says = |place: &Place, package, snippet| {
            let lack = lacking(&node, place, &storages, Readiness::Known { package, snippet });
            lack.map(|lack| format!("{} | {}", lack.what, lack.fix)).unwrap_or_default()
        };
        assert_eq!(says(&local, true, true), "");
        assert_eq!(says(&share, true, false), "");
        assert!(says(&local, true, false).contains(" | ssh beta install -D -m 755"));
        assert!(says(&local, false, false).contains("lacks the package phoenix-nvidia and the hookscript"));
        assert!(says(&share, false, false).contains("lacks the package phoenix-nvidia: "));
        let unknown = lacking(&node, &local, &storages, Readiness::Unknown("offline".into())).unwrap();
        assert!(unknown.what.starts_with("cannot ask node beta") && unknown.what.ends_with(": offline"));
        let some = without_storage(&node, &some, &storages).unwrap();
        assert!(some.what.contains("does not have storage some"));
        assert_eq!(without_storage(&node, &local, &storages), None, "local is on every node");
        assert_eq!(without_storage(&node, &share, &storages), None);
    }
}
