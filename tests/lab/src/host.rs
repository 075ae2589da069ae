//! The files and programs of the lab's host: Proxmox' directories, LXC's configuration, the programs under test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::container::Container;
use crate::files::Files;
use crate::lab::Lab;
use crate::ns::NODE;
use crate::rootfs::{self, Spec};

/// Says something to whoever runs the tests, past the test harness' capture.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The host's own address on its bridge, which is also the name `mirror.lab`.
pub const ADDRESS: &str = "192.0.2.1";

/// The name under which the host (and every container) finds the lab's web server.
pub const MIRROR: &str = "mirror.lab";

/// Proxmox' additions to LXC's configuration, under the names that Proxmox gives them; every generated config includes
/// this directory, so they show in none.
const LXC_PVE: &str = "lxc.hook.pre-start = /usr/share/lxc/hooks/lxc-pve-prestart-hook
lxc.hook.autodev = /usr/share/lxc/hooks/lxc-pve-autodev-hook
lxc.hook.post-stop = /usr/share/lxc/hooks/lxc-pve-poststop-hook
";

/// What is the lab's own: the host's driver as a container sees it (through its own proc and sysfs on a real host), and
/// the address that Proxmox would have written into the container's network configuration.
const LXC_LAB: &str = "lxc.hook.start-host = /usr/share/lxc/hooks/lab-start-host
lxc.mount.entry = /run/lab/nvidia/proc-driver proc/driver none bind,optional 0 0
lxc.mount.entry = /run/lab/nvidia/devices proc/devices none bind,optional 0 0
lxc.mount.entry = /run/lab/nvidia/module sys/module none bind,optional 0 0
";

/// Recorded with Proxmox' LXC 6: an unprivileged container may open every node, and a rule in its conf changes nothing.
/// Debian's LXC 5 makes such a rule the only thing that is allowed, unless it is told so.
const LXC_UNPRIVILEGED: &str = "lxc.cgroup2.devices.allow = a\n";

const STORAGE: &str = "dir: local
\tpath /var/lib/vz
\tcontent snippets,vztmpl,rootdir,iso,backup
";

/// The hookscript, as its package ships it.
const SNIPPET: &str = include_str!("../../../hooks/phoenix-nvidia");

/// Settings of the node that suit a lab with its web server: the host trusts its certificate, a container's apt trusts
/// the repository's key.
const DEFAULTS: &str = "NVIDIA_DRIVER_VERSION=host
NVIDIA_REPO_URL=http://mirror.lab/compute/cuda/repos/{distro}/{arch}
NVIDIA_REPO_KEY_URL=https://mirror.lab/compute/cuda/repos/{distro}/{arch}/
NVIDIA_RUNFILE_URL=https://mirror.lab/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run
";

/// Furnishes the bare root that the namespaces came with.
pub(crate) fn furnish(lab: &Lab) -> Result<()> {
    let root = lab.root();
    for dir in [
        "etc/pve/nodes/pve1/lxc",
        "etc/pve/nodes/pve1/qemu-server",
        "etc/pve/nodes/pve2/lxc",
        "etc/pve/priv",
        "etc/default",
        "run/lock/lxc",
        "run/lab/ct",
        "run/lab/nvidia",
        "var/lib/lxc",
        "var/lib/vz/snippets",
        "var/lib/vz/template/cache",
        "var/lib/vz/images",
        "var/log/pve/tasks",
        "usr/share/lxc/config/common.conf.d",
        "usr/share/lxc/config/userns.conf.d",
        "usr/share/lxc/hooks",
    ] {
        fs::create_dir_all(root.join(dir)).with_context(|| format!("creating /{dir} in the lab"))?;
    }
    // As pmxcfs shows them: the local node's directories under short names.
    link(&root, &format!("nodes/{NODE}"), "etc/pve/local")?;
    link(&root, &format!("nodes/{NODE}/lxc"), "etc/pve/lxc")?;
    let at = |path: &str| root.join(path);
    fs::write(at("etc/pve/storage.cfg"), STORAGE)?;
    fs::write(at("etc/hosts"), hosts(NODE))?;
    fs::write(at("etc/hostname"), format!("{NODE}\n"))?;
    fs::write(at("etc/resolv.conf"), "")?;
    fs::write(at("etc/subuid"), "root:100000:65536\n")?;
    fs::write(at("etc/subgid"), "root:100000:65536\n")?;
    lxc(&root)?;
    for (name, dir) in [("pct", "usr/sbin"), ("pvesm", "usr/sbin"), ("lxcnetaddbr", "usr/share/lxc")] {
        link(&root, "/run/lab/bin/lab-pct", &format!("{dir}/{name}"))?;
    }
    lab.nvidia().furnish(&lab.builder.gpus);
    Ok(())
}

fn lxc(root: &Path) -> Result<()> {
    let config = root.join("usr/share/lxc/config");
    // What this machine's packages add (lxcfs: half a second of sleep at every stop) is not of this host.
    for dir in ["common.conf.d", "userns.conf.d"] {
        for entry in fs::read_dir(config.join(dir))? {
            fs::remove_file(entry?.path())?;
        }
    }
    fs::write(config.join("common.conf.d/01-pve.conf"), LXC_PVE)?;
    fs::write(config.join("common.conf.d/10-lab.conf"), LXC_LAB)?;
    fs::write(config.join("userns.conf.d/10-lab.conf"), LXC_UNPRIVILEGED)?;
    for kind in ["common", "userns"] {
        let include = format!("lxc.include = /usr/share/lxc/config/{kind}.conf\n");
        fs::write(config.join(format!("debian.{kind}.conf")), include)?;
    }
    for hook in ["lxc-pve-prestart-hook", "lxc-pve-autodev-hook", "lxc-pve-poststop-hook", "lab-start-host"] {
        link(root, "/run/lab/bin/lab-pct", &format!("usr/share/lxc/hooks/{hook}"))?;
    }
    Ok(())
}

/// What /etc/hosts says, on the host and in containers.
pub(crate) fn hosts(name: &str) -> String {
    format!("127.0.0.1 localhost\n127.0.1.1 {name}\n{ADDRESS} {MIRROR}\n")
}

fn link(root: &Path, target: &str, at: &str) -> Result<()> {
    let path = root.join(at);
    let _ = fs::remove_file(&path);
    symlink(target, &path).with_context(|| format!("linking /{at} to {target} in the lab"))
}

impl Lab {
    pub(crate) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init_pid()))
    }

    /// The files of the lab's host: `lab.files().metadata("/etc/pve/lxc/101.conf")`.
    pub fn files(&self) -> Files {
        Files::new(self.root())
    }

    /// The content of a file of the lab's host.
    #[track_caller]
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        self.files().read(path)
    }

    /// Writes a file of the lab's host in place, and the directories above it.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.files().write(path, content);
    }

    /// Adds to the end of a file of the lab's host.
    #[track_caller]
    pub fn append(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.files().append(path, content);
    }

    /// Is there anything at this path of the lab's host?
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.files().exists(path)
    }

    /// Inode number of a file of the lab's host.
    #[track_caller]
    pub fn inode(&self, path: impl AsRef<Path>) -> u64 {
        self.files().inode(path)
    }

    /// A container's conf on the local node.
    #[track_caller]
    pub fn conf(&self, id: u32) -> String {
        self.read(format!("/etc/pve/lxc/{id}.conf"))
    }

    /// The LXC config that was generated at the container's last start.
    #[track_caller]
    pub fn generated(&self, id: u32) -> String {
        self.read(format!("/var/lib/lxc/{id}/config"))
    }

    /// Puts a script (or any program) at a path of the lab's host, mode 755.
    #[track_caller]
    pub fn replace_program(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.files().program(path, content);
    }

    /// Installs the program under test as its package would: `binary` at /usr/sbin/phoenix-nvidia, the snippet, and
    /// settings of the node that point at the lab's web server. `PHOENIX_NVIDIA_BINARY` in the environment names
    /// another build of it: `make test` tests the release build, which is what ships.
    #[track_caller]
    pub fn install(&self, binary: impl AsRef<Path>) {
        let other = std::env::var_os("PHOENIX_NVIDIA_BINARY").map(PathBuf::from);
        let binary = other.as_deref().unwrap_or(binary.as_ref());
        let content = fs::read(binary).unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        self.replace_program("/usr/sbin/phoenix-nvidia", content);
        self.replace_program("/var/lib/vz/snippets/phoenix-nvidia", SNIPPET);
        self.write("/etc/default/phoenix-nvidia", DEFAULTS);
    }

    /// Writes a hookscript as the snippet NAME; `pct set N --hookscript local:snippets/NAME` attaches it.
    #[track_caller]
    pub fn snippet(&self, name: &str, script: &str) {
        self.replace_program(format!("/var/lib/vz/snippets/{name}"), script);
    }

    /// Creates a stopped container through the lab's pct.
    #[track_caller]
    pub fn create(&self, id: u32, spec: impl Into<Spec>) -> Container<'_> {
        let spec = spec.into();
        let base = rootfs::ensure(spec.rootfs, !spec.privileged)
            .unwrap_or_else(|e| panic!("the image for container {id}: {e:#}"));
        let template = spec.rootfs.name();
        self.write(format!("/var/lib/vz/template/cache/{template}.tar"), format!("{base}\n"));
        let mut command = self.command("pct").arg("create").arg(id.to_string());
        command = command.arg(format!("local:vztmpl/{template}.tar")).args(spec.options(id));
        command.run().ok();
        self.container(id)
    }

    /// A container that is there already.
    pub fn container(&self, id: u32) -> Container<'_> {
        Container::new(self, id)
    }

    /// From now on every call of pct takes the time that Perl needs to start (half a second on a real host).
    pub fn perl(&self, delay: Duration) {
        self.write("/run/lab/perl", delay.as_millis().to_string());
    }

    /// Stops the running task of a container as Proxmox does: TERM to its process group, KILL five seconds later.
    #[track_caller]
    pub fn stop_task(&self, id: u32) {
        let line = "group=$(pgrep -o -f \"__worker [0-9]+ [a-z]+ $0( |\\$)\") && kill -TERM -- -$group && \
            for i in $(seq 500); do kill -0 -- -$group 2>/dev/null || exit 0; sleep 0.01; done; kill -KILL -- -$group";
        self.run(["bash", "-c", line, &id.to_string()]).ok();
    }

    /// Every call of the lab's pct so far, one line each: `start 101`.
    pub fn calls(&self) -> Vec<String> {
        let path = "/run/lab/calls";
        if self.exists(path) { self.read(path).lines().map(str::to_owned).collect() } else { Vec::new() }
    }
}
