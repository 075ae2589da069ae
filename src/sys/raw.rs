//! The one place with `unsafe`.
#![allow(unsafe_code)]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Installs `handler` for TERM, INT, HUP and QUIT, ignores PIPE and XFSZ, and
/// resets CHLD, whatever the caller ignored or blocked. An INT, HUP or QUIT
/// that is ignored stays ignored, for nohup and a shell's background jobs.
pub fn on_signals(handler: extern "C" fn(i32)) {
    let note = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    let ends = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
    for signal in ends {
        // SAFETY: the handler only stores into an atomic, which is
        // async-signal-safe, and it is a plain function that never goes away.
        let before = unsafe { sigaction(signal, &note) };
        if signal != Signal::SIGTERM && before.is_ok_and(|b| matches!(b.handler(), SigHandler::SigIgn)) {
            // SAFETY: ignoring a signal runs no code of ours.
            let _ = unsafe { sigaction(signal, &ignore) };
        }
    }
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { sigaction(signal, &ignore) };
    }
    // If ignored, the kernel would reap our children itself: waiting would fail,
    // and their pids could be reused at once.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { sigaction(Signal::SIGCHLD, &default) };
    // Last: a signal pending behind the caller's mask is noted, not lost.
    let relied_on: SigSet = ends.into_iter().chain([Signal::SIGCHLD]).collect();
    let _ = relied_on.thread_unblock();
}

/// Closes every inherited file but the three standard ones in our children: a
/// command in a container must not get a task worker's pipes.
pub fn keep_inherited_files_from_children() {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag on
    // descriptors; it closes none. An old kernel answers ENOSYS or EINVAL.
    let _ = unsafe {
        nix::libc::syscall(nix::libc::SYS_close_range, 3u32, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC)
    };
}

/// A descriptor of the process with this pid.
pub fn pidfd_open(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and returns a new descriptor or -1.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the descriptor is new (close-on-exec), nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Sends a signal to the process of such a descriptor.
pub fn pidfd_send_signal(process: BorrowedFd<'_>, signal: Signal) -> std::io::Result<()> {
    let none = std::ptr::null::<nix::libc::siginfo_t>();
    // SAFETY: the descriptor is open during the call; a null siginfo is as in
    // kill(2).
    let done = unsafe {
        nix::libc::syscall(nix::libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal as i32, none, 0)
    };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts the child in a new session and process group: it and its children
/// have no controlling terminal.
pub fn own_session(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec; setsid is
    // async-signal-safe, allocates nothing and touches no lock.
    unsafe {
        command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?));
    }
}

/// Starts the child with the default action for every signal: otherwise it
/// would inherit what we or our caller ignore.
pub fn default_signals(command: &mut Command) {
    // SAFETY: the closure makes only sigaction calls, which are
    // async-signal-safe; the default action runs no code of ours.
    unsafe {
        command.pre_exec(|| {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            for signal in Signal::iterator() {
                // EINVAL for KILL and STOP.
                let _ = sigaction(signal, &default);
            }
            Ok(())
        });
    }
}

/// Resets the signals that only this process ignores; the caller's other
/// choices pass through.
pub fn callers_signals(command: &mut Command) {
    // SAFETY: as in `default_signals`.
    unsafe {
        command.pre_exec(|| {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
                sigaction(signal, &default)?;
            }
            Ok(())
        });
    }
}

/// Makes the kernel kill the child when the thread that starts it dies, so that
/// killing us leaves no orphan.
pub fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: the closure runs between fork and exec and makes only system
    // calls that are async-signal-safe (prctl, getppid); it does not allocate
    // and touches no lock.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                // The parent died before the line above took effect.
                return Err(std::io::Error::from_raw_os_error(nix::libc::EINTR));
            }
            Ok(())
        });
    }
}

/// Sets the umask of the child.
pub fn umask(command: &mut Command, mode: nix::sys::stat::Mode) {
    // SAFETY: umask is async-signal-safe, cannot fail and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::sys::stat::umask(mode);
            Ok(())
        });
    }
}
