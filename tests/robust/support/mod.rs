//! What the tests of starts under bad conditions share.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses a part of it; a failing helper fails its test

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::{Builder, Container, Errno, Lab, Rootfs, Running, Spec};
use std::time::{Duration, Instant};

/// The program under test, as it is installed.
pub const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
/// The driver of the lab's host.
pub const DRIVER: &str = "580.95.05";

/// A lab with the program installed, one GPU, and no install unless a test
/// asks for one; `None` where labs cannot run.
pub fn lab() -> Option<Lab> {
    lab_with(Lab::builder().gpus(1).driver(DRIVER))
}

/// The same with another host.
pub fn lab_with(builder: Builder) -> Option<Lab> {
    let lab = builder.start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    Some(lab)
}

/// More lines of the node's settings.
pub fn node(lab: &Lab, lines: &str) {
    lab.append("/etc/default/phoenix-nvidia", format!("{lines}\n"));
}

/// A stopped container with GPU 0 and the hookscript.
pub fn attached(lab: &Lab, ctid: u32, spec: impl Into<Spec>) {
    lab.create(ctid, spec);
    lab.append(format!("/etc/pve/lxc/{ctid}.conf"), "lxc.environment: GPU_ASSIGNMENT=0\n");
    let id = ctid.to_string();
    lab.run(["pct", "set", id.as_str(), "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
}

/// Has the driver, and only that, installed from a runfile that lies on the
/// host.
pub fn offers(lab: &Lab, runfile: &Runfile) {
    let file = runfile.build().unwrap();
    lab.write("/srv/driver.run", std::fs::read(file).unwrap());
    node(lab, "NVIDIA_RUNFILE_URL=/srv/driver.run\nCUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
}

/// What is recorded of a container.
pub fn state(lab: &Lab, ctid: u32) -> serde_json::Value {
    serde_json::from_str(&lab.read(format!("/run/phoenix-nvidia/state/{ctid}.json"))).unwrap()
}

/// A field of that, as text.
pub fn says(lab: &Lab, ctid: u32, field: &str) -> String {
    match &state(lab, ctid)[field] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Waits until `done`; panics with `what` after a minute.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose command line has `part`, by their number in the lab.
pub fn pids(lab: &Lab, part: &str) -> Vec<i32> {
    let proc = std::path::PathBuf::from(format!("/proc/{}/root/run/lab/proc", lab.init_pid()));
    let entries = std::fs::read_dir(&proc).unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|pid| {
            let line = std::fs::read(proc.join(pid.to_string()).join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").contains(part)
        })
        .collect()
}

/// Sends a signal to each of them.
pub fn signal(lab: &Lab, pids: &[i32], signal: &str) {
    for pid in pids {
        lab.run(["kill", "-s", signal, &pid.to_string()]);
    }
}

/// Processes of the program under test: hooks, install processes, calls by hand.
pub fn ours(lab: &Lab) -> Vec<i32> {
    pids(lab, "/phoenix-nvidia ")
}

/// Waits until no process of ours is left; what was at work until then has
/// ended.
#[track_caller]
pub fn wait_for_the_end(lab: &Lab) {
    wait_until("the end of our processes", || ours(lab).is_empty());
}

/// The same, and of what ours were killed in: a task of Proxmox's that they had begun goes
/// on, and the container that it takes down comes up again by its supervisor.
#[track_caller]
pub fn wait_for_all(lab: &Lab, ct: &Container<'_>) {
    let tasks = || !ours(lab).is_empty() || !pids(lab, "task UPID:").is_empty();
    let between = || pids(lab, "__supervise").is_empty() == ct.running();
    let quiet = || !tasks() && !between();
    wait_until("the end of all tasks", || quiet() && quiet());
}

/// How often something was called of the lab's pct.
pub fn calls(lab: &Lab, of: &str) -> usize {
    lab.calls().iter().filter(|call| call.starts_with(of)).count()
}

/// Waits until a running command has printed something.
#[track_caller]
pub fn wait_for_output(run: &Running, text: &str) {
    wait_until(text, || run.so_far().contains(text));
}

/// A running container that needs a restart for its GPU and nothing else; its
/// conf is as the settings say already.
pub fn needs_a_restart(lab: &Lab) -> Container<'_> {
    node(lab, "INSTALL=off");
    attached(lab, 101, Rootfs::Busybox.privileged());
    lab.run(["pct", "start", "101"]).ok();
    let ct = lab.container(101);
    ct.wait_ready();
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0,1\n");
    lab.run([PROGRAM, "101", "pre-start"]).ok().says("added /dev/nvidia1");
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(Errno::ENOENT));
    ct
}

/// A lab with two GPUs.
pub fn two_gpus() -> Option<Lab> {
    lab_with(Lab::builder().gpus(2).driver(DRIVER))
}

/// A container whose first start installs a driver in the background, for a
/// few seconds, and is then to be rebooted.
pub fn installing() -> Option<Lab> {
    let lab = lab()?;
    offers(&lab, &Runfile::new(DRIVER).flaw(Flaw::Slow(4)));
    node(&lab, "INSTALL_WAIT=0");
    attached(&lab, 101, Rootfs::Debian12.privileged());
    Some(lab)
}

/// The log of container 101.
pub fn log(lab: &Lab) -> String {
    lab.read("/var/log/phoenix-nvidia/101.log")
}

/// Waits until that has some text.
pub fn wait_for_log(lab: &Lab, text: &str) {
    let there = || lab.exists("/var/log/phoenix-nvidia/101.log") && log(lab).contains(text);
    wait_until(text, there);
}

/// A `pct` that does something else the first time that it is called for
/// `verb`: `first`, a line of shell. The genuine one is `pct.real`.
pub fn pct_with(lab: &Lab, verb: &str, first: &str) {
    lab.sh("cp $(readlink -f /usr/sbin/pct) /usr/sbin/pct.real; rm /usr/sbin/pct").ok();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = {verb} ] && [ ! -e /run/raced ]; then touch /run/raced\n{first}\nfi\n\
         exec /usr/sbin/pct.real \"$@\"\n"
    );
    lab.replace_program("/usr/sbin/pct", script);
}
