//! A SIGKILL of the program at every system call between its first lock and
//! its end: the conf and the generated config are the old or the new ones,
//! whole, and another run completes the work and leaves no temp file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use crate::lab;

use lab::{CONF, GENERATED, Host, Served};
use std::collections::{BTreeMap, BTreeSet};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia 101 pre-start";
/// Both have an edit to make.
const OLD: &str = "arch: amd64\nhostname: ct101\nmemory: 256\nostype: unmanaged\n\
    rootfs: local:101/subvol-101-disk-0.subvol,size=0T\nlxc.environment: GPU_ASSIGNMENT=0\n\n\
    [snap]\nmemory: 128\n";
const OLD_GENERATED: &str = "lxc.arch = amd64\nlxc.uts.name = ct101\n";

#[test]
#[ignore = "make test-all: the other file system"]
fn killed_at_any_call_the_conf_is_whole_and_the_next_run_completes_it() {
    killed_at_every_call(Served::Plainly);
}

#[test]
fn killed_at_any_call_the_conf_is_whole_on_pmxcfs_too() {
    killed_at_every_call(Served::AsPmxcfs);
}

fn killed_at_every_call(served: Served) {
    let Some(host) = Host::start(1, served) else { return };
    let lab = &host.lab;
    let reset = || {
        lab.write(CONF, OLD);
        lab.write(GENERATED, OLD_GENERATED);
    };
    // What is made once in a boot is there in all runs that are compared.
    reset();
    lab.sh(PROGRAM).ok();
    reset();
    lab.sh(&format!("strace -o /tmp/trace {PROGRAM}")).ok();
    let new = (lab.read(CONF), lab.read(GENERATED));
    assert!(new.0.contains("/dev/nvidia0") && new.1.contains("/dev/nvidia0"), "{new:?}");
    let points = points(&lab.read("/tmp/trace"));
    let (mut killed, mut count) = (BTreeSet::new(), 0);
    for (call, nth) in &points {
        reset();
        let inject = format!("-e inject={call}:signal=SIGKILL:when={nth}");
        let run = lab.sh(&format!("strace -o /tmp/trace {inject} {PROGRAM}"));
        let at = format!("{call} number {nth}");
        // How often it waits for the process that looks differs from run to run.
        if run.exit() == Some(0) && calls(&lab.read("/tmp/trace"), call) < *nth {
            continue;
        }
        assert_eq!(run.exit(), Some(137), "not killed at {at}: {run}");
        killed.insert(call.clone());
        count += 1;
        let (conf, generated) = (lab.read(CONF), lab.read(GENERATED));
        assert!(conf == OLD || conf == new.0, "killed at {at}: torn\n{conf}");
        assert!(generated == OLD_GENERATED || generated == new.1, "killed at {at}: torn\n{generated}");
        lab.sh(PROGRAM).ok();
        assert_eq!((lab.read(CONF), lab.read(GENERATED)), new, "after {at}");
        assert_eq!(host.temp_files(), "", "after {at}");
    }
    println!("{served:?}: killed at {count} calls, of these kinds: {killed:?}");
    assert!(count >= 20 && count * 10 >= points.len() * 9, "only {count} of {points:?}");
    for call in ["flock", "openat", "write", "fsync", "rename", "close"] {
        assert!(killed.contains(call), "not killed at {call}, only at {killed:?}");
    }
}

/// How often a trace has a call.
fn calls(trace: &str, name: &str) -> usize {
    trace.lines().filter(|line| line.split_once('(').is_some_and(|(found, _)| found == name)).count()
}

/// Each call from the first lock on: its name, and the how manieth of that
/// name it is.
fn points(trace: &str) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let calls = trace.lines().filter_map(|line| {
        let (name, _) = line.split_once('(')?;
        let count = counts.entry(name).or_default();
        *count += 1;
        Some((name.to_owned(), *count))
    });
    let all: Vec<_> = calls.collect();
    let first = all.iter().position(|(name, _)| name == "flock").expect("a lock");
    // At its entry the exit can't be told from an exit.
    all[first..].iter().filter(|(name, _)| name != "exit_group").cloned().collect()
}
