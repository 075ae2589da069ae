//! The host's findings.

use super::finding::Finding;
use super::read::Host;
use crate::device::assignment::Assignment;
use crate::host::cards;
use crate::host::choose::{Capabilities, choose};
use crate::host::diagnose::{NOT_LOADED, nouveau};
use crate::host::gpus::Gpu;
use crate::host::provide::DEV_WRITABLE;
use crate::host::resolve::{held_by, is_unnumbered};
use crate::pve::readiness;

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
    let next = match &host.next_driver {
        None => return Vec::new(),
        Some(Err(why)) => {
            let what = format!("cannot check which driver the next boot loads: {why}");
            return vec![Finding::unknown("next-boot", what)];
        }
        Some(Ok(next)) => next,
    };
    let what = format!("driver {} installed, {} still loaded", next.version, loaded.version);
    // A card that works now, and not with that driver.
    let unfit = host.inventory.gpus.iter().filter(|gpu| gpu.minor.is_some() && gpu.unfit.is_none());
    let unfit = unfit.filter_map(|gpu| Some((gpu, cards::support(gpu.id?)?.unfit(next)?)));
    let lost: Vec<Finding> = unfit
        .map(|(gpu, unfit)| {
            let gpu = Gpu { unfit: Some(unfit.clone()), ..gpu.clone() };
            let what = format!("{what}; the next boot loses {}", gpu.undriven().unwrap_or_default());
            Finding::warning("next-boot", what)
                .fix(format!("install a driver of {} on this host", unfit.needs))
        })
        .collect();
    if next.version == loaded.version || !lost.is_empty() {
        return lost;
    }
    let finding = Finding::warning("next-boot", what)
        .why("upgraded after the last boot: reboot this node, and the containers follow at their next start")
        .fix("phoenix-nvidia prefetch");
    vec![finding]
}

/// Cards that the loaded driver does not drive, or does not number: nobody can
/// use them, and a VM has none of them.
pub fn undriven(host: &Host) -> Vec<Finding> {
    let inventory = &host.inventory;
    if inventory.driver.is_none() || !inventory.listed || !inventory.problems.is_empty() {
        return Vec::new();
    }
    let gpus = inventory.gpus.iter().filter(|gpu| !gpu.excluded);
    gpus.filter_map(|gpu| undriven_card(host, gpu)).collect()
}

fn undriven_card(host: &Host, gpu: &Gpu) -> Option<Finding> {
    let pci = gpu.pci?;
    let held = || format!("card {pci} ({}): {}", gpu.model, held_by(&host.inventory, gpu));
    if gpu.bound_to.as_deref().and_then(nouveau).is_some() {
        return Some(Finding::warning("cards", held()).fix_if(host.without_nouveau.clone()));
    }
    let unnumbered = is_unnumbered(&host.inventory, gpu);
    let finding = match (gpu.undriven(), &gpu.unfit) {
        (Some(what), Some(unfit)) if unnumbered || gpu.minor.is_some() => {
            Finding::warning("cards", what).fix(unfit.remedy())
        }
        _ if unnumbered => {
            Finding::warning("cards", held()).fix("dmesg | grep -i -e NVRM -e nvidia | tail -n 20")
        }
        // As it should be, or a VM's.
        _ => return None,
    };
    // Not every message names its card.
    let said = host.log.about(pci).or_else(|| host.log.refusal());
    let said = said.map(|said| format!("the kernel says: {said}"));
    Some(said.into_iter().fold(finding, Finding::why))
}

/// Whether every node of the driver is there, with its right numbers.
pub fn nodes(host: &Host) -> Vec<Finding> {
    let inventory = &host.inventory;
    if inventory.driver.is_none() && !inventory.majors.has_nvidia() {
        return Vec::new();
    }
    let choice = choose(inventory, &Assignment::All, &Capabilities::default());
    let to_make = choice.to_make.iter().map(|node| {
        Finding::warning("nodes", format!("{} {}", node.path.on_host(), node.why))
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

/// Whether nodes can be made at all: also those of other drivers, and udev's links.
pub fn dev(host: &Host) -> Vec<Finding> {
    if !host.dev_is_read_only {
        return Vec::new();
    }
    let finding = Finding::failure("dev", "/dev of this host is read-only: no device node can be made there")
        .why("root of a privileged container can do that, through any node of the host's /dev that is mounted into it")
        .fix(DEV_WRITABLE);
    vec![finding]
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

/// Nodes with another version of the package: each starts a container as its own
/// has it.
pub fn versions(host: &Host) -> Vec<Finding> {
    let here = env!("CARGO_PKG_VERSION");
    let finding = |(node, version): &(String, String)| {
        Finding::warning("versions", format!("node {node} has phoenix-nvidia {version}, this node {here}"))
            .why("a container that moves there starts as that version has it: settings and mounts of a newer one may be unknown")
            .fix(match is_older(version, here) {
                true => readiness::install_on(node, here),
                false => format!("apt-get install -y ./{}", readiness::package(version)),
            })
    };
    host.other_versions.iter().map(finding).collect()
}

/// Whether a version of ours is older than another one.
fn is_older(version: &str, than: &str) -> bool {
    let numbers = |version: &str| -> Vec<u64> {
        version.split(['.', '-', '+', '~']).map_while(|part| part.parse().ok()).collect()
    };
    numbers(version) < numbers(than)
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
    use crate::host::kernel_driver::{KernelDriver, ModuleKind};
    use crate::host::kernel_log::KernelLog;

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

    /// The newer package goes to the node with the older one.
    #[test]
    fn nodes_with_another_version_are_told_with_a_command() {
        let of = |version: &str| {
            let other_versions = vec![("beta".to_owned(), version.to_owned())];
            versions(&Host { other_versions, ..Host::default() }).remove(0).fix.unwrap()
        };
        let file = |version: &str| readiness::package(version);
        let here = file(env!("CARGO_PKG_VERSION"));
        let older = format!("scp {here} beta:/tmp/ && ssh beta apt-get install -y /tmp/{here}");
        assert_eq!(of("0.0.9"), older);
        assert_eq!(of("99.0.10"), format!("apt-get install -y ./{}", file("99.0.10")));
        assert!(is_older("0.9.0", "0.10.0") && !is_older("0.10.0", "0.9.0") && !is_older("0.9.0", "0.9.0"));
    }

    #[test]
    fn an_upgrade_that_waits_for_a_boot_is_told_and_not_knowing_is_no_warning() {
        let level = |next| next_boot(&Host { next_driver: next, ..loaded() }).first().map(|f| f.level);
        let version = |v: &str| Some(Ok(KernelDriver { version: v.parse().unwrap(), kind: None }));
        assert_eq!(level(version("590.48.01")), Some(Level::Warning));
        assert_eq!(level(version("580.95.05")), None);
        assert_eq!(level(Some(Err("no modinfo".into()))), Some(Level::Unknown));
        assert_eq!(level(None), None);
    }

    /// A host with the open module of 580 and this card.
    fn with(card: &str) -> Host {
        let mut host = loaded();
        host.inventory.listed = true;
        host.inventory.driver.as_mut().unwrap().kind = Some(ModuleKind::Open);
        let id = u16::from_str_radix(card, 16).unwrap();
        let unfit = cards::support(id).and_then(|s| s.unfit(host.inventory.driver.as_ref().unwrap()));
        let pci = "03:00.0".parse().ok();
        let bound_to = Some("nvidia".to_owned());
        let gpu = Gpu { pci, id: Some(id), unfit, minor: Some(0), bound_to, ..Gpu::unknown() };
        host.inventory.gpus.push(gpu);
        host
    }

    #[test]
    fn a_card_that_the_loaded_module_does_not_drive_is_told_with_what_does() {
        assert_eq!(undriven(&with("2684")), []);
        let found = undriven(&with("1bb3")).remove(0);
        assert_eq!(
            (found.what.as_str(), found.fix.as_deref()),
            (
                "GPU 0 (0000:03:00.0 NVIDIA card): the open kernel module 580.95.05 does not drive this Pascal card, which has no GSP",
                Some(
                    "install a driver of branch 580 with the proprietary kernel module on this host, then reboot it"
                )
            )
        );
        // A VM's, a hidden one, and what could not be read are no finding.
        let change = |change: fn(&mut Host)| {
            let mut host = with("1bb3");
            change(&mut host);
            undriven(&host).len()
        };
        let to_vm = |host: &mut Host| {
            let gpu = &mut host.inventory.gpus[0];
            (gpu.bound_to, gpu.minor) = (Some("vfio-pci".into()), None);
        };
        assert_eq!(change(to_vm), 0);
        assert_eq!(change(|host| host.inventory.gpus[0].excluded = true), 0);
        assert_eq!(change(|host| host.inventory.problems.push("x".into())), 0);
        assert_eq!(change(|host| host.inventory.listed = false), 0);
    }

    #[test]
    fn a_card_without_a_number_is_told_with_what_the_kernel_says() {
        let mut host = with("2684");
        host.inventory.gpus[0].minor = None;
        host.log = KernelLog::parse("NVRM: GPU 0000:03:00.0: RmInitAdapter failed! (0x22:0x56:884)\n");
        let found = undriven(&host).remove(0);
        assert!(found.what.ends_with("bound to nvidia, which shows no device minor"), "{found:?}");
        assert!(found.why.unwrap().contains("RmInitAdapter failed!"));
        // 515 to 535 with a card of a workstation: no message names it.
        host.log = KernelLog::parse("NVRM: Open nvidia.ko is only ready for use on Data Center GPUs.\n");
        let why = undriven(&host).remove(0).why.unwrap();
        assert_eq!(why, "the kernel says: Open nvidia.ko is only ready for use on Data Center GPUs.");
        host.inventory.gpus[0].bound_to = Some("nouveau".into());
        host.without_nouveau = Some("blacklist it".into());
        assert_eq!(undriven(&host)[0].fix.as_deref(), Some("blacklist it"));
    }

    #[test]
    fn a_next_boot_that_loses_a_card_is_told_before_it() {
        let mut host = with("1bb3");
        host.inventory.driver.as_mut().unwrap().kind = Some(ModuleKind::Proprietary);
        host.inventory.gpus[0].unfit = None;
        let mut next = |version: &str, kind| {
            let driver = KernelDriver { version: version.parse().unwrap(), kind: Some(kind) };
            host.next_driver = Some(Ok(driver));
            next_boot(&host).pop().map(|finding| finding.what)
        };
        let lost = next("590.48.01", ModuleKind::Proprietary).unwrap();
        assert!(
            lost.contains("590.48.01 installed, 580.95.05 still loaded; the next boot loses GPU 0"),
            "{lost}"
        );
        assert!(next("580.95.05", ModuleKind::Open).unwrap().contains("has no GSP"));
        assert_eq!(next("580.95.05", ModuleKind::Proprietary), None);
        assert!(!next("580.105.08", ModuleKind::Proprietary).unwrap().contains("loses"));
    }
}
