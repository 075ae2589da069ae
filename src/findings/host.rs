//! The host's findings.

use super::finding::Finding;
use super::read::Host;
use crate::device::assignment::Assignment;
use crate::host::choose::{Capabilities, choose};
use crate::host::diagnose::NOT_LOADED;

/// Whether a kernel driver is loaded, or why not.
pub fn driver(host: &Host) -> Vec<Finding> {
    if let Some(driver) = &host.inventory.driver {
        let kind = driver.kind.map(|kind| format!(" ({kind})")).unwrap_or_default();
        return vec![Finding::ok("driver", format!("kernel driver {}{kind} loaded", driver.version))];
    }
    let why = host.no_driver.iter();
    why.map(|why| Finding::failure("driver", format!("{NOT_LOADED}: {why}")).fix(why.cause.remedy()))
        .collect()
}

/// Whether the next boot loads another driver.
pub fn next_boot(host: &Host) -> Vec<Finding> {
    let Some(loaded) = &host.inventory.driver else { return Vec::new() };
    let finding = match &host.next_driver {
        Some(Err(why)) => {
            Finding::unknown("next-boot", format!("cannot check which driver the next boot loads: {why}"))
        }
        Some(Ok(Some(next))) if *next != loaded.version => {
            let what = format!("driver {next} installed, {} still loaded", loaded.version);
            Finding::warning("next-boot", what)
                .why("the driver was upgraded after the last boot; containers follow after the next one")
                .fix("phoenix-nvidia prefetch; then reboot this node")
        }
        _ => return Vec::new(),
    };
    vec![finding]
}

/// Whether every node of the driver is there, with its right numbers.
pub fn nodes(host: &Host) -> Vec<Finding> {
    let inventory = &host.inventory;
    if inventory.driver.is_none() && !inventory.majors.has_nvidia() {
        return Vec::new();
    }
    let choice = choose(inventory, &Assignment::All, &Capabilities::default());
    let to_make = choice.to_make.iter().map(|node| {
        Finding::warning("nodes", format!("{} {}", node.path, node.why))
            .why("the kernel driver makes no nodes, and its dynamic majors change from boot to boot")
            .fix("phoenix-nvidia prepare")
    });
    let missing = choice
        .missing
        .iter()
        .map(|missing| Finding::failure("nodes", missing.to_string()).fix_if(missing.remedy.clone()));
    let findings: Vec<Finding> = to_make.chain(missing).collect();
    if findings.is_empty() {
        let what = format!("all {} device nodes present, with the right numbers", choice.devices.len());
        return vec![Finding::ok("nodes", what)];
    }
    findings
}

/// Whether the nodes are made at boot, before the first guest.
pub fn boot_unit(host: &Host) -> Vec<Finding> {
    if host.boot_unit != Some(false) {
        return Vec::new();
    }
    let what = "phoenix-nvidia-nodes.service is not enabled: no device nodes at boot";
    let finding = Finding::warning("boot-unit", what)
        .why("a container that names a node in a devN line does not start without it")
        .fix("systemctl enable --now phoenix-nvidia-nodes.service");
    vec![finding]
}

/// Whether this node has quorum.
pub fn quorum(host: &Host) -> Vec<Finding> {
    if host.quorum {
        return Vec::new();
    }
    let what = "this node has no quorum: a container that stops does not start again";
    let finding = Finding::failure("quorum", what)
        .why("without a majority of the cluster's votes Proxmox starts no guest and /etc/pve is read-only")
        .fix("pvecm status");
    vec![finding]
}

/// What could not be looked at.
pub fn problems(host: &Host) -> Vec<Finding> {
    let problems = host.inventory.problems.iter().chain(&host.problems);
    problems.map(|problem| Finding::unknown("look", problem.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;
    use crate::host::diagnose::{Cause, Diagnosis};
    use crate::host::kernel_driver::KernelDriver;

    fn loaded() -> Host {
        let mut host = Host::default();
        host.inventory.driver = Some(KernelDriver { version: "580.95.05".parse().unwrap(), kind: None });
        host
    }

    #[test]
    fn a_driver_that_is_not_loaded_has_a_cause_and_a_remedy() {
        let why = Diagnosis { cause: Cause::NoCard, taken: Vec::new() };
        let found = driver(&Host { no_driver: Some(why), ..Host::default() });
        assert_eq!((found[0].level, found[0].fix.as_deref()), (Level::Failure, Some("lspci -nnk -d 10de:")));
        assert_eq!(driver(&loaded())[0].level, Level::Ok);
    }

    #[test]
    fn an_upgrade_that_waits_for_a_boot_is_told_and_not_knowing_is_no_warning() {
        let level = |next| next_boot(&Host { next_driver: next, ..loaded() }).first().map(|f| f.level);
        let version = |v: &str| Some(Ok(Some(v.parse().unwrap())));
        assert_eq!(level(version("590.48.01")), Some(Level::Warning));
        assert_eq!(level(version("580.95.05")), None);
        assert_eq!(level(Some(Err("no modinfo".into()))), Some(Level::Unknown));
        assert_eq!((level(Some(Ok(None))), level(None)), (None, None));
    }
}
