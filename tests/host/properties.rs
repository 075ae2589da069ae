//! Whatever text stands in the files, the readers return; whatever a user
//! writes as an assignment, what is accepted means the same when shown.

use phoenix_nvidia::device::assignment::Assignment;
use phoenix_nvidia::device::pci::PciAddress;
use phoenix_nvidia::host::choose::{Capabilities, choose};
use phoenix_nvidia::host::gpus::{Gpu, Inventory};
use phoenix_nvidia::host::{facts, kernel_driver};
use phoenix_nvidia::pve::conf::document::Document;
use phoenix_nvidia::pve::{sharing, vms};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// One name of the kinds that exist.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9]{1,3}",
        "GPU-[0-9a-f]{1,8}",
        "GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "(0000:|00000000:|)[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]",
        "[0-9]:[0-9]{1,2}/[0-9]",
        "MIG-[0-9a-f]{8}",
        "MIG-GPU-[0-9a-f]{8}/[0-9]/[0-9]",
    ]
}

/// A host with this many cards, minors reversed against the PCI order.
fn host(cards: u32) -> Inventory {
    let mut inventory = Inventory { listed: true, ..Inventory::default() };
    inventory.majors = facts::Majors::parse(
        "Character devices:\n195 nvidia\n195 nvidiactl\n236 nvidia-caps\n511 nvidia-uvm\n",
    );
    inventory.gpus = (0..cards)
        .map(|minor| Gpu {
            pci: format!("{:02x}:00.0", cards - minor).parse().ok(),
            uuid: Some(format!("GPU-{minor:08x}-1111-2222-3333-444455556666")),
            id: None,
            model: "NVIDIA".into(),
            minor: Some(minor),
            bound_to: Some("nvidia".into()),
            excluded: false,
            unfit: None,
            dri: Vec::new(),
        })
        .collect();
    inventory
}

proptest! {
    #[test]
    fn any_text_is_an_assignment_or_an_error_of_one_line(text in "\\PC{0,40}|[ -~\n\t]{0,40}") {
        match text.parse::<Assignment>() {
            Ok(assignment) => prop_assert_eq!(assignment.to_string().parse::<Assignment>().ok(), Some(assignment)),
            Err(error) => {
                let lines = format!("{error:#}").lines().count();
                prop_assert_eq!(lines, 1);
            }
        }
    }

    #[test]
    fn an_accepted_list_means_the_same_when_shown(names in prop::collection::vec(name(), 1..6)) {
        if let Ok(assignment) = names.join(", ").parse::<Assignment>() {
            prop_assert_eq!(assignment.to_string().parse::<Assignment>().ok(), Some(assignment));
        }
    }

    #[test]
    fn an_address_in_nvidia_smis_form_is_the_same(domain in 0u32..0x1_0000, bus in any::<u8>(), device in 0u8..32, function in 0u8..8) {
        let address = PciAddress { domain, bus, device, function };
        prop_assert_eq!(address.to_string().parse::<PciAddress>().ok(), Some(address));
        let smi = format!("{domain:08X}:{bus:02X}:{device:02X}.{function:X}");
        prop_assert_eq!(smi.parse::<PciAddress>().ok(), Some(address));
    }

    #[test]
    fn any_text_can_stand_in_the_files(text in "[ -~\n\t\u{0}é]{0,300}") {
        let _ = facts::information(&text);
        let _ = facts::params(&text);
        let _ = facts::capability_minor(&text);
        let _ = facts::Majors::parse(&text);
        let _ = kernel_driver::parse_version(&text);
        let _ = sharing::claim(&Document::parse(text.as_bytes()));
        let _ = vms::passed(&Document::parse(text.as_bytes()), &BTreeMap::new());
        let _ = vms::mappings(&text, "pve1");
    }

    /// Order and repetition don't matter, each device is chosen once, and no
    /// card that was not named.
    #[test]
    fn a_list_chooses_exactly_the_cards_it_names(wanted in prop::collection::vec((0u32..6, 0u8..3), 1..8)) {
        let inventory = host(4);
        let list: Vec<String> = wanted.iter().map(|(n, form)| match (form, inventory.by_minor(*n)) {
            (1, Some(gpu)) => gpu.pci.map(|p| p.to_string()).unwrap_or_default(),
            (2, Some(gpu)) => gpu.uuid.clone().unwrap_or_default(),
            _ => n.to_string(),
        }).collect();
        let assignment: Assignment = list.join(",").parse().expect("a list");
        let choice = choose(&inventory, &assignment, &Capabilities::default());
        let there: BTreeSet<u32> = wanted.iter().map(|(n, _)| *n).filter(|n| *n < 4).collect();
        let chosen: Vec<u32> = choice.gpus.iter().filter_map(|gpu| gpu.minor).collect();
        prop_assert_eq!(chosen, there.into_iter().collect::<Vec<_>>());
        let gone: BTreeSet<u32> = wanted.iter().map(|(n, _)| *n).filter(|n| *n >= 4).collect();
        let missing = choice.missing.iter().filter(|m| m.what.starts_with("GPU ")).count();
        prop_assert_eq!(missing, gone.len());
    }
}
