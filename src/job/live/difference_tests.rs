use super::*;
use crate::driver::injection::{Injection, Place};

const DRIVER: &str = "usr/lib64/glibc-hwcaps/x86-64-v2";

fn device(path: &str, major: u32, minor: u32) -> Device {
    Device { path: path.parse().unwrap(), major, minor }
}

fn card(minor: u32) -> Device {
    device(&format!("/dev/nvidia{minor}"), 195, minor)
}

/// A container with these nodes, and their rules.
fn running(nodes: &[Device], table: &str) -> Running {
    Running {
        nodes: nodes.iter().map(|device| (device.path, Some(device.number()))).collect(),
        rules: nodes.to_vec(),
        table: table.to_owned(),
        ..Running::default()
    }
}

fn wanted(devices: &[Device]) -> Wanted {
    Wanted { devices: devices.to_vec(), ..Wanted::default() }
}

fn told(conf: &str, has: &Running, wanted: &Wanted) -> Vec<String> {
    Difference::of(&Document::parse(conf.as_bytes()), has, wanted).told()
}

#[test]
fn cards_come_before_others_go_and_nothing_is_done_twice() {
    let has = running(&[card(0), card(1)], "");
    assert_eq!(told("", &has, &wanted(&[card(1), card(2)])), ["add /dev/nvidia2", "take away /dev/nvidia0"]);
    assert_eq!(told("", &has, &wanted(&[card(0), card(1)])), [""; 0]);
    assert_eq!(told("", &has, &wanted(&[])), ["take away /dev/nvidia0", "take away /dev/nvidia1"]);
}

#[test]
fn a_rule_without_its_node_goes_and_a_node_without_its_rule_gets_it() {
    let mut has = running(&[card(0), card(1)], "");
    has.nodes.remove(&card(1).path);
    let take = Step::Take(card(1).path, Some(card(1).number()));
    let difference = Difference::of(&Document::parse(b""), &has, &wanted(&[card(0)]));
    assert_eq!(difference.live, [take]);
    has.rules.clear();
    assert_eq!(told("", &has, &wanted(&[card(0)])), ["add the device rule of /dev/nvidia0"]);
    let mut shut = running(&[card(0)], "");
    shut.shut = [card(0).path].into();
    assert_eq!(told("", &shut, &wanted(&[card(0)])), ["add the device rule of /dev/nvidia0"]);
}

#[test]
fn a_node_of_another_number_is_replaced_and_one_that_is_unseen_is_left() {
    let (old, new) = (device("/dev/nvidia-uvm", 511, 0), device("/dev/nvidia-uvm", 510, 0));
    let difference = Difference::of(&Document::parse(b""), &running(&[old], ""), &wanted(&[new]));
    assert_eq!(difference.live, [Step::Add { device: new, over: Some(old.number()) }]);
    let unseen = Running { unseen: [card(0).path].into(), ..Running::default() };
    assert_eq!(told("", &unseen, &wanted(&[card(0)])), [""; 0]);
}

#[test]
fn what_a_container_mounts_at_a_path_chooses_no_rule() {
    let of =
        |has: &Running, devices: &[Device]| Difference::of(&Document::parse(b""), has, &wanted(devices)).live;
    let null = Some(Number { major: 1, minor: 3 });
    let mut has = running(&[card(0), card(1)], "");
    has.nodes.insert(card(1).path, null);
    assert_eq!(of(&has, &[card(0)]), [Step::Take(card(1).path, Some(card(1).number()))]);
    let covered = Step::Add { device: card(1), over: None };
    assert_eq!(of(&has, &[card(0), card(1)]), [covered]);
    // Without a pair of ours: NVIDIA's goes, by its own number, and another one is the container's.
    let nodes = [(card(0).path, Some(card(0).number())), (card(1).path, null), (card(2).path, None)];
    let made = Running { nodes: nodes.into(), ..Running::default() };
    assert_eq!(of(&made, &[]), [Step::Take(card(0).path, Some(card(0).number()))]);
    assert!(has.opens_number(card(0).number()) && !made.opens_number(card(0).number()));
}

#[test]
fn where_the_rules_are_unknown_every_card_of_nobodys_may_be_open() {
    let others = |conf: &str, has: &Running, devices: &[Device], mig: &[u32]| -> Vec<u32> {
        let cards = (0..4).collect();
        let wanted = Wanted { cards, mig: mig.iter().copied().collect(), ..wanted(devices) };
        let conf = Document::parse(conf.as_bytes());
        let others = Difference::of(&conf, has, &wanted).others(&conf, &wanted);
        assert!(others.iter().all(|device| device.path.may_have(device.number())));
        others.iter().map(|device| device.minor).collect()
    };
    assert_eq!(others("", &running(&[], ""), &[card(0)], &[]), [1, 2, 3]);
    assert_eq!(others("dev0: /dev/nvidia2\n", &running(&[], ""), &[card(0)], &[]), [1, 3]);
    // A card with MIG instances goes with a start alone.
    assert_eq!(others("", &running(&[card(3)], ""), &[], &[3]), [0, 1, 2]);
}

#[test]
fn the_rules_after_all_steps_are_those_of_before_with_what_came_and_went() {
    let after =
        |has: &Running, wanted: &Wanted| Difference::of(&Document::parse(b""), has, wanted).rules_after(has);
    let has = running(&[card(0), card(1)], "");
    assert_eq!(after(&has, &wanted(&[card(1), card(2)])), [card(1), card(2)]);
    let (old, new) = (device("/dev/nvidia-uvm", 511, 0), device("/dev/nvidia-uvm", 510, 0));
    assert_eq!(after(&running(&[old], ""), &wanted(&[new])), [new]);
    // What waits is in force until then, and what comes then is not.
    let mig = |devices: &[Device]| Wanted { mig: [1].into(), ..wanted(devices) };
    assert_eq!(after(&has, &mig(&[card(0)])), [card(0), card(1)]);
    assert_eq!(after(&running(&[card(0)], ""), &mig(&[card(0), card(1)])), [card(0)]);
}

#[test]
fn mig_with_its_cards_and_drm_wait_for_the_next_start() {
    let (cap, drm) = (device("/dev/nvidia-caps/nvidia-cap30", 510, 30), device("/dev/dri/card1", 226, 1));
    let mig = |devices: &[Device]| Wanted { mig: [1].into(), ..wanted(devices) };
    let of = |has: &Running, wanted: &Wanted| Difference::of(&Document::parse(b""), has, wanted);
    let comes = of(&running(&[], ""), &mig(&[card(0), card(1), cap, drm]));
    assert_eq!(comes.told(), ["add /dev/nvidia0"]);
    let all = "/dev/nvidia1, /dev/nvidia-caps/nvidia-cap30, /dev/dri/card1";
    assert_eq!(comes.waiting().unwrap(), format!("{all} come"));
    let goes = of(&running(&[card(0), card(1), cap, drm], ""), &mig(&[]));
    assert_eq!(goes.told(), ["take away /dev/nvidia0"]);
    assert!(goes.waiting().unwrap().ends_with(" go"), "{goes:?}");
    assert_eq!(of(&running(&[card(0), cap], ""), &mig(&[card(0), cap])), Difference::default());
    // The container may mount as many as it likes.
    let mut made = running(&[], "");
    made.nodes = (0..200).map(|n| (DevicePath::CapFile(n), Some(Number { major: 510, minor: n }))).collect();
    let waiting = of(&made, &wanted(&[])).waiting().unwrap();
    assert!(waiting.ends_with(", and 180 more go"), "{waiting}");
}

#[test]
fn the_directory_of_an_older_start_goes_where_nothing_is_in_it() {
    let (caps, file) = (device("/dev/nvidia-caps", 510, 2), device("/dev/nvidia-caps/nvidia-cap30", 510, 30));
    let of = |has: &Running, wanted: &Wanted| Difference::of(&Document::parse(b""), has, wanted);
    let mut has = running(&[caps], "");
    has.nodes.insert(caps.path, None);
    assert_eq!(of(&has, &wanted(&[])).live, [Step::Take(caps.path, Some(caps.number()))]);
    // It never comes.
    let none = running(&[], "");
    let comes = of(&none, &wanted(&[caps]));
    assert_eq!((comes.live, comes.later), (vec![], vec![(caps.path, true)]));
    assert_eq!(of(&has, &wanted(&[caps])), Difference::default());
    // An instance's node would go with it, or be under it.
    assert!(of(&running(&[caps, file], ""), &wanted(&[])).live.is_empty());
    assert!(of(&has, &wanted(&[file])).live.is_empty());
    has.table = "42 30 0:52 / /dev/nvidia-caps rw - fuse.x x rw\n".to_owned();
    assert!(of(&has, &wanted(&[])).live.is_empty(), "it need not answer");
    let unseen = Running { unseen: [caps.path].into(), ..running(&[caps], "") };
    assert_eq!(of(&unseen, &wanted(&[])).later, [(caps.path, false)]);
}

#[test]
fn the_monitors_node_comes_and_goes_beside_instances_that_wait() {
    let (node, mig) =
        (device("/dev/nvidia-caps/nvidia-cap2", 510, 2), device("/dev/nvidia-caps/nvidia-cap30", 510, 30));
    let of = |has: &Running, devices: &[Device]| {
        let wanted = Wanted { monitor: Some(node.path), ..wanted(devices) };
        Difference::of(&Document::parse(b""), has, &wanted)
    };
    assert_eq!(of(&running(&[], ""), &[node]).live, [Step::Add { device: node, over: None }]);
    let take = Step::Take(node.path, Some(node.number()));
    assert_eq!(of(&running(&[node], ""), &[]).live, std::slice::from_ref(&take));
    assert_eq!(of(&running(&[node], ""), &[node]), Difference::default());
    let mut split = of(&running(&[node], ""), &[mig]);
    assert_eq!((&split.live, &split.later), (&vec![take.clone()], &vec![(mig.path, true)]));
    // What the container has in its place may keep it until the next start.
    assert!(take.can_wait() && !Step::Take(card(0).path, None).can_wait());
    split.put_off(&take);
    assert_eq!(split.waiting().unwrap(), format!("{} come; {} go", mig.path, node.path));
    for table in ["/dev/nvidia-caps", "/dev/nvidia-caps/nvidia-cap2", "/dev"] {
        let fuse = format!("42 30 0:52 / {table} rw - fuse.x x rw\n");
        assert!(of(&running(&[], &fuse), &[node]).live.is_empty(), "{table} need not answer");
    }
}

#[test]
fn the_capabilities_directory_of_an_older_start_waits_in_silence_for_the_node_in_its_place() {
    let (directory, node) =
        (device("/dev/nvidia-caps", 510, 2), device("/dev/nvidia-caps/nvidia-cap2", 510, 2));
    let mut has = running(&[card(0), directory], "");
    has.nodes.insert(directory.path, None);
    let of = |devices: &[Device]| {
        let wanted = Wanted { monitor: Some(node.path), ..wanted(devices) };
        Difference::of(&Document::parse(b""), &has, &wanted)
    };
    let same = of(&[card(0), node]);
    assert_eq!((same.told(), same.waiting()), (Vec::new(), None));
    assert_eq!(same.later.len(), 2, "the rule of today stays noted");
    assert_eq!(of(&[card(0)]).told(), ["take away /dev/nvidia-caps"]);
}

#[test]
fn what_dev_lines_pass_is_the_users() {
    let has = running(&[card(0), card(1)], "");
    let conf = "dev0: /dev/nvidia1\n";
    assert_eq!(told(conf, &has, &wanted(&[])), ["take away /dev/nvidia0"]);
    assert_eq!(told(conf, &running(&[card(0)], ""), &wanted(&[card(0), card(1)])), [""; 0]);
    // DRM nodes of a line of the user's, which no pair of ours has.
    let mut drm = running(&[], "");
    drm.nodes.insert("/dev/dri/card1".parse().unwrap(), None);
    assert_eq!(Difference::of(&Document::parse(b""), &drm, &wanted(&[])), Difference::default());
}

fn tree(version: &str, at: &str) -> String {
    format!(
        "42 30 0:52 / /{at} ro - overlay overlay ro,lowerdir=/var/lib/phoenix-nvidia/driver/{version}:/run/empty\n"
    )
}

fn injected(version: Option<&str>) -> Wanted {
    let place = Place { targets: vec![DRIVER.to_owned()], drop_in: false };
    let kernel = version.map(|version| version.parse().unwrap());
    Wanted { mounts: Injection::On(place).mounts(), kernel, ..Wanted::default() }
}

#[test]
fn the_driver_tree_comes_goes_and_is_exchanged() {
    let table = |version: &str| running(&[], &tree(version, DRIVER));
    assert_eq!(told("", &running(&[], ""), &injected(Some("580.2.1"))), ["mount driver 580.2.1"]);
    assert_eq!(told("", &table("580.2.1"), &injected(Some("580.2.1"))), [""; 0]);
    let exchange = ["exchange driver 580.1.1 for 580.2.1"];
    assert_eq!(told("", &table("580.1.1"), &injected(Some("580.2.1"))), exchange);
    assert_eq!(told("", &table("580.1.1"), &wanted(&[])), ["take away driver 580.1.1"]);
    // Without a loaded driver nobody knows what is right.
    assert_eq!(told("", &table("580.1.1"), &injected(None)), [""; 0]);
    // A new one over an old one that somebody left.
    let stacked = format!("{}{}", tree("580.1.1", DRIVER), tree("580.2.1", DRIVER));
    assert_eq!(told("", &running(&[], &stacked), &injected(Some("580.2.1"))), [""; 0]);
}

/// A directory of the user's, named by a number: nobody takes it away.
#[test]
fn a_mount_of_the_users_is_no_tree() {
    let mine = "43 30 8:1 /srv/tools/2024.1 /opt/tools/x86_64 ro - ext4 /dev/sda ro\n";
    assert_eq!(told("", &running(&[], mine), &wanted(&[])), [""; 0]);
    let both = format!("{mine}{}", tree("580.1.1", DRIVER));
    assert_eq!(told("", &running(&[], &both), &wanted(&[])), ["take away driver 580.1.1"]);
    assert_eq!(told("", &running(&[], &both), &injected(Some("580.1.1"))), [""; 0]);
}

#[test]
fn the_file_system_of_a_path_is_the_last_that_covers_it() {
    let table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /dev rw - tmpfs none rw\n\
        3 2 0:6 /nvidia0 /dev/nvidia0 rw - devtmpfs udev rw\n";
    assert_eq!(file_system(table, "/dev/nvidia0"), Some("devtmpfs"));
    assert_eq!(file_system(table, "/dev/nvidia1"), Some("tmpfs"));
    assert_eq!(file_system(table, "/devices"), Some("ext4"));
    let over = format!("{table}4 2 0:7 / /dev rw - fuse.x y rw\n");
    assert_eq!(file_system(&over, "/dev/nvidia0"), Some("fuse.x"));
    assert_eq!(file_system("", "/dev"), None);
    assert_eq!(at(&over, "dev").unwrap().kind, "fuse.x");
}
