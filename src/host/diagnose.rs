//! Why no NVIDIA kernel driver is loaded: the likeliest cause, from facts of
//! the host, and what repairs it.

use super::cards;
use super::gpus::{Gpu, Inventory};
use super::kernel_driver::{self, KernelDriver};
use super::kernel_log::KernelLog;
use super::modules::{self, Blacklist, Modules};
use super::resolve::held_by;
use super::supported::Supported;
use crate::sys::look::{Look, View};
use crate::sys::text::word;
use crate::sys::time::Deadline;
use crate::types::Version;
use std::fmt;

/// The beginning of every message about it.
pub const NOT_LOADED: &str = "no NVIDIA kernel driver loaded";
/// The key with which DKMS signs modules.
const MOK: &str = "/var/lib/dkms/mok.pub";

/// Why no NVIDIA kernel driver is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No NVIDIA card.
    NoCard,
    /// Every card is bound to another kernel driver, for VMs.
    CardsTaken,
    /// No trace of a driver; what drives the cards.
    NotInstalled {
        /// The branches and modules for them.
        needs: Vec<String>,
    },
    /// The running kernel has no module.
    NoModule {
        /// The release of the running kernel.
        kernel: String,
        /// That, and the kernels that have one.
        missing: String,
        /// What makes one.
        origin: Origin,
    },
    /// The kernel's own driver for NVIDIA cards has them.
    Nouveau {
        /// Its modules.
        modules: &'static [&'static str],
        /// proxmox-boot-tool copies kernels to the boot partitions.
        boot_tool: bool,
    },
    /// A file of modprobe.d keeps the module from being loaded.
    Blacklisted(String),
    /// The installed driver drives none of the cards.
    Unfit {
        /// Each card, and why.
        cards: Vec<String>,
        /// What drives the first.
        remedy: String,
    },
    /// The kernel said that it rejects a module for its signature.
    Rejected {
        /// What it said.
        says: String,
        /// Secure Boot is on. `lockdown=` and `module.sig_enforce` do the same
        /// without it.
        secure_boot: bool,
        /// DKMS has a key to enrol.
        key: bool,
    },
    /// None of these.
    Unknown {
        /// What the kernel said.
        says: Option<String>,
        /// Secure Boot is on, which rejects an unsigned module.
        secure_boot: bool,
    },
}

/// What made the modules of other kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// DKMS.
    Dkms,
    /// NVIDIA's installer without DKMS.
    Runfile {
        /// Its version, if known.
        version: Option<Version>,
        /// Our cache has it.
        cached: bool,
    },
    /// A package for each kernel, with this name for the running one.
    Package(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::NoCard => f.write_str("no NVIDIA card on the PCI bus"),
            Cause::CardsTaken => f.write_str("every card is bound to another driver"),
            Cause::NotInstalled { .. } => f.write_str("no NVIDIA driver installed on this host"),
            Cause::NoModule { missing, origin: Origin::Runfile { .. }, .. } => {
                write!(f, "{missing}, and DKMS does not build it")
            }
            Cause::NoModule { missing, .. } => f.write_str(missing),
            Cause::Nouveau { modules, .. } => {
                write!(f, "the kernel's own driver {} has the card", modules.first().unwrap_or(&""))
            }
            Cause::Blacklisted(file) => write!(f, "module blacklisted in {file}"),
            Cause::Unfit { cards, .. } => f.write_str(&cards.join("; ")),
            Cause::Rejected { says, secure_boot: true, .. } => {
                write!(
                    f,
                    "Secure Boot is on and rejects a module not signed with an enrolled key; the kernel says: {says}"
                )
            }
            Cause::Rejected { says, .. } => {
                write!(
                    f,
                    "the kernel rejects a module not signed with a key that it trusts; the kernel says: {says}"
                )
            }
            Cause::Unknown { says, secure_boot } => {
                f.write_str("module installed for the running kernel, but not loaded")?;
                match says {
                    Some(says) => write!(f, "; the kernel says: {says}"),
                    None if *secure_boot => f.write_str("; Secure Boot is on and may reject it"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Cause {
    /// The command that repairs it or shows more.
    pub fn remedy(&self) -> String {
        match self {
            Cause::NoCard | Cause::CardsTaken => "lspci -nnk -d 10de:".to_owned(),
            Cause::NotInstalled { needs } if needs.is_empty() => {
                "install NVIDIA's driver on this host".to_owned()
            }
            Cause::NotInstalled { needs } => {
                format!("install a driver of {} on this host", needs.join(", and one of "))
            }
            Cause::NoModule { kernel, origin, .. } => no_module(kernel, origin),
            Cause::Nouveau { modules, boot_tool } => without_nouveau(modules, *boot_tool),
            Cause::Blacklisted(file) => format!(
                r"sed -i -E 's/^\s*(blacklist|install)\s+nvidia(\s|$)/#&/' {} && modprobe nvidia && phoenix-nvidia prepare",
                word(file)
            ),
            Cause::Unfit { remedy, .. } => remedy.clone(),
            // The firmware asks for the password at the next boot.
            Cause::Rejected { key: true, .. } => format!("mokutil --import {MOK} && reboot"),
            Cause::Rejected { secure_boot: true, .. } => {
                "mokutil --sb-state; modprobe nvidia; dmesg | grep -i -e nvidia -e signature".to_owned()
            }
            Cause::Rejected { .. } => {
                "cat /proc/cmdline /sys/kernel/security/lockdown; modprobe nvidia; dmesg | grep -i -e nvidia -e lockdown".to_owned()
            }
            Cause::Unknown { .. } => "modprobe nvidia; dmesg | grep -i nvidia | tail".to_owned(),
        }
    }
}

/// What gives the running kernel its module.
fn no_module(kernel: &str, origin: &Origin) -> String {
    let headers = headers(kernel);
    match origin {
        Origin::Dkms => format!("apt install {headers} && dkms autoinstall && phoenix-nvidia prepare"),
        Origin::Package(package) => format!("apt install {} && phoenix-nvidia prepare", word(package)),
        Origin::Runfile { version: Some(version), cached: true } => {
            format!("apt install dkms {headers} && sh {} --dkms", runfile(version))
        }
        Origin::Runfile { version, .. } => {
            let of = version.as_ref().map(|version| format!(" of {version}")).unwrap_or_default();
            format!("apt install dkms {headers}, then run NVIDIA's runfile{of} again with --dkms")
        }
    }
}

/// Where our cache has the runfile of a version.
pub fn runfile(version: &Version) -> String {
    format!("/var/cache/phoenix-nvidia/NVIDIA-Linux-{}-{version}.run", std::env::consts::ARCH)
}

/// The package with the headers of a kernel. Proxmox' had the prefix `pve` up to
/// 6.2.16-5, and in its builds for an older Debian (`-bpo11-pve`) longer; Debian's
/// and Ubuntu's have theirs.
fn headers(kernel: &str) -> String {
    let numbers: Vec<u32> = kernel.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    let package = match kernel.ends_with("-pve") {
        true if numbers >= vec![6, 2, 16, 6] && !kernel.contains("-bpo") => "proxmox-headers",
        true => "pve-headers",
        false => "linux-headers",
    };
    word(&format!("{package}-{kernel}"))
}

/// The modules of the kernel's own drivers for NVIDIA cards, by the name of the
/// driver that a card is bound to.
pub fn nouveau(driver: &str) -> Option<&'static [&'static str]> {
    match driver.to_ascii_lowercase().replace(['-', '_'], "").as_str() {
        "nouveau" => Some(&["nouveau"]),
        "nova" | "novacore" | "novadrm" => Some(&["nova_core", "nova_drm"]),
        "nvidiafb" => Some(&["nvidiafb"]),
        "rivafb" => Some(&["rivafb"]),
        _ => None,
    }
}

/// What takes the cards from it, from the next boot on.
fn without_nouveau(modules: &[&str], boot_tool: bool) -> String {
    let boot_tool = if boot_tool { " && proxmox-boot-tool refresh" } else { "" };
    format!(
        r"printf 'blacklist %s\n' {} > /etc/modprobe.d/phoenix-nvidia-blacklist.conf && update-initramfs -u -k all{boot_tool} && reboot",
        modules.join(" ")
    )
}

/// The remedy for a card that this driver has, if it is the kernel's own.
pub fn remedy_of_nouveau<'a>(host: impl Into<View<'a>>, driver: &str) -> Option<String> {
    Some(without_nouveau(nouveau(driver)?, has_boot_tool(&Look::new(host.into().root()))))
}

fn has_boot_tool(look: &Look) -> bool {
    ["/usr/sbin/proxmox-boot-tool", "/sbin/proxmox-boot-tool"].iter().any(|path| look.at(path).exists())
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

/// What is known of the host.
#[derive(Clone, Debug, Default)]
struct Facts {
    cards: Inventory,
    list: Supported,
    modules: Modules,
    /// The driver on disk, where modinfo knows it.
    installed: Option<KernelDriver>,
    /// The version of the module of another kernel.
    other_version: Option<Version>,
    blacklist: Option<Blacklist>,
    /// Our cache has the runfile of that.
    cached: bool,
    secure_boot: bool,
    boot_tool: bool,
    /// DKMS has a key that it signs with.
    key: bool,
    log: KernelLog,
}

/// Reads the host and finds the cause. Programs read modules and the kernel's
/// log, bound by the deadline.
pub fn no_driver<'a>(host: impl Into<View<'a>>, deadline: &Deadline) -> Diagnosis {
    let host = host.into();
    let mut facts = Facts::default();
    facts.cards.add_other_cards(host);
    facts.cards.add_vms(host);
    let mut look = Look::new(host.root());
    facts.modules = Modules::read(&mut look);
    facts.blacklist = modules::blacklist(&mut look);
    facts.secure_boot = secure_boot(&mut look);
    facts.boot_tool = has_boot_tool(&look);
    facts.key = look.at(MOK).exists();
    if facts.cards.gpus.is_empty() {
        return explain(&facts);
    }
    if facts.modules.here.is_empty() {
        let other = facts.modules.elsewhere.first();
        let file = other.map(|(release, path)| look.at(&format!("/lib/modules/{release}/{path}")));
        facts.other_version = file
            .and_then(|file| kernel_driver::version_of_file(host, &file.to_string_lossy(), deadline).ok()?)
            .or_else(|| facts.modules.sources.as_deref()?.rsplit('-').next()?.parse().ok());
        facts.cached =
            facts.other_version.as_ref().is_some_and(|version| look.at(&runfile(version)).is_file());
    } else {
        facts.installed = kernel_driver::installed(host, &facts.modules, deadline).ok().flatten();
        facts.log = KernelLog::read(host, deadline);
    }
    if let Some(driver) = &facts.installed {
        facts.list = Supported::read(&mut look, &driver.version);
    }
    explain(&facts)
}

fn explain(facts: &Facts) -> Diagnosis {
    let Facts { cards, modules, .. } = facts;
    let is_taken = |driver: &str| driver != "nvidia";
    let taken: Vec<&Gpu> =
        cards.gpus.iter().filter(|gpu| gpu.bound_to.as_deref().is_some_and(is_taken)).collect();
    // A card of a VM is meant to be there.
    let given = |gpu: &&Gpu| gpu.bound_to.as_deref().is_some_and(|d| is_taken(d) && nouveau(d).is_none());
    let ours: Vec<&Gpu> = cards.gpus.iter().filter(|gpu| !given(gpu)).collect();
    let held = ours.iter().find_map(|gpu| nouveau(gpu.bound_to.as_deref()?));
    let free = ours.iter().any(|gpu| gpu.bound_to.is_none());
    let cause = match (&facts.blacklist, held) {
        _ if cards.gpus.is_empty() && cards.problems.is_empty() => Cause::NoCard,
        _ if !cards.gpus.is_empty() && ours.is_empty() => Cause::CardsTaken,
        _ if modules.never_installed() => Cause::NotInstalled { needs: facts.needs(&ours) },
        _ if modules.here.is_empty() => Cause::NoModule {
            kernel: modules.kernel.clone(),
            missing: modules.missing(),
            origin: facts.origin(),
        },
        (_, Some(modules)) if !free => Cause::Nouveau { modules, boot_tool: facts.boot_tool },
        (Some(Blacklist { file, by_name: true }), _) => Cause::Blacklisted(file.clone()),
        _ => facts.not_loaded(&ours),
    };
    let taken = taken.into_iter().filter_map(|gpu| Some(format!("{} {}", gpu.pci?, held_by(cards, gpu))));
    Diagnosis { cause, taken: taken.collect() }
}

impl Facts {
    /// Why a module that is there and may be loaded is not.
    fn not_loaded(&self, cards: &[&Gpu]) -> Cause {
        if let Some(says) = self.log.rejection() {
            return Cause::Rejected { says, secure_boot: self.secure_boot, key: self.key };
        }
        let unfit: Vec<_> = cards
            .iter()
            .filter_map(|gpu| {
                let unfit = self.list.support(gpu.id?)?.unfit(self.installed.as_ref()?)?;
                Some((format!("{} {}: {}", gpu.pci?, gpu.model, unfit.why), unfit.remedy()))
            })
            .collect();
        match unfit.first() {
            Some((_, remedy)) if unfit.len() == cards.len() => {
                let remedy = remedy.clone();
                Cause::Unfit { cards: unfit.into_iter().map(|(card, _)| card).collect(), remedy }
            }
            _ => match (self.log.refusal(), &self.blacklist) {
                // The module came so far.
                (says @ Some(_), _) => Cause::Unknown { says, secure_boot: self.secure_boot },
                (None, Some(blacklist)) => Cause::Blacklisted(blacklist.file.clone()),
                (None, None) => Cause::Unknown { says: None, secure_boot: self.secure_boot },
            },
        }
    }

    /// What drives these cards, each once.
    fn needs(&self, cards: &[&Gpu]) -> Vec<String> {
        let mut needs: Vec<String> =
            cards.iter().filter_map(|gpu| Some(cards::support(gpu.id?)?.needs())).collect();
        needs.sort();
        needs.dedup();
        needs
    }

    /// What made the modules of other kernels.
    fn origin(&self) -> Origin {
        let package = self.modules.elsewhere.iter().find_map(|(_, path)| ubuntu(path, &self.modules.kernel));
        match package {
            _ if self.modules.dkms => Origin::Dkms,
            Some(package) => Origin::Package(package),
            None => Origin::Runfile { version: self.other_version.clone(), cached: self.cached },
        }
    }
}

/// Ubuntu's package of a module for another kernel: its modules lie in
/// `kernel/nvidia-580/`, those for servers in `kernel/nvidia-580srv-open/`.
fn ubuntu(path: &str, kernel: &str) -> Option<String> {
    let directory = path.strip_prefix("kernel/")?.split('/').next()?.strip_prefix("nvidia-")?;
    let branch = directory.replace("srv", "-server");
    let known = branch.starts_with(|c: char| c.is_ascii_digit());
    known.then(|| format!("linux-modules-nvidia-{branch}-{kernel}"))
}

/// Reads the UEFI variable; its value follows four bytes of attributes.
fn secure_boot(look: &mut Look) -> bool {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    look.bytes(variable).is_some_and(|bytes| bytes.get(4) == Some(&1))
}

#[cfg(test)]
#[path = "diagnose_tests.rs"]
mod tests;
