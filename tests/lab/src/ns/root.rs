//! The root of a lab: an overlay of this machine's root whose changes live in memory, with everything that the kernel
//! shows of a host (proc, sysfs, /dev, control groups, network) made anew. So real paths are used, and vanish with it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// The name of the lab's host, and of its Proxmox node.
pub(crate) const NODE: &str = "pve1";

const NONE: Option<&str> = None;

/// Nothing that is mounted from here on reaches the outside, nor the other way round.
pub(crate) fn make_private() -> Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("making mounts private")
}

/// Mounts the memory that everything of the lab lives in.
pub(crate) fn stage(at: &Path) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=90%,nr_inodes=0"))
        .with_context(|| format!("tmpfs on {}", at.display()))?;
    for dir in ["cgroup", "upper", "work", "root", "disks", "pve"] {
        fs::create_dir(at.join(dir))?;
    }
    Ok(())
}

/// Lays the lab's root on what `stage` mounted, and makes it this process' root.
pub(crate) fn lay(stage: &Path, bins: &Path, cache: &Path) -> Result<()> {
    let root = stage.join("root");
    let options = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", stage.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("an overlay of / (the kernel needs overlayfs)")?;
    kernel_views(&root)?;
    devices(&root.join("dev"))?;
    // As systemd and Proxmox mount it: devices of a bind mount of it do not open.
    let run = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    fresh(&root, "run", run, "mode=755")?;
    fresh(&root, "tmp", MsFlags::empty(), "mode=1777")?;
    // Unprivileged containers may mount a proc or sysfs of their own only while a complete one is visible to them;
    // the first ones get files of ours laid over them.
    for kind in ["proc", "sysfs"] {
        let at = root.join("run/lab").join(kind);
        fs::create_dir_all(&at)?;
        mount(Some(kind), &at, Some(kind), MsFlags::empty(), NONE)
            .with_context(|| format!("the second {kind}"))?;
    }
    // What is real is only to be read from inside.
    for (real, at) in [(bins, "run/lab/bin"), (cache, "run/lab/cache")] {
        bind(real, &root.join(at))?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, &root.join(at), NONE, flags, NONE).with_context(|| format!("/{at} read-only"))?;
    }
    bind(&stage.join("disks"), &root.join("run/lab/disks"))?;
    // /etc/pve is a file system of its own on a real host too.
    bind(&stage.join("pve"), &root.join("etc/pve"))?;
    enter(&root)?;
    nix::unistd::sethostname(NODE)?;
    network()
}

fn kernel_views(root: &Path) -> Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for (kind, at) in [("proc", "proc"), ("sysfs", "sys"), ("cgroup2", "sys/fs/cgroup")] {
        mount(Some(kind), &root.join(at), Some(kind), plain, NONE)
            .with_context(|| format!("{kind} at /{at}"))?;
    }
    Ok(())
}

fn fresh(root: &Path, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some("tmpfs"), &root.join(at), Some("tmpfs"), flags, Some(options))
        .with_context(|| format!("tmpfs on /{at}"))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("{} at {}", from.display(), to.display()))
}

fn devices(dev: &Path) -> Result<()> {
    mount(Some("tmpfs"), dev, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .context("tmpfs on /dev")?;
    let nodes = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("fuse", 10, 229),
    ];
    for (name, major, minor) in nodes {
        node(&dev.join(name), major, minor)?;
    }
    for dir in ["pts", "shm", "net", "mqueue"] {
        fs::create_dir(dev.join(dir))?;
    }
    let options = "newinstance,ptmxmode=0666,mode=620,gid=5";
    mount(Some("devpts"), &dev.join("pts"), Some("devpts"), MsFlags::empty(), Some(options))
        .context("devpts")?;
    mount(Some("tmpfs"), &dev.join("shm"), Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))?;
    mount(Some("mqueue"), &dev.join("mqueue"), Some("mqueue"), MsFlags::empty(), NONE).context("mqueue")?;
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(link))?;
    }
    Ok(())
}

/// A character device that everybody may open.
pub(crate) fn node(at: &Path, major: u64, minor: u64) -> Result<()> {
    mknod(at, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
        .with_context(|| format!("mknod {} c {major} {minor}", at.display()))?;
    // mknod's mode passed through the umask.
    Ok(fs::set_permissions(at, fs::Permissions::from_mode(0o666))?)
}

fn enter(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    // With both directories the same, the old root comes to lie on the new one, and is taken off it.
    nix::unistd::pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leaving the old root")?;
    Ok(std::env::set_current_dir("/")?)
}

/// A network of the lab's own: loopback, and Proxmox' bridge with nothing behind it.
fn network() -> Result<()> {
    let steps = "link set lo up
link add vmbr0 type bridge
addr add 192.0.2.1/24 dev vmbr0
link set vmbr0 up
";
    let mut child = Command::new("/usr/sbin/ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip (iproute2)")?;
    child.stdin.take().context("ip's input")?.write_all(steps.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
