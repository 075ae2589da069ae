//! A real host, read in 2026-11: one NVIDIA H200, the open driver 580.159.04.
//! Does the inventory see what nvidia-smi saw there?

#![allow(clippy::unwrap_used)]

use crate::hosts;

use hosts::{FixtureHost, fixtures};
use phoenix_nvidia::device::DevicePath;
use phoenix_nvidia::device::pci::PciAddress;
use phoenix_nvidia::guest::smi;
use phoenix_nvidia::host::choose::{Capabilities, choose};
use phoenix_nvidia::host::gpus::Inventory;

/// A recorded output of the host with one card, and its exit code.
fn recorded(name: &str) -> (i32, String) {
    recorded_of("h200", name)
}

fn recorded_of(host: &str, name: &str) -> (i32, String) {
    let text = std::fs::read_to_string(fixtures().join(host).join(name)).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    (first.strip_prefix("# exit ").unwrap().parse().unwrap(), rest.to_owned())
}

#[test]
fn the_inventory_sees_what_nvidia_smi_sees() {
    let Some(host) = FixtureHost::unpack("h200") else { return };
    let inventory = Inventory::read(host.root());
    assert_eq!(inventory.problems, Vec::<String>::new());
    let (code, text) = recorded("smi-query.txt");
    let listed = smi::gpus(&text);
    assert_eq!((code, listed.len()), (0, inventory.gpus.len()));
    let driver = inventory.driver.clone().unwrap();
    assert_eq!(driver.kind.unwrap().to_string(), "open");
    for (gpu, smi) in inventory.gpus.iter().zip(&listed) {
        assert_eq!(gpu.uuid.as_deref(), Some(smi.uuid.as_str()));
        assert_eq!(gpu.pci, smi.pci.parse::<PciAddress>().ok());
        assert_eq!(Some(&driver.version), smi.driver.as_ref());
        assert_eq!(gpu.bound_to.as_deref(), Some("nvidia"));
    }
    let xml = std::fs::read_to_string(fixtures().join("h200/smi-q.xml")).unwrap();
    let minor = inventory.gpus[0].minor.unwrap();
    assert!(xml.contains(&format!("<minor_number>{minor}</minor_number>")));
    assert!(recorded("smi-L.txt").1.contains(&inventory.gpus[0].model));
    // MIG can be had on this card, and is off: an empty directory, no instance.
    assert!(host.at("/proc/driver/nvidia/capabilities/gpu0/mig").is_dir());
    assert!(inventory.mig.is_empty());
}

/// Another real host, with two of these cards.
#[test]
fn the_inventory_of_two_cards_is_what_nvidia_smi_lists_and_each_is_found_by_every_name() {
    let Some(host) = FixtureHost::unpack("h200-two") else { return };
    let inventory = Inventory::read(host.root());
    assert_eq!(inventory.problems, Vec::<String>::new());
    let listed = smi::gpus(&recorded_of("h200-two", "smi-query.txt").1);
    assert_eq!((listed.len(), inventory.gpus.len()), (2, 2));
    for (gpu, smi) in inventory.gpus.iter().zip(&listed) {
        assert_eq!(gpu.uuid.as_deref(), Some(smi.uuid.as_str()));
        assert_eq!(gpu.pci, smi.pci.parse::<PciAddress>().ok());
        let minor = gpu.minor.unwrap();
        for name in [minor.to_string(), smi.uuid.clone(), gpu.pci.unwrap().to_string()] {
            let choice = choose(&inventory, &name.parse().unwrap(), &Capabilities::default());
            let cards: Vec<_> = choice.gpus.iter().map(|gpu| gpu.minor).collect();
            assert_eq!(cards, [Some(minor)], "{name}");
            assert_eq!(choice.devices[0].path, DevicePath::Gpu(minor), "{name}");
        }
    }
    let all = choose(&inventory, &"all".parse().unwrap(), &Capabilities::default());
    assert!(all.gpus.len() == 2 && all.missing.is_empty() && all.to_make.is_empty());
}

#[test]
fn its_devices_are_chosen_by_the_majors_it_had() {
    let Some(host) = FixtureHost::unpack("h200") else { return };
    let inventory = Inventory::read_for(host.root(), false);
    let choice = choose(&inventory, &"0".parse().unwrap(), &Capabilities::default());
    let devices: Vec<String> =
        choice.devices.iter().map(|d| format!("{} {}:{}", d.path, d.major, d.minor)).collect();
    assert_eq!(
        devices,
        [
            "/dev/nvidia0 195:0",
            "/dev/nvidiactl 195:255",
            "/dev/nvidia-uvm 238:0",
            "/dev/nvidia-uvm-tools 238:1",
            "/dev/nvidia-caps/nvidia-cap2 241:2",
        ]
    );
    assert!(choice.to_make.is_empty() && choice.missing.is_empty() && choice.notes.is_empty());
    // nvidia-modeset isn't loaded there, and /proc/devices says so.
    let graphics = "graphics".parse().unwrap();
    let choice = choose(&Inventory::read(host.root()), &"0".parse().unwrap(), &graphics);
    assert_eq!(choice.to_make.iter().map(|n| n.path).collect::<Vec<_>>(), [DevicePath::Modeset]);
}

#[test]
fn what_nvidia_smi_printed_there_is_read() {
    let (code, text) = recorded("smi-version.txt");
    let versions = smi::version(&text);
    assert_eq!(code, 0);
    assert_eq!(versions.tool.unwrap().as_str(), "580.159.04");
    assert_eq!(versions.kernel.unwrap().as_str(), "580.159.04");
    assert_eq!(recorded("smi-unknown-option.txt").0, 255);
    // The toolkit's stub library in front of the driver's: no mismatch, but
    // code 9, as if there were no driver.
    let (code, text) = recorded("smi-stub-library.txt");
    assert_eq!(code, 9);
    assert!(text.contains("stub library") && !smi::is_mismatch(&text));
}

/// Debian's libnvidia-ml and nvidia-smi 535.261.03 beside the kernel driver
/// 580.159.04: it is the library's version that has to match, not the tool's.
#[test]
fn a_library_of_another_version_is_a_mismatch_and_an_older_tool_is_none() {
    // The tools of both versions, with any argument, said this with this code.
    let (code, text) = recorded("smi-mismatch.txt");
    assert_eq!((code, smi::is_mismatch(&text), smi::gpus(&text).len()), (18, true, 0));
    let (code, text) = recorded("smi-of-535.txt");
    assert!(code == 0 && !smi::is_mismatch(&text));
    assert!(text.contains("NVIDIA-SMI 535.261.03") && text.contains("Driver Version: 580.159.04"));
}

/// The driver's own list of capability minors, against those that the other
/// fixtures (made by hand) and the tests assume.
#[test]
fn the_minors_of_the_mig_fixtures_are_those_of_a_real_driver() {
    let (Some(real), Some(made)) = (FixtureHost::unpack("h200"), FixtureHost::unpack("mig")) else { return };
    let list = std::fs::read_to_string(real.at("/proc/driver/nvidia-caps/mig-minors")).unwrap();
    let minor = |name: &str| -> u32 {
        let line = list.lines().find(|line| line.split(' ').next() == Some(name));
        line.unwrap_or_else(|| panic!("{name}")).split_once(' ').unwrap().1.parse().unwrap()
    };
    assert_eq!((minor("config"), minor("monitor")), (1, 2));
    let inventory = Inventory::read(made.root());
    assert_eq!(inventory.mig.len(), 7);
    for m in &inventory.mig {
        assert_eq!(m.gi_minor, minor(&format!("gpu{}/gi{}/access", m.gpu, m.gi)));
        assert_eq!(m.ci_minor, minor(&format!("gpu{}/gi{}/ci{}/access", m.gpu, m.gi, m.ci)));
    }
}
