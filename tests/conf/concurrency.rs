//! Sixteen runs with different assignments at once against one conf, again
//! and again, beside `pct set` and a writer that works as Proxmox does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
#![allow(clippy::disallowed_methods)] // the other writer's way

use crate::conf_support;
use crate::lab;

use conf_support::pairs;
use lab::{Host, PVE_LOCK, Served};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use phoenix_lab::Lab;
use phoenix_nvidia::pve::conf::document::Document;
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PROCESSES: usize = 16;

#[test]
fn sixteen_at_once_lose_nothing_on_pmxcfs() {
    at_once(Served::AsPmxcfs, if phoenix_lab::thorough() { 200 } else { 40 });
}

#[test]
#[ignore = "make test-all: the other file system"]
fn sixteen_at_once_lose_nothing_on_a_plain_file_system() {
    at_once(Served::Plainly, 25);
}

fn at_once(served: Served, rounds: usize) {
    let Some(host) = Host::start(4, served) else { return };
    let lab = &host.lab;
    let began = Instant::now();
    let stop = AtomicBool::new(false);
    let (notes, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
    lab.write("/run/lab/round.sh", ROUND);
    lab.write("/run/lab/set.sh", SET);
    let setter = lab.command("sh").arg("/run/lab/set.sh").timeout(Duration::from_secs(500)).spawn();
    std::thread::scope(|scope| {
        // A failed check below must not leave the threads running.
        let _end = OnDrop(&stop);
        scope.spawn(|| write_notes(lab, &stop, &notes));
        scope.spawn(|| read_all_the_time(lab, &stop, &reads));
        for number in 0..rounds {
            round(lab, number);
        }
    });
    lab.write("/run/lab/stop", "");
    let sets = setter.wait().ok().says_not("lost").stdout;
    let text = read(lab);
    let (notes, reads) = (notes.into_inner(), reads.into_inner());
    for note in 0..notes {
        assert!(text.contains(&format!("#note {note};")), "note {note} of {notes} is lost:\n{text}");
    }
    assert_eq!(host.temp_files(), "");
    let took = began.elapsed();
    println!(
        "{served:?}: {rounds} rounds of {PROCESSES}, beside {} pct set, {notes} replacements, {reads} reads: {took:.1?}",
        sets.lines().count(),
    );
    assert!(notes > rounds / 2 && sets.lines().count() > rounds / 10);
    assert!(took < Duration::from_secs(500), "not within the overall bound: {took:?}");
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts all at once and tells the process id of each.
const ROUND: &str = r#"
cd /run/lab
for bits in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    list=
    test $((bits & 1)) = 0 || list=$list,0
    test $((bits & 2)) = 0 || list=$list,1
    test $((bits & 4)) = 0 || list=$list,2
    test $((bits & 8)) = 0 || list=$list,3
    list=${list#,}
    env GPU_ASSIGNMENT=${list:-none} START_POLICY=fail phoenix-nvidia 101 pre-start >out.$bits 2>&1 &
    echo $! $bits
    all="$all $!"
done
for pid in $all; do wait $pid || { echo failed $pid $?; cat out.*; }; done
"#;

/// Nobody else sets the memory: what was set is there until the next time. The conf is missing for a moment while somebody
/// replaces it, which sixteen do one after the other.
const SET: &str = r#"
cd /run/lab
n=512
while ! test -e stop; do
    n=$((n + 1)) looks=0
    pct set 101 --memory $n || { echo lost: pct set failed; continue; }
    until conf=$(cat /etc/pve/lxc/101.conf 2>/dev/null) || test $looks = 100; do looks=$((looks + 1)); sleep 0.005; done
    case $conf in *"
memory: $n
"*) ;; *) echo lost: memory $n; echo "$conf" ;; esac
    echo $n
    sleep 0.05
done
"#;

/// All run to their end without a fault, and the conf has what the last of
/// those that wrote wanted.
fn round(lab: &Lab, number: usize) {
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    watch.add_watch(&below(lab, "/etc/pve/nodes/pve1/lxc"), AddWatchFlags::IN_MOVED_FROM).unwrap();
    let output = lab.command("sh").arg("/run/lab/round.sh").timeout(Duration::from_secs(120)).run().ok();
    assert!(!output.stdout.contains("failed"), "round {number}: {output}");
    let started: HashMap<&str, u32> = output
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(pid, bits)| (pid, bits.parse().unwrap()))
        .collect();
    assert_eq!(started.len(), PROCESSES, "{output}");
    let mut last = None;
    while let Ok(events) = watch.read_events() {
        for name in events.into_iter().filter_map(|event| event.name) {
            let name = name.to_string_lossy().into_owned();
            if let Some(pid) = name.strip_prefix("101.conf.phoenix-nvidia.") {
                last = Some(started[pid]);
            }
        }
    }
    let bits = last.expect("somebody wrote");
    let text = read(lab);
    let gpus = (0..4).filter(|gpu| bits & (1 << gpu) != 0).map(|gpu| format!("/dev/nvidia{gpu} c 195:{gpu}"));
    let found = pairs(&Document::parse(text.as_bytes()));
    let expected: Vec<String> = gpus.collect();
    assert_eq!(
        found[..found.len() - 4],
        expected,
        "round {number}: not what the last writer wanted:\n{text}"
    );
}

/// Adds a line each time as Proxmox changes a conf: its lock, a temp file, a
/// rename.
fn write_notes(lab: &Lab, stop: &AtomicBool, notes: &AtomicUsize) {
    let (path, temp) = (below(lab, CONF_REAL), below(lab, "/etc/pve/nodes/pve1/lxc/101.conf.tmp.7"));
    while !stop.load(Ordering::Relaxed) {
        let lock = File::options().append(true).create(true).open(below(lab, PVE_LOCK)).unwrap();
        while fs2::FileExt::try_lock_exclusive(&lock).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let note = notes.fetch_add(1, Ordering::Relaxed);
        let mut text = read(lab);
        text = format!("#note {note};\n{text}");
        // Who writes in between without Proxmox's lock is overwritten.
        std::thread::sleep(Duration::from_millis(3));
        std::fs::write(&temp, text).unwrap();
        std::fs::rename(&temp, &path).unwrap();
        drop(lock);
        std::thread::sleep(Duration::from_millis(40));
    }
}

/// Whoever reads without a lock sees a whole conf.
fn read_all_the_time(lab: &Lab, stop: &AtomicBool, reads: &AtomicUsize) {
    let path = below(lab, CONF_REAL);
    while !stop.load(Ordering::Relaxed) {
        // Missing for a moment, as on the real one.
        let Some(text) = read_whole(&path) else { continue };
        reads.fetch_add(1, Ordering::Relaxed);
        let whole = text.contains("\nrootfs: ") && text.contains("swap: 512") && text.ends_with('\n');
        assert!(whole, "torn:\n{text}");
        for pair in pairs(&Document::parse(text.as_bytes())) {
            assert!(!pair.contains("no rule"), "half a pair, {pair}:\n{text}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Without the links, whose targets would be looked up here.
const CONF_REAL: &str = "/etc/pve/nodes/pve1/lxc/101.conf";

fn below(lab: &Lab, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", lab.init_pid()))
}

/// The conf, which is missing for a moment while somebody replaces it.
fn read(lab: &Lab) -> String {
    let path = below(lab, CONF_REAL);
    (0..100)
        .find_map(|_| {
            read_whole(&path).or_else(|| {
                std::thread::sleep(Duration::from_millis(2));
                None
            })
        })
        .expect("a conf")
}

fn read_whole(path: &PathBuf) -> Option<String> {
    std::fs::read_to_string(path).ok()
}
