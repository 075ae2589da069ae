//! Small cases of document and devices; the corpus and the properties are in
//! the tests directory.

use crate::device::Device;
use crate::device::Number;
use crate::pve::conf::devices::present;
use crate::pve::conf::document::ConfValue;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::EnvKey;
use crate::pve::conf::document::EnvLine;
use crate::pve::conf::document::Form;
use crate::pve::conf::reconcile::Change;
use crate::pve::conf::reconcile::reconcile;
use crate::pve::conf::reconcile::without_passed;

fn document(text: &str) -> Document {
    Document::parse(text.as_bytes())
}

fn text(document: &Document) -> String {
    String::from_utf8_lossy(document.as_bytes()).into_owned()
}

fn wanted(path: &str, major: u32, minor: u32) -> Device {
    Device { path: path.parse().unwrap(), major, minor }
}

#[test]
fn a_value_is_the_last_one_of_the_main_section() {
    let conf = document("memory: 1\nlock: backup\nmemory: 2\r\n\n[snap]\nmemory: 3\ntemplate: 1\n");
    assert_eq!(conf.get("memory").as_deref(), Some("2"));
    assert_eq!(conf.get("lock").as_deref(), Some("backup"));
    assert_eq!(conf.get("template"), None);
}

#[test]
fn settings_are_read_from_the_main_section_only_and_never_from_runtime() {
    let conf = document(
        "lxc.environment: A=1\nlxc.environment.runtime: B=2\nlxc.environment = C = 3 = 4 \n\
         lxc.environment: INHERITED\n[snap]\nlxc.environment: D=4\n",
    );
    let line = |key: &str, value: &str, line| EnvLine { key: key.into(), value: value.into(), line };
    assert_eq!(conf.environment(), [line("A", "1", 1), line("C ", " 3 = 4", 3)]);
}

#[test]
fn a_setting_is_written_behind_the_other_raw_lines() {
    let key: EnvKey = "GPU_ASSIGNMENT".parse().unwrap();
    let value: ConfValue = "0,1".parse().unwrap();
    let conf = document("memory: 1\nlxc.cap.drop: x\n\n[snap]\nlxc.environment: GPU_ASSIGNMENT=9\n");
    let set = conf.set_environment(&key, Some(&value)).unwrap();
    assert_eq!(
        text(&set),
        "memory: 1\nlxc.cap.drop: x\nlxc.environment: GPU_ASSIGNMENT=0,1\n\n[snap]\n\
         lxc.environment: GPU_ASSIGNMENT=9\n"
    );
    assert!(set.set_environment(&key, Some(&value)).is_none());
    assert_eq!(set.set_environment(&key, None), Some(conf));
}

#[test]
fn of_several_settings_the_last_stays_where_it_counts() {
    let key: EnvKey = "A".parse().unwrap();
    let conf = document("lxc.environment: A=1\nlxc.environment: B=1\nlxc.environment = A=2\nmemory: 1");
    let set = conf.set_environment(&key, Some(&"3".parse().unwrap())).unwrap();
    assert_eq!(text(&set), "lxc.environment: B=1\nlxc.environment: A=3\nmemory: 1");
    let same = conf.set_environment(&key, Some(&"2".parse().unwrap())).unwrap();
    assert_eq!(text(&same), "lxc.environment: B=1\nlxc.environment = A=2\nmemory: 1");
}

#[test]
fn a_value_cannot_smuggle_in_a_line() {
    for bad in ["0\nlxc.hook.pre-start: /tmp/x", "a\rb", "a\0", "trailing ", "\u{1b}[0m"] {
        assert!(bad.parse::<ConfValue>().is_err(), "{bad:?}");
    }
    for bad in ["", "A B", "A=", "1A", "A\n", "Ä"] {
        assert!(bad.parse::<EnvKey>().is_err(), "{bad:?}");
    }
}

#[test]
fn entries_of_all_sections_can_be_looked_at() {
    let conf = document("memory: 1\n\n[snap]\nlxc.mount.entry = /dev/nvidia0 /dev/nvidia0 none bind\n");
    let found: Vec<_> = conf.entries().into_iter().map(|e| (e.section, e.key, e.line)).collect();
    let snap = (Some("snap".to_owned()), "lxc.mount.entry".to_owned(), 4);
    assert_eq!(found, [(None, "memory".to_owned(), 1), snap]);
}

#[test]
fn a_number_that_no_rule_expects_is_known_again_while_it_is_wanted() {
    // A kernel with another range of dynamic majors.
    let list = [wanted("/dev/nvidia-uvm", 600, 3)];
    let once = reconcile(&document("memory: 1\n"), &list, &[], Form::Pve).unwrap().document;
    assert!(reconcile(&once, &list, &[], Form::Pve).is_none());
}

#[test]
fn a_device_that_a_dev_line_passes_gets_no_pair_until_the_line_is_pending_deletion() {
    let conf = document("dev0: gid=44,path=/dev//nvidia0\n[snap]\ndev3: /dev/nvidia1\n");
    let list = [wanted("/dev/nvidia0", 195, 0), wanted("/dev/nvidia1", 195, 1)];
    assert_eq!(without_passed(&conf, &list), [wanted("/dev/nvidia1", 195, 1)]);
    let going = document("dev0: /dev/nvidia0\n\n[pve:pending]\ndelete: dev0\n");
    assert_eq!(without_passed(&going, &list), list);
    let edit = reconcile(&going, &list[..1], &[], Form::Pve).unwrap();
    assert_eq!(
        text(&edit.document),
        "dev0: /dev/nvidia0\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
         lxc.cgroup2.devices.allow: c 195:0 rwm\n\n[pve:pending]\ndelete: dev0\n"
    );
    // A rolled back snapshot of that time: the line is there again, and nothing pending.
    let back = document(text(&edit.document).split("\n[").next().unwrap());
    assert_eq!(reconcile(&back, &list[..1], &[], Form::Pve).unwrap().changes.len(), 1);
    let coming = document("[pve:pending]\ndev0: /dev/nvidia0\n");
    assert_eq!(without_passed(&coming, &list), [wanted("/dev/nvidia1", 195, 1)]);
    // A capability passed one by one and a mount of their directory exclude each other.
    let conf = document("dev0: /dev/nvidia-caps/nvidia-cap2\n");
    assert!(without_passed(&conf, &[wanted("/dev/nvidia-caps", 508, 2)]).is_empty());
}

#[test]
fn what_is_present_is_told_with_line_and_rule() {
    let conf = document(
        "memory: 1\nlxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n\
         lxc.cgroup2.devices.allow: c 195:0 rwm\nlxc.mount.entry: /dev/nvidiactl /dev/nvidiactl none bind\n",
    );
    let found = present(&conf);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].line, found[0].rule), (2, Some(Number { major: 195, minor: 0 })));
    assert!(found[0].flaw.is_none() && found[1].flaw.is_some() && found[1].rule.is_none());
}

#[test]
fn changes_are_told_in_words() {
    let change = Change::Added("/dev/nvidia0".parse().unwrap(), Number { major: 195, minor: 0 });
    assert_eq!(change.to_string(), "added /dev/nvidia0 (c 195:0)");
}
