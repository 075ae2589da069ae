//! The `netN` lines of a conf.

use super::property;
use crate::pve::conf::document::Document;

/// Proxmox's limit.
const MOST: u32 = 32;

/// A property of each line that has it, in their order.
fn each(conf: &Document, key: &str) -> Vec<String> {
    let value = |n: u32| property::get(&conf.get(&format!("net{n}"))?, key, "");
    (0..MOST).filter_map(value).collect()
}

/// Tells a container from an earlier one with the same number: its name and its
/// hardware addresses, which Proxmox generates for each.
pub fn identity(conf: &Document) -> String {
    let words: Vec<String> = conf.get("hostname").into_iter().chain(each(conf, "hwaddr")).collect();
    words.join(" ")
}

/// Whether an interface gets its address from the host, after post-start.
pub fn is_host_managed(conf: &Document) -> bool {
    each(conf, "host-managed").iter().any(|value| property::boolean(value) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_its_name_and_addresses() {
        let conf = Document::parse(
            b"hostname: web\nnet1: name=eth1,hwaddr=BC:24:11:00:00:02\nnet0: hwaddr=BC:24:11:00:00:01,name=eth0\n",
        );
        assert_eq!(identity(&conf), "web BC:24:11:00:00:01 BC:24:11:00:00:02");
        assert_eq!(identity(&Document::parse(b"")), "");
    }

    #[test]
    fn a_host_managed_interface_is_seen() {
        let with = Document::parse(b"net0: name=eth0,bridge=vmbr0\nnet1: name=eth1,host-managed=1,ip=dhcp\n");
        let without = Document::parse(b"net0: name=eth0,host-managed=0\n[snap]\nnet0: host-managed=1\n");
        assert!(is_host_managed(&with) && !is_host_managed(&without));
    }
}
