//! What the kernel and NVIDIA's driver show under /proc and /sys, and other
//! files of the host.

use phoenix_nvidia::device::pci::PciAddress;
use phoenix_nvidia::guest::attached::points;
use phoenix_nvidia::host::facts::{Majors, capability_minor, information, params};
use phoenix_nvidia::host::kernel_log::KernelLog;
use phoenix_nvidia::host::supported::Supported;
use phoenix_nvidia::host::{kernel_driver, modules};
use phoenix_nvidia::pve::pct::start_time;

/// What is read is in the text, within its bounds, and the same when there is
/// more in the text that nobody asks for.
pub fn holds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let more = format!("Unheard of: 5\n{text}\nUnheard of: 7\n");
    let info = information(&text);
    assert_eq!(information(&more), info);
    if let Some(uuid) = &info.uuid {
        assert!(!uuid.contains(['?', '\n']), "{uuid:?}");
    }
    assert!(info.model.is_none_or(|model| text.contains(&model) && !model.contains('\n')));
    let (mine, again) = (params(&text), params(&more));
    assert!(mine == again && mine.mode <= 0o777, "{mine:?}");
    assert_eq!(capability_minor(&more), capability_minor(&text));
    majors(&text);
    if let Some(driver) = kernel_driver::parse_version(&text) {
        let version = driver.version.as_str();
        assert!(text.contains(version) && version.parse().ok() == Some(driver.version.clone()));
        assert!((100..10_000).contains(&driver.version.branch()) || version.starts_with('0'), "{version}");
    }
    assert!(points(&text).iter().all(|path| text.contains(&path.to_string())));
    if let Some(ticks) = start_time(&text) {
        // The name of a process may be anything, brackets included.
        assert_eq!(start_time(&format!("7 (a) (b){text}")), Some(ticks));
    }
    assert!(modules::drivers(&text).iter().all(|path| path.contains("nvidia") && path.contains(".ko")));
    if modules::blacklists(&text) {
        assert!(text.contains("nvidia") && modules::blacklists(&format!("# x\n{text}")));
    }
    assert!(modules::installs(&text).is_none_or(|name| name.starts_with("nvidia-") && text.contains(&name)));
    let said = KernelLog::parse(&text);
    let said = [
        said.refusal(),
        said.rejection(),
        said.about(PciAddress { domain: 0, bus: 1, device: 0, function: 0 }),
    ];
    assert!(said.iter().flatten().all(|line| !line.contains('\n')));
    let _ = Supported::parse(&text, true).map(|list| list.support(0x1b81));
}

fn majors(text: &str) {
    let majors = Majors::parse(text);
    for name in ["nvidia-uvm", "nvidia-caps", "nvidia-modeset", "mem"] {
        if let Some(major) = majors.of(name) {
            assert!(
                majors.owner(major).is_some() && !majors.is_empty() && text.contains("Character devices:")
            );
        }
    }
    // Block devices of these names have other numbers.
    let blocks = format!("{text}\nBlock devices:\n 7 nvidia-uvm\n 9 nvidia-caps\n");
    assert_eq!(Majors::parse(&blocks), majors);
}
