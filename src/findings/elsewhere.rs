//! The other nodes that a container may come to.

use super::finding::Finding;
use super::read::Container;
use crate::pve::readiness::LackKind;
use crate::settings::keys;

/// What they lack for it; a failure where HA or replication bring it there.
pub fn nodes(c: &Container) -> Vec<Finding> {
    let findings = c.elsewhere.iter().map(|(lack, by_itself)| {
        let what = lack.what.clone();
        let finding = match lack.kind {
            LackKind::Storage if !by_itself => Finding::warning("hook-storage", what),
            LackKind::Storage => Finding::failure("hook-storage", what),
            LackKind::Files => Finding::failure("other-node", what),
            LackKind::Unknown => Finding::unknown("other-node", what),
        };
        finding.fix(lack.fix.clone())
    });
    findings.collect()
}

/// Under HA, what a node without the GPUs does.
pub fn ha_policy(c: &Container) -> Vec<Finding> {
    if !c.ha || c.settings.value(keys::START_POLICY).fails() {
        return Vec::new();
    }
    let what = "under HA with START_POLICY=continue: starts without its GPUs on a node that lacks them";
    let fix = format!("START_POLICY=fail phoenix-nvidia attach {}", c.ctid);
    vec![Finding::warning("ha", what).fix(fix)]
}
