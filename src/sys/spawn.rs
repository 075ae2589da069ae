//! Programs without a deadline: a user's hookscript that runs in our place, and
//! a process of ours that outlives us.

use super::process::Ended;
use super::signal::{self, Interrupted};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The umask of our caller.
static CALLERS: AtomicU32 = AtomicU32::new(0o022);

/// From now on no file that we create is writable by others, whatever our
/// caller's umask. A program of the user gets that umask back.
pub fn keep_others_out() {
    let before = umask(Mode::S_IWGRP | Mode::S_IWOTH);
    umask(before | Mode::S_IWGRP | Mode::S_IWOTH);
    CALLERS.store(before.bits(), Ordering::Relaxed);
}

/// Runs a program of the user with our arguments, environment (plus one
/// variable), streams, session and so our caller's terminal, and without a
/// deadline. Passes signals on.
///
/// # Errors
/// It did not start.
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
            // Not reaped yet: its pid is not reused.
            let _ = nix::sys::signal::kill(Pid::from_raw(child.id() as i32), signal);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Starts a process that outlives us: with its own session and /dev/null as
/// streams. Proxmox reads a hook's output to its end, so a child with our stdout
/// would block the start.
///
/// # Errors
/// It did not start.
pub fn detach(program: &Path, args: &[String]) -> std::io::Result<()> {
    #[allow(clippy::disallowed_methods)] // this is the one room
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    super::raw::own_session(&mut command);
    super::raw::default_signals(&mut command);
    // Not waited for: init adopts it when we exit.
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
