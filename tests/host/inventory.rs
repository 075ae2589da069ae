//! What the inventory sees of hosts of every kind.

#![allow(clippy::unwrap_used)]

use crate::hosts;
use crate::shown;

use expect_test::expect;
use hosts::FixtureHost;
use phoenix_nvidia::host::choose::{Capabilities, choose};
use phoenix_nvidia::host::gpus::Inventory;
use shown::{chosen, gives, sees};

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
        /dev/nvidia-caps/nvidia-cap2 236:2
    "#]],
    );
    gives(
        "one-gpu",
        "none",
        expect![[r#"
        /dev/nvidiactl 195:255
        /dev/nvidia-uvm 511:0
        /dev/nvidia-uvm-tools 511:1
        /dev/nvidia-caps/nvidia-cap2 236:2
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
        /dev/nvidia-caps/nvidia-cap2 509:2
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
        /dev/nvidia-caps/nvidia-cap2 235:2
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
        /dev/nvidia-caps/nvidia-cap2 500:2
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
        /dev/nvidia-caps/nvidia-cap2 507:2
    "#]],
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
        make /dev/nvidia-uvm ?: is missing, its module is not loaded
        make /dev/nvidia-uvm-tools ?: is missing, its module is not loaded
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
        said.contains("missing GPU 0: not found, host only partly readable: cannot read /proc"),
        "{said}"
    );
}
