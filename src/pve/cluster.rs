//! The cluster: its nodes, their quorum, and where HA and replication move
//! containers.

use crate::exit::{Code, Fault};
use crate::pve::sections;
use crate::sys::look::Look;
use crate::types::Ctid;
use std::os::unix::fs::MetadataExt as _;

/// The directories of all nodes.
pub const NODES: &str = "/etc/pve/nodes";

/// A node of the cluster, other than this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address, if the cluster knows it.
    pub address: Option<String>,
    /// Whether it is online.
    pub online: bool,
}

/// Whether /etc/pve is writable on this node. Without quorum pmxcfs removes the
/// write bit of everything; Proxmox itself checks this link. access(2) is of no
/// use to root.
pub fn has_quorum(look: &Look<'_>) -> bool {
    std::fs::symlink_metadata(look.at("/etc/pve/local")).is_ok_and(|link| link.mode() & 0o200 != 0)
}

/// Fails without quorum: `pct` would only say that permission is denied.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn must_have_quorum(look: &Look<'_>) -> anyhow::Result<()> {
    if has_quorum(look) {
        return Ok(());
    }
    let message = "this node has no quorum: /etc/pve is read-only; conf not changed";
    Err(Fault::new(Code::Passthrough, message).remedy("pvecm status").into())
}

/// The containers of this node, by number; none if /etc/pve is not mounted.
pub fn containers(look: &mut Look) -> Option<Vec<Ctid>> {
    let number = |name: String| name.strip_suffix(".conf").and_then(|number| number.parse().ok());
    let mut ctids: Vec<Ctid> = look.names("/etc/pve/lxc")?.into_iter().filter_map(number).collect();
    ctids.sort();
    Some(ctids)
}

/// The cluster, by its files.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// This node's name.
    pub local: String,
    /// The others.
    pub others: Vec<Node>,
    /// Containers under HA.
    pub ha: Vec<Ctid>,
    /// Replicated containers, with the target node.
    pub replicated: Vec<(Ctid, String)>,
}

impl Cluster {
    /// Reads it; asks no other node.
    pub fn read(look: &mut Look) -> Cluster {
        let local = look.link_name("/etc/pve/local").or_else(|| look.text("/etc/hostname"));
        let local = local.unwrap_or_default().trim().split('.').next().unwrap_or_default().to_owned();
        let members = look.text("/etc/pve/.members").unwrap_or_default();
        let mut others = parse_members(&members);
        // Without corosync .members has no list; then take the directories,
        // which may include those of removed nodes.
        if others.is_empty() {
            let names = look.names(NODES).unwrap_or_default();
            others.extend(names.into_iter().map(|name| Node { name, address: None, online: false }));
        }
        others.retain(|node| node.name != local);
        Cluster {
            local,
            others,
            ha: parse_ha(&look.text("/etc/pve/ha/resources.cfg").unwrap_or_default()),
            replicated: parse_replication(&look.text("/etc/pve/replication.cfg").unwrap_or_default()),
        }
    }

    /// The nodes that a container may move to by itself: under HA all, else its
    /// replication targets.
    pub fn targets(&self, ctid: Ctid) -> Vec<&Node> {
        let ha = self.ha.contains(&ctid);
        let target = |node: &Node| self.replicated.iter().any(|(c, to)| *c == ctid && *to == node.name);
        self.others.iter().filter(|node| ha || target(node)).collect()
    }
}

/// The nodes in `/etc/pve/.members`.
pub fn parse_members(text: &str) -> Vec<Node> {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return Vec::new() };
    let Some(list) = value.get("nodelist").and_then(|l| l.as_object()) else { return Vec::new() };
    let node = |(name, node): (&String, &serde_json::Value)| Node {
        name: name.clone(),
        address: node.get("ip").and_then(|ip| ip.as_str()).map(str::to_owned),
        online: node.get("online").is_some_and(|o| o.as_u64() == Some(1) || o.as_bool() == Some(true)),
    };
    list.iter().map(node).collect()
}

/// `ct: 101` sections of `ha/resources.cfg`.
pub fn parse_ha(text: &str) -> Vec<Ctid> {
    let containers = sections::parse(text).into_iter().filter(|s| s.kind == "ct");
    containers.filter(|s| s.get("state") != Some("ignored")).filter_map(|s| s.id.parse().ok()).collect()
}

/// `local: 101-0` sections of `replication.cfg` with their `target`.
pub fn parse_replication(text: &str) -> Vec<(Ctid, String)> {
    let job = |s: sections::Section| {
        let ctid = s.id.split('-').next()?.parse().ok()?;
        Some((ctid, s.get("target")?.to_owned())).filter(|_| !s.flag("disable"))
    };
    sections::parse(text).into_iter().filter_map(job).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ctid(n: &str) -> Ctid {
        n.parse().unwrap()
    }

    #[test]
    fn members_are_read_as_pmxcfs_writes_them() {
        let text = r#"{"nodename": "alpha","version": 4,"cluster": { "name": "c", "version": 2, "nodes": 2, "quorate": 1 },
            "nodelist": { "alpha": { "id": 1, "online": 1, "ip": "192.0.2.1"}, "beta": { "id": 2, "online": 0}}}"#;
        let nodes = parse_members(text);
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[1], Node { name: "beta".into(), address: None, online: false });
        assert!(parse_members("{\"nodename\": \"alpha\", \"version\": 0 }").is_empty());
        assert!(parse_members("").is_empty());
    }

    #[test]
    fn targets_are_the_nodes_that_ha_and_replication_name() {
        let node = |name: &str| Node { name: name.into(), address: None, online: true };
        let cluster = Cluster {
            local: "alpha".into(),
            others: vec![node("beta"), node("gamma")],
            ha: parse_ha("ct: 101\n\tstate started\nvm: 100\nct: 104\n\tstate ignored\n"),
            replicated: parse_replication(
                "local: 102-0\n\ttarget gamma\nlocal: 103-0\n\ttarget beta\n\tdisable\n",
            ),
        };
        let names = |n| cluster.targets(ctid(n)).iter().map(|n| n.name.clone()).collect::<Vec<_>>();
        assert_eq!(names("101"), ["beta", "gamma"]);
        assert_eq!(names("102"), ["gamma"]);
        assert!(names("103").is_empty() && names("104").is_empty());
    }
}
