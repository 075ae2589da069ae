//! How the engines in a container are told of its cards, on hosts of every kind.

#![allow(clippy::unwrap_used)]

use crate::shown;

use phoenix_nvidia::device::DevicePath;
use phoenix_nvidia::driver::cdi::{Devices, Found, describe};
use phoenix_nvidia::host::choose::{Capabilities, choose};
use shown::inventory;
use std::collections::BTreeSet;

/// The names that a container with this assignment offers, each with its nodes.
fn offers(host: &str, assignment: &str, passed: &[&str]) -> Option<(Vec<String>, Devices)> {
    let inventory = inventory(host)?;
    let choice = choose(&inventory, &assignment.parse().unwrap(), &Capabilities::default());
    let passed: BTreeSet<DevicePath> = passed.iter().map(|path| path.parse().unwrap()).collect();
    let devices = Devices::of(&choice, &inventory, &passed);
    let line = |nodes: &[String]| nodes.join(" ").replace("/dev/", "");
    let lines =
        devices.named.iter().map(|named| format!("{} = {}", named.name, line(&named.nodes))).collect();
    Some((lines, devices))
}

#[test]
fn an_index_is_the_place_by_pci_address_among_the_containers_own() {
    let Some((lines, _)) = offers("four-gpus", "0,2", &[]) else { return };
    assert_eq!(
        lines,
        [
            // 21:00.0, then 41:00.0.
            "0 = nvidia2",
            "GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90 = nvidia2",
            "1 = nvidia0",
            "GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab = nvidia0",
            "all = nvidia2 nvidia0",
        ]
    );
    // One that a devN line passes in addition is the container's too.
    let (lines, _) = offers("four-gpus", "2", &["/dev/nvidia3"]).unwrap();
    assert_eq!(lines.last().unwrap(), "all = nvidia2 nvidia3");
    let (lines, devices) = offers("four-gpus", "none", &[]).unwrap();
    assert_eq!(
        (lines.len(), describe(&devices, &Found::default())),
        (0, [None, None]),
        "a file without devices is refused"
    );
}

#[test]
fn mig_instances_are_counted_below_their_card_and_bring_their_capabilities() {
    let Some((lines, devices)) = offers("mig", "0:9/0,0:7/0,1", &[]) else { return };
    assert_eq!(
        lines,
        [
            "0:0 = nvidia0 nvidia-caps/nvidia-cap66 nvidia-caps/nvidia-cap67",
            "0:1 = nvidia0 nvidia-caps/nvidia-cap84 nvidia-caps/nvidia-cap85",
            "1 = nvidia1",
            "GPU-8f3c9b21-7a44-4d10-8e2f-0123456789ab = nvidia1",
            "all = nvidia0 nvidia-caps/nvidia-cap66 nvidia-caps/nvidia-cap67 nvidia-caps/nvidia-cap84 \
             nvidia-caps/nvidia-cap85 nvidia1",
        ]
    );
    // Podman 4.1 and 4.2 read the file without names that begin with a digit.
    let [first, second] = describe(&devices, &Found::default()).map(Option::unwrap);
    assert!(first.contains("\"0.3.0\"") && second.contains("\"0.5.0\""));
    assert!(!first.contains("\"0:0\"") && second.contains("\"0:0\"") && !second.contains("\"all\""));
}

#[test]
fn the_fingerprint_is_that_of_the_devices_whatever_names_them() {
    let Some((_, by_index)) = offers("four-gpus", "2", &[]) else { return };
    let (_, by_address) = offers("four-gpus", "21:00.0", &[]).unwrap();
    let (_, other) = offers("four-gpus", "3", &[]).unwrap();
    assert_eq!(by_index.fingerprint(), by_address.fingerprint());
    assert_ne!(by_index.fingerprint(), other.fingerprint());
}
