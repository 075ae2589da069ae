//! Which VM is to have which card, by the `hostpci` lines of the VMs' confs.

use crate::device::pci::PciAddress;
use crate::pve::property;
use crate::sys::look::Look;
use std::collections::BTreeMap;

/// What a hostpci line names: a card by its address, or, without a function,
/// everything in its slot.
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

    /// Whether the card at `address` is meant.
    pub fn covers(&self, address: PciAddress) -> bool {
        let function = if self.whole { 0 } else { address.function };
        self.address == PciAddress { function, ..address }
    }
}

/// The cards that a VM's conf names, in its main section: snapshots below
/// don't run. `mapped` resolves the names of cluster-wide mappings.
pub fn passed(conf: &str, mapped: &BTreeMap<String, Vec<Slot>>) -> Vec<Slot> {
    let main = conf.lines().take_while(|line| !line.starts_with('['));
    main.filter_map(hostpci).flat_map(|value| slots(value, mapped)).collect()
}

/// The value of a `hostpciN:` line.
fn hostpci(line: &str) -> Option<&str> {
    let (key, value) = line.split_once(':')?;
    let number = key.strip_prefix("hostpci")?;
    let numbered = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    if numbered { Some(value.trim()) } else { None }
}

/// `0000:01:00,pcie=1`, `host=01:00.0;01:00.1`, `mapping=NAME`.
fn slots(value: &str, mapped: &BTreeMap<String, Vec<Slot>>) -> Vec<Slot> {
    // A line that Proxmox cannot read passes nothing: the VM does not start.
    let options = property::parse(value, "host").unwrap_or_default();
    let option = |key: &str| options.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
    match (option("mapping"), option("host")) {
        (Some(name), _) => mapped.get(name).cloned().unwrap_or_default(),
        (None, list) => list.into_iter().flat_map(|l| l.split(';')).filter_map(Slot::parse).collect(),
    }
}

/// `/etc/pve/mapping/pci.cfg`: a name in the first column, then indented
/// `map` lines, one for each node and device.
pub fn mappings(text: &str, node: &str) -> BTreeMap<String, Vec<Slot>> {
    let mut mapped: BTreeMap<String, Vec<Slot>> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        if !line.starts_with(char::is_whitespace) {
            name = line.trim().to_owned();
            continue;
        }
        let Some(map) = line.trim().strip_prefix("map ") else { continue };
        let option = |key: &str| {
            map.trim().split(',').filter_map(|o| o.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
        };
        if option("node") == Some(node) {
            let slots = option("path").into_iter().flat_map(|path| path.split(';')).filter_map(Slot::parse);
            mapped.entry(name.clone()).or_default().extend(slots);
        }
    }
    mapped
}

/// The VMs of this node, each with the cards that its conf names. Another
/// node's VMs don't matter: an address there is another card.
pub fn on_this_node(look: &mut Look) -> Vec<(u32, Vec<Slot>)> {
    let confs = look.names("/etc/pve/local/qemu-server").unwrap_or_default();
    let vms: Vec<u32> = confs.iter().filter_map(|name| name.strip_suffix(".conf")?.parse().ok()).collect();
    if vms.is_empty() {
        return Vec::new();
    }
    let node = look.link_name("/etc/pve/local").unwrap_or_default();
    let mapped = look.text("/etc/pve/mapping/pci.cfg").map(|t| mappings(&t, &node)).unwrap_or_default();
    let mut cards = |vm| {
        let conf = look.text(&format!("/etc/pve/local/qemu-server/{vm}.conf")).unwrap_or_default();
        (vm, passed(&conf, &mapped))
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
        passed(conf, &mapped).iter().any(|slot| slot.covers(address.parse().unwrap()))
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
