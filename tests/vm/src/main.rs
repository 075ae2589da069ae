//! phoenix-nvidia under AppArmor: `vm-tests [WORDS…]` takes a container of each kind through the steps of its life, and
//! prints a line for each. It runs in the virtual machine that `tests/vm/run` starts, in the lab over that
//! machine's own nodes, /proc and AppArmor. Where systemd is process 1 there are no containers, and other cases (`events`).
//! `vm-tests --images` prints the directories of the lab's cache that it needs, and `vm-tests --user-space DIRECTORY` makes
//! the driver's libraries there, with a program that uses them; `vm-tests --kinds` prints a word for each kind.
//!
//! What is real there: Debian's kernel and its AppArmor, LXC and its profiles, device nodes that open, /proc/driver/nvidia,
//! /proc/devices and /sys/module/nvidia of a loaded module. What stands in: the module (`module/nvidia.c`: no card is behind
//! it), NVIDIA's runfile and nvidia-smi (the lab's), Proxmox' `pct` (the lab's, with the rules that the genuine one gives LXC
//! for AppArmor), and Debian's LXC and kernel for Proxmox' own builds of them.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::unwrap_used)] // printing is what it is for; a helper that fails, fails its case

mod denials;
mod events;
mod injected;
mod kinds;
mod live;
mod steps;

use phoenix_lab::cases::Run;
use phoenix_lab::nvidia::userspace;
use phoenix_lab::{Rootfs, rootfs};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// No step begins after this time; the machine is given more by `run`.
const LIMIT: Duration = Duration::from_secs(1300);

/// What was compiled on the machine that started this one.
const BUILT: &str = "/kit/user-space";
/// A version of the driver that the host gets while containers run.
const NEWER: &str = "580.105.08";

/// The root of every container.
const ROOTFS: Rootfs = Rootfs::Debian12;
/// The same on an old processor, where the loader of a newer glibc searches none of the places.
const ROOTFS_OLD: Rootfs = Rootfs::Debian13;

/// Whether this machine's processor is older than x86-64-v2.
pub fn old_processor() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").expect("the processor");
    let flags = cpu.lines().find(|line| line.starts_with("flags")).expect("its flags");
    !flags.split_whitespace().any(|flag| flag == "sse4_2")
}

/// The version of the module, as its source has it.
fn version() -> &'static str {
    let source = include_str!("../module/nvidia.c");
    source.split_once("#define VERSION \"").and_then(|(_, rest)| rest.split('"').next()).expect("a version")
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--images"] => {
            for name in
                [ROOTFS, ROOTFS_OLD].map(|root| rootfs::make(root).expect("the containers' images")).concat()
            {
                println!("{}", rootfs::cache().expect("the lab's cache").join(name).display());
            }
            return ExitCode::SUCCESS;
        }
        ["--kinds"] => {
            kinds::ALL.iter().for_each(|kind| println!("{}", kind.id));
            return ExitCode::SUCCESS;
        }
        ["--user-space", directory] => {
            for version in [version(), NEWER] {
                userspace::build(Path::new(directory), version).expect("the driver's libraries");
            }
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let run = Run::begin(LIMIT);
    if events::here() {
        events::all(&run);
        return run.end();
    }
    let next = AtomicUsize::new(0);
    // Each takes the next kind that nobody has taken.
    let work = || {
        while let Some(kind) = kinds::here().get(next.fetch_add(1, Ordering::Relaxed)) {
            steps::all(&run, kind);
        }
    };
    let ended = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join()).filter(Result::is_ok).count()
    });
    // A step that fails is counted; what panics outside of a step ends its thread.
    if ended == threads() { run.end() } else { ExitCode::FAILURE }
}

/// How many kinds at once.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get())
}
