//! The host's driver, mounted or installed: what a phase with nothing to do costs in
//! either mode, what apt waits for, and a node's containers after an upgrade of the
//! host: 50 that mount the new driver beside 10 that install it. Some minutes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)] // a table is its purpose

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use std::ops::RangeInclusive;
use std::time::Duration;

const OLD: &str = "580.95.05";
const NEW: &str = "580.105.08";
const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
const KEPT: &str = "/var/lib/phoenix-nvidia/driver";
/// What NVIDIA's largest runfiles have, and the libraries of a driver, in bytes.
const SIZE: u64 = 460_000_000;
const LIBRARIES: u64 = 430_000_000;
/// Those that mount the host's driver, and those that install.
const MOUNTING: RangeInclusive<u32> = 201..=250;
const INSTALLING: RangeInclusive<u32> = 301..=310;
const SETTINGS: &str = "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nINSTALL_WAIT=120\n";
/// Where a runfile comes from; the last line of the settings is what counts.
const FROM_FILE: &str = "NVIDIA_RUNFILE_URL=/srv/driver.run\n";
const MIRROR: &str = "NVIDIA_RUNFILE_URL=https://mirror.lab/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run\n";

/// Runs each line of its input in turn, 60 times, and prints the line's number and
/// what that took, in microseconds: whatever slows the machine slows all of them.
const IN_TURN: &str = r#"
mapfile -t lines
for ((i = 0; i < 60; i++)); do
    for n in "${!lines[@]}"; do
        a=$EPOCHREALTIME
        ${lines[n]} >/dev/null 2>&1 || exit 1
        b=$EPOCHREALTIME
        echo "$n $((${b/./} - ${a/./}))"
    done
done
"#;

fn main() {
    let Some(lab) = Lab::builder().gpus(1).driver(OLD).start() else { return };
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.write("/run/lab/in-turn", IN_TURN);
    lab.append("/etc/default/phoenix-nvidia", SETTINGS.to_owned() + FROM_FILE);
    has_driver(&lab, OLD);
    println!("| nothing to do, 60 runs in turn | median, ms | longest, ms | programs | file calls |");
    println!("| --- | --- | --- | --- | --- |");
    nobody_asks(&lab);
    create(&lab, 101, "inject");
    create(&lab, 102, "install");
    for id in [101, 102] {
        start(&lab, id);
    }
    let phases = ["pre-start", "post-start"].map(|phase| [101, 102].map(|id| format!("{id} {phase}")));
    let calls: Vec<String> = phases.into_iter().flatten().chain(["keep".to_owned()]).collect();
    let names = [
        "pre-start, inject",
        "pre-start, install",
        "post-start, inject",
        "post-start, install",
        "apt's hook, inject",
    ];
    rows(&lab, &names, &calls);
    after_an_upgrade(&lab);
}

/// The host has this driver on its disk, and loaded; /srv/driver.run is its runfile.
fn has_driver(lab: &Lab, version: &str) {
    lab.nvidia().user_space(version);
    lab.nvidia().set_driver(version);
    let directory = "/usr/lib/x86_64-linux-gnu";
    let big = format!("{directory}/libnvidia-nvvm.so.{version}");
    lab.sh(&format!(
        "rm -f {directory}/libnvidia-nvvm.so.*; cp {directory}/libcuda.so.{version} {big} && \
         head -c {LIBRARIES} /dev/urandom >>{big}"
    ))
    .ok();
    let file = Runfile::new(version).size(SIZE).build().unwrap();
    lab.write("/srv/driver.run", std::fs::read(file).unwrap());
}

fn create(lab: &Lab, id: u32, mode: &str) {
    lab.create(id, Rootfs::Debian12.unprivileged());
    let settings = format!("lxc.environment: GPU_ASSIGNMENT=0\nlxc.environment: DRIVER_MODE={mode}\n");
    lab.append(format!("/etc/pve/lxc/{id}.conf"), settings);
    lab.run(["pct", "set", &id.to_string(), "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
}

fn start(lab: &Lab, id: u32) -> Duration {
    lab.command("pct").args(["start", &id.to_string()]).timeout(Duration::from_secs(150)).run().ok().took
}

/// apt's hook where 100 containers are on the node and none of them mounts.
fn nobody_asks(lab: &Lab) {
    let confs = 900..1000;
    for id in confs.clone() {
        lab.write(format!("/etc/pve/lxc/{id}.conf"), "arch: amd64\nlxc.environment: GPU_ASSIGNMENT=0\n");
    }
    rows(lab, &["apt's hook, 100 containers, none with inject"], &["keep".to_owned()]);
    assert!(!lab.exists(KEPT));
    confs.for_each(|id| lab.files().remove(format!("/etc/pve/lxc/{id}.conf")));
}

/// A row for each call of the program, measured in turn.
fn rows(lab: &Lab, names: &[&str], calls: &[String]) {
    let lines: String = calls.iter().map(|call| format!("{PROGRAM} {call}\n")).collect();
    let run =
        lab.command("bash").arg("/run/lab/in-turn").stdin(lines).timeout(Duration::from_secs(120)).run().ok();
    for (n, (name, call)) in names.iter().zip(calls).enumerate() {
        let of = |line: &str| line.strip_prefix(&format!("{n} "))?.parse().ok().map(Duration::from_micros);
        let (median, longest) = sorted(run.stdout.lines().filter_map(of).collect());
        let (programs, files) = counts(lab, call);
        println!("| {name} | {median:.1} | {longest:.1} | {programs} | {files} |");
    }
}

/// How many programs a call runs, itself included, and how often all of them name a
/// file to the kernel.
fn counts(lab: &Lab, call: &str) -> (usize, usize) {
    let trace = "strace -f -qq -e trace=execve,%file -o /root/trace";
    let trace = lab.sh(&format!("{trace} {PROGRAM} {call} && cat /root/trace")).ok().stdout;
    let programs = trace.lines().filter(|line| line.contains("execve(") && line.ends_with("= 0")).count();
    (programs, trace.lines().filter(|line| line.contains('(')).count())
}

/// Median and longest, in milliseconds.
fn sorted(mut took: Vec<Duration>) -> (f64, f64) {
    took.sort();
    let ms = |d: &Duration| d.as_secs_f64() * 1000.0;
    (ms(&took[took.len() / 2]), ms(&took[took.len() - 1]))
}

fn after_an_upgrade(lab: &Lab) {
    for id in MOUNTING {
        create(lab, id, "inject");
        start(lab, id);
        lab.run(["pct", "stop", &id.to_string()]).ok();
    }
    INSTALLING.for_each(|id| create(lab, id, "install"));
    has_driver(lab, NEW);
    // Whoever of those that mount asks for a runfile gets it, and shows.
    let web = lab.web();
    web.runfile(&Runfile::new(NEW));
    lab.append("/etc/default/phoenix-nvidia", MIRROR);
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    let shown = format!("/proc/{}/root/run/phoenix-nvidia/driver", lab.init_pid());
    watch.add_watch(shown.as_str(), AddWatchFlags::IN_MOVED_TO).unwrap();
    println!();
    println!("| after an upgrade of the host, one after another | all, s | median, ms | longest, ms |");
    println!("| --- | --- | --- | --- |");
    row("50 starts that mount the new driver", MOUNTING.map(|id| start(lab, id)).collect());
    let mut moved = Vec::new();
    while let Ok(events) = watch.read_events() {
        moved.extend(events.into_iter().filter_map(|event| event.name));
    }
    assert_eq!(moved, ["current"]);
    let trees = lab.files().list(KEPT);
    assert_eq!(trees, [NEW, OLD]);
    assert_eq!(web.requests().ending(".run").len(), 0, "no runfile is downloaded");
    lab.append("/etc/default/phoenix-nvidia", FROM_FILE);
    row("10 starts that install it, from a file of the host", INSTALLING.map(|id| start(lab, id)).collect());
    println!();
    println!(
        "For the 50: `current` moved once, trees {trees:?} (the earlier one is in use by container 101), no download; \
         {} MB of libraries, runfile {} MB",
        LIBRARIES / 1_000_000,
        SIZE / 1_000_000
    );
}

fn row(what: &str, took: Vec<Duration>) {
    let all = took.iter().sum::<Duration>().as_secs_f64();
    let (median, longest) = sorted(took);
    println!("| {what} | {all:.1} | {median:.0} | {longest:.0} |");
}
