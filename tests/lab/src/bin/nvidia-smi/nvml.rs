//! What the real program learns from libnvidia-ml and the kernel driver.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What precedes the version in the lab's libraries.
const LIBRARY_MARK: &[u8] = b"lab nvidia library ";
const NVIDIA_MAJOR: u64 = 195;
const CTL_MINOR: u64 = 255;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    NoLibrary,
    NoDriver,
    Mismatch { library: String },
    Unknown,
    Permission,
    Device { address: String, denied: bool },
    NoDevices,
    BadOption(String),
    BadField(String),
    NoFormat,
}

impl Failure {
    pub(crate) fn code(&self, branch: u32) -> u8 {
        match self {
            Self::NoLibrary => 12,
            Self::NoDriver => 9,
            Self::Mismatch { .. } if branch >= 535 => 18,
            Self::Mismatch { .. } | Self::Unknown => 255,
            Self::Permission => 4,
            Self::Device { denied, .. } => {
                if *denied {
                    255
                } else {
                    4
                }
            }
            Self::NoDevices => 6,
            Self::BadOption(_) if branch <= 470 => 2,
            Self::BadOption(_) => 255,
            Self::BadField(_) | Self::NoFormat => 2,
        }
    }

    pub(crate) fn message(&self) -> String {
        match self {
            Self::NoLibrary => "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display Driver is properly installed and present in your system.\nPlease also try adding directory that contains libnvidia-ml.so to your system PATH.\n".to_owned(),
            Self::NoDriver => "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.\n\n".to_owned(),
            Self::Mismatch { library } => format!("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {}\n", short(library)),
            Self::Unknown => "Failed to initialize NVML: Unknown Error\n".to_owned(),
            Self::Permission => "Failed to initialize NVML: Insufficient Permissions\n".to_owned(),
            Self::Device { address, denied } => {
                let why = if *denied { "Unknown Error" } else { "Insufficient Permissions" };
                format!("Unable to determine the device handle for GPU {address}: {why}\n")
            }
            Self::NoDevices => "No devices were found\n".to_owned(),
            Self::BadOption(option) => format!("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help. (at {option})\n"),
            Self::BadField(field) => format!("Field \"{field}\" is not a valid field to query.\n\n"),
            Self::NoFormat => "\"--format=\" switch is missing. Please run 'nvidia-smi -h' for help.\n".to_owned(),
        }
    }
}

/// The first two numbers: NVML tells no more of its version.
pub(crate) fn short(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// A GPU whose node works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// Its place in PCI order among those that are visible: not the minor.
    pub(crate) index: usize,
    pub(crate) model: String,
    pub(crate) uuid: String,
    /// As NVML writes it: `00000000:01:00.0`.
    pub(crate) address: String,
    pub(crate) minor: u64,
}

impl Gpu {
    /// Whether `-i` means this one.
    pub(crate) fn is(&self, name: &str) -> bool {
        let short = self.address.trim_start_matches("0000");
        name == self.index.to_string()
            || name == self.uuid
            || name.eq_ignore_ascii_case(&self.address)
            || name.trim_start_matches("0000").eq_ignore_ascii_case(short)
    }
}

/// The library and the driver, agreeing.
#[derive(Debug)]
pub(crate) struct Nvml {
    root: PathBuf,
    pub(crate) library: String,
    pub(crate) kernel: String,
}

impl Nvml {
    /// In the order of the real one: the library, the control node, and only behind that the versions.
    pub(crate) fn init(root: &Path) -> Result<Self, Failure> {
        let library = library(root).ok_or(Failure::NoLibrary)?;
        let kernel = kernel(root).ok_or(Failure::NoDriver)?;
        let ctl = root.join("dev/nvidiactl");
        if !ctl.exists() {
            make_node(root, &ctl, CTL_MINOR);
        }
        match open(&ctl, CTL_MINOR) {
            Node::Works => {}
            Node::Missing => return Err(Failure::NoDriver),
            Node::Denied => return Err(Failure::Unknown),
            Node::NoPermission => return Err(Failure::Permission),
        }
        if library != kernel {
            return Err(Failure::Mismatch { library });
        }
        Ok(Self { root: root.to_owned(), library, kernel })
    }

    /// The GPUs that the driver has and whose nodes are here, in PCI order.
    pub(crate) fn gpus(&self) -> Result<Vec<Gpu>, Failure> {
        let mut found = Vec::new();
        let mut refused = None;
        for directory in children(&driver(&self.root).join("gpus")) {
            let Some(mut gpu) = information(&directory) else {
                continue;
            };
            let node = self.root.join(format!("dev/nvidia{}", gpu.minor));
            if !node.exists() {
                make_node(&self.root, &node, gpu.minor);
            }
            match open(&node, gpu.minor) {
                Node::Missing => continue,
                Node::Works => {}
                failed => {
                    let denied = matches!(failed, Node::Denied);
                    let failure = Failure::Device { address: gpu.address, denied };
                    // Seen on a real host: beside a card that works, one whose node it made itself does no harm.
                    if !made_inside(&node) {
                        return Err(failure);
                    }
                    refused = refused.or(Some(failure));
                    continue;
                }
            }
            gpu.index = found.len();
            found.push(gpu);
        }
        match refused.filter(|_| found.is_empty()) {
            Some(failure) => Err(failure),
            None => Ok(found),
        }
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let listing = fs::read_dir(directory).into_iter().flatten();
    let mut all: Vec<PathBuf> = listing.filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.sort();
    all
}

/// A GPU from its file in /proc; its index comes later.
fn information(directory: &Path) -> Option<Gpu> {
    let text = fs::read_to_string(directory.join("information")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    let address = directory.file_name()?.to_str()?.to_ascii_uppercase();
    Some(Gpu {
        index: 0,
        model: field("Model").unwrap_or_else(|| "Unknown".to_owned()),
        uuid: field("GPU UUID").unwrap_or_else(|| "[N/A]".to_owned()),
        address: format!("0000{address}"),
        minor: field("Device Minor")?.parse().ok()?,
    })
}

/// What opening a node says.
enum Node {
    Works,
    Missing,
    Denied,
    NoPermission,
}

/// A regular file in a node's place (a bind mount with a missing source leaves one) is no node.
fn open(path: &Path, minor: u64) -> Node {
    let is_node = fs::metadata(path)
        .is_ok_and(|data| data.file_type().is_char_device() && data.rdev() == device(minor));
    if !is_node {
        return Node::Missing;
    }
    const EPERM: i32 = 1;
    const EACCES: i32 = 13;
    match File::options().read(true).write(true).open(path).map_err(|error| error.raw_os_error()) {
        Err(Some(EPERM)) => Node::Denied,
        Err(Some(EACCES)) => Node::NoPermission,
        // ENXIO: allowed, and no driver behind it, which is the lab's working node.
        _ => Node::Works,
    }
}

/// The number that the C library makes of major 195 and a minor; a GPU's minor is below 256.
fn device(minor: u64) -> u64 {
    (NVIDIA_MAJOR << 8) | (minor & 0xff) | ((minor & !0xff) << 12)
}

/// As root the real library makes a missing node itself, unless the driver's parameters forbid it: on a host, and in a
/// privileged container too, also for a card that the container was not given. An unprivileged one may make none.
fn make_node(root: &Path, path: &Path, minor: u64) {
    let is_root = fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0);
    let params = fs::read_to_string(driver(root).join("params")).unwrap_or_default();
    let forbidden = params.lines().any(|line| line.trim() == "ModifyDeviceFiles: 0");
    if root != Path::new("/") || !is_root || forbidden {
        return;
    }
    let mut mknod = Command::new("mknod");
    mknod.args(["-m", "666"]).arg(path).args(["c", &NVIDIA_MAJOR.to_string(), &minor.to_string()]);
    let _ = mknod.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// Whether a node is the container's own: what was passed to it is a mount, of another file system than its /dev.
fn made_inside(node: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
    node.parent().is_some_and(|directory| device(node) == device(directory))
}

/// What the driver shows. An engine in a container mounts a /proc of its own, where a real driver is again and the lab's
/// is not: the image of a test has a copy of that.
fn driver(root: &Path) -> PathBuf {
    let (shown, copy) = (root.join("proc/driver/nvidia"), root.join("usr/lib/lab/driver/nvidia"));
    if !shown.exists() && copy.exists() { copy } else { shown }
}

/// The version of the kernel driver. Where it stands in the line depends on the kind of module.
fn kernel(root: &Path) -> Option<String> {
    let text = fs::read_to_string(driver(root).join("version")).ok()?;
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace().find(|word| looks_like_version(word)).map(str::to_owned)
}

fn looks_like_version(word: &str) -> bool {
    let numbers: Vec<&str> = word.split('.').collect();
    let digits = |number: &&str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    matches!(numbers.len(), 2 | 3) && numbers[0].len() == 3 && numbers.iter().all(digits)
}

/// The version of the installed library, where the dynamic linker would find it.
fn library(root: &Path) -> Option<String> {
    directories(root).into_iter().find_map(|directory| {
        let bytes = fs::read(directory.join("libnvidia-ml.so.1")).ok()?;
        let at = bytes.windows(LIBRARY_MARK.len()).position(|window| window == LIBRARY_MARK)?;
        let text = &bytes[at + LIBRARY_MARK.len()..];
        let end = text.iter().position(|&byte| byte == 0)?;
        String::from_utf8(text[..end].to_vec()).ok()
    })
}

fn directories(root: &Path) -> Vec<PathBuf> {
    let from_environment = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let mut all: Vec<String> = from_environment.split(':').map(str::to_owned).collect();
    for file in children(&root.join("etc/ld.so.conf.d")) {
        let text = fs::read_to_string(file).unwrap_or_default();
        all.extend(text.lines().filter(|line| line.starts_with('/')).map(str::to_owned));
    }
    let arch = std::env::consts::ARCH;
    for directory in ["/lib", "/usr/lib"] {
        all.push(format!("{directory}/{arch}-linux-gnu"));
        all.push(format!("{directory}64"));
        all.push(directory.to_owned());
    }
    let absolute = all.iter().filter_map(|directory| directory.strip_prefix('/'));
    let absolute = absolute.map(|directory| root.join(directory));
    // What is there comes first, once ldconfig was run.
    absolute.flat_map(|directory| [directory.join("glibc-hwcaps/x86-64-v2"), directory]).collect()
}
