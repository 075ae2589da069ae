//! phoenix-nvidia under AppArmor: `vm-tests [WORDS…]` takes a container of each kind through the steps of its life, and
//! prints a line for each. It runs in the virtual machine that `tests/vm/run` starts, in the lab over that
//! machine's own nodes, /proc and AppArmor. `vm-tests --images` prints the directories of the lab's cache that it needs.
//!
//! What is real there: Debian's kernel and its AppArmor, LXC and its profiles, device nodes that open, /proc/driver/nvidia,
//! /proc/devices and /sys/module/nvidia of a loaded module. What stands in: the module (`module/nvidia.c`: no card is behind
//! it), NVIDIA's runfile and nvidia-smi (the lab's), Proxmox' `pct` (the lab's, with the rules that the genuine one gives LXC
//! for AppArmor), and Debian's LXC and kernel for Proxmox' own builds of them.
#![allow(clippy::print_stdout, clippy::expect_used, clippy::unwrap_used)] // printing is what it is for; a helper that fails, fails its case

mod denials;
mod kinds;
mod steps;

use phoenix_lab::cases::Run;
use phoenix_lab::{Rootfs, rootfs};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// No step begins after this time; the machine is given more by `run`.
const LIMIT: Duration = Duration::from_secs(780);

/// The root of every container.
const ROOTFS: Rootfs = Rootfs::Debian12;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--images") {
        for name in rootfs::make(ROOTFS).expect("the containers' images") {
            println!("{}", rootfs::cache().expect("the lab's cache").join(name).display());
        }
        return ExitCode::SUCCESS;
    }
    let run = Run::begin(LIMIT);
    let next = AtomicUsize::new(0);
    // Each takes the next kind that nobody has taken.
    let work = || {
        while let Some(kind) = kinds::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
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
