//! What Docker and Podman in a container need for its GPUs.

use super::finding::Finding;
use super::read::Container;
use crate::guest::cdi::{Daemon, Look};
use crate::job::nested::{switch_on, theirs};
use crate::pve::conf::document::Document;
use crate::pve::{pending, property};
use crate::settings::keys;
use crate::settings::values::Nested;

/// `features:` with what engines need in addition; `None` where it has that, or
/// where Proxmox could not read it.
pub fn lacking(conf: &Document) -> Option<String> {
    let has = pending::get(conf, "features").unwrap_or_default();
    let parts =
        property::parse(&has, "").ok().filter(|parts| parts.iter().all(|(key, _)| !key.is_empty()))?;
    // Only an unprivileged container is kept from keyctl(2).
    let unprivileged = conf.get("unprivileged").as_deref() == Some("1");
    let needs = [("nesting", true), ("keyctl", unprivileged)];
    let is_on = |key: &str| parts.iter().any(|(k, v)| *k == key && property::boolean(v) == Some(true));
    let missing: Vec<&str> =
        needs.iter().filter(|(key, needed)| *needed && !is_on(key)).map(|(key, _)| *key).collect();
    if missing.is_empty() {
        return None;
    }
    let kept = parts.iter().filter(|(key, _)| !missing.contains(key)).map(|(k, v)| format!("{k}={v}"));
    Some(kept.chain(missing.iter().map(|key| format!("{key}=1"))).collect::<Vec<_>>().join(","))
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
        .fix(format!("pct set {} --features {features}", c.ctid));
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
            (None, true) => Finding::warning("nested", "no description of the GPUs for Docker and Podman")
                .why("it is written after a start")
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
            let finding = Finding::warning("nested-docker", "Docker in the container is older than 25")
                .why("it knows no CDI; Podman does from 4.1 on")
                .fix(format!("pct exec {} -- apt-get install podman", c.ctid));
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

/// Whether Docker copies each image for each container.
pub fn storage(c: &Container) -> Vec<Finding> {
    with_look(c, |look| {
        let on = look.docker.as_ref().is_some_and(|docker| docker.vfs);
        let has = pending::get(&c.conf, "features").unwrap_or_default();
        let features = lacking(&c.conf).unwrap_or(has);
        let finding = Finding::warning(
            "nested-storage",
            "Docker in the container uses the storage driver vfs",
        )
        .why("each layer of an image is a full copy; CUDA images have gigabytes")
        .fix(format!(
            "pct set {0} --features {features},fuse=1 && pct exec {0} -- apt-get install fuse-overlayfs",
            c.ctid
        ));
        on.then_some(finding)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
