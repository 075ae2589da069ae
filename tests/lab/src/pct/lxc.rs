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

/// How a container is stopped.
#[derive(Clone, Copy)]
pub(super) enum Stop {
    /// At once.
    Kill,
    /// Its process 1 is asked, and has this long; what then: it is killed, or goes on.
    Ask { seconds: u64, kill: bool },
}

/// What became of a start that systemd made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Started {
    Runs,
    /// Proxmox' hook inside LXC's start refused: nobody but the journal says why.
    Refused,
}

/// There once Proxmox' hook inside LXC's start has refused, with its reason: the unit's journal.
pub(super) fn refused_path(id: u32) -> String {
    format!("/run/lab/ct/{id}.refused")
}

/// There for a start that does not look at `lock:`.
pub(super) fn skiplock_path(id: u32) -> String {
    format!("/run/lab/ct/{id}.skiplock")
}

/// Starts the container under a supervisor, and waits until it runs or has failed to.
pub(super) fn start(id: u32) -> Result<Started> {
    // What the supervisor of a container that just ended still does (its post-stop hook) comes first.
    wait_ended(id, Duration::from_secs(10))?;
    let _ = std::fs::remove_file(refused_path(id));
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
        "started" => Ok(Started::Runs),
        said => {
            let _ = child.wait();
            if std::path::Path::new(&refused_path(id)).exists() {
                return Ok(Started::Refused);
            }
            super::say(said);
            Err(die(format!("startup for container '{id}' failed")))
        }
    }
}

/// What `lxc-info` says of a container that ends while it is asked, in the words of LXC 6.
pub(super) fn no_process(id: u32) {
    let said = "Connection reset by peer - Failed to receive response";
    super::say(&format!("lxc-info: {id}: ../src/lxc/af_unix.c: lxc_abstract_unix_recv_fds_iov: 218 {said}"));
    let said = "Failed to receive file descriptors for command \"get_init_pid\"";
    super::say(&format!("lxc-info: {id}: ../src/lxc/commands.c: lxc_cmd_rsp_recv_fds: 128 {said}"));
}

/// Ends the container.
pub(super) fn stop(id: u32, how: Stop) -> Result<()> {
    let mut words = vec!["-n".to_owned(), id.to_string()];
    match how {
        Stop::Kill => words.push("--kill".into()),
        Stop::Ask { seconds, kill } => {
            wait_listening(id);
            if !kill {
                words.push("--nokill".into());
            }
            words.extend(["--timeout".to_owned(), seconds.to_string()]);
        }
    }
    let output = Command::new("lxc-stop").args(&words).stdin(Stdio::null()).output().context("lxc-stop")?;
    // The end of the container is what counts: one that ends by itself just now is no fault.
    if output.status.success() || !running(id) {
        return wait_ended(id, Duration::from_secs(60));
    }
    let code = output.status.code().unwrap_or(255);
    super::say(&format!("command 'lxc-stop {}' failed: exit code {code}", words.join(" ")));
    // As long again, and five seconds, for one that is about to end; all of it under the lock.
    let more = match how {
        Stop::Kill => Duration::from_secs(60),
        Stop::Ask { seconds, .. } => Duration::from_secs(seconds + 5),
    };
    wait_ended(id, more).map_err(|_| die("container did not stop"))
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
