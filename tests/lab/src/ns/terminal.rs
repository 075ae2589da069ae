//! A command at a terminal, as a person's shell would have it: a session of its own, whose controlling terminal is one
//! of the lab's.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::unistd::setsid;

/// Between two looks at the command, in milliseconds.
const LOOK: u8 = 10;

/// Runs a command at a new terminal: what comes on stdin is typed there, what it shows goes to stdout.
pub(super) fn run(command: &OsString, rest: &[OsString]) -> Result<ExitStatus> {
    let mut master =
        posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).context("a terminal")?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let flags = OFlag::O_NOCTTY.bits();
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(&name)
        .with_context(|| format!("opening {name}"))?;
    // This program again, as the lab sees it: only a process of its own can lead a session.
    let mut child = Command::new("/run/lab/bin/lab-enter")
        .arg("--leader")
        .arg(command)
        .args(rest)
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave)
        .spawn()
        .with_context(|| format!("running {} at a terminal", command.to_string_lossy()))?;
    let (mut keys, mut screen) =
        (Some(File::from(std::io::stdin().as_fd().try_clone_to_owned()?)), std::io::stdout());
    loop {
        let ended = child.try_wait()?;
        let quiet = !turn(&mut master, &mut keys, &mut screen)?;
        if let (Some(status), true) = (ended, quiet) {
            return Ok(status);
        }
    }
}

/// Moves what is there now; false if the screen had nothing to show.
fn turn(master: &mut PtyMaster, keys: &mut Option<File>, screen: &mut impl Write) -> Result<bool> {
    let mut fds = vec![PollFd::new(master.as_fd(), PollFlags::POLLIN)];
    fds.extend(keys.as_ref().map(|keys| PollFd::new(keys.as_fd(), PollFlags::POLLIN)));
    poll(&mut fds, PollTimeout::from(LOOK))?;
    let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
    drop(fds);
    let mut buffer = [0; 4096];
    if ready.get(1) == Some(&true) {
        let typed = keys.as_mut().map_or(Ok(0), |keys| keys.read(&mut buffer))?;
        master.write_all(&buffer[..typed])?;
        if typed == 0 {
            *keys = None;
        }
    }
    if ready[0] {
        // EIO: nobody has it open.
        let shown = master.read(&mut buffer).unwrap_or(0);
        screen.write_all(&buffer[..shown])?;
        screen.flush()?;
        if shown == 0 {
            std::thread::sleep(std::time::Duration::from_millis(LOOK.into()));
        }
        return Ok(shown > 0);
    }
    Ok(false)
}

/// `lab-enter --leader COMMAND ARGUMENT…`: makes its stdin the controlling terminal of a new session, and becomes COMMAND.
pub(super) fn lead(args: &[OsString]) -> Result<()> {
    let [command, rest @ ..] = args else { bail!("usage: lab-enter --leader COMMAND ARGUMENT…") };
    setsid()?;
    // The first terminal that a session's leader opens becomes its controlling one.
    drop(OpenOptions::new().read(true).write(true).open("/proc/self/fd/0").context("the terminal")?);
    Err(Command::new(command).args(rest).exec())
        .with_context(|| format!("running {}", command.to_string_lossy()))
}
