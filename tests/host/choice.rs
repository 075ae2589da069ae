//! What is chosen on hosts of every kind, and what is missing there.

#![allow(clippy::unwrap_used)]

use crate::shown;

use expect_test::expect;
use phoenix_nvidia::device::DevicePath;
use phoenix_nvidia::device::assignment::Assignment;
use phoenix_nvidia::host::choose::{Capabilities, choose};
use phoenix_nvidia::host::gpus::Inventory;
use shown::{chosen, gives, inventory, lacks, sees};

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
        /dev/nvidia-caps/nvidia-cap2 237:2
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
        /dev/nvidia-caps/nvidia-cap2 237:2
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
        /dev/nvidia-caps/nvidia-cap2 237:2
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
            "note GPU 0 is in MIG mode, compute needs an instance: assign one of 0:7/0, 0:8/0, 0:9/0, 0:10/0, 0:11/0, 0:12/0, 0:13/0"
        ],
    );
    lacks(
        "mig",
        "0:1/0",
        expect![
            "missing MIG instance 0:1/0: no such MIG instance; GPU 0 has 0:7/0, 0:8/0, 0:9/0, 0:10/0, 0:11/0, 0:12/0, 0:13/0"
        ],
    );
    lacks("mig", "1:7/0", expect!["missing MIG instance 1:7/0: GPU 1 has no MIG instances"]);
    lacks(
        "mig",
        "MIG-0b3c2a10-1111-5222-8333-444455556666",
        expect![
            "missing MIG instance MIG-0b3c2a10-1111-5222-8333-444455556666: no known instance has this UUID; this host has 0:7/0, 0:8/0, 0:9/0, 0:10/0, 0:11/0, 0:12/0, 0:13/0"
        ],
    );
}

#[test]
fn all_on_a_mig_host_is_every_card_and_every_instance() {
    let Some(inventory) = inventory("mig") else { return };
    let choice = choose(&inventory, &"all".parse().unwrap(), &Capabilities::default());
    let capabilities = choice.devices.iter().filter(|d| matches!(d.path, DevicePath::CapFile(_))).count();
    assert_eq!((capabilities, choice.gpus.len(), choice.missing.len()), (14, 2, 0));
    assert!(!choice.devices.iter().any(|d| d.path == DevicePath::Caps));
}

#[test]
fn a_gpu_that_this_host_lacks_is_missing_and_the_message_says_what_it_has() {
    lacks(
        "four-gpus",
        "7",
        expect![
            "missing GPU 7: no such GPU; this host has 0 (0000:41:00.0 NVIDIA RTX A4000), 1 (0000:c1:00.0 NVIDIA RTX A4000), 2 (0000:21:00.0 NVIDIA RTX A4000), 3 (0000:81:00.0 NVIDIA RTX A4000)"
        ],
    );
    lacks(
        "one-gpu",
        "0,1,GPU-ffff,02:00.0",
        expect![[r#"
        missing GPU 1: no such GPU; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090)
        missing GPU-ffff: no card of this host has this UUID; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090 GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90)
        missing GPU 0000:02:00.0: no NVIDIA card at this address; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090)"#]],
    );
    lacks(
        "four-gpus",
        "GPU-8f3c",
        expect![
            "missing GPU-8f3c: ambiguous: matches GPU 0 and GPU 2, use more digits; this host has 0 (0000:41:00.0 NVIDIA RTX A4000 GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab), 1 (0000:c1:00.0 NVIDIA RTX A4000 GPU-77aa1122-3344-4556-8778-99aabbccddee), 2 (0000:21:00.0 NVIDIA RTX A4000 GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90), 3 (0000:81:00.0 NVIDIA RTX A4000 GPU-1c0ffee1-0000-4aaa-bbbb-ccccddddeeee)"
        ],
    );
    lacks(
        "uuid-unknown",
        "GPU-8f3c",
        expect![
            "missing GPU-8f3c: no known UUID matches; that of GPU 0, GPU 1 is unknown until first use; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090 UUID unknown), 1 (0000:02:00.0 NVIDIA GeForce RTX 4090 UUID unknown)"
        ],
    );
    lacks(
        "vfio-one-of-two",
        "0,02:00.0",
        expect![
            "missing GPU 0000:02:00.0: bound to vfio-pci, in hostpci of VM 200; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090), 0000:02:00.0 NVIDIA card 10de:2204 (bound to vfio-pci, in hostpci of VM 200)"
        ],
    );
    lacks(
        "odd-dev",
        "0,1",
        expect![[r#"
            missing GPU 1: excluded from the NVIDIA driver; this host has 0 (0000:01:00.0 NVIDIA GeForce RTX 4090), 1 (0000:02:00.0 NVIDIA GeForce RTX 4090, excluded)
            missing /dev/nvidia0: is a regular file, not a device
            missing /dev/nvidia-uvm: is a directory, not a device"#]],
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
        make /dev/nvidia-uvm ?: is missing, its module is not loaded
        make /dev/nvidia-uvm-tools ?: is missing, its module is not loaded
        make /dev/nvidia-caps/nvidia-cap2 236:2: is missing
    "#]],
    );
    gives(
        "stale-uvm",
        "0",
        expect![[r#"
        /dev/nvidia0 195:0
        /dev/nvidiactl 195:255
        /dev/nvidia-caps/nvidia-cap2 236:2
        make /dev/nvidia-uvm 509:0: is c 511:0 instead of c 509:0
        make /dev/nvidia-uvm-tools 509:1: is c 511:1 instead of c 509:1
    "#]],
    );
    gives(
        "odd-dev",
        "0",
        expect![[r#"
            /dev/nvidia-uvm-tools 511:1
            /dev/nvidia-caps/nvidia-cap2 236:2
            make /dev/nvidiactl 195:255: is c 195:254 instead of c 195:255
            missing /dev/nvidia0: is a regular file, not a device
            missing /dev/nvidia-uvm: is a directory, not a device
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
            /dev/nvidia-caps/nvidia-cap2 237:2
            make /dev/dri/card2 226:2: is missing
            make /dev/dri/renderD130 226:130: is missing
        "#]]
        .assert_eq(&four);
        expect![[r#"
            /dev/nvidia0 195:0
            /dev/nvidiactl 195:255
            /dev/nvidia-uvm 498:0
            /dev/nvidia-uvm-tools 498:1
            /dev/nvidia-caps/nvidia-cap2 500:2
            make /dev/nvidia-modeset 195:254: is missing
            missing DRM nodes of /dev/nvidia0: nvidia-drm is not loaded
        "#]]
        .assert_eq(&new);
    }
}

/// What a container's own environment leaves of its assignment.
#[test]
fn a_narrowed_assignment_is_what_both_name_and_never_more() {
    let Some(four) = inventory("four-gpus") else { return };
    let gives = |inventory: &Inventory, of: &str, to: &str| {
        let Ok(Assignment::List(to)) = to.parse() else { panic!("{to}") };
        let narrowed = Assignment::Narrowed { of: Box::new(of.parse().unwrap()), to };
        let choice = choose(inventory, &narrowed, &Capabilities::default());
        assert!(
            choice.missing.is_empty(),
            "what only the environment names is not missing: {:?}",
            choice.missing
        );
        let paths =
            choice.devices.iter().map(|device| device.path).filter(|path| Some(*path) != choice.monitor);
        let own = paths.filter(|path| matches!(path, DevicePath::Gpu(_) | DevicePath::CapFile(_)));
        own.map(|path| path.to_string().replace("/dev/", "")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(gives(&four, "all", "1"), "nvidia1");
    assert_eq!(gives(&four, "0,1", "1,2"), "nvidia1");
    assert_eq!(gives(&four, "0", "21:00.0"), "", "another card by a name that is the same everywhere");
    // An index that has nothing of it is one of nvidia-smi in the container, and takes nothing away.
    assert_eq!(gives(&four, "1", "0"), "nvidia1");
    assert_eq!(gives(&four, "1,2", "0,3"), "nvidia1 nvidia2");
    assert_eq!(gives(&four, "none", "0"), "");
    assert_eq!(gives(&four, "0,2", "21:00.0"), "nvidia2", "by whatever name");
    assert_eq!(gives(&four, "0", "7"), "nvidia0", "one that is not there");
    let mig = inventory("mig").unwrap();
    assert_eq!(gives(&mig, "all", "0:9/0"), "nvidia0 nvidia-caps/nvidia-cap84 nvidia-caps/nvidia-cap85");
    assert_eq!(
        gives(&mig, "0:9/0,0:7/0", "0:9/0"),
        "nvidia0 nvidia-caps/nvidia-cap84 nvidia-caps/nvidia-cap85"
    );
    assert_eq!(gives(&mig, "0:9/0", "0"), "nvidia0 nvidia-caps/nvidia-cap84 nvidia-caps/nvidia-cap85");
    assert_eq!(gives(&mig, "0:9/0", "0:7/0"), "");
    assert_eq!(gives(&mig, "1", "0:7/0"), "");
}
