//! The one place with `unsafe`.
#![allow(unsafe_code)]

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::ffi::CStr;
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

/// The descriptor that a system call returned.
fn owned(result: nix::libc::c_long) -> std::io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the caller's system call made the descriptor, nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A copy of the mount at `path`, which is mounted nowhere (open_tree(2)). An
/// empty path is `at` itself.
pub fn copy_of_mount(at: Option<BorrowedFd<'_>>, path: &CStr) -> std::io::Result<OwnedFd> {
    let flags = nix::libc::OPEN_TREE_CLONE | nix::libc::OPEN_TREE_CLOEXEC;
    let flags = flags | if path.is_empty() { nix::libc::AT_EMPTY_PATH as u32 } else { 0 };
    let at = at.map_or(nix::libc::AT_FDCWD, |at| at.as_raw_fd());
    // SAFETY: the path is a C string that lives during the call; the result is a new descriptor or -1.
    owned(unsafe { nix::libc::syscall(nix::libc::SYS_open_tree, at, path.as_ptr(), flags) })
}

/// Mounts such a copy on the file of a descriptor (move_mount(2)).
pub fn place_mount(mount: BorrowedFd<'_>, on: BorrowedFd<'_>) -> std::io::Result<()> {
    let flags = nix::libc::MOVE_MOUNT_F_EMPTY_PATH | nix::libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (mount, on, empty) = (mount.as_raw_fd(), on.as_raw_fd(), c"".as_ptr());
    // SAFETY: both descriptors are open and both paths C strings during the call, which keeps neither.
    let done = unsafe { nix::libc::syscall(nix::libc::SYS_move_mount, mount, empty, on, empty, flags) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets attributes of such a copy and makes it private (mount_setattr(2)).
pub fn private_mount(mount: BorrowedFd<'_>, attributes: u64) -> std::io::Result<()> {
    /// `struct mount_attr` of linux/mount.h.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let all = Attributes { set: attributes, clear: 0, propagation: nix::libc::MS_PRIVATE, userns: 0 };
    let (fd, empty) = (mount.as_raw_fd(), c"".as_ptr());
    let (at, size) = (nix::libc::AT_EMPTY_PATH, size_of::<Attributes>());
    // SAFETY: the kernel reads `size` bytes of the struct, which lives during the call.
    let done = unsafe {
        nix::libc::syscall(nix::libc::SYS_mount_setattr, fd, empty, at, std::ptr::from_ref(&all), size)
    };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The type and permission bits and the device number (major, minor) of the
/// file at a path, from what the kernel knows: a FUSE or network file system is
/// not asked (statx(2)).
pub fn known_stat(path: &CStr) -> std::io::Result<(u32, (u32, u32))> {
    let flags = nix::libc::AT_STATX_DONT_SYNC | nix::libc::AT_NO_AUTOMOUNT;
    let mut found = std::mem::MaybeUninit::<nix::libc::statx>::zeroed();
    // SAFETY: the path is a C string and the buffer a whole statx during the call.
    let done = unsafe {
        nix::libc::statx(nix::libc::AT_FDCWD, path.as_ptr(), flags, nix::libc::STATX_TYPE, found.as_mut_ptr())
    };
    if done < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid statx, and the kernel has filled it in.
    let found = unsafe { found.assume_init() };
    Ok((u32::from(found.stx_mode), (found.stx_rdev_major, found.stx_rdev_minor)))
}

/// Whether two threads share their table of descriptors (kcmp(2)); false also
/// where it cannot be asked.
pub fn same_files(one: i32, other: i32) -> bool {
    /// Of linux/kcmp.h.
    const KCMP_FILES: i32 = 2;
    // SAFETY: kcmp takes numbers only.
    unsafe { nix::libc::syscall(nix::libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) == 0 }
}

/// Whether an open file is the root of a mount (statx(2)), by what the kernel
/// knows; false before Linux 5.8.
pub fn is_mount_root(file: BorrowedFd<'_>) -> std::io::Result<bool> {
    let flags = nix::libc::AT_EMPTY_PATH | nix::libc::AT_STATX_DONT_SYNC;
    let mut found = std::mem::MaybeUninit::<nix::libc::statx>::zeroed();
    // SAFETY: the path is a C string and the buffer a whole statx during the call.
    let done = unsafe { nix::libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, 0, found.as_mut_ptr()) };
    if done < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid statx, and the kernel has filled it in.
    let attributes = unsafe { found.assume_init() }.stx_attributes;
    Ok(attributes & nix::libc::STATX_ATTR_MOUNT_ROOT as u64 != 0)
}

/// A descriptor of the process with this pid.
pub fn pidfd_open(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and returns a new descriptor (close-on-exec) or -1.
    owned(unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) })
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
