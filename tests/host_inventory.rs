//! What the inventory sees of hosts of every kind, and what is chosen there.

#![allow(clippy::unwrap_used)]

#[path = "fixtures/hosts.rs"]
#[allow(dead_code)]
mod hosts;

use expect_test::{Expect, expect};
use hosts::FixtureHost;
use phoenix_nvidia::host::choose::{Capabilities, Choice, choose};
use phoenix_nvidia::host::gpus::{Inventory, Node};
use std::fmt::Write as _;

fn inventory(name: &str) -> Option<Inventory> {
    Some(Inventory::read(FixtureHost::unpack(name)?.root()))
}

/// The inventory in a few lines.
fn summary(i: &Inventory) -> String {
    let mut out = match &i.driver {
        Some(d) => format!("driver {} {}\n", d.version, d.kind.map_or("?".into(), |k| k.to_string())),
        None => "no driver\n".to_owned(),
    };
    for gpu in &i.gpus {
        let minor = gpu.minor.map_or("-".into(), |m| m.to_string());
        let pci = gpu.pci.map_or("?".into(), |p| p.to_string());
        let node = gpu.path().map_or("-".into(), |p| shown(i.node(&p)));
        let uuid = gpu.uuid.as_deref().unwrap_or("?");
        let bound = gpu.bound_to.as_deref().unwrap_or("-");
        let _ = writeln!(out, "{minor} {pci} {bound} {node} {uuid} {}", gpu.model);
    }
    let number = |n: Option<u32>| n.map_or("-".into(), |n| n.to_string());
    let (uvm, caps, monitor) = (number(i.majors.uvm()), number(i.majors.caps()), number(i.monitor));
    let _ = writeln!(out, "uvm {uvm} caps {caps} monitor {monitor}");
    let mig: Vec<String> = i.mig.iter().map(|m| format!("{m}={},{}", m.gi_minor, m.ci_minor)).collect();
    if !mig.is_empty() {
        let _ = writeln!(out, "mig {}", mig.join(" "));
    }
    for problem in &i.problems {
        let _ = writeln!(out, "problem: {problem}");
    }
    out
}

fn shown(node: &Node) -> String {
    match node {
        Node::Device { major, minor, .. } => format!("{major}:{minor}"),
        Node::Absent => "absent".into(),
        Node::Other(what) => (*what).into(),
        Node::Unknown => "unknown".into(),
    }
}

fn sees(name: &str, expected: Expect) {
    if let Some(inventory) = inventory(name) {
        expected.assert_eq(&summary(&inventory));
    }
}

/// A choice in a few lines: devices, `make`, `missing`, `note`.
fn outcome(choice: &Choice) -> String {
    let mut out = String::new();
    for d in &choice.devices {
        let _ = writeln!(out, "{} {}:{}", d.path, d.major, d.minor);
    }
    for n in &choice.to_make {
        let numbers = n.numbers.map_or("?".into(), |(a, b)| format!("{a}:{b}"));
        let _ = writeln!(out, "make {} {numbers}: {}", n.path, n.why);
    }
    for m in &choice.missing {
        let _ = writeln!(out, "missing {m}");
    }
    for note in &choice.notes {
        let _ = writeln!(out, "note {note}");
    }
    out
}

fn chosen(inventory: &Inventory, assignment: &str, capabilities: &str) -> String {
    let capabilities: Capabilities = capabilities.parse().unwrap();
    outcome(&choose(inventory, &assignment.parse().unwrap(), &capabilities))
}

fn gives(name: &str, assignment: &str, expected: Expect) {
    if let Some(inventory) = inventory(name) {
        expected.assert_eq(&chosen(&inventory, assignment, "compute,utility"));
    }
}

/// What is missing alone.
fn lacks(name: &str, assignment: &str, expected: Expect) {
    if let Some(mut inventory) = inventory(name) {
        if let Some(host) = FixtureHost::unpack(name) {
            inventory.add_vms(host.root());
        }
        let all = chosen(&inventory, assignment, "compute,utility");
        let lines: Vec<&str> =
            all.lines().filter(|l| l.starts_with("missing") || l.starts_with("note")).collect();
        expected.assert_eq(&lines.join("\n"));
    }
}

#[test]
fn one_gpu() {
    sees(
        "one-gpu",
        expect![[r#"
        driver 550.163.01 proprietary
        0 0000:01:00.0 nvidia 195:0 GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90 NVIDIA GeForce RTX 4090
        uvm 511 caps 236 monitor 2
    "#]],
    );
    gives(
        "one-gpu",
        "0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 511:0
        /dev/nvidia-uvm-tools 511:1
        /dev/nvidia-caps 236:2
    "#]],
    );
    gives(
        "one-gpu",
        "none",
        expect![[r#"
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 511:0
        /dev/nvidia-uvm-tools 511:1
        /dev/nvidia-caps 236:2
    "#]],
    );
}

#[test]
fn minors_need_not_be_in_pci_order() {
    sees(
        "four-gpus",
        expect![[r#"
        driver 580.95.05 open
        0 0000:41:00.0 nvidia 195:0 GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab NVIDIA RTX A4000
        1 0000:c1:00.0 nvidia 195:1 GPU-77aa1122-3344-4556-8778-99aabbccddee NVIDIA RTX A4000
        2 0000:21:00.0 nvidia 195:2 GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90 NVIDIA RTX A4000
        3 0000:81:00.0 nvidia 195:3 GPU-1c0ffee1-0000-4aaa-bbbb-ccccddddeeee NVIDIA RTX A4000
        uvm 510 caps 237 monitor 2
    "#]],
    );
    // nvidia-smi's index 0 is the card at 21:00.0, whose node is /dev/nvidia2.
    gives(
        "four-gpus",
        "21:00.0",
        expect![[r#"
        /dev/nvidia2 195:2
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 510:0
        /dev/nvidia-uvm-tools 510:1
        /dev/nvidia-caps 237:2
    "#]],
    );
    gives(
        "four-gpus",
        "3,0,GPU-77aa,00000000:41:00.0,0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidia1 195:1
        /dev/nvidia3 195:3
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 510:0
        /dev/nvidia-uvm-tools 510:1
        /dev/nvidia-caps 237:2
    "#]],
    );
    gives(
        "four-gpus",
        "all",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidia1 195:1
        /dev/nvidia2 195:2
        /dev/nvidia3 195:3
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 510:0
        /dev/nvidia-uvm-tools 510:1
        /dev/nvidia-caps 237:2
    "#]],
    );
}

#[test]
fn branches_from_470_to_615_and_both_kinds() {
    sees(
        "branch-470",
        expect![[r#"
        driver 470.256.02 proprietary
        0 0000:03:00.0 nvidia 195:0 GPU-1c0ffee1-0000-4aaa-bbbb-ccccddddeeee NVIDIA GeForce GTX 780
        uvm 508 caps 509 monitor 2
    "#]],
    );
    sees(
        "branch-535",
        expect![[r#"
        driver 535.288.01 proprietary
        0 0000:01:00.0 nvidia 195:0 GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab NVIDIA L4
        uvm 234 caps 235 monitor 2
    "#]],
    );
    sees(
        "branch-615",
        expect![[r#"
        driver 615.71.09 open
        0 0000:01:00.0 nvidia 195:0 GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab NVIDIA GeForce RTX 5090
        uvm 498 caps 500 monitor 2
    "#]],
    );
    sees(
        "aarch64",
        expect![[r#"
        driver 580.95.05 open
        0 0009:01:00.0 nvidia 195:0 GPU-77aa1122-3344-4556-8778-99aabbccddee NVIDIA GH200 480GB
        uvm 505 caps 507 monitor 2
    "#]],
    );
    gives(
        "branch-470",
        "0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 508:0
        /dev/nvidia-uvm-tools 508:1
        /dev/nvidia-caps 509:2
    "#]],
    );
    gives(
        "branch-535",
        "0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 234:0
        /dev/nvidia-uvm-tools 234:1
        /dev/nvidia-caps 235:2
    "#]],
    );
    gives(
        "branch-615",
        "0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 498:0
        /dev/nvidia-uvm-tools 498:1
        /dev/nvidia-caps 500:2
    "#]],
    );
    gives(
        "aarch64",
        "0009:01:00.0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 505:0
        /dev/nvidia-uvm-tools 505:1
        /dev/nvidia-caps 507:2
    "#]],
    );
}

#[test]
fn mig_instances_bring_their_capability_nodes_instead_of_the_directory() {
    sees(
        "mig",
        expect![[r#"
        driver 580.95.05 proprietary
        0 0000:07:00.0 nvidia 195:0 GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90 NVIDIA A100-SXM4-40GB
        1 0000:0f:00.0 nvidia 195:1 GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab NVIDIA A100-SXM4-40GB
        uvm 511 caps 236 monitor 2
        mig 0:7/0=66,67 0:8/0=75,76 0:9/0=84,85 0:10/0=93,94 0:11/0=102,103 0:12/0=111,112 0:13/0=120,121
    "#]],
    );
    gives(
        "mig",
        "0:9/0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 511:0
        /dev/nvidia-uvm-tools 511:1
        /dev/nvidia-caps/nvidia-cap84 236:84
        /dev/nvidia-caps/nvidia-cap85 236:85
    "#]],
    );
    gives(
        "mig",
        "1,07:00.0:7/0,MIG-GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90/7/0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidia1 195:1
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 511:0
        /dev/nvidia-uvm-tools 511:1
        /dev/nvidia-caps/nvidia-cap66 236:66
        /dev/nvidia-caps/nvidia-cap67 236:67
    "#]],
    );
    gives(
        "mig-two-compute",
        "0:2/1",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 511:0
        /dev/nvidia-uvm-tools 511:1
        make /dev/nvidia-caps/nvidia-cap21 236:21: is missing
        make /dev/nvidia-caps/nvidia-cap23 236:23: is missing
    "#]],
    );
    // A card that is split can't compute as a whole.
    lacks(
        "mig",
        "0,1",
        expect![
            "note GPU 0 is split by MIG: programs can compute on its instances alone; name those (0:7/0, 0:8/0, 0:9/0, 0:10/0, 0:11/0, 0:12/0, 0:13/0)"
        ],
    );
    lacks(
        "mig",
        "0:1/0",
        expect![
            "missing MIG instance 0:1/0: there is no such MIG instance; GPU 0 has 0:7/0, 0:8/0, 0:9/0, 0:10/0, 0:11/0, 0:12/0, 0:13/0"
        ],
    );
    lacks("mig", "1:7/0", expect!["missing MIG instance 1:7/0: GPU 1 has no MIG instances"]);
    lacks(
        "mig",
        "MIG-0b3c2a10-1111-5222-8333-444455556666",
        expect![
            "missing MIG instance MIG-0b3c2a10-1111-5222-8333-444455556666: no instance with this UUID is known; this host has 0:7/0, 0:8/0, 0:9/0, 0:10/0, 0:11/0, 0:12/0, 0:13/0"
        ],
    );
}

#[test]
fn all_on_a_mig_host_is_every_card_and_every_instance() {
    let Some(inventory) = inventory("mig") else { return };
    let choice = choose(&inventory, &"all".parse().unwrap(), &Capabilities::default());
    let count = |prefix: &str| choice.devices.iter().filter(|d| d.path.starts_with(prefix)).count();
    assert_eq!((count("/dev/nvidia-caps/nvidia-cap"), choice.gpus.len(), choice.missing.len()), (14, 2, 0));
    assert!(!choice.devices.iter().any(|d| d.path == "/dev/nvidia-caps"));
}

#[test]
fn a_gpu_that_this_host_lacks_is_missing_and_the_message_says_what_it_has() {
    lacks(
        "four-gpus",
        "7",
        expect![
            "missing GPU 7: there is no GPU of that number; this host has 0 (0000:41:00.0 NVIDIA RTX A4000), 1 (0000:c1:00.0 NVIDIA RTX A4000), 2 (0000:21:00.0 NVIDIA RTX A4000), 3 (0000:81:00.0 NVIDIA RTX A4000)"
        ],
    );
    lacks(
        "one-gpu",
        "0,1,GPU-ffff,02:00.0",
        expect![[r#"
        missing GPU 1: there is no GPU of that number; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090)
        missing GPU-ffff: no card of this host has this UUID; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090 GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90)
        missing GPU 0000:02:00.0: no NVIDIA card sits at this address; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090)"#]],
    );
    lacks(
        "four-gpus",
        "GPU-8f3c",
        expect![
            "missing GPU-8f3c: fits more than one card (GPU 0 and GPU 2): write more of it; this host has 0 (0000:41:00.0 NVIDIA RTX A4000 GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab), 1 (0000:c1:00.0 NVIDIA RTX A4000 GPU-77aa1122-3344-4556-8778-99aabbccddee), 2 (0000:21:00.0 NVIDIA RTX A4000 GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90), 3 (0000:81:00.0 NVIDIA RTX A4000 GPU-1c0ffee1-0000-4aaa-bbbb-ccccddddeeee)"
        ],
    );
    lacks(
        "uuid-unknown",
        "GPU-8f3c",
        expect![
            "missing GPU-8f3c: no card has this UUID, as far as known: the driver doesn't tell that of GPU 0, GPU 1 before its first use; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090 UUID not known yet), 1 (0000:02:00.0 NVIDIA GeForce RTX 4090 UUID not known yet)"
        ],
    );
    lacks(
        "vfio-one-of-two",
        "0,02:00.0",
        expect![
            "missing GPU 0000:02:00.0: bound to vfio-pci, for VM 200 by its hostpci line; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090), 0000:02:00.0 NVIDIA card 10de:2204 (bound to vfio-pci, for VM 200 by its hostpci line)"
        ],
    );
    lacks(
        "odd-dev",
        "0,1",
        expect![[r#"
        missing GPU 1: the NVIDIA driver was told to leave this card alone (excluded); this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090), 1 (0000:02:00.0 NVIDIA GeForce RTX 4090, excluded)
        missing /dev/nvidia0: is a regular file on this host, not a device
        missing /dev/nvidia-uvm: is a directory on this host, not a device"#]],
    );
}

#[test]
fn a_host_without_driver() {
    sees(
        "no-driver",
        expect![[r#"
        no driver
        - 0000:01:00.0 - - ? NVIDIA card 10de:2684
        uvm - caps - monitor -
    "#]],
    );
    sees(
        "vfio-all",
        expect![[r#"
        no driver
        - 0000:01:00.0 vfio-pci - ? NVIDIA card 10de:2684
        uvm - caps - monitor -
    "#]],
    );
    sees(
        "no-card",
        expect![[r#"
        no driver
        uvm - caps - monitor -
    "#]],
    );
    gives(
        "no-driver",
        "0",
        expect![[r#"
        make /dev/nvidiactl 195:255: is missing
        make /dev/nvidia-uvm ?: is missing, and its module isn't loaded
        make /dev/nvidia-uvm-tools ?: is missing, and its module isn't loaded
    "#]],
    );
}

#[test]
fn nodes_that_are_missing_or_stale_are_to_be_made() {
    gives(
        "after-boot",
        "0",
        expect![[r#"
        make /dev/nvidia0 195:0: is missing
        make /dev/nvidiactl 195:255: is missing
        make /dev/nvidia-uvm ?: is missing, and its module isn't loaded
        make /dev/nvidia-uvm-tools ?: is missing, and its module isn't loaded
        make /dev/nvidia-caps/nvidia-cap2 236:2: is missing
    "#]],
    );
    gives(
        "stale-uvm",
        "0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-caps 236:2
        make /dev/nvidia-uvm 509:0: is the device 511:0, not 509:0
        make /dev/nvidia-uvm-tools 509:1: is the device 511:1, not 509:1
    "#]],
    );
    gives(
        "odd-dev",
        "0",
        expect![[r#"
        /dev/nvidia-uvm-tools 511:1
        /dev/nvidia-caps 236:2
        make /dev/nvidiactl 195:255: is the device 195:254, not 195:255
        missing /dev/nvidia0: is a regular file on this host, not a device
        missing /dev/nvidia-uvm: is a directory on this host, not a device
    "#]],
    );
}

#[test]
fn a_driver_that_hides_its_cards_is_judged_by_its_nodes() {
    sees(
        "nodes-only",
        expect![[r#"
        driver 580.159.03 ?
        0 ? - 195:0 ? NVIDIA card
        1 ? - 195:1 ? NVIDIA card
        uvm - caps - monitor -
    "#]],
    );
    gives(
        "nodes-only",
        "1",
        expect![[r#"
        /dev/nvidia1 195:1
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 245:0
        /dev/nvidia-uvm-tools 245:1
    "#]],
    );
}

#[test]
fn graphics_brings_mode_setting_and_the_cards_own_drm_nodes() {
    let graphics =
        |name: &str, assignment: &str| inventory(name).map(|i| chosen(&i, assignment, "graphics,utility"));
    if let (Some(four), Some(new)) = (graphics("four-gpus", "21:00.0"), graphics("branch-615", "0")) {
        expect![[r#"
            /dev/nvidia2 195:2
            /dev/nvidiactl 195:255
            /dev/nvidia-modeset 195:254
            /dev/nvidia-uvm 510:0
            /dev/nvidia-uvm-tools 510:1
            /dev/nvidia-caps 237:2
            /dev/dri/card2 226:2
            /dev/dri/renderD130 226:130
        "#]]
        .assert_eq(&four);
        expect![[r#"
            /dev/nvidia0 195:0
            /dev/nvidiactl 195:255
            /dev/nvidia-uvm 498:0
            /dev/nvidia-uvm-tools 498:1
            /dev/nvidia-caps 500:2
            make /dev/nvidia-modeset 195:254: is missing
            missing the DRM nodes of /dev/nvidia0: the kernel shows none for this card: nvidia-drm isn't loaded
        "#]].assert_eq(&new);
    }
}

#[test]
fn the_fast_reading_and_the_full_one_choose_alike() {
    for entry in std::fs::read_dir(hosts::fixtures()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(host) = FixtureHost::unpack(&name) else { return };
        for (assignment, capabilities) in
            [("none", "compute"), ("0", "utility"), ("all", "all"), ("0:7/0", "compute")]
        {
            let wanted: Capabilities = capabilities.parse().unwrap();
            let (fast, full) =
                (Inventory::read_for(host.root(), wanted.wants_display()), Inventory::read(host.root()));
            let devices = |i: &Inventory| choose(i, &assignment.parse().unwrap(), &wanted).devices;
            assert_eq!(devices(&fast), devices(&full), "{name} {assignment}");
        }
    }
}

#[test]
fn what_cannot_be_looked_at_is_a_problem_and_not_an_absence() {
    let Some(host) = FixtureHost::unpack("one-gpu") else { return };
    // A directory where the file ought to be: reading fails, and not with ENOENT.
    let file = host.at("/proc/driver/nvidia/gpus/0000:01:00.0/information");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let inventory = Inventory::read(host.root());
    assert_eq!(inventory.problems.len(), 1, "{:?}", inventory.problems);
    assert!(inventory.problems[0].contains("information"), "{:?}", inventory.problems);
    let said = chosen(&inventory, "0", "compute");
    assert!(
        said.contains("missing GPU 0: not found, and not everything could be looked at: cannot read /proc"),
        "{said}"
    );
}
