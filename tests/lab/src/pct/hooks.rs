//! The hooks that Proxmox gives LXC, each called as `HOOK N lxc PHASE`, and the lab's own.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};

use super::conf::{Conf, Section};
use super::generate::{self, part};
use super::{cluster, device, die, disk, hook, lxc, supervise};

const NONE: Option<&str> = None;

fn container(argv: &[String]) -> Result<(u32, Section)> {
    let id: u32 = argv.first().and_then(|id| id.parse().ok()).context("called without a container")?;
    Ok((id, Conf::load(id)?.current))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("{} at {}", from.display(), to.display()))
}

/// In the monitor's mount namespace, before anything else: the root, mount points and device nodes. It reads the conf
/// again, so what a hookscript wrote there is seen, unlike in the generated config. What it prints is lost to whoever
/// started the container.
pub(super) fn prestart(argv: &[String]) -> Result<u8> {
    let (id, conf) = container(argv)?;
    let done = may_start(id, &conf).and_then(|()| lay(id, &conf));
    if let Err(error) = &done {
        fs::write(lxc::refused_path(id), format!("{error:#}\n"))?;
    }
    done.map(|()| 0)
}

/// A start that did not come through `pct start` (a reboot) meets quorum and `lock:` here, and only here.
fn may_start(id: u32, conf: &Section) -> Result<()> {
    let skip = fs::remove_file(lxc::skiplock_path(id)).is_ok();
    cluster::check_quorum()?;
    match conf.get("lock").filter(|word| !skip && *word != "mounted") {
        Some(word) => Err(die(format!("CT is locked ({word})"))),
        None => Ok(()),
    }
}

fn lay(id: u32, conf: &Section) -> Result<()> {
    let root = PathBuf::from(format!("/var/lib/lxc/{id}/rootfs"));
    let disk = disk::root(conf).context("no rootfs in the conf")?;
    bind(Path::new(&disk), &root)?;
    for (_, point) in conf.numbered("mp") {
        let source = point.split(',').next().unwrap_or_default();
        let source = source.strip_prefix("volume=").unwrap_or(source);
        let target = part(point, "mp").context("a mount point without mp=")?;
        let target = root.join(target.trim_start_matches('/'));
        if !Path::new(source).is_dir() {
            return Err(die(format!("directory '{source}' does not exist")));
        }
        fs::create_dir_all(&target)?;
        bind(Path::new(source), &target)?;
    }
    passthrough(id, conf)
}

fn devices(id: u32) -> PathBuf {
    PathBuf::from(format!("/var/lib/lxc/{id}/passthrough"))
}

fn list_path(id: u32) -> String {
    format!("/var/lib/lxc/{id}/devices")
}

/// The nodes of `devN` settings, made where the container's own root could not make them.
fn passthrough(id: u32, conf: &Section) -> Result<()> {
    let wanted = conf.numbered("dev");
    // The next hook runs as the container's root, who may not read the conf.
    let wanted = wanted.into_iter().map(|(_, setting)| device::read(setting)).collect::<Result<Vec<_>>>()?;
    let list: String = wanted.iter().map(|device| format!("{}\n", device.path)).collect();
    fs::write(list_path(id), list)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let dir = devices(id);
    fs::create_dir_all(&dir)?;
    mount(Some("tmpfs"), &dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    let shift = if conf.flag("unprivileged") { 100_000 } else { 0 };
    for device in wanted {
        let (major, minor) = device::number(device.path)?;
        let node = dir.join(device.path.trim_start_matches('/'));
        fs::create_dir_all(node.parent().unwrap_or(&dir))?;
        crate::ns::node(&node, major, minor)?;
        std::os::unix::fs::chown(&node, Some(device.uid + shift), Some(device.gid + shift))?;
        fs::set_permissions(&node, fs::Permissions::from_mode(device.mode))?;
    }
    Ok(())
}

/// In the container's mount namespace, once its /dev is there: the passed nodes are bound into it.
pub(super) fn autodev(argv: &[String]) -> Result<u8> {
    let id: u32 = argv.first().and_then(|id| id.parse().ok()).context("called without a container")?;
    let root = PathBuf::from(std::env::var_os("LXC_ROOTFS_MOUNT").context("LXC_ROOTFS_MOUNT is not set")?);
    for path in fs::read_to_string(list_path(id))?.lines() {
        let path = path.trim_start_matches('/');
        let target = root.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        // It must not be there: a mount entry for the same device makes the start fail here.
        File::create_new(&target).with_context(|| format!("could not create {}", target.display()))?;
        bind(&devices(id).join(path), &target)?;
    }
    Ok(0)
}

/// After the container has ended, as a child of its monitor. On a reboot from inside the config is generated anew and
/// the monitor told to end, so that the supervisor starts it again with that; the hookscript isn't run.
pub(super) fn poststop(argv: &[String]) -> Result<u8> {
    let (id, conf) = container(argv)?;
    if std::env::var("LXC_TARGET").as_deref() == Ok("reboot") {
        let mut whole = Conf::load(id)?;
        if whole.apply_pending() {
            whole.store(id)?;
        }
        generate::write(id, &whole.current)?;
        fs::write(supervise::reboot_path(id), "")?;
        return Ok(1);
    }
    if let Some(volume) = conf.get("hookscript") {
        if let Ok(path) = hook::check(volume) {
            let _ = Command::new(path)
                .args([&id.to_string(), "post-stop"])
                .env("LC_ALL", "C")
                .env("LVM_SUPPRESS_FD_WARNINGS", "1")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
    Ok(0)
}

/// When an interface's outer end is there: it joins its bridge.
pub(super) fn bridge(argv: &[String]) -> Result<u8> {
    let [id, .., device] = argv else { bail!("called without an interface") };
    let (_, conf) = container(std::slice::from_ref(id))?;
    let number: u32 =
        device.rsplit('i').next().and_then(|text| text.parse().ok()).context("not our interface")?;
    let nets = conf.numbered("net");
    let (_, net) =
        nets.iter().find(|(known, _)| *known == number).context("an interface that the conf lacks")?;
    ip(&format!("link set {device} up master {}", part(net, "bridge").unwrap_or("vmbr0")))?;
    Ok(0)
}

/// Just before process 1 of the container runs: addresses that Proxmox would have written into its configuration.
pub(super) fn start_host(argv: &[String]) -> Result<u8> {
    let (id, conf) = container(argv)?;
    let pid = std::env::var("LXC_PID").context("LXC_PID is not set")?;
    addresses(id, &conf, &pid, false)?;
    Ok(0)
}

/// Sets up the interfaces of the container whose process 1 is `pid`: those that the host manages, or the others.
pub(super) fn addresses(id: u32, conf: &Section, pid: &str, managed: bool) -> Result<()> {
    let all = conf.numbered("net").into_iter().map(|(_, net)| net);
    let nets = all.filter(|net| (part(net, "host-managed") == Some("1")) == managed);
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    // A container without interfaces may share the host's network: nothing to be set up there.
    if namespace.metadata()?.ino() == fs::metadata("/proc/self/ns/net")?.ino() {
        return Ok(());
    }
    setns(&namespace, CloneFlags::CLONE_NEWNET)?;
    let mut lines = String::from("link set lo up\n");
    for net in nets {
        let name = part(net, "name").unwrap_or("eth0");
        // What a DHCP server would have given.
        let leased = format!("192.0.2.{}/24", 2 + id % 250);
        match part(net, "ip") {
            Some(address) if address.contains('/') => {
                lines.push_str(&format!("addr add {address} dev {name}\n"))
            }
            Some("dhcp") if managed => lines.push_str(&format!("addr add {leased} dev {name}\n")),
            _ => {}
        }
        lines.push_str(&format!("link set {name} up\n"));
        if let Some(gateway) = part(net, "gw") {
            lines.push_str(&format!("route add default via {gateway}\n"));
        }
    }
    ip(&lines)
}

fn ip(lines: &str) -> Result<()> {
    let mut child = Command::new("/usr/sbin/ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip (iproute2)")?;
    child.stdin.take().context("ip's input")?.write_all(format!("{}\n", lines.trim_end()).as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip: {} (for: {})",
            String::from_utf8_lossy(&output.stderr).trim(),
            lines.trim().replace('\n', "; ")
        );
    }
    Ok(())
}
