//! Container images: made once, cached as plain directories, and shared as the lower layer of every container's root.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::starting;

/// What is in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// A static busybox and its links: starts in a few milliseconds.
    Busybox,
    /// Debian 11, otherwise like `Debian12`: the oldest that Proxmox' templates still offer.
    Debian11,
    /// Debian 12 with what Proxmox' template has of interest (wget, kmod, xz, ca-certificates), and a trivial process 1.
    Debian12,
    /// Debian 12 that boots systemd.
    Debian12Systemd,
    /// Debian 12 with its podman (4.3) and docker.io (20.10), otherwise like `Debian12`.
    Debian12Engines,
    /// Debian 13, otherwise like `Debian12`.
    Debian13,
    /// Debian 13 that boots systemd, and so has a tmpfs on /tmp.
    Debian13Systemd,
    /// Debian 13 with its podman (5.4) and docker.io (26.1), otherwise like `Debian13`.
    Debian13Engines,
    /// The same that boots systemd, which starts Docker.
    Debian13EnginesSystemd,
    /// Ubuntu 24.04, otherwise like `Debian12`. Its archive is another one: see [`Rootfs::obtainable`].
    Ubuntu2404,
    /// The root of this machine itself, copied, with a trivial process 1: for a machine without network whose root is
    /// a small Debian (`tests/gpu`).
    Own,
}

/// A container to be created.
#[derive(Clone, Debug)]
pub struct Spec {
    pub(crate) rootfs: Rootfs,
    pub(crate) privileged: bool,
    network: bool,
    more: Vec<String>,
}

/// Shift of user and group ids in unprivileged containers.
const SHIFT: u32 = 100_000;

impl Rootfs {
    /// Those that are made, and not copied from this machine.
    pub const ALL: [Rootfs; 10] = [
        Rootfs::Busybox,
        Rootfs::Debian11,
        Rootfs::Debian12,
        Rootfs::Debian12Systemd,
        Rootfs::Debian12Engines,
        Rootfs::Debian13,
        Rootfs::Debian13Systemd,
        Rootfs::Debian13Engines,
        Rootfs::Debian13EnginesSystemd,
        Rootfs::Ubuntu2404,
    ];

    /// The releases of which a property is shown: Debian 12, and every one with `make test-all`.
    pub fn releases() -> &'static [Rootfs] {
        let all = [Rootfs::Debian12, Rootfs::Debian13].as_slice();
        if crate::thorough() { all } else { &all[..1] }
    }

    /// A privileged container with this root.
    pub fn privileged(self) -> Spec {
        Spec { rootfs: self, privileged: true, network: self != Rootfs::Busybox, more: Vec::new() }
    }

    /// An unprivileged container with this root.
    pub fn unprivileged(self) -> Spec {
        Spec { privileged: false, ..self.privileged() }
    }

    /// The name of its template: `local:vztmpl/NAME.tar`.
    pub fn name(self) -> &'static str {
        match self {
            Rootfs::Busybox => "busybox",
            Rootfs::Debian11 => "debian-11",
            Rootfs::Debian12 => "debian-12",
            Rootfs::Debian12Systemd => "debian-12-systemd",
            Rootfs::Debian12Engines => "debian-12-engines",
            Rootfs::Debian13 => "debian-13",
            Rootfs::Debian13Systemd => "debian-13-systemd",
            Rootfs::Debian13Engines => "debian-13-engines",
            Rootfs::Debian13EnginesSystemd => "debian-13-engines-systemd",
            Rootfs::Ubuntu2404 => "ubuntu-24.04",
            Rootfs::Own => "own",
        }
    }

    fn suite(self) -> Option<&'static str> {
        match self {
            Rootfs::Busybox | Rootfs::Own => None,
            Rootfs::Debian11 => Some("bullseye"),
            Rootfs::Debian12 | Rootfs::Debian12Systemd | Rootfs::Debian12Engines => Some("bookworm"),
            Rootfs::Debian13
            | Rootfs::Debian13Systemd
            | Rootfs::Debian13Engines
            | Rootfs::Debian13EnginesSystemd => Some("trixie"),
            Rootfs::Ubuntu2404 => Some("noble"),
        }
    }

    fn packages(self) -> &'static str {
        match self {
            Rootfs::Busybox | Rootfs::Own => "",
            Rootfs::Debian11 | Rootfs::Debian12 | Rootfs::Debian13 | Rootfs::Ubuntu2404 => {
                "ca-certificates,kmod,wget,xz-utils"
            }
            Rootfs::Debian12Systemd | Rootfs::Debian13Systemd => {
                "ca-certificates,dbus,kmod,systemd,systemd-sysv,wget,xz-utils"
            }
            Rootfs::Debian12Engines => "ca-certificates,docker.io,kmod,netavark,podman,wget,xz-utils",
            Rootfs::Debian13Engines => "ca-certificates,docker-cli,docker.io,kmod,podman,wget,xz-utils",
            Rootfs::Debian13EnginesSystemd => {
                "ca-certificates,dbus,docker-cli,docker.io,kmod,podman,systemd,systemd-sysv,wget,xz-utils"
            }
        }
    }

    /// Whether its image is there or can be made: a machine may reach Debian's archive and no other.
    ///
    /// # Errors
    /// Why not.
    pub fn obtainable(self) -> Result<()> {
        ensure(self, false).map(drop)
    }
}

impl From<Rootfs> for Spec {
    fn from(rootfs: Rootfs) -> Spec {
        rootfs.unprivileged()
    }
}

impl Spec {
    /// With an interface on vmbr0 (Debian has one anyway).
    #[must_use]
    pub fn network(mut self) -> Spec {
        self.network = true;
        self
    }

    /// A further option of `pct create`: `option("--memory", "512")`.
    #[must_use]
    pub fn option(mut self, key: &str, value: &str) -> Spec {
        self.more.extend([key.to_owned(), value.to_owned()]);
        self
    }

    pub(crate) fn options(&self, id: u32) -> Vec<String> {
        let mut all: Vec<String> = ["--memory", "256", "--swap", "512"].map(str::to_owned).to_vec();
        all.extend(["--hostname".into(), format!("ct{id}")]);
        let ostype = if self.rootfs == Rootfs::Busybox { "unmanaged" } else { "debian" };
        all.extend(["--ostype".into(), ostype.into()]);
        // Unprivileged is what `pct create` makes unless told otherwise.
        if self.privileged {
            all.extend(["--unprivileged".into(), "0".into()]);
        }
        if self.network {
            let host = 2 + id % 250;
            let mac = format!("BC:24:11:00:{:02X}:{:02X}", id / 256 % 256, id % 256);
            let net = format!("name=eth0,bridge=vmbr0,hwaddr={mac},ip=192.0.2.{host}/24,type=veth");
            all.extend(["--net0".into(), net]);
        }
        all.extend(self.more.iter().cloned());
        all
    }
}

/// Where images are kept between runs: `$PHOENIX_LAB_CACHE`, else target/lab-cache.
pub fn cache() -> Result<PathBuf> {
    let dir = crate::cache::dir();
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// Makes the images of privileged and of unprivileged containers that are not in the cache yet, and tells their names.
///
/// # Errors
/// Why one could not be made.
pub fn make(rootfs: Rootfs) -> Result<[String; 2]> {
    Ok([ensure(rootfs, false)?, ensure(rootfs, true)?])
}

/// Makes sure that an image is in the cache, and tells its directory's name there.
pub(crate) fn ensure(rootfs: Rootfs, shifted: bool) -> Result<String> {
    let cache = cache()?;
    let plain = format!("{}.{}", rootfs.name(), key(rootfs)?);
    let name = if shifted { format!("{plain}.shifted") } else { plain.clone() };
    if cache.join(&name).exists() {
        return Ok(name);
    }
    // One builder of an image at a time, over all test processes; the others wait and find it made.
    let _held = lock(&cache.join(format!("{}.lock", rootfs.name())))?;
    if shifted && !cache.join(&plain).exists() {
        build(&cache, &plain, |dir| fill(rootfs, dir))?;
    }
    if !cache.join(&name).exists() {
        build(&cache, &name, |dir| {
            if !shifted {
                return fill(rootfs, dir);
            }
            run(Command::new("cp").arg("-aT").arg(cache.join(&plain)).arg(dir))?;
            shift(dir)
        })?;
    }
    Ok(name)
}

/// How long an image may take to be built: debootstrap needs half a minute here, more over a slow network.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

fn lock(path: &Path) -> Result<Flock<fs::File>> {
    let deadline = Instant::now() + PATIENCE;
    let mut file = fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(errno).with_context(|| format!("locking {}", path.display())),
        };
        if Instant::now() > deadline {
            bail!(
                "{} is still locked after {PATIENCE:?}: another test builds this image, or hangs",
                path.display()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Builds a directory beside its place and moves it there whole.
fn build(cache: &Path, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = cache.join(format!("{name}.part"));
    if part.exists() {
        run(Command::new("rm").arg("-rf").arg(&part))?;
    }
    fs::create_dir(&part)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
    fill(&part).with_context(|| format!("building the image {name}"))?;
    Ok(fs::rename(&part, cache.join(name))?)
}

/// What an image depends on: another value, another image.
fn key(rootfs: Rootfs) -> Result<String> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    let busybox = fs::metadata("/bin/busybox").context("/bin/busybox (package busybox-static)")?;
    (rootfs.suite(), rootfs.packages(), INIT, APPLETS, busybox.len(), busybox.mtime()).hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

const APPLETS: &str = "[ ash cat chmod chown cp cut date dd df env expr false find free grep halt head hostname id ifconfig \
     ip kill ln ls mkdir mknod mount mv nc ping poweroff printf ps pwd readlink reboot rm rmdir route sed sh sleep sort \
     stat sync tail tar test touch tr true umount uname wc wget which xargs";

/// A process 1 that does what its signals ask for, and no more. SIGPWR is what LXC sends for a shutdown; TERM, USR1 and
/// USR2 are what busybox' own reboot, halt and poweroff send.
const INIT: &str = "#!/usr/lib/lab/busybox sh
B=/usr/lib/lab/busybox
trap 'exec $B poweroff -f' PWR USR1 USR2
trap 'exec $B reboot -f' INT TERM
while :; do $B sleep 3600 & wait $!; done
";

fn fill(rootfs: Rootfs, dir: &Path) -> Result<()> {
    match (rootfs, rootfs.suite()) {
        (Rootfs::Own, _) => own(dir)?,
        (_, None) => busybox(dir)?,
        (_, Some(suite)) => debootstrap(dir, suite, rootfs.packages())?,
    }
    for below in ["usr/lib/lab", "usr/sbin"] {
        fs::create_dir_all(dir.join(below))?;
    }
    fs::copy("/bin/busybox", dir.join("usr/lib/lab/busybox"))?;
    if !rootfs.packages().contains("systemd-sysv") {
        let init = dir.join("usr/sbin/init");
        fs::write(&init, INIT)?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        for applet in ["reboot", "poweroff", "halt"] {
            let link = dir.join("usr/sbin").join(applet);
            let _ = fs::remove_file(&link);
            symlink("/usr/lib/lab/busybox", link)?;
        }
    }
    Ok(())
}

/// What belongs to the distribution; a kit's own files lie elsewhere.
fn own(dir: &Path) -> Result<()> {
    let mut copy = Command::new("cp");
    copy.arg("-ax")
        .args(["bin", "sbin", "lib", "lib64", "etc", "usr", "var", "root"].map(|name| format!("/{name}")));
    run(copy.arg(dir))?;
    for below in ["dev", "proc", "sys", "tmp", "run", "mnt", "srv"] {
        fs::create_dir_all(dir.join(below))?;
    }
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    Ok(())
}

fn busybox(dir: &Path) -> Result<()> {
    for below in [
        "usr/bin",
        "usr/sbin",
        "usr/lib/lab",
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "etc",
        "root",
        "srv",
        "var/tmp",
    ] {
        fs::create_dir_all(dir.join(below))?;
    }
    for merged in ["bin", "sbin", "lib"] {
        symlink(format!("usr/{merged}"), dir.join(merged))?;
    }
    for tmp in ["tmp", "var/tmp"] {
        fs::set_permissions(dir.join(tmp), fs::Permissions::from_mode(0o1777))?;
    }
    for applet in APPLETS.split_whitespace() {
        symlink("/usr/lib/lab/busybox", dir.join("usr/bin").join(applet))?;
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(fs::write(dir.join("etc/group"), "root:x:0:\n")?)
}

/// The Debian mirror that this machine itself uses.
pub fn mirror() -> Result<String> {
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let texts =
        sources.iter().filter_map(|path| fs::read_to_string(path).ok()).collect::<Vec<_>>().join("\n");
    let lines = texts.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let debian = |word: &&str| word.contains("://") && word.trim_end_matches('/').ends_with("/debian");
    let found = lines.flat_map(str::split_whitespace).find(debian);
    Ok(found.with_context(|| format!("no Debian mirror in {}", sources.join(" or ")))?.to_owned())
}

/// Ubuntu's archive, and the key of it: F6EC B376 2474 EDA9 D21B  7022 8719 20D1 991B C93C, of 2018. Debian has neither.
pub fn ubuntu() -> (&'static str, PathBuf) {
    let key = Path::new(env!("CARGO_MANIFEST_DIR")).join("keys/ubuntu-archive-2018.gpg");
    ("http://archive.ubuntu.com/ubuntu", key)
}

fn debootstrap(dir: &Path, suite: &str, packages: &str) -> Result<()> {
    // It mounts proc in there. In namespaces of its own that can't stay behind, nor can it go on when the test is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]);
    command.args(["debootstrap", "--variant=minbase", &format!("--include={packages}")]);
    if suite == "noble" {
        // Debian 12's debootstrap knows neither the release, whose script is that of all of Ubuntu's, nor its key.
        let script = "/usr/share/debootstrap/scripts/gutsy";
        let (archive, key) = ubuntu();
        command.arg("--keyring").arg(key).arg(suite).arg(dir).args([archive, script]);
    } else {
        command.arg(suite).arg(dir).arg(mirror()?);
    }
    run(&mut command)?;
    let _ = fs::remove_dir_all(dir.join("var/cache/apt/archives"));
    let _ = fs::remove_dir_all(dir.join("var/lib/apt/lists"));
    for below in ["var/cache/apt/archives/partial", "var/lib/apt/lists/partial"] {
        fs::create_dir_all(dir.join(below))?;
    }
    // The lab's network reaches no Debian mirror: without sources, apt-get update is about the tests' repository alone.
    fs::write(dir.join("etc/apt/sources.list"), "")?;
    Ok(())
}

/// Moves every owner by the shift of unprivileged containers. A change of owner clears the set-id bits: they are put back.
fn shift(path: &Path) -> Result<()> {
    let found = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, Some(found.uid() + SHIFT), Some(found.gid() + SHIFT))?;
    if found.is_symlink() {
        return Ok(());
    }
    if found.mode() & 0o6000 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(found.mode() & 0o7777))?;
    }
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            shift(&entry?.path())?;
        }
    }
    Ok(())
}

/// Runs a program to its end, with its output kept for the case that it fails.
fn run(command: &mut Command) -> Result<()> {
    let mut log = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?).process_group(0);
    let mut child = starting::start(command).with_context(|| format!("running {command:?}"))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            let group = i32::try_from(child.id()).map(nix::unistd::Pid::from_raw)?;
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if status.success() {
        return Ok(());
    }
    let mut text = String::new();
    log.seek(SeekFrom::Start(0))?;
    log.read_to_string(&mut text)?;
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(15)..].join("\n");
    bail!("{command:?} ended with {status} (it had {PATIENCE:?}):\n{last}");
}
