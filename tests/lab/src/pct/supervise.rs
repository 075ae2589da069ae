//! What systemd's unit pve-container@N is on a real host: it starts LXC in an environment of its own, and starts it
//! again after a reboot from inside.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::{die, say};

/// Locked for as long as a container's supervisor lives.
pub(super) fn lock_path(id: u32) -> String {
    format!("/run/lab/ct/{id}.lock")
}

/// There after a reboot from inside, until the container is started again.
pub(super) fn reboot_path(id: u32) -> String {
    format!("/run/lab/ct/{id}.reboot")
}

fn log_path(id: u32) -> String {
    format!("/run/lab/ct/{id}.log")
}

/// `__supervise N`: prints `started`, or what went wrong, and stays until the container has ended for good.
pub(super) fn supervise(argv: &[String]) -> Result<u8> {
    let id: u32 = argv.first().and_then(|id| id.parse().ok()).context("no container")?;
    nix::unistd::setsid()?;
    // LXC's monitor leaves its parent; it becomes a child of this process then, so that its end is seen.
    nix::sys::prctl::set_child_subreaper(true)?;
    let _held =
        Flock::lock(File::create(lock_path(id))?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let _ = fs::remove_file(reboot_path(id));
    if let Err(error) = start(id) {
        wait_children();
        let _ = fs::remove_file(reboot_path(id));
        say(&format!("{error:#}").replace('\n', " "));
        return Ok(1);
    }
    say("started");
    loop {
        wait_children();
        if !Path::new(&reboot_path(id)).exists() {
            return Ok(0);
        }
        fs::remove_file(reboot_path(id))?;
        if let Err(error) = start(id) {
            let mut log = fs::OpenOptions::new().append(true).create(true).open(log_path(id))?;
            writeln!(log, "after a reboot from inside: {error:#}")?;
        }
    }
}

fn start(id: u32) -> Result<()> {
    let log = log_path(id);
    fs::write(&log, "")?;
    let invocation = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let status = Command::new("lxc-start")
        .args(["-n", &id.to_string(), "-o", &log, "-l", "WARN"])
        .env_clear()
        .env("INVOCATION_ID", invocation.trim().replace('-', ""))
        .env("LANG", "C.UTF-8")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("lxc-start")?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(&log).unwrap_or_default();
    let errors: Vec<&str> = text.lines().filter(|line| line.contains(" ERROR ")).take(5).collect();
    Err(die(format!("lxc-start ended with {status}: {}", errors.join(" | "))))
}

/// Waits until this process has no child left.
fn wait_children() {
    while waitpid(Pid::from_raw(-1), None::<WaitPidFlag>).is_ok() {}
}
