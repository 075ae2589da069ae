//! The namespaces of a lab: who makes them, who keeps them, how a command gets in.
//!
//! `lab-holder` makes them and stays outside to clean up. Its child is process 1 of the lab: it lays the root
//! (`root.rs`), says `ready`, and ends when its standard input does. The test process holds the other end of that
//! pipe, so a lab ends with its test, also when that was killed; the kernel then ends every process inside.

mod cgroup;
mod root;
mod terminal;

pub(crate) use cgroup::start_time;
pub(crate) use root::{NODE, node};

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// A directory that exists on every Debian and that nothing of the lab needs: inside the holder's own mount namespace
/// it carries what the lab is built on.
const STAGE: &str = "/mnt";

/// `lab-holder BIN_DIR CACHE_DIR`: makes a lab, prints `ready PID`, and takes it down at the end of its input.
pub fn holder_main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match args.first().and_then(|a| a.to_str()) {
        Some("--init") => init(&args[1..]),
        _ => hold(&args),
    };
    report("lab-holder", done)
}

fn report(who: &str, done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{who}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold(args: &[OsString]) -> Result<()> {
    if args.len() != 2 {
        bail!("usage: lab-holder BIN_DIR CACHE_DIR");
    }
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace of its own; the lab needs root")?;
    root::make_private()?;
    root::stage(Path::new(STAGE))?;
    let cgroup = cgroup::Cgroup::create(&Path::new(STAGE).join("cgroup"))?;
    let run = || -> Result<ExitStatus> {
        unshare(
            CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWUTS
                | CloneFlags::CLONE_NEWIPC,
        )
        .context("no pid, net, uts and ipc namespaces")?;
        cgroup.enter()?;
        let child = Command::new("/proc/self/exe").arg("--init").args(args).spawn();
        cgroup.leave()?;
        Ok(child.context("process 1 of the lab")?.wait()?)
    };
    let status = run();
    // Whatever happened above, the control groups go.
    cgroup.remove()?;
    let status = status?;
    if !status.success() {
        bail!("process 1 of the lab ended with {status}");
    }
    Ok(())
}

/// Process 1 of the lab.
fn init(args: &[OsString]) -> Result<()> {
    let [bins, cache] = args else { bail!("usage: lab-holder BIN_DIR CACHE_DIR") };
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("to die with the holder")?;
    // A mount namespace of its own: the holder still needs its way to the control groups when this root is gone.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .context("no mount and cgroup namespace")?;
    root::lay(Path::new(STAGE), &PathBuf::from(bins), &PathBuf::from(cache))?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    // Orphans of the lab end here; nobody else would wait for them.
    std::thread::spawn(|| {
        loop {
            if waitpid(Pid::from_raw(-1), None).is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    Ok(())
}

/// `lab-enter [--terminal] PID COMMAND ARGUMENT…`: runs COMMAND in the namespaces of PID, process 1 of a lab, and ends
/// as it ended. With `--terminal` COMMAND leads a session at a terminal of the lab, whose keys are this process' stdin
/// and whose screen is its stdout.
pub fn enter_main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match args.first().and_then(|word| word.to_str()) {
        Some("--leader") => return report("lab-enter", terminal::lead(&args[1..])),
        Some("--terminal") => enter(&args[1..], true),
        _ => enter(&args, false),
    };
    match done {
        Ok(status) => end_as(status),
        Err(error) => report("lab-enter", Err(error)),
    }
}

fn enter(args: &[OsString], on_a_terminal: bool) -> Result<ExitStatus> {
    let [pid, command, rest @ ..] = args else {
        bail!("usage: lab-enter [--terminal] PID COMMAND ARGUMENT…")
    };
    let dir = Path::new("/proc").join(pid).join("ns");
    // mnt is last: from then on /proc is the lab's.
    let kinds = ["cgroup", "ipc", "uts", "net", "pid", "mnt"];
    let opened: Result<Vec<File>> = kinds
        .iter()
        .map(|kind| {
            File::open(dir.join(kind))
                .with_context(|| format!("the lab of {} is gone", pid.to_string_lossy()))
        })
        .collect();
    for (kind, ns) in kinds.iter().zip(opened?) {
        setns(ns, CloneFlags::empty()).with_context(|| format!("entering the lab's {kind} namespace"))?;
    }
    std::fs::write("/sys/fs/cgroup/cgroup.procs", "0").context("entering the lab's control group")?;
    if on_a_terminal {
        return terminal::run(command, rest);
    }
    let mut child = Command::new(command)
        .args(rest)
        .process_group(0)
        .spawn()
        .with_context(|| format!("running {} in the lab", command.to_string_lossy()))?;
    Ok(child.wait()?)
}

/// Ends this process the way `status` says another one ended, so that the caller sees code or signal as they were.
fn end_as(status: ExitStatus) -> ExitCode {
    if let Some(number) = status.signal() {
        if let Ok(signal) = Signal::try_from(number) {
            let _ = raise(signal);
        }
    }
    ExitCode::from(u8::try_from(status.code().unwrap_or(255)).unwrap_or(255))
}
