//! One lab, from its start to its end.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::command::{Command, Output};
use crate::gpus::{Gpus, Nvidia};
use crate::{host, rootfs, starting};

/// What a lab is to be like; `start` makes it.
#[derive(Clone, Debug, Default)]
#[must_use = "nothing runs before start()"]
pub struct Builder {
    pub(crate) gpus: Gpus,
}

impl Builder {
    /// Starts the lab. `None` where no lab can be: the reason is printed, so that a test can return; with `CI=true` or
    /// `PHOENIX_REQUIRE_LAB=1` it is a panic instead.
    pub fn start(self) -> Option<Lab> {
        let bins = programs().unwrap_or_else(|error| panic!("{error:#}"));
        let reason = match possible().and_then(|()| Lab::start(self, bins)) {
            Ok(lab) => {
                note("PHOENIX_LAB_COUNT", "lab");
                return Some(lab);
            }
            Err(reason) => reason,
        };
        assert!(!required(), "no lab on this machine: {reason:#}");
        skipped(&format!("no lab on this machine: {reason:#}"));
        None
    }
}

/// Whether a test that cannot run here is a failure: `CI=true` or `PHOENIX_REQUIRE_LAB=1`.
pub fn required() -> bool {
    set("CI", "true") || set("PHOENIX_REQUIRE_LAB", "1")
}

/// Whether everything is shown, however long it takes: `make test-all` sets `PHOENIX_TEST_ALL=1`.
pub fn thorough() -> bool {
    set("PHOENIX_TEST_ALL", "1")
}

/// Says that the test that calls it did not look, and why; `make test` and `make test-all` list it at their end.
pub fn skipped(reason: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    host::tell(&format!("{name}: skipped, {reason}"));
    note("PHOENIX_LAB_SKIPPED", &format!("{name}: {}", reason.replace('\n', " ")));
}

fn set(key: &str, value: &str) -> bool {
    std::env::var(key).is_ok_and(|found| found == value)
}

/// Adds a line to the file that a variable names, for `make test` to count. One that is lost shows; no test fails for it.
fn note(variable: &str, line: &str) {
    let Some(path) = std::env::var_os(variable) else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes()));
}

/// What a lab needs before anything is tried.
fn possible() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("it needs root (namespaces, mounts, device nodes)");
    }
    for program in ["/usr/bin/lxc-start", "/usr/sbin/ip", "/bin/busybox"] {
        if !Path::new(program).exists() {
            bail!("{program} is missing: install the packages of tests/lab/packages.txt");
        }
    }
    Ok(())
}

/// A Proxmox-shaped host. Dropped, it ends with every process, mount and control group of it.
pub struct Lab {
    holder: Child,
    /// Its end is the lab's.
    alive: Option<ChildStdin>,
    init: i32,
    bins: PathBuf,
    pub(crate) builder: Builder,
}

impl Lab {
    /// A lab to be described: `Lab::builder().gpus(2).driver("580.95.05").start()`.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start(builder: Builder, bins: PathBuf) -> Result<Lab> {
        let mut command = std::process::Command::new(bins.join("lab-holder"));
        command
            .arg(&bins)
            .arg(rootfs::cache()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // An interrupt at the terminal ends the tests; the holder sees that and cleans up.
            .process_group(0);
        let mut holder = starting::start(&mut command).context("lab-holder")?;
        let alive = holder.stdin.take();
        let stdout = holder.stdout.take().context("lab-holder's output")?;
        let mut word = String::new();
        if readable(&stdout, PATIENCE)? {
            BufReader::new(stdout).read_line(&mut word)?;
        } else {
            let _ = holder.kill();
        }
        if word.trim() != "ready" {
            drop(alive);
            let mut said = String::new();
            if let Some(mut stderr) = holder.stderr.take() {
                stderr.read_to_string(&mut said)?;
            }
            bail!("{} {}", holder.wait()?, said.trim());
        }
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let init = std::fs::read_to_string(&children)
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("process 1 of the lab is not in {children}"))?;
        let lab = Lab { holder, alive, init, bins, builder };
        host::furnish(&lab)?;
        Ok(lab)
    }

    /// A command to be run inside, with root's login environment: `lab.command("pct").args(["start", "101"]).run()`.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        Command::new(self.init, self.bins.join("lab-enter"), program)
    }

    /// Runs a command inside to its end, 60 s at most: `lab.run(["pct", "start", "101"]).ok()`.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Output {
        let mut words = argv.into_iter();
        let program = words.next().unwrap_or_else(|| panic!("lab.run() of nothing"));
        self.command(program).args(words).run()
    }

    /// Runs a line of shell inside.
    pub fn sh(&self, line: &str) -> Output {
        self.run(["sh", "-c", line])
    }

    /// Process 1 of the lab, as seen from the test: `/proc/PID/root` is the lab's root.
    pub fn init_pid(&self) -> i32 {
        self.init
    }

    /// What the NVIDIA driver of the lab's host shows, to be changed while a test runs.
    pub fn nvidia(&self) -> Nvidia<'_> {
        Nvidia::new(self)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.alive.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(self.holder.try_wait(), Ok(Some(_)) | Err(_)) {
            if Instant::now() > deadline {
                let _ = self.holder.kill();
                let _ = self.holder.wait();
                host::tell(
                    "a lab did not end within 10 s and was killed; the next one removes its control group",
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut said = String::new();
        if let Some(mut stderr) = self.holder.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        if !said.trim().is_empty() {
            host::tell(said.trim());
        }
    }
}

/// How long a lab may take to start; it needs a tenth of a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until there is something to be read, or the stream has ended; false when the time is over.
fn readable(stream: &impl AsFd, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(nix::errno::Errno::EINTR) => {}
            done => return Ok(done? > 0),
        }
    }
}

/// Where the lab's programs are: beside the test, in `target/debug`.
fn programs() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    // target/debug/deps/TEST, or target/debug/PROGRAM; a bench is in target/release/deps.
    let above = exe.ancestors().skip(1).take(2).map(Path::to_owned);
    let debug = exe.ancestors().nth(3).map(|target| target.join("debug"));
    let found = above.chain(debug).find(|dir| dir.join("lab-holder").exists());
    let dir = found.with_context(|| {
        format!("the lab's programs (lab-holder, lab-pct, …) are not beside {}: run `cargo build --workspace` first", exe.display())
    })?;
    for name in ["lab-enter", "lab-pct"] {
        if !dir.join(name).exists() {
            bail!("{name} is not in {}: run `cargo build --workspace` first", dir.display());
        }
    }
    Ok(dir.to_owned())
}
