//! Whether the nodes that a container may come to are ready for it.

use super::finding::Finding;
use crate::pve::cluster;
use crate::pve::cluster::Cluster;
use crate::pve::cluster::Readiness;
use crate::pve::hookscript::Hookscript;
use crate::pve::hookscript::Place;
use crate::pve::readiness;
use crate::pve::storage::Storage;
use crate::sys::look::Look;
use crate::types::Ctid;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The cluster, and what its nodes answered so far.
pub struct Nodes {
    cluster: Cluster,
    answers: BTreeMap<(String, PathBuf), Readiness>,
}

impl Nodes {
    /// Reads the cluster's files; asks no node yet.
    pub fn read(look: &mut Look) -> Nodes {
        Nodes { cluster: Cluster::read(look), answers: BTreeMap::new() }
    }

    /// What the other nodes lack for this container. Only those that it may
    /// come to by itself are asked.
    pub fn findings(&mut self, ctid: Ctid, hook: &Hookscript, storages: &[Storage]) -> Vec<Finding> {
        let Hookscript::Ours(place) = hook else { return Vec::new() };
        let mut findings = Vec::new();
        let heirs = self.cluster.heirs(ctid);
        for node in &self.cluster.others {
            if let Some(what) = readiness::without_storage(node, place, storages) {
                findings.push(split("hook-storage", what, heirs.contains(&node)));
                continue;
            }
            if !heirs.contains(&node) {
                continue;
            }
            let answer = Self::answer(&mut self.answers, node, place);
            let known = matches!(answer, Readiness::Known { .. });
            if let Some(what) = readiness::lacking(node, place, storages, answer) {
                findings.push(match known {
                    true => split("other-node", what, true),
                    false => Finding::unknown("other-node", what),
                });
            }
        }
        findings
    }

    fn answer(
        answers: &mut BTreeMap<(String, PathBuf), Readiness>,
        node: &cluster::Node,
        place: &Place,
    ) -> Readiness {
        let key = (node.name.clone(), place.path.clone());
        answers.entry(key).or_insert_with(|| cluster::ask(node, &place.path)).clone()
    }
}

/// The sentence and the cure that stands in it; a failure where HA or
/// replication bring the container there without anybody's doing.
fn split(check: &'static str, text: String, by_itself: bool) -> Finding {
    let (what, mend) = match text.split_once(". To mend it: ") {
        Some((what, mend)) => (what.to_owned(), Some(mend.to_owned())),
        None => (text, None),
    };
    let finding = if by_itself { Finding::failure(check, what) } else { Finding::warning(check, what) };
    match mend {
        Some(mend) => finding.mend(mend),
        None => finding,
    }
}
