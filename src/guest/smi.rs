//! What nvidia-smi prints, from branch 470 to 615.

use crate::types::Version;

/// What `nvidia-smi --version` (550 and later) or the first lines of
/// `nvidia-smi -h` (all) say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// nvidia-smi's own version, which is that of the user space.
    pub tool: Option<Version>,
    /// The kernel driver's, if it answers.
    pub kernel: Option<Version>,
}

/// Reads both forms.
pub fn version(text: &str) -> Versions {
    let mut versions = Versions::default();
    for line in text.lines().take(40) {
        if let Some(rest) = line.strip_prefix("NVIDIA System Management Interface -- v") {
            versions.tool = rest.split_whitespace().next().and_then(|v| v.parse().ok());
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        // From 610 on `DRIVER version` only refers to `KMD version`.
        match key.trim().to_ascii_lowercase().as_str() {
            "nvidia-smi version" => versions.tool = value.trim().parse().ok(),
            "driver version" | "kmd version" => {
                versions.kernel = value.trim().parse().ok().or(versions.kernel);
            }
            _ => {}
        }
    }
    versions
}

/// One GPU, as `--query-gpu=index,uuid,pci.bus_id,driver_version
/// --format=csv,noheader` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedGpu {
    /// nvidia-smi's own numbering, in PCI order.
    pub index: u32,
    /// `GPU-…`.
    pub uuid: String,
    /// With nvidia-smi's domain of eight digits.
    pub pci: String,
    /// The version of the kernel driver.
    pub driver: Option<Version>,
}

/// The GPUs in the list; other lines are skipped.
pub fn gpus(text: &str) -> Vec<ListedGpu> {
    text.lines().take(256).filter_map(gpu).collect()
}

fn gpu(line: &str) -> Option<ListedGpu> {
    let columns: Vec<&str> = line.split(',').map(str::trim).collect();
    let [index, uuid, pci, driver] = columns.as_slice() else { return None };
    let index = index.parse().ok()?;
    let named = uuid.starts_with("GPU-");
    named.then(|| ListedGpu {
        index,
        uuid: (*uuid).to_owned(),
        pci: (*pci).to_owned(),
        driver: driver.parse().ok(),
    })
}

/// What an exit code of nvidia-smi means.
pub fn meaning(code: i32) -> &'static str {
    match code {
        0 => "success",
        2 => "unknown argument",
        3 => "not supported on this GPU",
        4 => "insufficient permissions for a device node",
        6 => "no devices found",
        8 => "external power of a GPU not connected",
        9 => "no kernel driver: not loaded, or no device nodes",
        10 => "interrupt problem of a GPU",
        12 => "libnvidia-ml.so.1 not found",
        13 => "libnvidia-ml.so.1 lacks a function: another version",
        14 => "infoROM of a GPU corrupted",
        15 => "a GPU has fallen off the bus or is not accessible",
        18 => "user space and kernel driver have different versions",
        255 => "unknown error",
        _ => "undocumented error",
    }
}

/// Whether the output says that user space and kernel driver differ (exit code
/// 255 on 470, 18 later).
pub fn is_mismatch(text: &str) -> bool {
    text.contains("Driver/library version mismatch")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deprecated_line_of_610_does_not_hide_the_version() {
        let text = "NVIDIA-SMI version  : 615.71.09\nNVML version        : 615.71\n\
            DRIVER version      : Deprecated, see \"KMD version\" instead\n\
            KMD version         : 615.71.09\nCUDA UMD version    : 13.4\n";
        let versions = version(text);
        assert_eq!(versions.tool.unwrap().as_str(), "615.71.09");
        assert_eq!(versions.kernel.unwrap().as_str(), "615.71.09");
    }

    #[test]
    fn before_550_the_help_names_the_version() {
        let text = "NVIDIA System Management Interface -- v470.256.02\n\nNVSMI provides monitoring";
        assert_eq!(version(text).tool.unwrap().as_str(), "470.256.02");
    }

    #[test]
    fn only_whole_lines_are_gpus() {
        let text = "0, GPU-5e1d4b1c-0000-1111-2222-333344445555, 00000000:01:00.0, 580.95.05\n\
            No devices were found\n1, GPU-x, 00000000:41:00.0, [N/A]\n2, GPU-y\nx, GPU-z, a, b\n";
        let list = gpus(text);
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].index, list[0].pci.as_str()), (0, "00000000:01:00.0"));
        assert_eq!(list[1].driver, None);
    }
}
