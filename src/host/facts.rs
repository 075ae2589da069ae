//! Parsers of the kernel driver's files under /proc. Pure.

use crate::device::pci::PciAddress;
use crate::device::{DevicePath, NVIDIA_MAJOR, Number};

/// `/proc/driver/nvidia/gpus/<address>/information`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Information {
    /// The driver's name of the card.
    pub model: Option<String>,
    /// `None` until the card is first used; the file then has question marks.
    pub uuid: Option<String>,
    /// Its PCI address.
    pub bus: Option<PciAddress>,
    /// The N of `/dev/nvidiaN`. No other file has it.
    pub minor: Option<u32>,
    /// Excluded by a parameter of the driver.
    pub excluded: bool,
}

/// Parses an `information` file by the names of fields, whose number differs
/// between branches.
pub fn information(text: &str) -> Information {
    let mut info = Information::default();
    for (key, value) in fields(text) {
        match key {
            "Model" => info.model = Some(value.to_owned()),
            "GPU UUID" => {
                info.uuid =
                    Some(value.to_ascii_lowercase().replacen("gpu-", "GPU-", 1)).filter(|u| !u.contains('?'))
            }
            "Bus Location" => info.bus = value.parse().ok(),
            "Device Minor" => info.minor = value.parse().ok(),
            "GPU Excluded" => info.excluded = value == "Yes",
            _ => {}
        }
    }
    info
}

/// `Key: value` lines, trimmed, without those that have no value.
fn fields(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(_, value)| !value.is_empty())
}

/// The major numbers of the character devices, from `/proc/devices`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Majors {
    table: Vec<(u32, String)>,
}

impl Majors {
    /// Parses the character devices of `/proc/devices`.
    pub fn parse(text: &str) -> Majors {
        let mut table = Vec::new();
        let mut character = false;
        for line in text.lines() {
            match line.trim() {
                "Character devices:" => character = true,
                "Block devices:" => character = false,
                line if character => {
                    let entry = line
                        .split_once(' ')
                        .and_then(|(n, name)| Some((n.parse().ok()?, name.trim().to_owned())));
                    table.extend(entry);
                }
                _ => {}
            }
        }
        Majors { table }
    }

    /// The current major of the driver `name`.
    pub fn of(&self, name: &str) -> Option<u32> {
        self.table.iter().find(|(_, n)| n == name).map(|(major, _)| *major)
    }

    /// Whether `/proc/devices` was not readable: the kernel always lists something.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The driver that has this major now.
    pub fn owner(&self, major: u32) -> Option<&str> {
        self.table.iter().find(|(m, _)| *m == major).map(|(_, name)| name.as_str())
    }

    /// Whether the kernel driver is loaded: `nvidia-frontend` up to 535, later
    /// several names (`nvidia`, `nvidiactl`, …).
    pub fn has_nvidia(&self) -> bool {
        self.table.iter().any(|(major, name)| *major == NVIDIA_MAJOR && name.starts_with("nvidia"))
    }

    /// The dynamic major of nvidia-uvm and nvidia-uvm-tools.
    pub fn uvm(&self) -> Option<u32> {
        self.of("nvidia-uvm")
    }

    /// The dynamic major of the capability nodes.
    pub fn caps(&self) -> Option<u32> {
        self.of("nvidia-caps")
    }

    /// The right number of the node at `path`; `None` while its module is not
    /// loaded, and for DRM nodes.
    pub fn number_of(&self, path: DevicePath) -> Option<Number> {
        let uvm = |minor| self.uvm().map(|major| Number { major, minor });
        match path {
            DevicePath::Uvm => uvm(0),
            DevicePath::UvmTools => uvm(1),
            DevicePath::CapFile(minor) => self.caps().map(|major| Number { major, minor }),
            _ => path.static_number(),
        }
    }

    /// The major of the node at `path` in this boot, also of the capabilities' directory.
    pub fn major_of(&self, path: DevicePath) -> Option<u32> {
        if path == DevicePath::Caps { self.caps() } else { self.number_of(path).map(|number| number.major) }
    }

    /// Whether nvidia-modeset is loaded. Unknown up to 535, where the front end
    /// alone has major 195.
    pub fn has_modeset(&self) -> bool {
        self.of("nvidia-modeset").is_some()
    }
}

/// The parameters of `/proc/driver/nvidia/params` about device files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Permission bits of new nodes.
    pub mode: u32,
    /// Their owner.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// False for `ModifyDeviceFiles: 0`: only the administrator makes nodes.
    pub modify: bool,
}

impl Default for Params {
    fn default() -> Self {
        Params { mode: 0o666, uid: 0, gid: 0, modify: true }
    }
}

/// Parses `params`, or a capability's `access` file, which has the same for one
/// node (`DeviceFileModify`).
pub fn params(text: &str) -> Params {
    let mut params = Params::default();
    for (key, value) in fields(text) {
        let Ok(number) = value.parse::<u32>() else { continue };
        match key {
            "DeviceFileMode" => params.mode = number & 0o777,
            "DeviceFileUID" => params.uid = number,
            "DeviceFileGID" => params.gid = number,
            "ModifyDeviceFiles" | "DeviceFileModify" => params.modify = number == 1,
            _ => {}
        }
    }
    params
}

/// `DeviceFileMinor` of a capability's `access` file.
pub fn capability_minor(text: &str) -> Option<u32> {
    fields(text).find(|(key, _)| *key == "DeviceFileMinor").and_then(|(_, value)| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_is_read_by_name() {
        let text = "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 177\nGPU UUID: \t GPU-8F3C2A10-1111-2222-3333-444455556666\n\
                    Video BIOS: \t 95.02.3c.40.b8\nBus Location: \t 0000:01:00.0\nDevice Minor: \t 3\nGPU Excluded:\t No\n";
        let info = information(text);
        assert_eq!(info.model.as_deref(), Some("NVIDIA GeForce RTX 4090"));
        assert_eq!(info.uuid.as_deref(), Some("GPU-8f3c2a10-1111-2222-3333-444455556666"));
        assert_eq!(info.bus.unwrap().to_string(), "0000:01:00.0");
        assert_eq!((info.minor, info.excluded), (Some(3), false));
    }

    #[test]
    fn an_unknown_uuid_is_none() {
        for line in ["GPU UUID: \t GPU-????????-????-????-????-????????????\n", "GPU UUID: \n", ""] {
            assert_eq!(information(line).uuid, None, "{line:?}");
        }
    }

    #[test]
    fn majors_of_every_branch_are_found() {
        let old = "Character devices:\n  1 mem\n195 nvidia-frontend\n506 nvidia-nvswitch\n508 nvidia-uvm\n509 nvidia-caps\n\nBlock devices:\n508 blk\n";
        let new = "Character devices:\n195 nvidia\n195 nvidia-modeset\n195 nvidiactl\n234 nvidia-caps-imex-channels\n235 nvidia-caps\n511 nvidia-uvm\n";
        let (old, new) = (Majors::parse(old), Majors::parse(new));
        assert_eq!(
            (old.uvm(), old.caps(), old.has_nvidia(), old.has_modeset()),
            (Some(508), Some(509), true, false)
        );
        assert_eq!(
            (new.uvm(), new.caps(), new.has_nvidia(), new.has_modeset()),
            (Some(511), Some(235), true, true)
        );
        assert_eq!((old.owner(1), old.owner(2)), (Some("mem"), None));
        let none = Majors::parse("Character devices:\n  1 mem\n");
        assert!(!none.has_nvidia() && none.uvm().is_none());
    }

    #[test]
    fn modes_in_params_are_decimal() {
        let text = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 0\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n\
                    GpuBlacklist: \"\"\nRegistryDwords: \"\"\n";
        assert_eq!(params(text), Params { mode: 0o660, uid: 0, gid: 44, modify: false });
        assert_eq!(params(""), Params { mode: 0o666, uid: 0, gid: 0, modify: true });
    }

    #[test]
    fn a_capability_says_its_minor() {
        let text = "DeviceFileMinor: 12\nDeviceFileMode: 292\nDeviceFileModify: 1\n";
        assert_eq!(capability_minor(text), Some(12));
        assert_eq!(params(text).mode, 0o444);
        assert_eq!(capability_minor("x"), None);
    }

    #[test]
    fn a_real_hosts_majors_are_found_among_others_in_the_dynamic_range() {
        let host = include_str!("../../tests/fixtures/hosts/h200/host.txt");
        let (_, rest) = host.split_once("=== file /proc/devices\n").unwrap();
        let majors = Majors::parse(rest.split("=== ").next().unwrap());
        assert_eq!((majors.uvm(), majors.caps(), majors.has_modeset()), (Some(238), Some(241), false));
        assert_eq!((majors.owner(252), majors.owner(254)), (Some("dax"), Some("ndctl")));
    }
}
