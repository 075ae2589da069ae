//! Why no NVIDIA driver is loaded: one message that names the likeliest cause,
//! found by looking, not by guessing.

use super::gpus::Inventory;
use super::resolve::held_by;
use crate::sys::look::Look;
use std::path::Path;

/// The cause, and what mends it or shows more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// A sentence without its subject, "the NVIDIA driver".
    pub message: String,
    /// A command.
    pub remedy: Option<String>,
}

/// Looks for the cause: cards given to another driver (and for which VM), no
/// module for this kernel, Secure Boot, a blacklist, no card at all.
pub fn no_driver(root: &Path) -> Diagnosis {
    let mut cards = Inventory::default();
    cards.add_other_cards(root);
    cards.add_vms(root);
    let mut look = Look::new(root);
    let module = module(&mut look);
    explain(&cards, &module, secure_boot(&mut look), blacklist(&mut look).as_deref())
}

/// Where the kernel module is installed.
#[derive(Debug, Default)]
struct Module {
    kernel: String,
    here: bool,
    elsewhere: Vec<String>,
}

fn explain(cards: &Inventory, module: &Module, secure_boot: bool, blacklist: Option<&str>) -> Diagnosis {
    let bus_seen = cards.problems.is_empty();
    if cards.gpus.is_empty() && bus_seen {
        return diagnosis(
            "is not loaded: this host has no NVIDIA card on its PCI bus",
            "lspci -nnk -d 10de:",
        );
    }
    let others: Vec<String> = cards
        .gpus
        .iter()
        .filter_map(|gpu| Some(format!("{} {}", gpu.pci?, held_by(cards, gpu))))
        .filter(|text| !text.contains("bound to no driver"))
        .collect();
    let all_given = !cards.gpus.is_empty() && others.len() == cards.gpus.len();
    let given = if others.is_empty() { String::new() } else { format!("; {}", others.join(", ")) };
    if all_given {
        return diagnosis(&format!("is not loaded{given}"), "lspci -nnk -d 10de:");
    }
    if !module.here {
        let elsewhere = match module.elsewhere.as_slice() {
            [] => String::new(),
            kernels => format!(" (it is for {})", kernels.join(", ")),
        };
        let kernel = &module.kernel;
        return diagnosis(
            &format!(
                "is not loaded: its module is not installed for the running kernel {kernel}{elsewhere}{given}"
            ),
            &format!("apt install proxmox-headers-{kernel} && dkms autoinstall && phoenix-nvidia prepare"),
        );
    }
    if let Some(file) = blacklist {
        return diagnosis(
            &format!("is not loaded: {file} blacklists it{given}"),
            &format!("remove the line from {file}, then modprobe nvidia && phoenix-nvidia prepare"),
        );
    }
    if secure_boot {
        return diagnosis(
            &format!(
                "is not loaded: its module is installed and Secure Boot is on, which refuses it unless it is signed with an enrolled key{given}"
            ),
            "mokutil --sb-state; modprobe nvidia; dmesg | grep -i -e nvidia -e signature",
        );
    }
    diagnosis(
        &format!("is not loaded, though its module is installed for this kernel{given}"),
        "modprobe nvidia; dmesg | grep -i nvidia | tail",
    )
}

fn diagnosis(message: &str, remedy: &str) -> Diagnosis {
    Diagnosis { message: message.to_owned(), remedy: Some(remedy.to_owned()) }
}

fn module(look: &mut Look) -> Module {
    let kernel = look.text("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut module = Module { kernel, ..Module::default() };
    for release in look.names("/lib/modules").unwrap_or_default() {
        let has = look.text(&format!("/lib/modules/{release}/modules.dep")).is_some_and(|t| lists_nvidia(&t));
        match has {
            true if release == module.kernel => module.here = true,
            true => module.elsewhere.push(release),
            false => {}
        }
    }
    module
}

/// Whether `modules.dep` has nvidia.ko, compressed or not.
pub fn lists_nvidia(modules_dep: &str) -> bool {
    modules_dep.lines().filter_map(|line| line.split(':').next()).any(|path| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.strip_prefix("nvidia.ko").is_some_and(|end| matches!(end, "" | ".xz" | ".zst" | ".gz"))
    })
}

/// The UEFI variable; its value follows four bytes of attributes.
fn secure_boot(look: &mut Look) -> bool {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    look.bytes(variable).is_some_and(|bytes| bytes.get(4) == Some(&1))
}

/// The file that blacklists the module: the usual recipe for passing a card
/// to a VM writes one.
fn blacklist(look: &mut Look) -> Option<String> {
    for directory in ["/etc/modprobe.d", "/usr/lib/modprobe.d"] {
        for name in look.names(directory).unwrap_or_default() {
            let file = format!("{directory}/{name}");
            if name.ends_with(".conf") && look.text(&file).is_some_and(|text| blacklists_nvidia(&text)) {
                return Some(file);
            }
        }
    }
    None
}

/// Whether a file of modprobe.d keeps the module from being loaded.
pub fn blacklists_nvidia(text: &str) -> bool {
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        matches!(
            words.as_slice(),
            ["blacklist", "nvidia", ..] | ["install", "nvidia", "/bin/false" | "/bin/true", ..]
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_in_modules_dep() {
        assert!(lists_nvidia("kernel/a.ko: \nupdates/dkms/nvidia.ko.zst: kernel/x.ko\n"));
        assert!(lists_nvidia("kernel/drivers/video/nvidia.ko:\n"));
        assert!(!lists_nvidia(
            "kernel/nvidia-uvm.ko:\nkernel/nvidia.kox:\nkernel/i2c-nvidia-gpu.ko: nvidia.ko\n"
        ));
    }

    #[test]
    fn blacklists_are_told_from_comments_and_other_modules() {
        assert!(blacklists_nvidia("# x\n blacklist  nvidia\n"));
        assert!(blacklists_nvidia("install nvidia /bin/false\n"));
        assert!(!blacklists_nvidia("#blacklist nvidia\nblacklist nvidiafb\nblacklist nouveau\n"));
    }

    #[test]
    fn each_cause_has_its_own_sentence() {
        let card = |bound: Option<&str>| {
            let mut cards = Inventory::default();
            let mut gpu = crate::host::gpus::Gpu::unknown();
            gpu.pci = "01:00.0".parse().ok();
            gpu.bound_to = bound.map(String::from);
            cards.gpus.push(gpu);
            cards
        };
        let here = Module { kernel: "6.14.8-2-pve".into(), here: true, elsewhere: vec![] };
        let gone =
            Module { kernel: "6.14.8-2-pve".into(), here: false, elsewhere: vec!["6.8.12-1-pve".into()] };
        let say = |cards: &Inventory, module: &Module, sb, bl| explain(cards, module, sb, bl).message;
        assert!(say(&Inventory::default(), &here, false, None).contains("no NVIDIA card"));
        assert!(
            say(&card(Some("vfio-pci")), &here, false, None).ends_with("; 0000:01:00.0 bound to vfio-pci")
        );
        assert!(
            say(&card(None), &gone, true, None)
                .contains("running kernel 6.14.8-2-pve (it is for 6.8.12-1-pve)")
        );
        assert!(
            say(&card(None), &here, true, Some("/etc/modprobe.d/x.conf")).contains("x.conf blacklists it")
        );
        assert!(say(&card(None), &here, true, None).contains("Secure Boot is on"));
        assert!(say(&card(None), &here, false, None).contains("though its module is installed"));
    }
}
