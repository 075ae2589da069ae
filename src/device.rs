//! The devices of NVIDIA GPUs: paths and numbers, as host, conf and container
//! share them.

pub mod assignment;
pub mod pci;

use anyhow::{Context as _, bail};
use std::fmt;
use std::str::FromStr;

/// The directory of the capability nodes.
pub const CAPS_DIR: &str = "/dev/nvidia-caps";
/// The static major of the GPU nodes, nvidiactl and nvidia-modeset.
pub const NVIDIA_MAJOR: u32 = 195;
/// The static major of the DRM nodes.
const DRM_MAJOR: u32 = 226;
/// The highest minor of a GPU: NV_MINOR_DEVICE_NUMBER_REGULAR_MAX of the driver.
/// 254 is nvidia-modeset, 255 nvidiactl.
const LAST_GPU: u32 = 247;
/// The directory of our own DRM nodes, a tmpfs where devices open. udev's below
/// /dev/dri are 0660: no user of an unprivileged container may open those.
pub const DRM_NODES: &str = "/run/phoenix-nvidia/dev";

/// Whether the kernel assigns this major dynamically.
pub fn is_dynamic(major: u32) -> bool {
    matches!(major, 234..=254 | 384..=511)
}

/// The path of a device that a container can get. The order is that of the
/// pairs in the conf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DevicePath {
    /// `/dev/nvidiaN`
    Gpu(u32),
    /// `/dev/dri/cardN`, a DRM node of a GPU.
    Card(u32),
    /// `/dev/dri/renderDN`, a DRM node of a GPU.
    Render(u32),
    /// `/dev/nvidiactl`
    Control,
    /// `/dev/nvidia-modeset`
    Modeset,
    /// `/dev/nvidia-uvm`
    Uvm,
    /// `/dev/nvidia-uvm-tools`
    UvmTools,
    /// `/dev/nvidia-caps`, the directory; its device rule is that of the MIG
    /// monitor capability. In confs of guides and of versions up to 0.2.0, and given
    /// to no container: its root could make nodes for the host there.
    Caps,
    /// `/dev/nvidia-caps/nvidia-capN`
    CapFile(u32),
}

impl DevicePath {
    /// Whether it is a DRM node. Any card has those, also one of another vendor.
    pub fn is_drm(self) -> bool {
        matches!(self, DevicePath::Card(_) | DevicePath::Render(_))
    }

    /// Its node on the host, which is bound into the container: for a DRM node
    /// our own.
    pub fn on_host(self) -> String {
        let path = self.to_string();
        if self.is_drm() { path.replacen("/dev", DRM_NODES, 1) } else { path }
    }

    /// The device whose node on the host this is: its own or, for a DRM node,
    /// ours.
    pub fn of_node(text: &str) -> Option<DevicePath> {
        let Some(below) = text.strip_prefix(DRM_NODES) else { return text.parse().ok() };
        format!("/dev{below}").parse().ok().filter(|path: &DevicePath| path.is_drm())
    }

    /// Whether it serves graphics alone.
    pub fn is_display(self) -> bool {
        self.is_drm() || self == DevicePath::Modeset
    }

    /// Its device number, if that is the same on every host.
    pub fn static_number(self) -> Option<Number> {
        let minor = match self {
            DevicePath::Gpu(minor) => minor,
            DevicePath::Control => 255,
            DevicePath::Modeset => 254,
            _ => return None,
        };
        Some(Number { major: NVIDIA_MAJOR, minor })
    }

    /// Whether it can have this number, on any host and after any boot.
    pub fn may_have(self, number: Number) -> bool {
        match self {
            DevicePath::Gpu(_) | DevicePath::Control | DevicePath::Modeset => {
                self.static_number() == Some(number)
            }
            DevicePath::Card(_) | DevicePath::Render(_) => number.major == DRM_MAJOR,
            DevicePath::Uvm | DevicePath::UvmTools => is_dynamic(number.major) && number.minor <= 1,
            DevicePath::Caps | DevicePath::CapFile(_) => is_dynamic(number.major),
        }
    }
}

impl FromStr for DevicePath {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let numbered = |prefix: &str, path: fn(u32) -> DevicePath| {
            let tail = text.strip_prefix(prefix)?;
            let plain = tail == "0" || !tail.starts_with('0');
            (plain && tail.bytes().all(|b| b.is_ascii_digit())).then(|| tail.parse().ok())?.map(path)
        };
        let path = match text {
            "/dev/nvidiactl" => Some(DevicePath::Control),
            "/dev/nvidia-modeset" => Some(DevicePath::Modeset),
            "/dev/nvidia-uvm" => Some(DevicePath::Uvm),
            "/dev/nvidia-uvm-tools" => Some(DevicePath::UvmTools),
            CAPS_DIR => Some(DevicePath::Caps),
            _ => numbered("/dev/nvidia", DevicePath::Gpu)
                .filter(|path| !matches!(path, DevicePath::Gpu(minor) if *minor > LAST_GPU))
                .or_else(|| numbered("/dev/nvidia-caps/nvidia-cap", DevicePath::CapFile))
                .or_else(|| numbered("/dev/dri/card", DevicePath::Card))
                .or_else(|| numbered("/dev/dri/renderD", DevicePath::Render)),
        };
        let Some(path) = path else { bail!("{text:?} is not a device of an NVIDIA GPU") };
        Ok(path)
    }
}

impl fmt::Display for DevicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DevicePath::Gpu(n) => write!(f, "/dev/nvidia{n}"),
            DevicePath::Card(n) => write!(f, "/dev/dri/card{n}"),
            DevicePath::Render(n) => write!(f, "/dev/dri/renderD{n}"),
            DevicePath::Control => f.write_str("/dev/nvidiactl"),
            DevicePath::Modeset => f.write_str("/dev/nvidia-modeset"),
            DevicePath::Uvm => f.write_str("/dev/nvidia-uvm"),
            DevicePath::UvmTools => f.write_str("/dev/nvidia-uvm-tools"),
            DevicePath::Caps => f.write_str(CAPS_DIR),
            DevicePath::CapFile(n) => write!(f, "{CAPS_DIR}/nvidia-cap{n}"),
        }
    }
}

/// The paths in one line.
pub fn joined(paths: &[DevicePath], separator: &str) -> String {
    paths.iter().map(DevicePath::to_string).collect::<Vec<_>>().join(separator)
}

/// Their nodes on the host in one line.
pub fn nodes_on_host(paths: &[DevicePath]) -> String {
    paths.iter().map(|path| path.on_host()).collect::<Vec<_>>().join(", ")
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// As in a device rule: `c 195:0`.
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c {}:{}", self.major, self.minor)
    }
}

/// As it is shown.
impl FromStr for Number {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (major, minor) =
            text.strip_prefix("c ").and_then(|number| number.split_once(':')).context("not c MAJOR:MINOR")?;
        Ok(Number { major: major.parse()?, minor: minor.parse()? })
    }
}

/// A device of the host, with the number that its rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The path, on the host and in the container.
    pub path: DevicePath,
    /// Major number.
    pub major: u32,
    /// Minor number; for the caps directory that of the monitor capability.
    pub minor: u32,
}

impl Device {
    /// Its device number.
    pub fn number(&self) -> Number {
        Number { major: self.major, minor: self.minor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_nvidia_gpus_have_a_path() {
        let path = |text: &str| text.parse::<DevicePath>().ok();
        let table = [
            ("/dev/nvidia0", DevicePath::Gpu(0)),
            ("/dev/nvidia15", DevicePath::Gpu(15)),
            ("/dev/dri/card1", DevicePath::Card(1)),
            ("/dev/dri/renderD128", DevicePath::Render(128)),
            ("/dev/nvidiactl", DevicePath::Control),
            ("/dev/nvidia-modeset", DevicePath::Modeset),
            ("/dev/nvidia-uvm", DevicePath::Uvm),
            ("/dev/nvidia-uvm-tools", DevicePath::UvmTools),
            ("/dev/nvidia-caps", DevicePath::Caps),
            ("/dev/nvidia-caps/nvidia-cap31", DevicePath::CapFile(31)),
        ];
        for (text, device) in table {
            assert_eq!(path(text), Some(device));
            assert_eq!(device.to_string(), text);
        }
        for no in [
            "/dev/nvidia",
            "/dev/nvidia01",
            "/dev/nvidia0x",
            "/dev/nvidia-nvswitch0",
            "dev/nvidia0",
            "/dev/nvidia0/../sda",
            "/dev/nvidia248",
            "/dev/nvidia254",
            "/dev/nvidia255",
            "/dev/nvidia99999999999",
            "/dev/nvidia+1",
            "/dev/dri/cardx",
            "",
        ] {
            assert_eq!(path(no), None, "{no:?}");
        }
    }

    #[test]
    fn only_a_drm_node_is_ours_on_the_host() {
        for (path, node) in [
            ("/dev/nvidia247", "/dev/nvidia247"),
            ("/dev/dri/card1", "/run/phoenix-nvidia/dev/dri/card1"),
            ("/dev/dri/renderD128", "/run/phoenix-nvidia/dev/dri/renderD128"),
        ] {
            let path: DevicePath = path.parse().unwrap();
            assert_eq!((path.on_host().as_str(), DevicePath::of_node(node)), (node, Some(path)));
        }
        let of_node = |text: &str| DevicePath::of_node(&format!("{DRM_NODES}{text}"));
        for no in ["", "/dri", "/dri/../nvidia0", "/nvidia0", "-x/dri/card0", "/dri/cardx"] {
            assert_eq!(of_node(no), None, "{no:?}");
        }
    }

    #[test]
    fn a_node_has_its_static_number_or_a_dynamic_major() {
        let may =
            |path: &str, major, minor| path.parse::<DevicePath>().unwrap().may_have(Number { major, minor });
        assert!(may("/dev/nvidia3", 195, 3) && !may("/dev/nvidia3", 195, 2) && !may("/dev/nvidia3", 235, 3));
        assert!(may("/dev/nvidiactl", 195, 255) && may("/dev/nvidia-modeset", 195, 254));
        assert!(
            may("/dev/nvidia-uvm", 511, 0)
                && !may("/dev/nvidia-uvm", 511, 2)
                && !may("/dev/nvidia-uvm", 10, 0)
        );
        assert!(may("/dev/nvidia-caps", 234, 7) && may("/dev/nvidia-caps/nvidia-cap7", 384, 7));
        assert!(may("/dev/dri/card1", 226, 1) && !may("/dev/dri/card1", 195, 1));
    }
}
