//! Whether the other nodes are ready for a container that comes to them.

use crate::pve::cluster;
use crate::pve::cluster::Cluster;
use crate::pve::cluster::Node;
use crate::pve::cluster::Readiness;
use crate::pve::hookscript::Place;
use crate::pve::storage::Storage;
use std::collections::BTreeMap;
use std::path::Path;

/// One sentence for each node that lacks something, with what mends it.
pub fn of_jobs<'a>(
    cluster: &Cluster,
    storages: &[Storage],
    places: impl Iterator<Item = &'a Place>,
) -> Vec<String> {
    let places: BTreeMap<&Path, &Place> = places.map(|p| (p.path.as_path(), p)).collect();
    let mut said = Vec::new();
    for place in places.values() {
        for node in &cluster.others {
            let lacks = || lacking(node, place, storages, cluster::ask(node, &place.path));
            said.extend(without_storage(node, place, storages).or_else(lacks));
        }
    }
    said
}

/// A node that the storage is not on needs no asking.
pub fn without_storage(node: &Node, place: &Place, storages: &[Storage]) -> Option<String> {
    let storage = storage_of(place, storages)?;
    (!storage.is_on(&node.name)).then(|| {
        format!(
            "node {} does not have the storage {}, so no container with {} starts there. To mend it: choose a \
             storage that all nodes have, with --storage",
            node.name, storage.id, place.volume
        )
    })
}

fn storage_of<'a>(place: &Place, storages: &'a [Storage]) -> Option<&'a Storage> {
    let id = place.volume.split(':').next()?;
    storages.iter().find(|s| s.id == id)
}

/// What the node's answer means; `None` when it is ready.
pub fn lacking(node: &Node, place: &Place, storages: &[Storage], answer: Readiness) -> Option<String> {
    let name = &node.name;
    let path = place.path.display();
    let shared = storage_of(place, storages).is_some_and(|s| s.shared);
    match answer {
        Readiness::Known { package: true, snippet } if snippet || shared => None,
        Readiness::Unknown(why) => Some(format!(
            "node {name} could not be asked whether it is ready for the container ({why}). It needs the \
             package phoenix-nvidia{}",
            if shared { String::new() } else { format!(" and the file {path}") }
        )),
        Readiness::Known { package, snippet } => {
            let file = format!("install -D -m 755 /usr/share/phoenix-nvidia/phoenix-nvidia {path}");
            let (what, mend) = match (package, snippet || shared) {
                (false, true) => ("the package phoenix-nvidia".to_owned(), "install it there".to_owned()),
                (false, false) => (
                    format!("the package phoenix-nvidia and the hookscript {path}"),
                    format!("install the package there, then run there: {file}"),
                ),
                _ => (format!("the hookscript {path}"), format!("run there: {file}")),
            };
            Some(format!(
                "node {name} lacks {what}: a container that comes there does not get its GPUs, or does not start. To mend it: {mend}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::storage;

    #[test]
    fn what_a_node_lacks_is_named_with_its_cure() {
        let node = Node { name: "beta".into(), address: None, online: true };
        let storages = storage::parse(
            "dir: some\n\tpath /srv/some\n\tcontent snippets\n\tnodes alpha\n\nnfs: share\n\tcontent snippets\n",
        );
        let place = |volume: &str| Place { volume: volume.into(), path: "/s/phoenix-nvidia".into() };
        let local = place("local:snippets/phoenix-nvidia");
        let some = place("some:snippets/phoenix-nvidia");
        let share = place("share:snippets/phoenix-nvidia");
        let says = |place: &Place, package, snippet| {
            lacking(&node, place, &storages, Readiness::Known { package, snippet }).unwrap_or_default()
        };
        assert_eq!(says(&local, true, true), "");
        assert_eq!(says(&share, true, false), "");
        assert!(says(&local, true, false).contains("run there: install -D -m 755"));
        assert!(says(&local, false, false).contains("lacks the package phoenix-nvidia and the hookscript"));
        assert!(says(&share, false, false).contains("lacks the package phoenix-nvidia: "));
        let unknown = lacking(&node, &local, &storages, Readiness::Unknown("offline".into())).unwrap();
        assert!(unknown.contains("could not be asked") && unknown.contains("(offline)"));
        assert!(without_storage(&node, &some, &storages).unwrap().contains("does not have the storage some"));
        assert_eq!(without_storage(&node, &local, &storages), None, "local is on every node");
        assert_eq!(without_storage(&node, &share, &storages), None);
    }
}
