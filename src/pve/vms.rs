//! The cards that VMs get, by the `hostpci` lines of their confs.

use crate::device::pci::PciAddress;
use crate::pve::conf::document::Document;
use crate::pve::{pending, property, sections};
use crate::sys::look::Look;
use std::collections::BTreeMap;

/// A card in a hostpci line: an address, or a whole slot if it has no function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    address: PciAddress,
    whole: bool,
}

impl Slot {
    fn parse(text: &str) -> Option<Slot> {
        let whole = !text.contains('.');
        let address = if whole { format!("{text}.0").parse() } else { text.parse() };
        Some(Slot { address: address.ok()?, whole })
    }

    /// Whether it includes the card at `address`.
    pub fn covers(&self, address: PciAddress) -> bool {
        let function = if self.whole { 0 } else { address.function };
        self.address == PciAddress { function, ..address }
    }
}

/// The cards that a VM's conf names now. `mapped` resolves the names of
/// cluster-wide mappings.
pub fn passed(conf: &Document, mapped: &BTreeMap<String, Vec<Slot>>) -> Vec<Slot> {
    let lines = pending::numbered_now(conf, "hostpci");
    lines.values().flat_map(|entry| slots(&entry.value, mapped)).collect()
}

/// `0000:01:00,pcie=1`, `host=01:00.0;01:00.1`, `mapping=NAME`. A line that
/// Proxmox cannot read passes nothing: the VM does not start.
fn slots(value: &str, mapped: &BTreeMap<String, Vec<Slot>>) -> Vec<Slot> {
    match property::get(value, "mapping", "host") {
        Some(name) => mapped.get(&name).cloned().unwrap_or_default(),
        None => property::get(value, "host", "host").map(|list| list_of(&list)).unwrap_or_default(),
    }
}

fn list_of(addresses: &str) -> Vec<Slot> {
    addresses.split(';').filter_map(Slot::parse).collect()
}

/// `/etc/pve/mapping/pci.cfg`: each name with its cards on this node.
pub fn mappings(text: &str, node: &str) -> BTreeMap<String, Vec<Slot>> {
    let here = |map: &&str| property::get(map, "node", "").as_deref() == Some(node);
    let paths = |map: &str| property::get(map, "path", "").map(|path| list_of(&path)).unwrap_or_default();
    let cards = |section: &sections::Section| section.all("map").filter(here).flat_map(paths).collect();
    sections::parse_named(text).into_iter().map(|section| (section.id.clone(), cards(&section))).collect()
}

/// The VMs of this node, each with the cards that its conf names. An address on
/// another node is another card.
pub fn on_this_node(look: &mut Look) -> Vec<(u32, Vec<Slot>)> {
    let confs = look.names("/etc/pve/local/qemu-server").unwrap_or_default();
    let vms: Vec<u32> = confs.iter().filter_map(|name| name.strip_suffix(".conf")?.parse().ok()).collect();
    if vms.is_empty() {
        return Vec::new();
    }
    let node = look.link_name("/etc/pve/local").unwrap_or_default();
    let mapped = look.text("/etc/pve/mapping/pci.cfg").map(|t| mappings(&t, &node)).unwrap_or_default();
    let mut cards = |vm| {
        let conf = look.bytes(&format!("/etc/pve/local/qemu-server/{vm}.conf")).unwrap_or_default();
        (vm, passed(&Document::from(conf), &mapped))
    };
    vms.into_iter().map(&mut cards).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(conf: &str, address: &str) -> bool {
        let mapping = "gpu\n\tmap id=10de:2684,iommugroup=14,node=pve1,path=0000:41:00.0\n\
                       \tmap id=10de:2684,node=pve2,path=0000:42:00.0\n\nother\n\tdescription x\n\
                       \tmap node=pve1,path=0000:43:00\n";
        let mapped = mappings(mapping, "pve1");
        passed(&Document::parse(conf.as_bytes()), &mapped)
            .iter()
            .any(|slot| slot.covers(address.parse().unwrap()))
    }

    #[test]
    fn each_form_of_hostpci_is_read() {
        let table = [
            ("hostpci0: 0000:01:00,pcie=1,x-vga=1\n", "01:00.0", true),
            ("hostpci0: 01:00\n", "01:00.1", true),
            ("hostpci12: 01:00.0;01:00.1,pcie=1\n", "01:00.1", true),
            ("hostpci0: host=0000:01:00.0,rombar=0\n", "01:00.0", true),
            ("hostpci0: 01:00.1\n", "01:00.0", false),
            ("hostpci0: pcie=1,mapping=gpu\n", "41:00.0", true),
            ("hostpci0: mapping=gpu,pcie=1\n", "42:00.0", false),
            ("hostpci0: mapping=other\n", "43:00.0", true),
            ("hostpci0: mapping=unknown\n", "41:00.0", false),
            ("hostpci: 01:00\nhostpciX: 01:00\n#hostpci0: 01:00\n", "01:00.0", false),
            ("name: x\n[snap]\nhostpci0: 01:00\n", "01:00.0", false),
        ];
        for (conf, address, want) in table {
            assert_eq!(covers(conf, address), want, "{conf:?} {address}");
        }
    }
}
