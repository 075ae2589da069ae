//! The device entries that a conf had before `attach`: `detach` puts them back.
//! They stand in a variable beside the settings, which clone, backup, restore and
//! migration carry along.

use crate::device::{DevicePath, Number, is_dynamic};
use crate::pve::conf::devices::{ENTRY, Present, RULE, device_in, entry_value, present};
use crate::pve::conf::document::{Document, Form, Patch};
use crate::pve::conf::mounts::mount_lines;
use crate::pve::conf::reconcile::is_passed;
use crate::pve::passthrough;

/// The variable. Entries are separated by `;`, and ` +c MAJOR:MINOR` is the rule
/// that followed one.
pub const KEY: &str = "PHOENIX_NVIDIA_BEFORE";

/// An entry of the record.
struct Old {
    path: DevicePath,
    value: String,
    rule: Option<Number>,
}

/// The value for a conf that is not attached yet; none without device entries. Where
/// it `was` attached before, a pair just as we write it is ours.
pub fn record(conf: &Document, was: bool) -> Option<String> {
    let old = |pair: &Present| {
        let setting = conf.setting(pair.index())?;
        let value = std::str::from_utf8(setting.value).ok()?.trim();
        if was && pair.rule.is_some() && value == entry_value(pair.path) {
            return None;
        }
        let rule = pair.rule.map(|number| format!(" +{number}")).unwrap_or_default();
        (!value.contains([';', '+'])).then(|| format!("{value}{rule}"))
    };
    let all: Vec<String> = present(conf).iter().filter_map(old).collect();
    (!all.is_empty()).then(|| all.join(";"))
}

/// A `devN:` line of the next start takes the place of an entry: LXC fails on a device
/// that comes twice.
fn read(conf: &Document) -> Vec<Old> {
    let passed = passthrough::next(conf);
    let line = conf.environment().into_iter().rfind(|line| line.key == KEY);
    let old = |item: &str| {
        let (value, rule) = match item.split_once(" +") {
            Some((value, rule)) => (value, rule.parse().ok()),
            None => (item, None),
        };
        let path = device_in(value.as_bytes())?;
        (!is_passed(&passed, path)).then(|| Old { path, value: value.to_owned(), rule })
    };
    line.iter().flat_map(|line| line.value.split(';')).filter_map(old).collect()
}

/// The devices whose entries [`put_back`] puts back.
pub fn recorded(conf: &Document) -> Vec<DevicePath> {
    read(conf).iter().map(|old| old.path).collect()
}

/// The conf with the recorded entries in the place of our pairs and mounts;
/// `None` without a record. `major` is that of a device in this boot.
pub fn put_back(conf: &Document, major: impl Fn(DevicePath) -> Option<u32>) -> Option<Document> {
    let old = read(conf);
    if old.is_empty() {
        return None;
    }
    let pairs = present(conf);
    let mut patch = Patch::of(conf);
    for pair in &pairs {
        patch.remove(pair.index());
        if pair.rule.is_some() {
            patch.remove(pair.index() + 1);
        }
    }
    mount_lines(conf).iter().for_each(|line| patch.remove(line - 1));
    let place = pairs.first().map_or_else(|| conf.end_of_lxc_lines(), Present::index);
    for old in &old {
        let entry = Form::Pve.write(ENTRY, &old.value);
        let rule = rule(old, &major).map(|number| Form::Pve.write(RULE, &format!("{number} rwm")));
        patch.insert(place, std::iter::once(entry).chain(rule));
    }
    Some(patch.apply())
}

/// The rule to put back: a dynamic major is that of this boot, or there is none.
fn rule(old: &Old, major: impl Fn(DevicePath) -> Option<u32>) -> Option<Number> {
    let recorded = old.rule?;
    let major = if is_dynamic(recorded.major) { major(old.path)? } else { recorded.major };
    Some(Number { major, ..recorded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::pve::conf::reconcile::reconcile;

    const GUIDE: &str = "arch: amd64\nunprivileged: 1\n\
        lxc.cgroup2.devices.allow: c 195:* rwm\n\
        lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n\
        lxc.mount.entry: /dev/nvidia1 /dev/nvidia1 none bind,optional,create=file 0 0\n\
        lxc.mount.entry: /dev/nvidia-modeset dev/nvidia-modeset none bind,optional,create=file\n\
        lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir\n\n[snap]\narch: amd64\n";

    fn with(text: &str, key: &str) -> Document {
        let value = record(&Document::parse(text.as_bytes()), false).unwrap();
        let document = Document::parse(text.as_bytes());
        document.set_environment(&key.parse().unwrap(), Some(&value.parse().unwrap())).unwrap()
    }

    fn without(document: &Document) -> String {
        let bare = put_back(document, |_| Some(511)).unwrap();
        let bare = bare.set_environment(&KEY.parse().unwrap(), None).unwrap();
        String::from_utf8_lossy(bare.as_bytes()).into_owned()
    }

    #[test]
    fn what_starts_made_of_the_entries_goes_back_to_what_stood_there() {
        let attached = with(GUIDE, KEY);
        assert_eq!(without(&attached), GUIDE);
        let gpu = [Device { path: "/dev/nvidia0".parse().unwrap(), major: 195, minor: 0 }];
        let started = reconcile(&attached, &gpu, &[], Form::Pve).unwrap().document;
        assert_eq!(present(&started).len(), 1);
        assert_eq!(without(&started), GUIDE);
        // Where no pair is left to stand for the place, behind the other lines.
        let none = reconcile(&attached, &[], &[], Form::Pve).unwrap().document;
        assert_eq!(present(&Document::parse(without(&none).as_bytes())).len(), 3);
        assert_eq!(recorded(&none).len(), 3);
    }

    #[test]
    fn a_rule_comes_back_with_the_major_of_today_or_not_at_all() {
        let old = "lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file 0 0\n\
            lxc.cgroup2.devices.allow: c 506:0 rwm\n\
            lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
            lxc.cgroup2.devices.allow: c 195:0 rwm\n";
        let attached = with(old, KEY);
        let uvm = [Device { path: "/dev/nvidia-uvm".parse().unwrap(), major: 511, minor: 0 }];
        let started = reconcile(&attached, &uvm, &[], Form::Pve).unwrap().document;
        let back = without(&started);
        assert!(back.contains("c 511:0 rwm") && back.contains("c 195:0 rwm"), "{back}");
        // Not what another boot left in the pair either.
        for conf in [&attached, &reconcile(&attached, &[], &[], Form::Pve).unwrap().document] {
            assert_eq!(without(conf), old.replace("506", "511"));
            let unknown = put_back(conf, |_| None).unwrap();
            let back: Vec<u32> = present(&unknown).iter().filter_map(|pair| Some(pair.rule?.major)).collect();
            assert_eq!((present(&unknown).len(), back), (2, vec![195]));
        }
    }

    #[test]
    fn what_a_dev_line_passes_by_now_stays_with_it() {
        let attached = with(GUIDE, KEY);
        let of = |lines: &str| {
            let text = format!("{lines}{}", String::from_utf8_lossy(attached.as_bytes()));
            let conf = Document::parse(text.as_bytes());
            (recorded(&conf).len(), without(&conf))
        };
        let (count, back) = of("dev0: /dev/nvidia0\n");
        assert!(count == 2 && !back.contains("/dev/nvidia0 ") && back.contains("/dev/nvidia1 "), "{back}");
        // One that goes at the next start passes nothing then.
        let pending = GUIDE.replace("[snap]", "[pve:pending]\ndelete: dev0\n[snap]");
        let conf = with(&format!("dev0: /dev/nvidia0\n{pending}"), KEY);
        assert_eq!(recorded(&conf).len(), 3);
        // All of them: what is left are ours.
        let caps = "lxc.mount.entry: /dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir 0 0\n";
        let conf = with(&format!("dev3: /dev/nvidia-caps/nvidia-cap1\n{caps}"), KEY);
        assert!(recorded(&conf).is_empty() && put_back(&conf, |_| None).is_none());
    }

    #[test]
    fn pairs_of_an_earlier_attach_are_none_of_the_users() {
        let ours = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
            lxc.cgroup2.devices.allow: c 195:0 rwm\n";
        let theirs = "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file\n";
        let of = |text: &str, was| record(&Document::parse(text.as_bytes()), was);
        assert_eq!(of(ours, true), None);
        assert!(of(ours, false).unwrap().ends_with(" 0 0 +c 195:0"));
        assert!(of(&format!("{ours}{theirs}"), true).unwrap().starts_with("/dev/nvidia1 "));
        let alone = ours.lines().next().unwrap();
        assert!(of(alone, true).is_some());
    }

    #[test]
    fn a_conf_without_device_entries_has_no_record_and_nothing_comes_back() {
        let conf = Document::parse(b"arch: amd64\nlxc.mount.entry: /dev/dri dev/dri none bind\n");
        assert_eq!(record(&conf, false), None);
        assert_eq!(put_back(&conf, |_| None), None);
        let odd = format!("lxc.environment: {KEY}=/etc/passwd etc/x none bind;x\n");
        assert_eq!(put_back(&Document::parse(odd.as_bytes()), |_| None), None);
    }
}
