//! The other nodes: which there are, which of them a container may come to,
//! and whether those are ready for it.

use crate::exit::{Code, Fault};
use crate::pve::sections;
use crate::sys::look::Look;
use crate::sys::process::{Cmd, Ended};
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// Proxmox's own way to the other nodes; root has a key everywhere.
const SSH: &str = "/usr/bin/ssh";
/// A node that does not answer in this time is not known.
const ASK: Duration = Duration::from_secs(10);

/// A node of the cluster, other than this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address, when the cluster knows it.
    pub address: Option<String>,
    /// Whether the cluster sees it.
    pub online: bool,
}

/// Whether /etc/pve can be changed on this node; asking changes nothing. pmxcfs
/// takes the write bit off everything while it has no quorum (access(2) tells
/// root nothing), and Proxmox itself goes by this link's.
pub fn has_quorum(look: &Look<'_>) -> bool {
    std::fs::symlink_metadata(look.at("/etc/pve/local")).is_ok_and(|link| link.mode() & 0o200 != 0)
}

/// Fails without quorum: then nothing in /etc/pve can be changed, and `pct`
/// says no more than that permission is denied.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn must_have_quorum(look: &Look<'_>) -> anyhow::Result<()> {
    if has_quorum(look) {
        return Ok(());
    }
    let message = "this node has no quorum, so /etc/pve is read-only; nothing was changed";
    Err(Fault::new(Code::Passthrough, message).remedy("pvecm status").into())
}

/// The containers of this node, by number; none if /etc/pve is not mounted.
pub fn containers(look: &mut Look) -> Option<Vec<Ctid>> {
    let number = |name: String| name.strip_suffix(".conf").and_then(|number| number.parse().ok());
    let mut ctids: Vec<Ctid> = look.names("/etc/pve/lxc")?.into_iter().filter_map(number).collect();
    ctids.sort();
    Some(ctids)
}

/// What the cluster's files say.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// This node's name.
    pub local: String,
    /// The others.
    pub others: Vec<Node>,
    /// Containers that HA looks after.
    pub ha: Vec<Ctid>,
    /// Containers that are replicated, and where to.
    pub replicated: Vec<(Ctid, String)>,
}

impl Cluster {
    /// Reads it, without asking any other node.
    pub fn read(look: &mut Look) -> Cluster {
        let local = look.link_name("/etc/pve/local").or_else(|| look.text("/etc/hostname"));
        let local = local.unwrap_or_default().trim().split('.').next().unwrap_or_default().to_owned();
        let members = look.text("/etc/pve/.members").unwrap_or_default();
        let mut others = parse_members(&members);
        // Without corosync .members names no list; then the directories do,
        // where a node that was removed may have left one behind.
        if others.is_empty() {
            let names = look.names("/etc/pve/nodes").unwrap_or_default();
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

    /// The nodes that a container may come to by itself: any, under HA, and
    /// those that it is replicated to.
    pub fn heirs(&self, ctid: Ctid) -> Vec<&Node> {
        let ha = self.ha.contains(&ctid);
        let target = |node: &Node| self.replicated.iter().any(|(c, to)| *c == ctid && *to == node.name);
        self.others.iter().filter(|node| ha || target(node)).collect()
    }
}

/// The nodes in `/etc/pve/.members`; none where pmxcfs writes no list.
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

/// What another node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It could not be asked; why.
    Unknown(String),
    /// It answered.
    Known {
        /// phoenix-nvidia is installed there.
        package: bool,
        /// The snippet is there and can be run.
        snippet: bool,
    },
}

/// Asks a node whether it has the package and the snippet at `path`.
pub fn ask(node: &Node, snippet: &Path) -> Readiness {
    let Some(address) = node.address.as_deref().filter(|_| node.online) else {
        return Readiness::Unknown("the cluster does not see it now".to_owned());
    };
    let Some(question) = question(snippet) else {
        return Readiness::Unknown(format!("{} is no path to ask about", snippet.display()));
    };
    let hosts = format!("/etc/pve/nodes/{}/ssh_known_hosts", node.name);
    let mut cmd = Cmd::new(SSH).args(["-e", "none", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]);
    cmd = cmd.args(["-o".to_owned(), format!("HostKeyAlias={}", node.name)]);
    if Path::new(&hosts).exists() {
        cmd = cmd.args(["-o".to_owned(), format!("UserKnownHostsFile={hosts}")]);
        cmd = cmd.args(["-o", "GlobalKnownHostsFile=none"]);
    }
    match cmd.args([format!("root@{address}"), question]).run(&Deadline::after(ASK)) {
        Ok(output) => match answer(&output.text()) {
            Some(known) => known,
            None => Readiness::Unknown(match (output.ended, output.last_lines(1).pop()) {
                (Ended::Code(0), _) => "it gave no answer".to_owned(),
                (_, Some(line)) => line,
                (ended, None) => format!("ssh: {ended}"),
            }),
        },
        Err(failure) => Readiness::Unknown(failure.to_string()),
    }
}

/// The command for the other node's shell; `None` for a path that would need
/// quoting, which no storage of Proxmox's has.
fn question(snippet: &Path) -> Option<String> {
    let path = snippet.to_str()?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"/._+-@:".contains(&b);
    path.bytes().all(good).then(|| {
        let test =
            |file: &str, word: &str| format!("if test -x {file}; then echo {word}=1; else echo {word}=0; fi");
        format!("{}; {}", test("/usr/sbin/phoenix-nvidia", "package"), test(path, "snippet"))
    })
}

fn answer(text: &str) -> Option<Readiness> {
    let value = |word: &str| {
        let yes = text.lines().any(|line| line.trim() == format!("{word}=1"));
        let no = text.lines().any(|line| line.trim() == format!("{word}=0"));
        (yes != no).then_some(yes)
    };
    Some(Readiness::Known { package: value("package")?, snippet: value("snippet")? })
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
    fn heirs_are_the_nodes_that_ha_and_replication_name() {
        let node = |name: &str| Node { name: name.into(), address: None, online: true };
        let cluster = Cluster {
            local: "alpha".into(),
            others: vec![node("beta"), node("gamma")],
            ha: parse_ha("ct: 101\n\tstate started\nvm: 100\nct: 104\n\tstate ignored\n"),
            replicated: parse_replication(
                "local: 102-0\n\ttarget gamma\nlocal: 103-0\n\ttarget beta\n\tdisable\n",
            ),
        };
        let names = |n| cluster.heirs(ctid(n)).iter().map(|n| n.name.clone()).collect::<Vec<_>>();
        assert_eq!(names("101"), ["beta", "gamma"]);
        assert_eq!(names("102"), ["gamma"]);
        assert!(names("103").is_empty() && names("104").is_empty());
    }

    #[test]
    fn an_answer_is_whole_or_none() {
        let known = Readiness::Known { package: true, snippet: false };
        assert_eq!(answer("motd\npackage=1\nsnippet=0\n"), Some(known));
        assert_eq!(answer("package=1\n"), None);
        assert_eq!(answer("package=1\npackage=0\nsnippet=1\n"), None);
        assert_eq!(question(Path::new("/a b")), None);
        assert!(question(Path::new("/var/lib/vz/snippets/phoenix-nvidia")).unwrap().contains("test -x /var"));
    }
}
