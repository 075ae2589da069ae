//! What Docker and Podman in a container need for its GPUs.

use super::finding::Finding;
use super::read::Container;
use crate::guest::cdi::{Daemon, Look, Podman};
use crate::job::nested::{lacking as no_driver, mend, switch_on, theirs};
use crate::pve::conf::document::Document;
use crate::pve::{pending, property};
use crate::settings::keys;
use crate::settings::values::Nested;
use crate::sys::text;
use crate::types::Ctid;

/// What mends an engine that is too old, where the container's packages do not.
const NEWER: &str = "install a newer Docker in the container: https://docs.docker.com/engine/install/";

/// `features:` with what engines need in addition; `None` where it has that, or
/// where Proxmox could not read it.
pub fn lacking(conf: &Document) -> Option<String> {
    with(conf, false)
}

/// The same, with FUSE or without.
fn with(conf: &Document, fuse: bool) -> Option<String> {
    let has = pending::get(conf, "features").unwrap_or_default();
    let parts =
        property::parse(&has, "").ok().filter(|parts| parts.iter().all(|(key, _)| !key.is_empty()))?;
    // Only an unprivileged container is kept from keyctl(2).
    let unprivileged = conf.get("unprivileged").as_deref() == Some("1");
    let needs = [("nesting", true), ("keyctl", unprivileged), ("fuse", fuse)];
    let is_on = |key: &str| parts.iter().any(|(k, v)| *k == key && property::boolean(v) == Some(true));
    let missing: Vec<&str> =
        needs.iter().filter(|(key, needed)| *needed && !is_on(key)).map(|(key, _)| *key).collect();
    if missing.is_empty() {
        return None;
    }
    let kept = parts.iter().filter(|(key, _)| !missing.contains(key)).map(|(k, v)| format!("{k}={v}"));
    Some(kept.chain(missing.iter().map(|key| format!("{key}=1"))).collect::<Vec<_>>().join(","))
}

/// What of `attach --nested` stays in a conf that had its setting: the features that engines
/// need. Whether they were there before, nobody remembers.
pub fn staying(conf: &Document) -> Option<String> {
    let line = conf.environment().into_iter().rfind(|line| line.key == keys::NESTED.name)?;
    if !matches!((keys::NESTED.read)(&line.value), Ok(Nested::Cdi | Nested::Replace)) {
        return None;
    }
    let has = pending::get(conf, "features")?;
    let parts = property::parse(&has, "").ok()?;
    let needed = |(key, value): &&(&str, &str)| {
        matches!(*key, "nesting" | "keyctl") && property::boolean(value) == Some(true)
    };
    let on: Vec<String> = parts.iter().filter(needed).map(|(key, value)| format!("{key}={value}")).collect();
    (!on.is_empty()).then(|| format!("features {} stay", on.join(",")))
}

/// The command that sets them: a value may hold what a shell would read (`mount=nfs;cifs`).
fn set_features(ctid: Ctid, features: &str) -> String {
    format!("pct set {ctid} --features {}", text::word(features))
}

fn nested(c: &Container) -> Nested {
    c.settings.value(keys::NESTED)
}

/// Whether engines may start containers in it at all.
pub fn features(c: &Container) -> Vec<Finding> {
    let Some(features) = lacking(&c.conf).filter(|_| nested(c) != Nested::None) else { return Vec::new() };
    let what = format!("features of the container are not {features}: engines in it cannot start containers");
    let finding = Finding::warning("nested-features", what)
        .why("nesting=1 lets them mount /proc, and keyctl=1 lets Docker in an unprivileged container start")
        .fix(set_features(c.ctid, &features));
    vec![finding]
}

/// A look for the engines.
fn with_look(c: &Container, finding: impl Fn(&Look) -> Option<Finding>) -> Vec<Finding> {
    let engines = c.inside.as_ref().and_then(|inside| inside.engines.as_ref());
    engines
        .and_then(|look| look.as_ref().ok())
        .filter(|look| look.shell)
        .and_then(finding)
        .into_iter()
        .collect()
}

/// Whether the engines find one description of the GPUs, and it is right.
pub fn description(c: &Container) -> Vec<Finding> {
    let engines = c.inside.as_ref().and_then(|inside| inside.engines.as_ref());
    if let Some(Err(why)) = engines {
        return vec![Finding::unknown("nested", why.clone())];
    }
    let stale = c
        .inside
        .as_ref()
        .is_some_and(|inside| inside.services.as_ref().is_ok_and(|services| services.has(&["stale own"])));
    let again = format!("phoenix-nvidia {}", c.ctid);
    with_look(c, |look| {
        let other = look.others.first().zip(c.kernel.as_ref());
        Some(match (other, look.ours.is_empty()) {
            (Some((other, version)), true) => Finding::warning("nested", theirs(other, version))
                .why("of two descriptions of a device Podman and Docker use neither")
                .fix(match nested(c) {
                    Nested::Replace => again.clone(),
                    _ => format!("phoenix-nvidia attach {} --nested-replace && {again}", c.ctid),
                }),
            (Some((other, version)), false) => Finding::failure("nested", theirs(other, version))
                .why("of two descriptions of a device Podman and Docker use neither, and ours is there too")
                .fix(again.clone()),
            (None, true) if c.choice.gpus.is_empty() => return None,
            (None, _) if !look.has_driver() && !c.choice.gpus.is_empty() => {
                let version = c.kernel.as_ref()?;
                Finding::warning(
                    "nested",
                    format!("nothing for Docker and Podman to read: {}", no_driver(version)),
                )
                .why("a description names the driver's files, and none is written without them")
                .fix(mend(c.ctid, &c.settings))
            }
            (None, true) => Finding::warning("nested", "no description of the GPUs for Docker and Podman")
                .why("it is written after a start that changes something")
                .fix(again.clone()),
            (None, false) if stale => Finding::warning(
                "nested",
                "the description for Docker and Podman names files that are not there",
            )
            .why("the driver in the container has changed since")
            .fix(again.clone()),
            (None, false) => Finding::ok("nested", "Docker and Podman find a description of the GPUs"),
        })
    })
}

/// Whether Docker uses it.
pub fn docker(c: &Container) -> Vec<Finding> {
    with_look(c, |look| {
        let docker = look.docker.as_ref()?;
        if docker.too_old() {
            let what = "Docker in the container is older than 25";
            let reads = |podman: &Podman| !podman.too_old();
            if look.podman.as_ref().is_some_and(reads) {
                return Some(Finding::ok("nested-docker", format!("{what}; Podman in it finds the GPUs")));
            }
            let finding = Finding::warning("nested-docker", what)
                .why("it knows no CDI; Podman does from 4.1 on")
                .fix(match look.candidate.as_ref().is_some_and(reads) {
                    true => format!("pct exec {} -- apt-get install podman", c.ctid),
                    false => NEWER.to_owned(),
                });
            return Some(finding);
        }
        let fix = match docker.daemon {
            Daemon::Absent => format!("phoenix-nvidia {}", c.ctid),
            _ => switch_on(c.ctid, docker),
        };
        let finding = Finding::warning("nested-docker", "features.cdi of Docker in the container is not set")
            .why("Docker before 28.2 uses CDI only with {\"features\":{\"cdi\":true}} in /etc/docker/daemon.json")
            .fix(fix);
        docker.lacks_cdi().then_some(finding)
    })
}

/// Whether Podman uses it.
pub fn podman(c: &Container) -> Vec<Finding> {
    with_look(c, |look| {
        let podman = look.podman.as_ref()?;
        if podman.lacks_indices() {
            let what =
                "Podman in the container takes the GPUs by UUID and all of them, by index only from 4.3 on";
            return Some(Finding::ok("nested-podman", what));
        }
        if !podman.too_old() {
            return None;
        }
        let what = "Podman in the container is older than 4.1";
        // Another engine in it does the same.
        if look.docker.as_ref().is_some_and(|docker| !docker.too_old()) {
            return Some(Finding::ok("nested-podman", format!("{what}; Docker in it finds the GPUs")));
        }
        let finding =
            Finding::warning("nested-podman", what).why("it knows no CDI; Docker does from 25 on").fix(NEWER);
        Some(finding)
    })
}

/// Whether Docker copies each image for each container.
pub fn storage(c: &Container) -> Vec<Finding> {
    with_look(c, |look| {
        let on = look.docker.as_ref().is_some_and(|docker| docker.vfs);
        // The container's restart is one of Docker too.
        let set = with(&c.conf, true).map(|features| format!("{} && ", set_features(c.ctid, &features)));
        let finding =
            Finding::warning("nested-storage", "Docker in the container uses the storage driver vfs")
                .why("each layer of an image is a full copy; CUDA images have gigabytes")
                .fix(format!(
                    "pct exec {0} -- apt-get install fuse-overlayfs && {1}pct reboot {0}",
                    c.ctid,
                    set.unwrap_or_default()
                ));
        on.then_some(finding)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_that_stay_are_those_that_engines_need_where_that_was_asked_for() {
        let of = |text: &str| staying(&Document::parse(text.as_bytes()));
        let asked = "lxc.environment: NESTED=cdi\n";
        let both = format!("features: fuse=1,nesting=1,keyctl=1\n{asked}");
        assert_eq!(of(&both).as_deref(), Some("features nesting=1,keyctl=1 stay"));
        let waiting = format!("{asked}[pve:pending]\nfeatures: nesting=1\n");
        assert_eq!(of(&waiting).as_deref(), Some("features nesting=1 stay"));
        for none in ["features: nesting=0,fuse=1", "features: fuse=1", "memory: 512"] {
            assert_eq!(of(&format!("{none}\n{asked}")), None, "{none}");
        }
        for setting in ["", "lxc.environment: NESTED=none\n", "lxc.environment: NESTED=cid\n"] {
            assert_eq!(of(&format!("features: nesting=1\n{setting}")), None, "{setting}");
        }
    }

    #[test]
    fn features_keep_what_is_there_and_get_what_engines_need() {
        let of = |conf: &str| lacking(&Document::parse(conf.as_bytes()));
        assert_eq!(of("unprivileged: 1\n").as_deref(), Some("nesting=1,keyctl=1"));
        assert_eq!(of("memory: 5\n").as_deref(), Some("nesting=1"));
        assert_eq!(
            of("unprivileged: 1\nfeatures: fuse=1,nesting=0,mount=nfs\n").as_deref(),
            Some("fuse=1,mount=nfs,nesting=1,keyctl=1")
        );
        assert_eq!(of("unprivileged: 1\nfeatures: keyctl=1,nesting=1\n"), None);
        assert_eq!(of("features: nesting=1\n"), None);
        let pending = "unprivileged: 1\n[pve:pending]\nfeatures: nesting=1,keyctl=1\n";
        assert_eq!(of(pending), None, "its next start has them");
        assert_eq!(of("features: nesting\n"), None, "Proxmox cannot read that");
    }

    #[test]
    fn a_command_for_features_has_each_once_and_is_one_word_for_a_shell() {
        let of = |conf: &str| with(&Document::parse(conf.as_bytes()), true);
        assert_eq!(of("features: fuse=1,nesting=1\n"), None);
        assert_eq!(of("features: nesting=1,fuse=0\n").as_deref(), Some("nesting=1,fuse=1"));
        let features = of("unprivileged: 1\nfeatures: mount=nfs;cifs\n").unwrap();
        assert_eq!(
            set_features("101".parse().unwrap(), &features),
            "pct set 101 --features 'mount=nfs;cifs,nesting=1,keyctl=1,fuse=1'"
        );
        assert_eq!(set_features("101".parse().unwrap(), "fuse=1"), "pct set 101 --features fuse=1");
    }
}
