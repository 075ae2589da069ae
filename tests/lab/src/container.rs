//! One container of a lab, looked at from outside and from inside.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::command::{Command, Output};
use crate::files::Files;
use crate::lab::Lab;

/// A container of a lab.
#[derive(Clone, Copy)]
pub struct Container<'lab> {
    lab: &'lab Lab,
    id: u32,
}

impl<'lab> Container<'lab> {
    pub(crate) fn new(lab: &'lab Lab, id: u32) -> Container<'lab> {
        Container { lab, id }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A command inside, with a login's environment (the harness' own way in, not counted as a call of pct).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let id = self.id.to_string();
        self.lab.command("lxc-attach").args(["-n", &id, "--"]).arg(program)
    }

    /// Runs a command inside, 60 s at most.
    pub fn exec<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Output {
        let mut words = argv.into_iter();
        let program = words.next().unwrap_or_else(|| panic!("exec() of nothing"));
        self.command(program).args(words).run()
    }

    /// Runs a line of shell inside.
    pub fn sh(&self, line: &str) -> Output {
        self.exec(["sh", "-c", line])
    }

    /// Opens a device node from inside for reading and writing. `ENXIO` means allowed, with no driver behind it.
    #[track_caller]
    pub fn open_node(&self, path: &str) -> Result<(), Errno> {
        // The shell's open for both would create a file that isn't there.
        let script = "[ -e \"$0\" ] || { echo no such file >&2; exit 1; }; exec 3<>\"$0\"";
        let output = self.exec(["sh", "-c", script, path]);
        if output.exit() == Some(0) {
            return Ok(());
        }
        let said = output.stderr.to_lowercase();
        let meanings = [
            ("no such device or address", Errno::ENXIO),
            ("no such file", Errno::ENOENT),
            ("nonexistent", Errno::ENOENT),
            ("operation not permitted", Errno::EPERM),
            ("permission denied", Errno::EACCES),
            ("no such device", Errno::ENODEV),
        ];
        match meanings.iter().find(|(text, _)| said.contains(text)) {
            Some((_, errno)) => Err(*errno),
            None => panic!("what open of {path} in {} said is not understood:\n{output}", self.id),
        }
    }

    /// Does it run, as `pct status` says?
    pub fn running(&self) -> bool {
        self.lab.run(["pct", "status", &self.id.to_string()]).stdout.trim() == "status: running"
    }

    /// Waits until it runs (or no longer does). Panics after `limit`.
    #[track_caller]
    pub fn wait_running(&self, wanted: bool, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.running() != wanted {
            assert!(
                Instant::now() < deadline,
                "container {}: running is not {wanted} within {limit:?}",
                self.id
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until process 1 takes signals, so that a `reboot` or `poweroff` inside is not lost. Panics after 30 s.
    #[track_caller]
    pub fn wait_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let ready = || {
            let pid = self.init_pid()?;
            let status = self.lab.read(format!("/proc/{pid}/status"));
            Some(crate::pct::listens(&status))
        };
        while ready() != Some(true) {
            assert!(
                Instant::now() < deadline,
                "container {}: its process 1 takes no signals after 30 s",
                self.id
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has started again after a reboot from inside: another process 1 than `before`. Panics after 30 s.
    #[track_caller]
    pub fn wait_rebooted(&self, before: Option<i32>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let now = self.init_pid();
            if now.is_some() && now != before {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "container {} has not come back from its reboot in 30 s",
                self.id
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Process 1 of the container, as numbered in the lab.
    pub fn init_pid(&self) -> Option<i32> {
        self.lab.run(["lxc-info", "-n", &self.id.to_string(), "-pH"]).stdout.trim().parse().ok()
    }

    /// The files of its root, whether it runs or not. Its /dev, /proc, /run and /tmp may be mounts that only it sees.
    pub fn files(&self) -> Files {
        Files::new(self.lab.root().join(format!("var/lib/vz/images/{0}/subvol-{0}-disk-0.subvol", self.id)))
    }

    /// The content of a file of its root.
    #[track_caller]
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        self.files().read(path)
    }

    /// Writes a file of its root.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        self.files().write(path, content);
    }

    /// Is there anything at this path of its root?
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.files().exists(path)
    }
}
