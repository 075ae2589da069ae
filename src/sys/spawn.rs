//! Programs that are not ours to bound: a user's hookscript that takes our
//! place for a while, and a process of ours that outlives us.

use super::process::Ended;
use super::signal::{self, Interrupted};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The umask that we were called with.
static CALLERS: AtomicU32 = AtomicU32::new(0o022);

/// From here on nothing that we make is for others to write to, whatever the
/// umask of the shell that called us. What is not ours gets that one back.
pub fn keep_others_out() {
    let before = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    umask(before | Mode::S_IWGRP | Mode::S_IWOTH);
    CALLERS.store(before.bits(), Ordering::Relaxed);
}

/// Runs somebody else's program with our own arguments, environment (and one
/// more variable), stdin, stdout and stderr, in our own session and so at our
/// caller's terminal, and without a deadline. A signal of ours is passed on.
///
/// # Errors
/// It could not be started.
pub fn hand_over(program: &Path, args: &[String], variable: (&str, &str)) -> std::io::Result<Ended> {
    #[allow(clippy::disallowed_methods)] // this is the one room
    let mut command = Command::new(program);
    command.args(args).env(variable.0, variable.1);
    super::raw::die_with_parent(&mut command);
    super::raw::callers_signals(&mut command);
    super::raw::umask(&mut command, Mode::from_bits_truncate(CALLERS.load(Ordering::Relaxed)));
    let mut child = command.spawn()?;
    let mut told = false;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.into());
        }
        if let (false, Err(Interrupted(number))) = (told, signal::check()) {
            told = true;
            let signal = Signal::try_from(number).unwrap_or(Signal::SIGTERM);
            // Not reaped yet: its number is nobody else's.
            let _ = nix::sys::signal::kill(Pid::from_raw(child.id() as i32), signal);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Starts a process that goes on by itself: its own session, no open file of
/// ours, stdin, stdout and stderr on /dev/null. Proxmox reads a hook's output
/// until its end, so a child that kept it would hold the start.
///
/// # Errors
/// It could not be started.
pub fn detach(program: &Path, args: &[String]) -> std::io::Result<()> {
    #[allow(clippy::disallowed_methods)] // this is the one room
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    super::raw::own_session(&mut command);
    super::raw::default_signals(&mut command);
    // It is not waited for: when we end, init takes it over.
    command.spawn().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_process_has_its_own_session_and_no_output_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = "exec >\"$1\"; ps -o sid=,pid= -p $$; readlink /proc/$$/fd/2; echo end";
        let args = ["-c", script, "sh", &out.to_string_lossy()].map(str::to_owned);
        detach(Path::new("/bin/sh"), &args).unwrap();
        let deadline = super::super::time::Deadline::secs(20);
        let text = loop {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            if text.ends_with("end\n") || deadline.passed() {
                break text;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        assert_eq!(words.len(), 4, "{text}");
        assert_eq!((words[0], words[2]), (words[1], "/dev/null"));
    }

    #[test]
    fn a_handed_over_program_gives_its_exit_code() {
        let ended = hand_over(Path::new("/bin/sh"), &["-c".into(), "exit $CODE".into()], ("CODE", "7"));
        assert_eq!(ended.unwrap(), Ended::Code(7));
        assert!(hand_over(Path::new("/nonexistent"), &[], ("CODE", "7")).is_err());
    }
}
