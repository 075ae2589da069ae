//! LXC underneath: whether a container runs, its start through a supervisor, its stop.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use super::{die, supervise};

/// Does the container run? Its monitor listens on a socket of a known name.
pub(super) fn running(id: u32) -> bool {
    let socket = format!("@/var/lib/lxc/{id}/command");
    let list = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    list.lines().any(|line| line.split_whitespace().last() == Some(&socket))
}

/// Process 1 of the container, if it runs.
pub(super) fn init(id: u32) -> Option<String> {
    let output = Command::new("lxc-info").args(["-n", &id.to_string(), "-pH"]).output().ok()?;
    let pid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!pid.is_empty()).then_some(pid)
}

/// Starts the container under a supervisor, and waits until it runs or has failed to.
pub(super) fn start(id: u32) -> Result<()> {
    // What the supervisor of a container that just ended still does (its post-stop hook) comes first.
    wait_ended(id, Duration::from_secs(10))?;
    let mut child = Command::new("/run/lab/bin/lab-pct")
        .args(["__supervise", &id.to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("the container's supervisor")?;
    let mut word = String::new();
    BufReader::new(child.stdout.take().context("the supervisor's word")?).read_line(&mut word)?;
    match word.trim() {
        "started" => Ok(()),
        said => {
            let _ = child.wait();
            super::say(said);
            Err(die(format!("startup for container '{id}' failed")))
        }
    }
}

/// Ends the container: at once, or by asking its process 1 and waiting up to `patience` seconds.
pub(super) fn stop(id: u32, patience: Option<u64>) -> Result<()> {
    let name = id.to_string();
    if patience.is_some() {
        wait_listening(id);
    }
    let mut command = Command::new("lxc-stop");
    command.args(["-n", &name]);
    match patience {
        None => command.arg("--kill"),
        Some(seconds) => command.args(["--nokill", "--timeout", &seconds.to_string()]),
    };
    let output = command.stdin(Stdio::null()).output().context("lxc-stop")?;
    // The end of the container is what counts: one that ends by itself just now is no fault.
    if !output.status.success() && running(id) {
        let shown = match patience {
            None => format!("lxc-stop -n {id} --kill"),
            Some(seconds) => format!("lxc-stop -n {id} --nokill --timeout {seconds}"),
        };
        let code = output.status.code().unwrap_or(255);
        return Err(die(format!("command '{shown}' failed: exit code {code}")));
    }
    wait_ended(id, Duration::from_secs(60))
}

/// Waits a little for process 1 to have its signal handlers: whom a person asks to end has had time for that, and a
/// signal before it would be lost.
fn wait_listening(id: u32) {
    let Some(pid) = init(id) else { return };
    let deadline = Instant::now() + Duration::from_secs(3);
    let status = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    while !listens(&status()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Does a process 1 take the signal for a shutdown, by its /proc/PID/status? SIGPWR is caught by simple ones; systemd blocks SIGRTMIN+3, to read
/// it as a file.
pub(crate) fn listens(status: &str) -> bool {
    let mask = |name: &str| {
        let hex = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        hex.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0)
    };
    let (power, halt) = (30, 34 + 3);
    mask("SigCgt") & (1 << (power - 1)) != 0 || mask("SigBlk") & (1 << (halt - 1)) != 0
}

/// Waits until the container's supervisor is gone, and with it the post-stop hook.
pub(super) fn wait_ended(id: u32, limit: Duration) -> Result<()> {
    let Ok(mut file) = File::open(supervise::lock_path(id)) else { return Ok(()) };
    let deadline = Instant::now() + limit;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => return Ok(()),
            Err((file, _)) => file,
        };
        if Instant::now() > deadline {
            return Err(die(format!("container {id} has not ended within {limit:?}")));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}
