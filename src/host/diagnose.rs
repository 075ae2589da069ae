//! Why no NVIDIA kernel driver is loaded: the likeliest cause, from facts of
//! the host.

use super::gpus::Inventory;
use super::resolve::held_by;
use crate::sys::look::{Look, View};
use crate::sys::text::word;
use std::fmt;

/// The beginning of every message about it.
pub const NOT_LOADED: &str = "no NVIDIA kernel driver loaded";

/// Why no NVIDIA kernel driver is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No NVIDIA card.
    NoCard,
    /// Every card is bound to another kernel driver.
    CardsTaken,
    /// The running kernel has no module.
    NoModule {
        /// The release of the running kernel.
        kernel: String,
        /// The kernels that have one.
        others: Vec<String>,
    },
    /// A file of modprobe.d keeps the module from being loaded.
    Blacklisted(String),
    /// Secure Boot is on, which rejects an unsigned module.
    SecureBoot,
    /// None of these.
    Unknown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NoCard => f.write_str("no NVIDIA card on the PCI bus"),
            Cause::CardsTaken => f.write_str("every card is bound to another driver"),
            Cause::NoModule { kernel, others } => {
                write!(f, "no module installed for the running kernel {kernel}")?;
                if others.is_empty() { Ok(()) } else { write!(f, " (only for {})", others.join(", ")) }
            }
            Cause::Blacklisted(file) => write!(f, "module blacklisted in {file}"),
            Cause::SecureBoot => {
                f.write_str("Secure Boot is on and rejects a module not signed with an enrolled key")
            }
            Cause::Unknown => f.write_str("module installed for the running kernel, but not loaded"),
        }
    }
}

impl Cause {
    /// The command that repairs it or shows more.
    pub fn remedy(&self) -> String {
        match self {
            Cause::NoCard | Cause::CardsTaken => "lspci -nnk -d 10de:".to_owned(),
            Cause::NoModule { kernel, .. } => {
                format!("apt install proxmox-headers-{kernel} && dkms autoinstall && phoenix-nvidia prepare")
            }
            Cause::Blacklisted(file) => format!(
                r"sed -i -E 's/^\s*(blacklist|install)\s+nvidia(\s|$)/#&/' {} && modprobe nvidia && phoenix-nvidia prepare",
                word(file)
            ),
            Cause::SecureBoot => {
                "mokutil --sb-state; modprobe nvidia; dmesg | grep -i -e nvidia -e signature".to_owned()
            }
            Cause::Unknown => "modprobe nvidia; dmesg | grep -i nvidia | tail".to_owned(),
        }
    }
}

/// The cause, and the cards that other kernel drivers have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Why no driver is loaded.
    pub cause: Cause,
    /// The cards bound to another driver, each with that driver and its VMs.
    pub taken: Vec<String>,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)?;
        self.taken.iter().try_for_each(|card| write!(f, "; {card}"))
    }
}

/// Reads the host and finds the cause.
pub fn no_driver<'a>(host: impl Into<View<'a>>) -> Diagnosis {
    let host = host.into();
    let mut cards = Inventory::default();
    cards.add_other_cards(host);
    cards.add_vms(host);
    let mut look = Look::new(host.root());
    let module = module(&mut look);
    explain(&cards, module, blacklist(&mut look), secure_boot(&mut look))
}

/// Where the kernel module is installed.
#[derive(Clone, Debug, Default)]
struct Module {
    kernel: String,
    here: bool,
    elsewhere: Vec<String>,
}

fn explain(cards: &Inventory, module: Module, blacklist: Option<String>, secure_boot: bool) -> Diagnosis {
    let is_taken = |driver: &str| driver != "nvidia";
    let taken = cards.gpus.iter().filter(|gpu| gpu.bound_to.as_deref().is_some_and(is_taken));
    let taken: Vec<String> =
        taken.filter_map(|gpu| Some(format!("{} {}", gpu.pci?, held_by(cards, gpu)))).collect();
    let cause = match (cards.gpus.len(), blacklist) {
        (0, _) if cards.problems.is_empty() => Cause::NoCard,
        (1.., _) if taken.len() == cards.gpus.len() => Cause::CardsTaken,
        _ if !module.here => Cause::NoModule { kernel: module.kernel, others: module.elsewhere },
        (_, Some(file)) => Cause::Blacklisted(file),
        _ if secure_boot => Cause::SecureBoot,
        _ => Cause::Unknown,
    };
    Diagnosis { cause, taken }
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

/// Reads the UEFI variable; its value follows four bytes of attributes.
fn secure_boot(look: &mut Look) -> bool {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    look.bytes(variable).is_some_and(|bytes| bytes.get(4) == Some(&1))
}

/// The file that blacklists the module, as the usual guide to PCI passthrough
/// makes one.
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
    fn each_cause_is_found_from_its_facts() {
        let card = |bound: Option<&str>| {
            let mut cards = Inventory::default();
            let mut gpu = crate::host::gpus::Gpu::unknown();
            gpu.pci = "01:00.0".parse().ok();
            gpu.bound_to = bound.map(String::from);
            cards.gpus.push(gpu);
            cards
        };
        let kernel = "6.14.8-2-pve".to_owned();
        let here = Module { kernel: kernel.clone(), here: true, elsewhere: vec![] };
        let others = vec!["6.8.12-1-pve".to_owned()];
        let gone = Module { kernel: kernel.clone(), here: false, elsewhere: others.clone() };
        let cause = |cards: &Inventory, module: &Module, file: Option<&str>, secure_boot| {
            explain(cards, module.clone(), file.map(String::from), secure_boot).cause
        };
        let file = "/etc/modprobe.d/x.conf";
        assert_eq!(cause(&Inventory::default(), &here, None, false), Cause::NoCard);
        assert_eq!(cause(&card(Some("vfio-pci")), &gone, Some(file), true), Cause::CardsTaken);
        assert_eq!(cause(&card(None), &gone, Some(file), true), Cause::NoModule { kernel, others });
        assert_eq!(cause(&card(None), &here, Some(file), true), Cause::Blacklisted(file.into()));
        assert_eq!(cause(&card(None), &here, None, true), Cause::SecureBoot);
        assert_eq!(cause(&card(None), &here, None, false), Cause::Unknown);
        let mut both = card(Some("vfio-pci"));
        both.gpus.extend(card(None).gpus);
        let taken = explain(&both, gone, None, false).to_string();
        assert_eq!(
            taken,
            "no module installed for the running kernel 6.14.8-2-pve (only for 6.8.12-1-pve); 0000:01:00.0 bound to vfio-pci"
        );
    }
}
