//! The one place with `unsafe`.
#![allow(unsafe_code)]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::unix::process::CommandExt as _;

/// Installs `handler` for TERM, INT and HUP, and has SIGPIPE and SIGXFSZ
/// ignored. An INT or HUP that is ignored already stays so: that is what
/// nohup and a shell's background jobs are for.
pub fn on_signals(handler: extern "C" fn(i32)) {
    let note = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
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
}

/// Every file that we inherited beyond the three standard ones is closed in
/// what we start: a container's command has no business with a task
/// worker's pipes.
pub fn keep_inherited_files_from_children() {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag on
    // descriptors; it closes none. An old kernel answers ENOSYS or EINVAL.
    let _ = unsafe {
        nix::libc::syscall(nix::libc::SYS_close_range, 3u32, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC)
    };
}

/// Has the child begin a session of its own, with default signals.
pub fn own_session(command: &mut std::process::Command) {
    // SAFETY: as in `die_with_parent`; setsid is async-signal-safe too.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            default_signals()
        });
    }
}

/// What is ignored here would be inherited as ignored.
fn default_signals() -> std::io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: the default action runs no code of ours.
        unsafe { sigaction(signal, &default) }?;
    }
    Ok(())
}

/// Has the kernel kill the child when the thread that starts it dies, so that
/// a SIGKILL of ours leaves no orphan at work; gives it the default action
/// for SIGPIPE and SIGXFSZ, which would otherwise be inherited as ignored.
pub fn die_with_parent(command: &mut std::process::Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: the closure runs between fork and exec and makes only system
    // calls that are async-signal-safe (prctl, getppid, sigaction); it does
    // not allocate and touches no lock.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                // The parent died before the line above took effect.
                return Err(std::io::Error::from_raw_os_error(nix::libc::EINTR));
            }
            default_signals()
        });
    }
}

/// Gives the child another umask than ours.
pub fn umask(command: &mut std::process::Command, mode: nix::sys::stat::Mode) {
    // SAFETY: umask is async-signal-safe, cannot fail and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::sys::stat::umask(mode);
            Ok(())
        });
    }
}
