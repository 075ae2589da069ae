//! The machine: its cards as the driver shows them, and a lab over them.

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Container, Errno, Lab, Output, Running, Spec};
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The machine's own driver files, as `run` laid them down.
const DRIVER: &str = "/driver";
/// The CUDA program of the kit.
const VECTOR_ADD: &str = "/kit/vector-add";
/// The program under test.
const PROGRAM: &str = "/kit/phoenix-nvidia";

/// One card.
pub struct Card {
    /// The N of /dev/nvidiaN.
    pub minor: u32,
    /// GPU-…
    pub uuid: String,
    /// As /proc writes it.
    pub address: String,
    model: String,
}

/// The machine.
pub struct Host {
    /// The loaded kernel driver.
    pub version: String,
    /// In the order of their minors.
    pub cards: Vec<Card>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        write!(f, "driver {}, kernel {}", self.version, kernel.trim())?;
        self.cards.iter().try_for_each(|c| write!(f, "\ncard {}: {} at {}", c.minor, c.model, c.address))
    }
}

impl Host {
    /// Reads it from the driver's own files.
    pub fn read() -> Host {
        let version = fs::read_to_string("/sys/module/nvidia/version").unwrap().trim().to_owned();
        let mut cards: Vec<Card> = fs::read_dir("/proc/driver/nvidia/gpus")
            .unwrap()
            .flatten()
            .map(|entry| {
                let text = fs::read_to_string(entry.path().join("information")).unwrap();
                let field = |key: &str| {
                    let line = text.lines().find_map(|line| line.strip_prefix(key));
                    line.unwrap_or_else(|| panic!("no {key} in:\n{text}")).trim().to_owned()
                };
                Card {
                    minor: field("Device Minor:").parse().unwrap(),
                    uuid: field("GPU UUID:"),
                    address: field("Bus Location:"),
                    model: field("Model:"),
                }
            })
            .collect();
        cards.sort_by_key(|card| card.minor);
        Host { version, cards }
    }

    /// A lab with the program installed, the driver's own files offered as a runfile, and containers that are not
    /// rebooted after an install.
    pub fn lab(&self) -> Lab {
        let lab = Lab::builder().real().start().expect("a lab");
        lab.install(PROGRAM);
        let runfile = Runfile::new(&self.version).tree(Path::new(DRIVER)).build().unwrap();
        lab.append(
            "/etc/default/phoenix-nvidia",
            format!(
                "NVIDIA_RUNFILE_URL=/run/lab/cache/{}\nCUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\n",
                runfile.strip_prefix(phoenix_lab::rootfs::cache().unwrap()).unwrap().display()
            ),
        );
        lab
    }
}

impl Host {
    /// The same, where containers get the host's own driver files, which lie where a distribution has them.
    pub fn injecting(&self) -> Lab {
        let lab = self.lab();
        let directory = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        lab.sh(&format!(
            "mkdir -p {directory} && cp {DRIVER}/lib*.so.{} {directory}/ && cp {DRIVER}/nvidia-* /usr/bin/",
            self.version
        ))
        .ok();
        lab.append("/etc/default/phoenix-nvidia", "DRIVER_MODE=inject\n");
        lab
    }
}

/// A stopped container with these GPUs and the hookscript.
pub fn attached<'lab>(lab: &'lab Lab, id: u32, spec: Spec, gpus: &str) -> Container<'lab> {
    let ct = lab.create(id, spec.option("--memory", "8192"));
    lab.run(["phoenix-nvidia", "attach", &id.to_string(), "--gpus", gpus]).ok();
    ct
}

/// `pct start`, with time for the copy of a whole driver.
pub fn start(lab: &Lab, id: u32) -> Output {
    lab.command("pct").args(["start", &id.to_string()]).timeout(std::time::Duration::from_secs(120)).run()
}

/// The UUIDs of the cards on which CUDA computes in the container.
pub fn computes(ct: &Container<'_>) -> Vec<String> {
    ct.files().program("/root/vector-add", fs::read(VECTOR_ADD).unwrap());
    let out = ct.exec(["/root/vector-add"]).ok();
    let right = out.stdout.lines().filter_map(|line| line.strip_suffix(" ok"));
    let mut uuids: Vec<String> = right.map(str::to_owned).collect();
    assert!(out.stdout.starts_with(&format!("devices {}\n", uuids.len())), "{out}");
    uuids.sort();
    uuids
}

/// A process in the container that has computed on all its cards and keeps them.
pub fn holding(ct: &Container<'_>) -> Running {
    ct.files().program("/root/holds-cards", fs::read(VECTOR_ADD).unwrap());
    let mut running = ct.command("/root/holds-cards").arg("hold").spawn();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !running.so_far().contains("holding") {
        assert!(!running.ended() && Instant::now() < deadline, "{}", running.so_far());
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

/// The UUIDs that nvidia-smi lists in the container.
pub fn listed(ct: &Container<'_>) -> Vec<String> {
    let out = ct.exec(["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]).ok();
    let mut uuids: Vec<String> = out.stdout.lines().map(str::to_owned).collect();
    uuids.sort();
    uuids
}

/// What opening a card's node in the container comes to, where its node is made by hand if it is missing.
pub fn opens_made(ct: &Container<'_>, minor: u32) -> Result<(), Errno> {
    let node = format!("/dev/gpu-test-{minor}");
    ct.exec(["mknod", &node, "c", "195", &minor.to_string()]).ok();
    let opened = ct.open_node(&node);
    ct.exec(["rm", &node]).ok();
    opened
}
