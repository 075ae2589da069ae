//! A conf without anything of ours, and the way back. Pure.

use crate::device::{Device, Number, joined};
use crate::findings::nested;
use crate::host::facts::Majors;
use crate::pve::conf::before;
use crate::pve::conf::devices::{Present, present};
use crate::pve::conf::document::{ConfValue, Document, EnvKey, Form};
use crate::pve::conf::mounts::{Mount, mounts};
use crate::pve::conf::reconcile::{Change, reconcile};
use crate::settings::keys;
use crate::sys::text;

/// So many removed lines are told one by one.
const MOST_LINES: usize = 40;

/// The conf without anything of ours; `None` when there is nothing.
pub(super) fn bare(conf: &Document, majors: &Majors) -> Option<Document> {
    let names = keys::ALL.iter().map(|key| key.name).chain([before::KEY]);
    let keys: Vec<(EnvKey, Option<ConfValue>)> =
        names.filter_map(|name| Some((name.parse().ok()?, None))).collect();
    match before::put_back(conf, |path| majors.major_of(path)) {
        Some(back) => back.set_all(&keys).or(Some(back)),
        None => with(conf, &keys, &[], &[]),
    }
}

/// Whether a variable is a setting of ours, or what attach remembers.
pub(super) fn is_ours(name: &str) -> bool {
    keys::by_name(name).is_some() || name == before::KEY
}

/// The conf with these settings, pairs and mounts; `None` when it has them.
fn with(
    conf: &Document,
    settings: &[(EnvKey, Option<ConfValue>)],
    devices: &[Device],
    mounts: &[Mount],
) -> Option<Document> {
    let set = conf.set_all(settings);
    let edit = reconcile(set.as_ref().unwrap_or(conf), devices, mounts, Form::Pve);
    edit.map(|edit| edit.document).or(set)
}

/// What [`bare`] removes, and what of the settings' doing it does not, for messages.
pub(super) fn removed(conf: &Document) -> Vec<String> {
    let settings = conf.environment().into_iter().filter(|line| keys::by_name(&line.key).is_some());
    let mut lines: Vec<String> =
        settings.map(|line| format!("removed setting {}={}", line.key, text::hidden(&line.value))).collect();
    let back = before::recorded(conf);
    let goes = |change: &&Change| match change {
        Change::Removed(path, _) | Change::Doubled(path) => !back.contains(path),
        _ => true,
    };
    let pairs = reconcile(conf, &[], &[], Form::Pve);
    lines.extend(pairs.iter().flat_map(|edit| &edit.changes).filter(goes).map(ToString::to_string));
    if !back.is_empty() {
        lines.push(format!("restored the entries from before attach: {}", joined(&back, ", ")));
    }
    let mut lines = text::few(lines, MOST_LINES);
    lines.extend(nested::staying(conf));
    lines
}

/// The conf with the settings, pairs and mounts that `before` had.
pub(super) fn restored(now: &Document, before: &Document) -> Option<Document> {
    let ours = before.environment().into_iter().filter(|line| is_ours(&line.key));
    let settings = ours.filter_map(|line| Some((line.key.parse().ok()?, Some(line.value.parse().ok()?))));
    let device = |pair: Present| {
        let Number { major, minor } = pair.rule?;
        Some(Device { path: pair.path, major, minor })
    };
    let devices: Vec<Device> = present(before).into_iter().filter_map(device).collect();
    with(now, &settings.collect::<Vec<_>>(), &devices, &mounts(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "arch: amd64\nmemory: 512\nlxc.mount.entry: /srv srv none bind 0 0\nlxc.environment: LANG=C\n\n[snap]\nmemory: 1\n";
    const ATTACHED: &str = "arch: amd64\nmemory: 512\nlxc.mount.entry: /srv srv none bind 0 0\nlxc.environment: LANG=C\n\
        lxc.environment: GPU_ASSIGNMENT=0\nlxc.environment: CUDA_PACKAGES=none\n\
        lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\nlxc.cgroup2.devices.allow: c 195:0 rwm\n\
        lxc.mount.entry: /run/phoenix-nvidia/proc/101/gpus proc/driver/nvidia/gpus none bind,ro,optional 0 0\n\n[snap]\nmemory: 1\n";

    #[test]
    fn all_of_ours_is_removed_and_nothing_else() {
        let attached = Document::parse(ATTACHED.as_bytes());
        let majors = Majors::default();
        let bare_again = bare(&attached, &majors).unwrap();
        assert_eq!(String::from_utf8_lossy(bare_again.as_bytes()), BARE);
        assert_eq!(bare(&bare_again, &majors), None);
        assert_eq!(
            removed(&attached),
            [
                "removed setting GPU_ASSIGNMENT=0",
                "removed setting CUDA_PACKAGES=none",
                "removed /dev/nvidia0 (c 195:0)",
                "removed the mount over /proc/driver/nvidia/gpus"
            ]
        );
    }

    #[test]
    fn what_was_removed_can_be_restored() {
        let drm = "lxc.mount.entry: /run/phoenix-nvidia/dev/dri/card1 dev/dri/card1 none bind,optional,create=file 0 0\n\
            lxc.cgroup2.devices.allow: c 226:1 rwm\n";
        let graphics = ATTACHED.replace("lxc.mount.entry: /run", &format!("{drm}lxc.mount.entry: /run"));
        let attached = Document::parse(graphics.as_bytes());
        assert_eq!(restored(&bare(&attached, &Majors::default()).unwrap(), &attached), Some(attached));

        let bare = Document::parse(BARE.as_bytes());
        let again = restored(&bare, &Document::parse(ATTACHED.as_bytes())).unwrap();
        assert_eq!(String::from_utf8_lossy(again.as_bytes()), ATTACHED);
    }
}
