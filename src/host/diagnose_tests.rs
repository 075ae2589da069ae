use super::super::kernel_driver::ModuleKind;
use super::*;

const KERNEL: &str = "6.14.8-2-pve";

/// A card with this device id and driver.
fn card(id: u16, bound: Option<&str>) -> Gpu {
    Gpu { pci: "01:00.0".parse().ok(), id: Some(id), bound_to: bound.map(String::from), ..Gpu::unknown() }
}

/// A host with these cards, and the module of DKMS for the running kernel.
fn host(cards: &[(u16, Option<&str>)]) -> Facts {
    let gpus = cards.iter().map(|(id, bound)| card(*id, *bound)).collect();
    let modules = Modules {
        kernel: KERNEL.into(),
        here: vec!["nvidia".into()],
        elsewhere: vec![],
        dkms: true,
        sources: None,
    };
    Facts { cards: Inventory { gpus, ..Inventory::default() }, modules, ..Facts::default() }
}

fn driver(version: &str, kind: ModuleKind) -> Option<KernelDriver> {
    Some(KernelDriver { version: version.parse().unwrap(), kind: Some(kind) })
}

fn said(facts: &Facts) -> String {
    let cause = explain(facts).cause;
    format!("{cause} | {}", cause.remedy())
}

const UNKNOWN: Cause = Cause::Unknown { says: None, secure_boot: false };
const ADA: u16 = 0x2684;
const PASCAL: u16 = 0x15f8;

#[test]
fn each_cause_is_found_from_its_facts() {
    let file = "/etc/modprobe.d/x.conf".to_owned();
    let install = Blacklist { file: file.clone(), by_name: true };
    let all = |facts: Facts| Facts { blacklist: Some(install.clone()), secure_boot: true, ..facts };
    assert_eq!(explain(&host(&[])).cause, Cause::NoCard);
    assert_eq!(explain(&all(host(&[(ADA, Some("vfio-pci"))]))).cause, Cause::CardsTaken);
    let mut gone = all(host(&[(ADA, None)]));
    gone.modules.here.clear();
    gone.modules.elsewhere = vec![("6.8.12-1-pve".into(), "updates/dkms/nvidia.ko".into())];
    let cause =
        Cause::NoModule { kernel: KERNEL.into(), missing: gone.modules.missing(), origin: Origin::Dkms };
    assert_eq!(explain(&gone).cause, cause);
    assert_eq!(explain(&all(host(&[(ADA, None)]))).cause, Cause::Blacklisted(file.clone()));
    let secure = Facts { secure_boot: true, ..host(&[(ADA, None)]) };
    assert_eq!(explain(&secure).cause, Cause::Unknown { says: None, secure_boot: true });
    assert_eq!(explain(&host(&[(ADA, None)])).cause, UNKNOWN);
    gone.cards.gpus.extend(host(&[(ADA, Some("vfio-pci"))]).cards.gpus);
    assert_eq!(
        explain(&gone).to_string(),
        "no module installed for the running kernel 6.14.8-2-pve (only for 6.8.12-1-pve); 0000:01:00.0 bound to vfio-pci"
    );
}

#[test]
fn a_kernels_own_driver_is_kept_out_by_one_command() {
    let held = Facts { boot_tool: true, ..host(&[(ADA, Some("nouveau"))]) };
    assert_eq!(
        said(&held),
        r"the kernel's own driver nouveau has the card | printf 'blacklist %s\n' nouveau > /etc/modprobe.d/phoenix-nvidia-blacklist.conf && update-initramfs -u -k all && proxmox-boot-tool refresh && reboot"
    );
    for driver in ["NovaCore", "nova_core", "nova-core"] {
        let remedy = explain(&host(&[(0x2b85, Some(driver))])).cause.remedy();
        assert!(remedy.contains("nova_core nova_drm > ") && !remedy.contains("boot-tool"), "{remedy}");
    }
    // One card is a VM's: the other one counts.
    let both = host(&[(ADA, Some("vfio-pci")), (ADA, Some("nouveau"))]);
    assert!(matches!(explain(&both).cause, Cause::Nouveau { .. }));
    // With a card that is free, nouveau does not keep the driver out.
    assert_eq!(explain(&host(&[(ADA, None), (ADA, Some("nouveau"))])).cause, UNKNOWN);
}

#[test]
fn a_host_that_never_had_a_driver_is_told_which_one_its_cards_need() {
    let mut bare = host(&[(PASCAL, None)]);
    bare.modules = Modules { kernel: KERNEL.into(), ..Modules::default() };
    assert_eq!(
        said(&bare),
        "no NVIDIA driver installed on this host | install a driver of branch 580 with the proprietary kernel module on this host"
    );
    bare.cards.gpus = vec![card(0x2b85, Some("nouveau")), card(0x2b85, None)];
    assert!(
        said(&bare)
            .ends_with("| install a driver of branch 570 or newer with the open kernel module on this host")
    );
    bare.cards.gpus = vec![card(0x3300, None)];
    assert!(said(&bare).ends_with("| install NVIDIA's driver on this host"));
    // What DKMS could not build is installed.
    bare.modules.dkms = true;
    assert!(said(&bare).ends_with("&& dkms autoinstall && phoenix-nvidia prepare"), "{}", said(&bare));
}

#[test]
fn a_module_of_another_kernel_is_made_as_it_was() {
    let mut old = host(&[(ADA, None)]);
    old.modules.here.clear();
    old.modules.dkms = false;
    old.modules.elsewhere = vec![("6.8.12-15-pve".into(), "kernel/drivers/video/nvidia.ko".into())];
    old.other_version = "580.95.05".parse().ok();
    let runfile = said(&old);
    assert!(runfile.contains("(only for 6.8.12-15-pve), and DKMS does not build it"), "{runfile}");
    let dkms = format!("| apt install dkms proxmox-headers-{KERNEL}");
    let again = format!("{dkms}, then run NVIDIA's runfile of 580.95.05 again with --dkms");
    assert!(runfile.ends_with(&again), "{runfile}");
    old.cached = true;
    let arch = std::env::consts::ARCH;
    let sh = format!("{dkms} && sh /var/cache/phoenix-nvidia/NVIDIA-Linux-{arch}-580.95.05.run --dkms");
    assert!(said(&old).ends_with(&sh), "{}", said(&old));
    old.other_version = None;
    assert!(said(&old).ends_with(&format!("{dkms}, then run NVIDIA's runfile again with --dkms")));
    for (path, package) in [("nvidia-580", "580"), ("nvidia-535srv-open", "535-server-open")] {
        old.modules.kernel = "6.8.0-60-generic".into();
        old.modules.elsewhere = vec![("6.8.0-45-generic".into(), format!("kernel/{path}/nvidia.ko"))];
        let install = format!(
            "| apt install linux-modules-nvidia-{package}-6.8.0-60-generic && phoenix-nvidia prepare"
        );
        assert!(said(&old).ends_with(&install), "{}", said(&old));
    }
}

#[test]
fn the_headers_of_a_kernel_have_the_name_of_its_distribution() {
    for (kernel, package) in [
        ("6.14.8-2-pve", "proxmox-headers-6.14.8-2-pve"),
        ("6.2.16-20-pve", "proxmox-headers-6.2.16-20-pve"),
        ("6.2.16-6-pve", "proxmox-headers-6.2.16-6-pve"),
        ("6.5.11-4-pve", "proxmox-headers-6.5.11-4-pve"),
        ("7.0.2-1-pve", "proxmox-headers-7.0.2-1-pve"),
        ("6.2.16-4-pve", "pve-headers-6.2.16-4-pve"),
        ("6.2.16-11-bpo11-pve", "pve-headers-6.2.16-11-bpo11-pve"),
        ("5.15.158-2-pve", "pve-headers-5.15.158-2-pve"),
        ("6.12.48+deb13-amd64", "linux-headers-6.12.48+deb13-amd64"),
        ("6.8.0-60-generic", "linux-headers-6.8.0-60-generic"),
    ] {
        assert_eq!(headers(kernel).trim_matches('\''), package);
    }
}

#[test]
fn a_driver_that_drives_no_card_of_the_host_is_told_with_the_card() {
    let new = Facts { installed: driver("595.45.04", ModuleKind::Proprietary), ..host(&[(PASCAL, None)]) };
    assert_eq!(
        said(&new),
        "0000:01:00.0 NVIDIA card: driver 595.45.04 does not drive this Pascal card: branch 580 was the last that did | install a driver of branch 580 with the proprietary kernel module on this host, then reboot it"
    );
    let blackwell =
        Facts { installed: driver("580.95.05", ModuleKind::Proprietary), ..host(&[(0x2b85, None)]) };
    assert!(said(&blackwell).contains("only the open one does"), "{}", said(&blackwell));
    // One that it drives: the module loads, and something else is wrong.
    let mixed = Facts { cards: host(&[(PASCAL, None), (ADA, None)]).cards, ..new };
    assert_eq!(explain(&mixed).cause, UNKNOWN);
}

#[test]
fn what_the_kernel_says_is_told_and_a_key_is_enrolled() {
    let log = KernelLog::parse("Loading of module with unavailable key is rejected\n");
    let rejected = Facts { log, key: true, secure_boot: true, ..host(&[(ADA, None)]) };
    let says = "the kernel says: Loading of module with unavailable key is rejected";
    assert!(said(&rejected).starts_with("Secure Boot is on and rejects") && said(&rejected).contains(says));
    assert!(said(&rejected).ends_with("| mokutil --import /var/lib/dkms/mok.pub && reboot"));
    // Signatures are enforced without Secure Boot too.
    let enforced = Facts { secure_boot: false, key: false, ..rejected };
    assert!(!said(&enforced).contains("Secure Boot") && !said(&enforced).contains("mokutil"));
    assert!(said(&enforced).contains(says) && said(&enforced).contains("| cat /proc/cmdline"));
    // Secure Boot alone is no evidence.
    let quiet = Facts { secure_boot: true, key: true, ..host(&[(ADA, None)]) };
    assert_eq!(
        said(&quiet),
        "module installed for the running kernel, but not loaded; Secure Boot is on and may reject it | modprobe nvidia; dmesg | grep -i nvidia | tail"
    );
    let log = KernelLog::parse(
        "NVRM: The NVIDIA GPU 0000:01:00.0 (PCI ID: 10de:3300)\nNVRM: installed in this system is not supported by the\nNVRM: NVIDIA 580.95.05 driver release.\n",
    );
    let newer = Facts { log, ..host(&[(0x3300, None)]) };
    assert!(said(&newer).contains(
        "10de:3300) installed in this system is not supported by the NVIDIA 580.95.05 driver release."
    ));
}

#[test]
fn a_blacklist_hides_no_cause_that_remains_without_it() {
    let file = "/etc/modprobe.d/x.conf".to_owned();
    let with = |by_name, facts: Facts| {
        explain(&Facts { blacklist: Some(Blacklist { file: file.clone(), by_name }), ..facts }).cause
    };
    let rejects = || KernelLog::parse("Loading of unsigned module is rejected\n");
    let rejected = || Facts { log: rejects(), ..host(&[(ADA, None)]) };
    let unfit =
        || Facts { installed: driver("595.45.04", ModuleKind::Proprietary), ..host(&[(PASCAL, None)]) };
    // modprobe nvidia ignores `blacklist nvidia`.
    assert!(matches!(with(false, rejected()), Cause::Rejected { .. }));
    assert!(matches!(with(false, unfit()), Cause::Unfit { .. }));
    assert_eq!(
        with(false, Facts { secure_boot: true, ..host(&[(ADA, None)]) }),
        Cause::Blacklisted(file.clone())
    );
    // With `install nvidia /bin/false` nobody loads it.
    for facts in [rejected(), unfit(), host(&[(ADA, None)])] {
        assert_eq!(with(true, facts), Cause::Blacklisted(file.clone()));
    }
}
