//! What a caller may have left behind for its children: signals that are
//! ignored or blocked.
use crate::robust_support;

use phoenix_lab::{Command, Lab, Rootfs, Signal};
use robust_support::*;
use std::time::{Duration, Instant};

/// A caller that runs a command after this line of Perl.
fn caller(lab: &Lab, perl: &str, argv: &[&str]) -> Command {
    let script = format!("use POSIX; {perl}; exec {{ $ARGV[0] }} @ARGV");
    lab.command("perl").args(["-e", &script, "--"]).args(argv)
}

/// Ignored, the kernel reaps children itself: how they ended cannot be asked.
const DEAF: &str = "$SIG{CHLD} = 'IGNORE'";
/// Blocked, and not ignored as well, as under nohup: that we honour.
const BLOCKED: &str = "$SIG{$_} = 'DEFAULT' for qw(TERM INT HUP); \
                       sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGTERM, SIGINT, SIGHUP, SIGCHLD))";

#[test]
fn an_ignored_or_blocked_sigchld_changes_nothing() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    for perl in [DEAF, BLOCKED] {
        caller(&lab, perl, &[PROGRAM, "101", "pre-start"]).run().ok().says_not("WARNING");
        caller(&lab, perl, &[PROGRAM, "101"]).run().ok().says_not("WARNING");
        lab.sh("sed -i '/nvidia-uvm/d' /run/lab/nvidia/devices; rm -f /dev/nvidia0").ok();
        caller(&lab, perl, &[PROGRAM, "101", "pre-start"]).run().ok();
        assert!(lab.exists("/dev/nvidia0"), "made by a program of the host");
        caller(&lab, perl, &["pct", "start", "101"]).run();
        caller(&lab, perl, &[PROGRAM, "doctor", "101"]).run().says_not("ECHILD").says_not("No child");
        lab.run(["pct", "stop", "101"]).ok();
    }
}

#[test]
fn a_blocked_term_ends_us_all_the_same() {
    let Some(lab) = lab() else { return };
    node(&lab, "INSTALL=off");
    attached(&lab, 101, Rootfs::Busybox.privileged());
    lab.run(["pct", "start", "101"]).ok();
    node(&lab, "INSTALL=on\nCHECK_TIMEOUT=60");
    lab.replace_program("/usr/bin/lxc-attach", "#!/bin/sh\nexec sleep 1000\n");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let run = caller(&lab, BLOCKED, &[PROGRAM, "plan", "101"]).spawn();
        wait_until("its command", || !pids(&lab, "sleep 1000").is_empty());
        run.signal(signal);
        let sent = Instant::now();
        let output = run.wait();
        assert!(sent.elapsed() < Duration::from_secs(3), "{signal}: {output}");
        assert!(pids(&lab, "sleep 1000").is_empty(), "{signal}: {output}");
    }
}
