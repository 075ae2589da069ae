//! Whether the nodes that a container may come to are ready for it.

use super::finding::Finding;
use crate::pve::cluster;
use crate::pve::cluster::Cluster;
use crate::pve::cluster::Readiness;
use crate::pve::hookscript::Hookscript;
use crate::pve::hookscript::Place;
use crate::pve::readiness::{self, Lack, LackKind};
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
            let lack = readiness::without_storage(node, place, storages);
            let by_itself = heirs.contains(&node);
            let lack = match lack {
                None if by_itself => {
                    let answer = Self::answer(&mut self.answers, node, place);
                    readiness::lacking(node, place, storages, answer)
                }
                lack => lack,
            };
            findings.extend(lack.map(|lack| finding(lack, by_itself)));
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

/// A failure where HA or replication bring the container there.
fn finding(lack: Lack, by_itself: bool) -> Finding {
    let finding = match lack.kind {
        LackKind::Storage if !by_itself => Finding::warning("hook-storage", lack.what),
        LackKind::Storage => Finding::failure("hook-storage", lack.what),
        LackKind::Files => Finding::failure("other-node", lack.what),
        LackKind::Unknown => Finding::unknown("other-node", lack.what),
    };
    finding.mend(lack.fix)
}
