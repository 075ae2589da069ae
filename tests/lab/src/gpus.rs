//! What an NVIDIA driver shows on the lab's host: device nodes, /proc/driver/nvidia, /proc/devices, sysfs. There is no
//! driver behind any of it: the nodes' majors belong to nobody here, so opening one that is allowed gives ENXIO.

use std::fmt::Write;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};

use crate::lab::{Builder, Lab};

/// Where the files are that get laid over proc and sysfs, on the host and in containers.
const STATE: &str = "/run/lab/nvidia";

/// The NVIDIA side of a host.
#[derive(Clone, Debug)]
pub(crate) struct Gpus {
    minors: Vec<u32>,
    driver: Option<String>,
    open: bool,
    nodes: bool,
    uvm: u32,
    caps: u32,
    real: bool,
    confined: bool,
}

impl Default for Gpus {
    fn default() -> Gpus {
        Gpus {
            minors: Vec::new(),
            driver: Some("580.95.05".into()),
            open: true,
            nodes: true,
            uvm: 511,
            caps: 510,
            real: false,
            confined: false,
        }
    }
}

impl Builder {
    /// This many GPUs, with minors 0, 1, … in PCI order. Without it there is none, and no driver.
    pub fn gpus(self, count: u32) -> Builder {
        self.minors(0..count)
    }

    /// The machine's own cards and driver, real nodes and all. What simulates others (`set_driver`, `remove_gpu`, …) is
    /// not for such a lab.
    pub fn real(mut self) -> Builder {
        self.gpus.real = true;
        self
    }

    /// As `real`, and containers run under AppArmor's profiles, as on a Proxmox host: for a machine whose kernel has
    /// AppArmor, and LXC's profiles loaded.
    pub fn confined(mut self) -> Builder {
        self.gpus.confined = true;
        self.real()
    }

    /// One GPU for each minor, in PCI order: `minors([1, 0])` makes the first one on the bus /dev/nvidia1.
    pub fn minors(mut self, minors: impl IntoIterator<Item = u32>) -> Builder {
        self.gpus.minors = minors.into_iter().collect();
        self
    }

    /// The loaded kernel driver's version; 580.95.05 otherwise.
    pub fn driver(mut self, version: &str) -> Builder {
        self.gpus.driver = Some(version.to_owned());
        self
    }

    /// GPUs on the bus, and no driver loaded.
    pub fn no_driver(mut self) -> Builder {
        self.gpus.driver = None;
        self
    }

    /// The closed kernel module, whose version line has another form.
    pub fn proprietary(mut self) -> Builder {
        self.gpus.open = false;
        self
    }

    /// As after a boot: the driver is loaded, and nobody has made the device nodes.
    pub fn no_nodes(mut self) -> Builder {
        self.gpus.nodes = false;
        self
    }

    /// The dynamic major of nvidia-uvm; 511 otherwise.
    pub fn uvm_major(mut self, major: u32) -> Builder {
        self.gpus.uvm = major;
        self
    }

    /// The dynamic major of nvidia-caps; 510 otherwise.
    pub fn caps_major(mut self, major: u32) -> Builder {
        self.gpus.caps = major;
        self
    }
}

/// The NVIDIA side of a running lab, to be changed during a test.
pub struct Nvidia<'lab> {
    lab: &'lab Lab,
}

impl<'lab> Nvidia<'lab> {
    pub(crate) fn new(lab: &'lab Lab) -> Nvidia<'lab> {
        Nvidia { lab }
    }

    pub(crate) fn lab(&self) -> &Lab {
        self.lab
    }

    /// Lays everything out at the lab's start.
    pub(crate) fn furnish(&self, gpus: &Gpus) {
        if gpus.real {
            return self.real_nodes(gpus.confined);
        }
        let files = self.lab.files();
        for dir in ["proc-driver", "module", "pci"] {
            files.mkdir(format!("{STATE}/{dir}"));
        }
        let mut script = String::from("set -e\n");
        // This machine's log is not this host's.
        files.program("/usr/bin/dmesg", "#!/bin/sh\n");
        // What is there of real modules stays visible, through the second, complete sysfs.
        let _ = writeln!(script, "ln -s /run/lab/sysfs/module/* {STATE}/module/");
        // LXC takes this for the sign of AppArmor, whose profiles a lab could not load.
        let _ = writeln!(script, "rm -f {STATE}/module/apparmor");
        files.write(format!("{STATE}/devices"), devices(&files.read("/proc/devices"), gpus));
        if let Some(version) = gpus.driver.as_ref().filter(|_| !gpus.minors.is_empty()) {
            self.write_driver(version, gpus.open);
            files.write(format!("{STATE}/proc-driver/nvidia/params"), PARAMS);
            for (name, minor) in [("config", 1), ("monitor", 2)] {
                let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 256\nDeviceFileModify: 1\n");
                files.write(format!("{STATE}/proc-driver/nvidia/capabilities/mig/{name}"), text);
            }
            files.write(format!("{STATE}/proc-driver/nvidia-caps/mig-minors"), "config 1\nmonitor 2\n");
            files.write(format!("{STATE}/proc-driver/nvidia-caps/sys-minors"), "");
            if gpus.nodes {
                script.push_str(&all_nodes(gpus));
            }
        }
        for (index, minor) in (0..).zip(&gpus.minors) {
            self.write_gpu(index, *minor, gpus);
        }
        for (from, to) in
            [("proc-driver", "/proc/driver"), ("devices", "/proc/devices"), ("module", "/sys/module")]
        {
            let _ = writeln!(script, "mount --bind {STATE}/{from} {to}");
        }
        let _ = writeln!(script, "if [ -d /sys/bus/pci/devices ]; then");
        let _ = writeln!(script, "mount --bind {STATE}/pci /sys/bus/pci/devices; fi");
        self.lab.sh(&script).ok();
    }

    /// The lab's /dev is its own: the machine's NVIDIA nodes, made there once more.
    fn real_nodes(&self, confined: bool) {
        let mut script = String::from("set -e\n");
        for dir in ["/dev", "/dev/nvidia-caps"] {
            let Ok(entries) = std::fs::read_dir(dir) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let found = std::fs::metadata(&path).ok().filter(|m| m.file_type().is_char_device());
                let name = path.display().to_string();
                let Some(found) = found.filter(|_| name.contains("nvidia")) else { continue };
                let (major, minor) =
                    (nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()));
                let mode = found.mode() & 0o777;
                let _ = writeln!(script, "mkdir -p {dir}\nmknod -m {mode:o} {name} c {major} {minor}");
            }
        }
        script.push_str(if confined {
            // Through it LXC loads the profile that it generates for a container.
            "mount -t securityfs securityfs /sys/kernel/security\n"
        } else {
            // Proxmox' profiles are not those of this machine.
            "echo 'lxc.apparmor.profile = unconfined' > /usr/share/lxc/config/common.conf.d/20-real.conf\n"
        });
        self.lab.sh(&script).ok();
    }

    fn write_driver(&self, version: &str, open: bool) {
        let files = self.lab.files();
        // The open module came with 515.
        let line = if open && branch(version) >= 515 {
            format!("NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (builder@lab)  ")
        } else {
            format!("NVIDIA UNIX x86_64 Kernel Module  {version}  ")
        };
        let text = format!(
            "NVRM version: {line}Tue Sep 23 10:11:41 UTC 2025\nGCC version:  gcc version 14.2.0 (Debian 14.2.0-19)\n"
        );
        files.write(format!("{STATE}/proc-driver/nvidia/version"), text);
        files.write(format!("{STATE}/module/nvidia/version"), format!("{version}\n"));
        files.write(format!("{STATE}/module/nvidia/initstate"), "live\n");
    }

    fn write_gpu(&self, index: u32, minor: u32, gpus: &Gpus) {
        let files = self.lab.files();
        let address = address(index);
        let pci = format!("{STATE}/pci/{address}");
        files.write(format!("{pci}/vendor"), "0x10de\n");
        let (id, model) = gpus.driver.as_ref().map_or(CARDS[2], |version| card_of(version));
        files.write(format!("{pci}/device"), format!("{id:#06x}\n"));
        files.write(format!("{pci}/class"), "0x030000\n");
        if let Some(version) = &gpus.driver {
            let driver = self.lab.root().join(pci.trim_start_matches('/')).join("driver");
            symlink("../../../../bus/pci/drivers/nvidia", &driver)
                .unwrap_or_else(|e| panic!("linking {}: {e}", driver.display()));
            let text = format!(
                "Model: \t\t {model}\nIRQ:   \t\t {irq}\nGPU UUID: \t {uuid}\nVideo BIOS: \t 95.02.3c.40.0b\n\
                 Bus Type: \t PCIe\nDMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\nBus Location: \t {address}\n\
                 Device Minor: \t {minor}\nGPU Firmware: \t {version}\nGPU Excluded:\t No\n",
                irq = 130 + index,
                uuid = uuid(index),
            );
            files.write(format!("{STATE}/proc-driver/nvidia/gpus/{address}/information"), text);
        }
    }

    /// Another kernel driver is loaded, as after an upgrade and a reboot of the host; the cards are some that it drives.
    pub fn set_driver(&self, version: &str) {
        self.write_driver(version, self.lab.builder.gpus.open);
        let (id, model) = card_of(version);
        (0..).zip(&self.lab.builder.gpus.minors).for_each(|(index, _)| self.set_card(index, id, model));
    }

    /// The GPU with this index is another card.
    pub fn set_card(&self, index: u32, id: u16, model: &str) {
        let address = address(index);
        self.lab.write(format!("{STATE}/pci/{address}/device"), format!("{id:#06x}\n"));
        let path = format!("{STATE}/proc-driver/nvidia/gpus/{address}/information");
        if self.lab.exists(&path) {
            let text = self.lab.read(&path);
            let (_, rest) = text.split_once('\n').unwrap_or_default();
            self.lab.write(&path, format!("Model: \t\t {model}\n{rest}"));
        }
    }

    /// The driver does not show the GPU with this index: its probe has failed.
    pub fn hide_gpu(&self, index: u32) {
        let minor = self.lab.builder.gpus.minors[index as usize];
        let shown = format!("{STATE}/proc-driver/nvidia/gpus/{}", address(index));
        self.lab.sh(&format!("rm -rf {shown} /dev/nvidia{minor}")).ok();
    }

    /// The driver is unloaded: its files and nodes are gone.
    pub fn unload(&self) {
        self.lab.sh(&format!("rm -rf {STATE}/proc-driver/nvidia* {STATE}/module/nvidia /dev/nvidia*")).ok();
        let path = format!("{STATE}/devices");
        let kept = without_nvidia(&self.lab.read(&path));
        self.lab.write(path, kept);
    }

    /// What the driver's parameters say of making nodes: 1 unless somebody forbade it.
    pub fn modify_device_files(&self, may: bool) {
        let params = PARAMS.replace("Files: 1", &format!("Files: {}", u8::from(may)));
        self.lab.write(format!("{STATE}/proc-driver/nvidia/params"), params);
    }

    /// A card that nobody has used yet: the driver shows question marks, or its UUID again.
    pub fn show_uuid(&self, index: u32, known: bool) {
        let path = format!("{STATE}/proc-driver/nvidia/gpus/{}/information", address(index));
        let unknown = "GPU-????????-????-????-????-????????????".to_owned();
        let (from, to) = if known { (unknown, uuid(index)) } else { (uuid(index), unknown) };
        self.lab.write(&path, self.lab.read(&path).replace(&from, &to));
    }

    /// nvidia-uvm has another major, in /proc/devices and on its nodes.
    pub fn set_uvm_major(&self, major: u32) {
        let path = format!("{STATE}/devices");
        let real = self.lab.read(&path);
        let gpus = Gpus { uvm: major, ..self.lab.builder.gpus.clone() };
        self.lab.write(&path, devices(&without_nvidia(&real), &gpus));
        if self.lab.exists("/dev/nvidia-uvm") {
            self.lab.sh(&format!("rm /dev/nvidia-uvm /dev/nvidia-uvm-tools\n{}", uvm_nodes(major))).ok();
        }
    }

    /// A device node is gone from the host.
    pub fn remove_node(&self, path: &str) {
        self.lab.files().remove(path);
    }

    /// A device node is there.
    pub fn make_node(&self, path: &str, major: u32, minor: u32) {
        self.lab.sh(&format!("mkdir -p \"$(dirname {path})\" && mknod -m 666 {path} c {major} {minor}")).ok();
    }

    /// The GPU with this index has fallen off the bus: node, proc and sysfs entries are gone.
    pub fn remove_gpu(&self, index: u32) {
        let address = address(index);
        let minor = self.lab.builder.gpus.minors[index as usize];
        let gone = format!(
            "rm -rf {STATE}/pci/{address} {STATE}/proc-driver/nvidia/gpus/{address} /dev/nvidia{minor}"
        );
        self.lab.sh(&gone).ok();
    }

    /// The GPU with this index is bound to another driver (vfio-pci, say); with one that isn't nvidia it has no node.
    pub fn bind_gpu(&self, index: u32, driver: &str) {
        let address = address(index);
        self.lab
            .sh(&format!("ln -sfn ../../../../bus/pci/drivers/{driver} {STATE}/pci/{address}/driver"))
            .ok();
        if driver != "nvidia" {
            let minor = self.lab.builder.gpus.minors[index as usize];
            self.lab.sh(&format!("rm -rf {STATE}/proc-driver/nvidia/gpus/{address} /dev/nvidia{minor}")).ok();
        }
    }

    /// The PCI address of the GPU with this index, as /proc and /sys write it.
    pub fn address(&self, index: u32) -> String {
        address(index)
    }

    /// The UUID of the GPU with this index.
    pub fn uuid(&self, index: u32) -> String {
        uuid(index)
    }
}

fn address(index: u32) -> String {
    format!("0000:{:02x}:00.0", index + 1)
}

fn uuid(index: u32) -> String {
    format!("GPU-5f2c0de0-1b7a-4c1d-9e3f-{:012x}", 0xa1b2_c3d4_0000_u64 + u64::from(index))
}

const PARAMS: &str = "ResmanDebugLevel: 4294967295\nRmLogonRC: 1\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n\
                      DeviceFileGID: 0\nDeviceFileMode: 438\nInitializeSystemMemoryAllocations: 1\n";

/// Cards of three ages: those that 390 drives, those of 391 to 519, newer ones.
const CARDS: [(u16, &str); 3] = [
    (0x06cd, "NVIDIA GeForce GTX 470"),
    (0x1b80, "NVIDIA GeForce GTX 1080"),
    (0x2684, "NVIDIA GeForce RTX 4090"),
];

/// A card that this driver drives.
fn card_of(version: &str) -> (u16, &'static str) {
    match branch(version) {
        0..=390 => CARDS[0],
        391..520 => CARDS[1],
        _ => CARDS[2],
    }
}

fn branch(version: &str) -> u32 {
    version.split('.').next().and_then(|part| part.parse().ok()).unwrap_or(0)
}

/// The real list with the driver's majors among the character devices.
fn devices(real: &str, gpus: &Gpus) -> String {
    let mut ours: Vec<(u32, &str)> = Vec::new();
    if let Some(version) = gpus.driver.as_ref().filter(|_| !gpus.minors.is_empty()) {
        let names: &[&str] = if branch(version) <= 535 {
            &["nvidia-frontend"]
        } else {
            &["nvidia", "nvidia-modeset", "nvidiactl"]
        };
        ours.extend(names.iter().map(|name| (195, *name)));
        ours.push((gpus.caps, "nvidia-caps"));
        ours.push((gpus.uvm, "nvidia-uvm"));
    }
    let (characters, blocks) = real.split_once("\n\n").unwrap_or((real, ""));
    let mut lines: Vec<String> = characters.lines().map(str::to_owned).collect();
    lines.extend(ours.iter().map(|(major, name)| format!("{major:3} {name}")));
    // A stable sort keeps the heading first and equal majors in order.
    lines.sort_by_key(|line| line.split_whitespace().next().and_then(|n| n.parse::<u32>().ok()));
    format!("{}\n\n{blocks}", lines.join("\n"))
}

fn without_nvidia(list: &str) -> String {
    list.split_inclusive('\n').filter(|line| !line.contains("nvidia")).collect()
}

fn uvm_nodes(major: u32) -> String {
    format!("mknod -m 666 /dev/nvidia-uvm c {major} 0\nmknod -m 666 /dev/nvidia-uvm-tools c {major} 1\n")
}

fn all_nodes(gpus: &Gpus) -> String {
    let mut script = uvm_nodes(gpus.uvm);
    for minor in &gpus.minors {
        let _ = writeln!(script, "mknod -m 666 /dev/nvidia{minor} c 195 {minor}");
    }
    let caps = gpus.caps;
    script.push_str("mknod -m 666 /dev/nvidiactl c 195 255\nmknod -m 666 /dev/nvidia-modeset c 195 254\n");
    let _ = writeln!(script, "mkdir /dev/nvidia-caps\nmknod -m 400 /dev/nvidia-caps/nvidia-cap1 c {caps} 1");
    let _ = writeln!(script, "mknod -m 444 /dev/nvidia-caps/nvidia-cap2 c {caps} 2");
    script
}
