//! What holds for any conf: nothing is lost, other people's lines stay, and
//! the assignment that came last stands.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::conf_support;

use conf_support::{
    ends_in_ours, lines, ours_and_theirs, pairs, pairs_and_mounts, rewritten_by_proxmox, wanted,
};
use phoenix_nvidia::device::Device;
use phoenix_nvidia::host::masks;
use phoenix_nvidia::pve::conf::devices::present;
use phoenix_nvidia::pve::conf::document::{ConfValue, Document, EnvKey, Form};
use phoenix_nvidia::pve::conf::mounts::Mount;
use phoenix_nvidia::pve::conf::reconcile::{Edit, reconcile};
use proptest::prelude::*;

/// Sources that are ours, nearly ours, and other people's.
const SOURCES: &[&str] = &[
    "/dev/nvidia0",
    "/dev/nvidia1",
    "/dev/nvidia7",
    "/dev/nvidia12",
    "/dev/nvidiactl",
    "/dev/nvidia-modeset",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-caps",
    "/dev/nvidia-caps/nvidia-cap3",
    "/dev/dri/card0",
    "/dev/dri/renderD128",
    "/dev/dri",
    "/run/phoenix-nvidia/dev/dri/card0",
    "/run//phoenix-nvidia/dev/dri/renderD128",
    "/run/phoenix-nvidia/dev/dri/x",
    "/dev/net/tun",
    "/dev/fuse",
    "/dev/nvidia-nvswitch0",
    "//dev/nvidia0/",
    "/usr/lib/nvidia",
    "/run/phoenix-nvidia/proc/101/params",
    "/run/phoenix-nvidia/proc/101/gpus",
    "/run//phoenix-nvidia/proc/7/gpus",
    "/run/phoenix-nvidia/driver/current",
    "/run/phoenix-nvidia",
    "/run/phoenix-nvidia/../x",
];

const OTHERS: &[&str] = &[
    "arch: amd64",
    "memory: 512",
    "unprivileged: 1",
    "#a comment",
    "# lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind",
    "",
    "lxc.cap.drop:",
    "lxc.environment: GPU_ASSIGNMENT=0,1",
    "lxc.idmap: u 0 100000 65536",
    "lxc.cgroup.devices.allow: c 195:0 rwm",
    "bogus line",
    " lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind",
    "lxc.mount.entry : /dev/nvidia0 dev/nvidia0 none bind",
    "lxc.mount.entry:",
    "dev9: /dev/sda,mode=0660",
    "dev0: gid=44,path=/dev//nvidia7",
    "dev0: /dev/nvidia1",
    "dev1: gid=44",
];

/// What may wait in a section below.
const PENDING: &[&str] = &["delete: dev0,memory", "dev2: /dev/nvidia0", "dev0: path=/dev/nvidiactl"];

fn entry() -> impl Strategy<Value = String> {
    let source = prop::sample::select(SOURCES);
    let key = prop::sample::select(&["lxc.mount.entry: ", "lxc.mount.entry = ", "lxc.mount.entry:\t"][..]);
    let target = prop::sample::select(&["", "/", "x"][..]);
    let options = prop::sample::select(
        &[
            "none bind,optional,create=file 0 0",
            "none bind,optional,create=file",
            "none bind,optional,create=dir 0 0",
            "none create=file,optional,bind 0 0",
            "none bind",
            "none bind,ro,nosuid,nodev,noexec,optional 0 0",
            "",
        ][..],
    );
    (key, source, target, options).prop_map(|(key, source, target, options)| {
        let place = match source.rsplit_once("/proc/") {
            Some((_, name)) => {
                format!("proc/driver/nvidia/{}", name.trim_start_matches(|c| c != 'p' && c != 'g'))
            }
            None => source.trim_matches('/').to_owned(),
        };
        format!("{key}{source} {target}{place} {options}")
    })
}

fn rule() -> impl Strategy<Value = String> {
    let number = prop::sample::select(
        &[
            "195:0", "195:1", "195:7", "195:255", "195:254", "195:*", "511:0", "511:1", "235:2", "10:200",
            "10:229", "226:0", "226:128", "1:3",
        ][..],
    );
    let access = prop::sample::select(&["rwm", "rwm", "rwm", "rw"][..]);
    let sign = prop::sample::select(&[":", " =", ": "][..]);
    (number, access, sign)
        .prop_map(|(number, access, sign)| format!("lxc.cgroup2.devices.allow{sign} c {number} {access}"))
}

/// A conf of lines that matter, with any endings, and sections below.
fn conf(headers: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let other = prop::sample::select(OTHERS).prop_map(str::to_owned);
    let line = prop_oneof![3 => entry(), 3 => rule(), 3 => other];
    let header = prop::sample::select(headers).prop_map(str::to_owned);
    let main = prop::collection::vec(line, 0..24);
    let pending = prop::sample::select(PENDING).prop_map(str::to_owned);
    let below =
        prop::collection::vec(prop_oneof![1 => header, 4 => entry(), 4 => rule(), 2 => pending], 0..8);
    let ending = prop::sample::select(&["\n", "\n", "\r\n"][..]);
    let parts = (main, prop::option::of(prop::sample::select(headers)), below, ending, any::<bool>());
    parts.prop_map(|(mut all, header, below, ending, whole)| {
        if let Some(header) = header {
            all.push(header.to_owned());
            all.extend(below);
        }
        let mut text: String = all.iter().map(|line| format!("{line}{ending}")).collect();
        if !whole {
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
        }
        text.into_bytes()
    })
}

/// What is to be ours.
type Ours = (Vec<Device>, Vec<Mount>);

fn assignment() -> impl Strategy<Value = Ours> {
    let mounts = masks::mounts("101".parse().unwrap());
    (devices(), prop::sample::subsequence(mounts, 0..=2))
}

fn devices() -> impl Strategy<Value = Vec<Device>> {
    let all = vec![
        wanted("/dev/nvidia0", 195, 0),
        wanted("/dev/nvidia1", 195, 1),
        wanted("/dev/nvidia12", 195, 12),
        wanted("/dev/dri/card0", 226, 0),
        wanted("/dev/dri/renderD128", 226, 128),
        wanted("/dev/nvidiactl", 195, 255),
        wanted("/dev/nvidia-modeset", 195, 254),
        wanted("/dev/nvidia-uvm", 511, 0),
        wanted("/dev/nvidia-uvm-tools", 511, 1),
        wanted("/dev/nvidia-caps", 508, 2),
        wanted("/dev/nvidia-caps/nvidia-cap3", 508, 3),
    ];
    let uvm = prop::sample::select(&[511_u32, 510, 234, 254, 384][..]);
    (prop::sample::subsequence(all, 0..=11).prop_shuffle(), uvm).prop_map(|(mut list, uvm)| {
        list.iter_mut().filter(|w| w.major == 511).for_each(|w| w.major = uvm);
        list
    })
}

fn edit(document: &Document, (wanted, mounts): &Ours, form: Form) -> Option<Edit> {
    reconcile(document, wanted, mounts, form)
}

fn apply(document: &Document, ours: &Ours) -> Document {
    edit(document, ours, Form::Pve).map_or_else(|| document.clone(), |edit| edit.document)
}

const ANY_HEADER: &[&str] = &["[pve:pending]", "[snap1]", "[1st]", "[special:thing]", "[]"];
const KNOWN_HEADER: &[&str] = &["[pve:pending]", "[snap1]", "[before-upgrade]"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parse_then_print_is_the_same_for_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert_eq!(Document::parse(&bytes).as_bytes().to_vec(), bytes);
    }

    #[test]
    fn parse_then_print_is_the_same_for_a_conf(bytes in conf(ANY_HEADER)) {
        prop_assert_eq!(Document::parse(&bytes).as_bytes().to_vec(), bytes);
    }

    #[test]
    fn any_bytes_at_all_can_be_reconciled(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'['), Just(b']')], 0..300),
        list in assignment(),
    ) {
        let document = Document::parse(&bytes);
        let after = apply(&document, &list);
        prop_assert_eq!(ours_and_theirs(&document).1, ours_and_theirs(&after).1);
        prop_assert!(edit(&after, &list, Form::Pve).is_none());
    }

    #[test]
    fn the_last_assignment_stands_and_no_other_line_changes(
        bytes in conf(ANY_HEADER),
        first in assignment(),
        second in assignment(),
    ) {
        let document = Document::parse(&bytes);
        let alone = apply(&document, &second);
        let after_first = apply(&document, &first);
        let both = apply(&after_first, &second);
        prop_assert_eq!(pairs_and_mounts(&alone), pairs_and_mounts(&both));
        // No line of ours comes between an entry and its rule.
        prop_assert!(present(&alone).iter().all(|pair| pair.rule.is_some()), "{:?}", pairs(&alone));
        prop_assert_eq!(phoenix_nvidia::pve::conf::mounts::mounts(&alone), second.1.clone());
        let theirs = ours_and_theirs(&document).1;
        prop_assert_eq!(&theirs, &ours_and_theirs(&alone).1);
        prop_assert_eq!(&theirs, &ours_and_theirs(&after_first).1);
        prop_assert_eq!(&theirs, &ours_and_theirs(&both).1);
        prop_assert!(edit(&both, &second, Form::Pve).is_none());
        prop_assert!(edit(&alone, &second, Form::Pve).is_none());
    }

    #[test]
    fn every_line_is_either_kept_or_one_of_ours(bytes in conf(ANY_HEADER), list in assignment()) {
        let after = apply(&Document::parse(&bytes), &list);
        let before = lines(&bytes);
        for line in lines(after.as_bytes()) {
            let ours = line.starts_with(b"lxc.mount.entry: /dev/")
                || line.starts_with(b"lxc.mount.entry: /run/phoenix-nvidia/proc/101/")
                || line.starts_with(b"lxc.mount.entry: /run/phoenix-nvidia/dev/dri/")
                || line.starts_with(b"lxc.cgroup2.devices.allow: c ");
            prop_assert!(ours || before.contains(&line), "{}", String::from_utf8_lossy(&line));
        }
        // A newline is added to the last line only when another follows it.
        if !ends_in_ours(&Document::parse(&bytes)) && !ends_in_ours(&after) {
            prop_assert_eq!(bytes.ends_with(b"\n"), after.as_bytes().ends_with(b"\n"));
        }
    }

    #[test]
    fn what_proxmox_rewrites_is_recognised_as_complete(bytes in conf(KNOWN_HEADER), list in assignment()) {
        let after = apply(&Document::parse(&bytes), &list);
        let rewritten = Document::parse(&rewritten_by_proxmox(after.as_bytes()));
        let again = edit(&rewritten, &list, Form::Pve);
        prop_assert!(again.is_none(), "{:?} in\n{}", again.unwrap().changes,
            String::from_utf8_lossy(rewritten.as_bytes()));
        prop_assert_eq!(pairs_and_mounts(&after), pairs_and_mounts(&rewritten));
    }

    #[test]
    fn the_generated_config_gets_the_same_pairs(bytes in conf(&["lxc.tty.max = 2"]), list in assignment()) {
        let document = Document::parse(&bytes);
        let after = edit(&document, &list, Form::Lxc).map_or(document.clone(), |e| e.document);
        prop_assert!(edit(&after, &list, Form::Lxc).is_none());
        prop_assert_eq!(pairs_and_mounts(&after), pairs_and_mounts(&apply(&document, &list)));
    }

    #[test]
    fn a_setting_comes_back_as_it_was_written(
        bytes in conf(ANY_HEADER),
        value in "[ -~äß]{0,20}[!-~]",
        other in "[!-~]{1,9}",
    ) {
        let key: EnvKey = "GPU_ASSIGNMENT".parse().unwrap();
        let (value, other): (ConfValue, ConfValue) = (value.parse().unwrap(), other.parse().unwrap());
        let document = Document::parse(&bytes);
        let set = document.set_environment(&key, Some(&value)).unwrap_or_else(|| document.clone());
        let mine = |d: &Document| -> Vec<String> {
            d.environment().into_iter().filter(|e| e.key == "GPU_ASSIGNMENT").map(|e| e.value).collect()
        };
        prop_assert_eq!(mine(&set), vec![value.to_string()]);
        prop_assert!(set.set_environment(&key, Some(&value)).is_none());
        let again = set.set_environment(&key, Some(&other));
        if value != other {
            let again = again.unwrap();
            prop_assert_eq!(mine(&again), vec![other.to_string()]);
        }
        let gone = set.set_environment(&key, None).unwrap();
        prop_assert!(mine(&gone).is_empty() && gone.set_environment(&key, None).is_none());
        let others = |d: &Document| -> Vec<Vec<u8>> {
            let is_mine = |l: &Vec<u8>| l.starts_with(b"lxc.environment: GPU_ASSIGNMENT=");
            lines(d.as_bytes()).into_iter().filter(|l| !is_mine(l)).collect()
        };
        prop_assert_eq!(others(&document), others(&gone));
        prop_assert_eq!(others(&document), others(&set));
    }
}
