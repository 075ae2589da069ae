//! The one place with `unsafe`.
#![allow(unsafe_code)]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::os::unix::process::CommandExt as _;

/// Installs `handler` for TERM, INT and HUP, and has SIGPIPE and SIGXFSZ
/// ignored.
pub fn on_signals(handler: extern "C" fn(i32)) {
    let note = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the handler only stores into an atomic, which is
        // async-signal-safe, and it is a plain function that never goes away.
        let _ = unsafe { sigaction(signal, &note) };
    }
    for signal in [Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { sigaction(signal, &ignore) };
    }
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
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            sigaction(Signal::SIGPIPE, &default)?;
            sigaction(Signal::SIGXFSZ, &default)?;
            Ok(())
        });
    }
}
