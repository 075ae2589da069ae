//! The host's findings. Each is a pure function of what was read.

use super::finding::Finding;
use crate::device::assignment::Assignment;
use crate::host::choose::{Capabilities, choose};
use crate::host::diagnose::{Diagnosis, NOT_LOADED};
use crate::host::gpus::Inventory;
use crate::types::Version;

/// Whether the kernel driver is loaded, or why not.
pub fn driver(inventory: &Inventory, why: impl FnOnce() -> Diagnosis) -> Finding {
    if let Some(driver) = &inventory.driver {
        let kind = driver.kind.map(|kind| format!(", {kind}")).unwrap_or_default();
        return Finding::ok("driver", format!("the kernel driver {}{kind} is loaded", driver.version));
    }
    let why = why();
    Finding::failure("driver", format!("{NOT_LOADED}: {why}")).mend(why.cause.remedy())
}

/// Whether the next boot brings another driver. `installed` is what modinfo
/// says, or why it could not be asked.
pub fn next_boot(inventory: &Inventory, installed: Result<Option<Version>, String>) -> Option<Finding> {
    let loaded = &inventory.driver.as_ref()?.version;
    match installed {
        Err(why) => {
            Some(Finding::unknown("next-boot", format!("whether the next boot brings another driver: {why}")))
        }
        Ok(Some(next)) if next != *loaded => Some(
            Finding::warning(
                "next-boot",
                format!("the driver {next} is installed, and {loaded} is still loaded"),
            )
            .cause(
                "the driver was upgraded and the node not booted since; the containers follow after the boot",
            )
            .mend("phoenix-nvidia prefetch, so that their starts need no network; then reboot the node"),
        ),
        Ok(_) => None,
    }
}

/// Whether every node of the driver is there, with its right numbers.
pub fn nodes(inventory: &Inventory) -> Vec<Finding> {
    if inventory.driver.is_none() && !inventory.majors.has_nvidia() {
        return Vec::new();
    }
    let choice = choose(inventory, &Assignment::All, &Capabilities::default());
    let mut findings: Vec<Finding> = choice
        .to_make
        .iter()
        .map(|node| {
            Finding::warning("nodes", format!("{} {}", node.path, node.why))
                .cause("the kernel driver makes no nodes, and its dynamic numbers change from boot to boot")
                .mend(
                    "phoenix-nvidia prepare (the next start of a container with the hookscript does it too)",
                )
        })
        .collect();
    findings.extend(choice.missing.iter().map(|missing| {
        let finding = Finding::failure("nodes", missing.to_string());
        match &missing.remedy {
            Some(remedy) => finding.mend(remedy.clone()),
            None => finding,
        }
    }));
    if findings.is_empty() {
        let count = choice.devices.len();
        findings.push(Finding::ok(
            "nodes",
            format!("all {count} device nodes are there, with the right numbers"),
        ));
    }
    findings
}

/// Whether the nodes are made at boot, before the first guest. `enabled` is
/// none where systemd does not run.
pub fn boot_unit(enabled: Option<bool>) -> Option<Finding> {
    (enabled == Some(false)).then(|| {
        Finding::warning("boot-unit", "phoenix-nvidia-nodes.service is not enabled: no node is made at boot")
            .cause("a container that names a node in a devN line does not start without it")
            .mend("systemctl enable --now phoenix-nvidia-nodes.service")
    })
}

/// What could not be looked at.
pub fn problems(problems: &[String]) -> Vec<Finding> {
    problems.iter().map(|problem| Finding::unknown("look", problem.clone())).collect()
}

/// Without quorum whatever stops stays down.
pub fn quorum(there: bool) -> Option<Finding> {
    (!there).then(|| {
        Finding::failure("quorum", "this node has no quorum: a container that is stopped cannot be started")
            .cause("Proxmox starts no guest and changes no configuration until most of the cluster's votes are there")
            .mend("pvecm status, which shows the votes that are missing")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::level::Level;
    use crate::host::diagnose::Cause;
    use crate::host::kernel_driver::KernelDriver;

    fn loaded() -> Inventory {
        let driver = KernelDriver { version: "580.95.05".parse().unwrap(), kind: None };
        Inventory { driver: Some(driver), ..Inventory::default() }
    }

    #[test]
    fn a_driver_that_is_not_loaded_has_a_cause_and_a_cure() {
        let why = || Diagnosis { cause: Cause::NoCard, taken: Vec::new() };
        let finding = driver(&Inventory::default(), why);
        assert_eq!((finding.level, finding.mend.as_deref()), (Level::Failure, Some("lspci -nnk -d 10de:")));
        assert_eq!(driver(&loaded(), why).level, Level::Ok);
    }

    #[test]
    fn an_upgrade_that_waits_for_a_boot_is_told_and_not_knowing_is_no_warning() {
        let version = |v: &str| Ok(Some(v.parse().unwrap()));
        assert_eq!(next_boot(&loaded(), version("590.48.01")).unwrap().level, Level::Warning);
        assert_eq!(next_boot(&loaded(), version("580.95.05")), None);
        assert_eq!(next_boot(&loaded(), Err("no modinfo".into())).unwrap().level, Level::Unknown);
        assert_eq!(next_boot(&loaded(), Ok(None)), None);
    }
}
