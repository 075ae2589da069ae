//! The kernel modules of NVIDIA's driver on disk, as modules.dep and modprobe.d
//! name them.
//!
//! The module calls itself nvidia, its file may not: Debian's packages build
//! `nvidia-current.ko`, `nvidia-current-open.ko` or `nvidia-tesla-470.ko`, and an
//! `install nvidia` line of modprobe.d leads to it.

use crate::sys::look::Look;

/// Where modprobe looks for its configuration.
const MODPROBE_D: [&str; 3] = ["/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d"];
/// The modules beside the driver itself, also of other projects: `nvidia-fs`,
/// the kernel's own `nvidia-wmi-ec-backlight`.
const HELPERS: [&str; 9] =
    ["uvm", "modeset", "drm", "peermem", "vgpu-vfio", "fs", "backlight", "cspmu", "p2p"];

/// NVIDIA's modules on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// The release of the running kernel.
    pub kernel: String,
    /// The names of the running kernel's, the one that modprobe takes first.
    pub here: Vec<String>,
    /// Those of other kernels: release and path.
    pub elsewhere: Vec<(String, String)>,
    /// DKMS builds them.
    pub dkms: bool,
    /// The version of the sources that an installer left.
    pub sources: Option<String>,
}

impl Modules {
    /// Reads the modules of all kernels.
    pub fn read(look: &mut Look) -> Modules {
        let kernel = look.text("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let mut modules = Modules { kernel, ..Modules::default() };
        for release in look.names("/lib/modules").unwrap_or_default() {
            let text = look.text(&format!("/lib/modules/{release}/modules.dep")).unwrap_or_default();
            let paths = drivers(&text);
            modules.dkms |= paths.iter().any(|path| path.contains("/dkms/"));
            if release == modules.kernel {
                modules.here = paths.into_iter().filter_map(|path| Some(name(path)?.to_owned())).collect();
            } else {
                modules.elsewhere.extend(paths.into_iter().map(|path| (release.clone(), path.to_owned())));
            }
        }
        let mut names = |directory, prefix: &str| {
            let names = look.directories(directory).unwrap_or_default().into_iter();
            names.filter_map(|name| Some(name.strip_prefix(prefix)?.to_owned())).next_back()
        };
        modules.dkms |= names("/var/lib/dkms", "nvidia").is_some();
        modules.sources = names("/usr/src", "nvidia-");
        let line = configuration(look).iter().find_map(|(_, text)| installs(text));
        modules.here.sort_by_key(|name| (line.as_ref() != Some(name), name != "nvidia"));
        modules
    }

    /// The names to ask modinfo for; where modules.dep names none, the driver's own.
    pub fn names(&self) -> Vec<&str> {
        if self.here.is_empty() { vec!["nvidia"] } else { self.here.iter().map(String::as_str).collect() }
    }

    /// No trace of NVIDIA's driver.
    pub fn never_installed(&self) -> bool {
        self.here.is_empty() && self.elsewhere.is_empty() && !self.dkms && self.sources.is_none()
    }

    /// That the running kernel has none, and which kernels have.
    pub fn missing(&self) -> String {
        let others = self.other_kernels();
        let only =
            if others.is_empty() { String::new() } else { format!(" (only for {})", others.join(", ")) };
        format!("no module installed for the running kernel {}{only}", self.kernel)
    }

    /// The other kernels that have one.
    fn other_kernels(&self) -> Vec<String> {
        let mut kernels: Vec<String> = self.elsewhere.iter().map(|(release, _)| release.clone()).collect();
        kernels.dedup();
        kernels
    }
}

/// The paths in `modules.dep` that are the driver itself, compressed or not.
pub fn drivers(modules_dep: &str) -> Vec<&str> {
    let paths = modules_dep.lines().filter_map(|line| line.split(':').next());
    paths.filter(|path| name(path).is_some_and(is_driver)).collect()
}

/// The name of the module in this file.
fn name(path: &str) -> Option<&str> {
    let (name, end) = path.rsplit('/').next()?.split_once(".ko")?;
    matches!(end, "" | ".xz" | ".zst" | ".gz").then_some(name)
}

fn is_driver(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("nvidia") else { return false };
    let rest = rest.replace('_', "-");
    rest.is_empty()
        || (rest.starts_with('-') && !HELPERS.iter().any(|end| rest.ends_with(&format!("-{end}"))))
}

/// A file of modprobe.d that keeps the module from being loaded, as the usual
/// guide to PCI passthrough makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blacklist {
    /// The file.
    pub file: String,
    /// Also where it is asked for by its name, as by `modprobe nvidia`:
    /// modprobe.d(5) has `blacklist` bind the aliases of devices only.
    pub by_name: bool,
}

/// The file that does the most.
pub fn blacklist(look: &mut Look) -> Option<Blacklist> {
    let files = configuration(look);
    let of = |by_name: bool, is_it: fn(&str) -> bool| {
        let file = files.iter().find(|(_, text)| is_it(text))?.0.clone();
        Some(Blacklist { file, by_name })
    };
    of(true, forbids).or_else(|| of(false, blacklists))
}

/// The files of modprobe.d.
fn configuration(look: &mut Look) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for directory in MODPROBE_D {
        for name in look.names(directory).unwrap_or_default() {
            let file = format!("{directory}/{name}");
            let text = if name.ends_with(".conf") { look.text(&file) } else { None };
            files.extend(text.map(|text| (file, text)));
        }
    }
    files
}

/// Whether a file of modprobe.d keeps the module from being loaded. Debian's own
/// `install nvidia` lines load another file.
pub fn blacklists(text: &str) -> bool {
    let is_it = |line: &str| line.split_ascii_whitespace().take(2).eq(["blacklist", "nvidia"]);
    text.lines().any(is_it) || forbids(text)
}

/// Whether it does so too where the module is asked for by its name.
fn forbids(text: &str) -> bool {
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let nothing = |command: &str| matches!(command.rsplit('/').next(), Some("false" | "true" | ":"));
        matches!(words.as_slice(), ["install", "nvidia", command, ..] if nothing(command))
    })
}

/// The module that an `install nvidia` line loads instead.
pub fn installs(text: &str) -> Option<String> {
    let words = |line: &'_ str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    text.lines().map(words).find_map(|words| match words.as_slice() {
        [install, nvidia, command @ ..] if install == "install" && nvidia == "nvidia" => {
            command.iter().find(|word| word.starts_with("nvidia-") && is_driver(word)).cloned()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_found_under_every_name_that_packages_give_it() {
        for driver in [
            "kernel/drivers/video/nvidia.ko",
            "updates/dkms/nvidia.ko.zst",
            "updates/dkms/nvidia-current.ko.xz",
            "updates/dkms/nvidia-current-open.ko",
            "updates/dkms/nvidia-legacy-390xx.ko",
            "updates/dkms/nvidia-tesla-470.ko.gz",
            "kernel/nvidia-580-open/nvidia.ko",
        ] {
            assert_eq!(drivers(&format!("kernel/a.ko:\n{driver}: kernel/x.ko\n")), [driver]);
        }
        let others = "kernel/nvidia-uvm.ko:\nkernel/nvidia.kox:\nkernel/i2c-nvidia-gpu.ko: nvidia.ko\n\
                      updates/nvidia-current-uvm.ko.xz: updates/nvidia-current.ko.xz\nx/nvidia-current-modeset.ko:\n\
                      x/nvidia-drm.ko:\nx/nvidia-legacy-390xx-drm.ko:\nx/nvidia-peermem.ko:\nx/nvidiafb.ko:\n\
                      x/nvidia-wmi-ec-backlight.ko:\nx/nvidia-fs.ko:\nx/nvidia_cspmu.ko:\nx/nvidia-vgpu-vfio.ko:\n";
        assert_eq!(drivers(others), [""; 0]);
    }

    #[test]
    fn blacklists_are_told_from_comments_other_modules_and_alternatives() {
        for text in
            ["# x\n blacklist  nvidia\n", "install nvidia /bin/false\n", "install nvidia /usr/bin/true\n"]
        {
            assert!(blacklists(text), "{text}");
        }
        assert!(forbids("blacklist nouveau\ninstall nvidia /bin/false\n") && !forbids("blacklist nvidia\n"));
        assert!(!blacklists("#blacklist nvidia\nblacklist nvidiafb\nblacklist nouveau\n"));
        let debian = "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n\
                      install nvidia-uvm modprobe nvidia ; modprobe -i nvidia-current-uvm $CMDLINE_OPTS\n";
        assert!(!blacklists(debian));
        assert_eq!(installs(debian).as_deref(), Some("nvidia-current"));
        assert_eq!(installs("install nvidia-uvm modprobe -i nvidia-current-uvm\nblacklist nvidia\n"), None);
        assert_eq!(installs("install nvidia modprobe -i nvidia-uvm\n"), None);
    }
}
