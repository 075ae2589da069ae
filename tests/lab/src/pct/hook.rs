//! The hookscript: found, run, its output passed on line by line until both of its streams have ended.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::conf::Section;
use super::{say, storage};

/// A hookscript that did not do.
#[derive(Debug)]
pub(super) struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// What keeps a hookscript from being run.
pub(super) enum Unfit {
    Missing(String),
    NotExecutable(String),
}

/// Checks a hookscript as Proxmox does: what the path leads to must be a file that can be executed.
pub(super) fn check(volume: &str) -> Result<PathBuf, Unfit> {
    let missing = || Unfit::Missing(format!("script '{volume}' does not exist"));
    let path = storage::snippet(volume).map_err(Unfit::Missing)?;
    let found = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file).ok_or_else(missing)?;
    if found.permissions().mode() & 0o111 == 0 {
        return Err(Unfit::NotExecutable(format!("script '{volume}' is not executable")));
    }
    Ok(path)
}

/// Runs a phase of the container's hookscript, if it has one.
pub(super) fn run(conf: &Section, id: u32, phase: &str) -> Result<()> {
    let Some(volume) = conf.get("hookscript") else { return Ok(()) };
    let failed = |what: String| Failed(format!("hookscript error for {id} on {phase}: {what}"));
    let path = match check(volume) {
        Ok(path) => path,
        Err(Unfit::Missing(text) | Unfit::NotExecutable(text)) => return Err(failed(text).into()),
    };
    let line = format!("{} {id} {phase}", path.display());
    let mut child = Command::new(&path)
        .args([&id.to_string(), phase])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("command '{line}' failed: failed to execute: {e}")))?;
    // An empty pipe.
    drop(child.stdin.take());
    let stdout = child.stdout.take().map(OwnedFd::from).context("the hook's stdout")?;
    let stderr = child.stderr.take().map(OwnedFd::from).context("the hook's stderr")?;
    pass_on([File::from(stdout), File::from(stderr)])?;
    let status = child.wait()?;
    let how = match (status.code(), status.signal()) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("got signal {}", signal.unwrap_or_default()),
    };
    Err(failed(format!("command '{line}' failed: {how}")).into())
}

/// Prints the lines of both streams as they come, until both have ended. There is no time limit.
fn pass_on(streams: [File; 2]) -> Result<()> {
    let mut open: Vec<(File, Vec<u8>)> = streams.into_iter().map(|stream| (stream, Vec::new())).collect();
    while !open.is_empty() {
        let mut fds: Vec<PollFd<'_>> = open
            .iter()
            .map(|(stream, _)| PollFd::new(std::os::fd::AsFd::as_fd(stream), PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        let mut fault = None;
        open.retain_mut(|(stream, line)| !ready.next().unwrap_or(false) || more(stream, line, &mut fault));
        if let Some(error) = fault {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Reads once and prints the lines that are whole; false at the end of the stream.
fn more(stream: &mut File, line: &mut Vec<u8>, fault: &mut Option<std::io::Error>) -> bool {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).unwrap_or_else(|error| {
        *fault = Some(error);
        0
    });
    line.extend_from_slice(&buffer[..count]);
    while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
        let rest = line.split_off(end + 1);
        say(&String::from_utf8_lossy(&line[..end]));
        *line = rest;
    }
    if count == 0 && !line.is_empty() {
        say(&String::from_utf8_lossy(line));
    }
    count > 0
}
