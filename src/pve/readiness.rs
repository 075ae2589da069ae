//! Whether other nodes are ready for a container that moves there.

use crate::pve::cluster::{Cluster, Node};
use crate::pve::hookscript::Place;
use crate::pve::storage::{self, Storage};
use crate::sys::process::{Cmd, Ended};
use crate::sys::time::Deadline;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Proxmox's own way to the other nodes; root has a key everywhere.
const SSH: &str = "/usr/bin/ssh";
const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
/// The deadline for an answer.
pub const ASK: Duration = Duration::from_secs(10);

/// What another node lacks for a container that moves there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Of which kind.
    pub kind: LackKind,
    /// The message.
    pub what: String,
    /// The remedy.
    pub fix: String,
}

/// What a node lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LackKind {
    /// The storage of the hookscript.
    Storage,
    /// The package or the hookscript.
    Files,
    /// Unknown: the node does not answer.
    Unknown,
}

/// What the other nodes lack; asks each once per hookscript.
pub fn of_places<'a>(
    cluster: &Cluster,
    storages: &[Storage],
    places: impl Iterator<Item = &'a Place>,
) -> Vec<Lack> {
    let places: BTreeMap<&Path, &Place> = places.map(|p| (p.path.as_path(), p)).collect();
    let mut found = Vec::new();
    for place in places.values() {
        for node in &cluster.others {
            let lacks = || lacking(node, place, storages, ask(node, &place.path, &Deadline::after(ASK)));
            found.extend(without_storage(node, place, storages).or_else(lacks));
        }
    }
    found
}

/// Whether the node lacks the storage of the hookscript; asks nobody.
pub fn without_storage(node: &Node, place: &Place, storages: &[Storage]) -> Option<Lack> {
    let storage = storage_of(place, storages)?;
    (!storage.is_on(&node.name)).then(|| Lack {
        kind: LackKind::Storage,
        what: format!(
            "node {} does not have storage {}: no container with hookscript {} starts there",
            node.name, storage.id, place.volume
        ),
        fix: "attach the container with --storage STORAGE, one that all nodes have".to_owned(),
    })
}

fn storage_of<'a>(place: &Place, storages: &'a [Storage]) -> Option<&'a Storage> {
    let id = storage::of_volume(&place.volume)?;
    storages.iter().find(|s| s.id == id)
}

/// What the node lacks, by its answer; `None` if it is ready.
pub fn lacking(node: &Node, place: &Place, storages: &[Storage], answer: Readiness) -> Option<Lack> {
    let (name, path) = (&node.name, place.path.display());
    let shared = storage_of(place, storages).is_some_and(|s| s.shared);
    let install = install_on(name, env!("CARGO_PKG_VERSION"));
    let put = format!("ssh {name} install -D -m 755 /usr/share/phoenix-nvidia/phoenix-nvidia {path}");
    let (kind, what, fix) = match answer {
        Readiness::Known { package: true, snippet, .. } if snippet || shared => return None,
        Readiness::Unknown(why) => {
            let file = if shared { String::new() } else { format!(" and the hookscript {path}") };
            let what = format!("cannot ask node {name} for the package phoenix-nvidia{file}: {why}");
            (LackKind::Unknown, what, format!("ssh {name} phoenix-nvidia --version"))
        }
        Readiness::Known { package, snippet, .. } => {
            let (what, fix) = match (package, snippet || shared) {
                (false, true) => {
                    ("the package phoenix-nvidia: starts there have no GPU setup".to_owned(), install)
                }
                (false, false) => (
                    format!("the package phoenix-nvidia and the hookscript {path}: starts fail there"),
                    format!("{install} && {put}"),
                ),
                _ => (format!("the hookscript {path}: starts fail there"), put),
            };
            let what = format!("node {name} lacks {what}");
            (LackKind::Files, what, fix)
        }
    };
    Some(Lack { kind, what, fix })
}

/// The command that installs the package of a version on another node; its file is in
/// the directory at hand.
pub fn install_on(node: &str, version: &str) -> String {
    let file = package(version);
    format!("scp {file} {node}:/tmp/ && ssh {node} apt-get install -y /tmp/{file}")
}

/// The name of the file.
pub fn package(version: &str) -> String {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!("phoenix-nvidia_{version}_{arch}.deb")
}

/// What another node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It did not answer; why.
    Unknown(String),
    /// It answered.
    Known {
        /// phoenix-nvidia is installed.
        package: bool,
        /// Its version, where it says one.
        version: Option<String>,
        /// The snippet is there and executable.
        snippet: bool,
    },
}

/// Asks a node whether it has the package and the snippet at `path`, for no longer than
/// [`ASK`].
pub fn ask(node: &Node, snippet: &Path, deadline: &Deadline) -> Readiness {
    let Some(address) = node.address.as_deref().filter(|_| node.online) else {
        return Readiness::Unknown("offline".to_owned());
    };
    let Some(question) = question(snippet) else {
        return Readiness::Unknown(format!("unusual path {}", snippet.display()));
    };
    let hosts = format!("/etc/pve/nodes/{}/ssh_known_hosts", node.name);
    let mut cmd = Cmd::new(SSH).args(["-e", "none", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]);
    cmd = cmd.args(["-o".to_owned(), format!("HostKeyAlias={}", node.name)]);
    if Path::new(&hosts).exists() {
        cmd = cmd.args(["-o".to_owned(), format!("UserKnownHostsFile={hosts}")]);
        cmd = cmd.args(["-o", "GlobalKnownHostsFile=none"]);
    }
    match cmd.args([format!("root@{address}"), question]).run(&deadline.at_most(ASK)) {
        Ok(output) => match answer(&output.text()) {
            Some(known) => known,
            None => Readiness::Unknown(match (output.ended, output.last_lines(1).pop()) {
                (Ended::Code(0), _) => "no answer".to_owned(),
                (_, Some(line)) => line,
                (ended, None) => format!("ssh: {ended}"),
            }),
        },
        Err(failure) => Readiness::Unknown(failure.to_string()),
    }
}

/// The command for the other node's shell; `None` for a path that needs quoting:
/// no storage of Proxmox has one.
fn question(snippet: &Path) -> Option<String> {
    let path = snippet.to_str()?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"/._+-@:".contains(&b);
    path.bytes().all(good).then(|| {
        let test =
            |file: &str, word: &str| format!("if test -x {file}; then echo {word}=1; else echo {word}=0; fi");
        // In the form `phoenix-nvidia 0.2.0`. One that hangs takes nothing away from what is known by then.
        let version = format!("timeout -k 1 3 {PROGRAM} --version 2>/dev/null");
        format!("{}; {}; {version}", test(PROGRAM, "package"), test(path, "snippet"))
    })
}

fn answer(text: &str) -> Option<Readiness> {
    let value = |word: &str| {
        let yes = text.lines().any(|line| line.trim() == format!("{word}=1"));
        let no = text.lines().any(|line| line.trim() == format!("{word}=0"));
        (yes != no).then_some(yes)
    };
    let version = text.lines().find_map(|line| line.trim().strip_prefix("phoenix-nvidia "));
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-+~".contains(c);
    let version = version.filter(|version| version.len() <= 40 && version.chars().all(plain));
    let version = version.map(str::to_owned);
    Some(Readiness::Known { package: value("package")?, version, snippet: value("snippet")? })
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
            let answer = Readiness::Known { package, version: None, snippet };
            let lack = lacking(&node, place, &storages, answer);
            lack.map(|lack| format!("{} | {}", lack.what, lack.fix)).unwrap_or_default()
        };
        assert_eq!(says(&local, true, true), "");
        assert_eq!(says(&share, true, false), "");
        assert!(says(&local, true, false).contains(" | ssh beta install -D -m 755"));
        let neither = says(&local, false, false);
        assert!(neither.contains("lacks the package phoenix-nvidia and the hookscript"), "{neither}");
        // The package alone puts none into a storage.
        assert!(neither.contains(" && ssh beta apt-get install -y "), "{neither}");
        assert!(neither.contains(" && ssh beta install -D -m 755 "), "{neither}");
        assert!(says(&share, false, false).contains("lacks the package phoenix-nvidia: "));
        let unknown = lacking(&node, &local, &storages, Readiness::Unknown("offline".into())).unwrap();
        assert!(unknown.what.starts_with("cannot ask node beta") && unknown.what.ends_with(": offline"));
        let some = without_storage(&node, &some, &storages).unwrap();
        assert!(some.what.contains("does not have storage some"));
        assert_eq!(without_storage(&node, &local, &storages), None, "local is on every node");
        assert_eq!(without_storage(&node, &share, &storages), None);
    }

    #[test]
    fn an_answer_is_whole_or_none() {
        let known = |version: Option<&str>| {
            Some(Readiness::Known { package: true, version: version.map(str::to_owned), snippet: false })
        };
        assert_eq!(answer("motd\npackage=1\nsnippet=0\n"), known(None));
        assert_eq!(answer("package=1\nsnippet=0\nphoenix-nvidia 0.1.0\n"), known(Some("0.1.0")));
        assert_eq!(answer("package=1\nsnippet=0\nphoenix-nvidia $(id)\n"), known(None));
        assert_eq!(answer("package=1\n"), None);
        assert_eq!(answer("package=1\npackage=0\nsnippet=1\n"), None);
        // A program that hangs there costs its version alone.
        let slow = question(Path::new("/bin/sh")).unwrap();
        assert!(slow.ends_with("; timeout -k 1 3 /usr/sbin/phoenix-nvidia --version 2>/dev/null"), "{slow}");
        let slow =
            slow.replace("timeout -k 1 3 /usr/sbin/phoenix-nvidia --version", "timeout -k 1 0.2 sleep 60");
        let run = Cmd::new("/bin/sh").args(["-c", &slow]).run(&Deadline::secs(20)).unwrap();
        assert!(
            matches!(answer(&run.text()), Some(Readiness::Known { snippet: true, version: None, .. })),
            "{run:?}"
        );
        assert_eq!(question(Path::new("/a b")), None);
        assert!(question(Path::new("/var/lib/vz/snippets/phoenix-nvidia")).unwrap().contains("test -x /var"));
    }
}
