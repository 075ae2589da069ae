//! What the end-to-end tests of the program share.
#![allow(dead_code)] // each test file uses a part of it

pub mod real;

use phoenix_lab::{Builder, Lab, Output, Spec};
use std::time::Duration;

/// A lab with the program under test installed, and no install unless a test
/// asks for one; `None` where labs cannot run (the reason has been printed).
pub fn lab(builder: Builder) -> Option<Lab> {
    let lab = builder.start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    Some(lab)
}

/// A lab whose server has this driver's runfile, NVIDIA's repositories and a
/// distribution's; container 101 has GPU 0 and starts for the first time.
pub fn ready(builder: Builder, driver: &str, rootfs: Spec, lines: &str) -> Option<Lab> {
    let lab = lab(builder.driver(driver))?;
    node(&lab, &format!("AFTER_INSTALL=none\nNETWORK_TIMEOUT=5\n{lines}"));
    lab.web().standard(&[driver]);
    let ct = lab.create(101, rootfs);
    lab.web().use_distribution(&ct);
    hooked(&lab);
    Some(lab)
}

/// Container 101 gets GPU 0 and the hookscript.
pub fn hooked(lab: &Lab) {
    setting(lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
}

/// Starts container 101, which may install.
pub fn start(lab: &Lab) -> Output {
    lab.command("pct").args(["start", "101"]).timeout(Duration::from_secs(150)).run()
}

/// Stops and starts it.
pub fn again(lab: &Lab) -> Output {
    lab.run(["pct", "stop", "101"]).ok();
    start(lab)
}

/// The node's settings file with more lines.
pub fn node(lab: &Lab, lines: &str) {
    lab.append("/etc/default/phoenix-nvidia", format!("{lines}\n"));
}

/// A setting in a container's conf.
pub fn setting(lab: &Lab, ctid: u32, line: &str) {
    lab.append(format!("/etc/pve/lxc/{ctid}.conf"), format!("lxc.environment: {line}\n"));
}

/// Has `phoenix-nvidia prepare` unpack a runfile, within so much address space (KiB): no program of it is run, and none
/// of the host's that unpacks.
#[track_caller]
pub fn unpacks_without_running(lab: &Lab, space: u32) -> Output {
    let trace = format!(
        "ulimit -v {space}; strace -f -qq -e trace=execve -o /root/trace /usr/sbin/phoenix-nvidia prepare"
    );
    let run = lab.command("sh").args(["-c", &trace]).timeout(Duration::from_secs(300)).run().ok();
    let trace = lab.read("/root/trace");
    let programs: Vec<&str> =
        trace.lines().filter(|line| line.contains("execve(") && line.ends_with("= 0")).collect();
    let first = programs.first().unwrap_or_else(|| panic!("nothing was traced: {trace}\n{run}"));
    assert!(first.contains("execve(\"/usr/sbin/phoenix-nvidia\", "), "{first}");
    let odd = ["NVIDIA", "nvidia-installer", "xz", "gzip", "zstd", "tar\"", "/sh\""];
    for program in &programs {
        assert!(!odd.iter().any(|odd| program.contains(odd)), "{program}");
    }
    run
}

/// A process in the mount namespace of another one that has its root where nothing is mounted, and a lower number than
/// all others there, as after the numbers began anew.
pub fn chrooted(lab: &Lab, of: i32) {
    lab.sh(&format!(
        "mkdir -p /proc/{of}/root/srv/empty && echo 20 >/proc/sys/kernel/ns_last_pid
         setsid nsenter -t {of} -m perl -e 'chroot \"/srv/empty\" or die; chdir \"/\"; sleep 100000' \
         >/dev/null 2>&1 </dev/null &
         first() {{ for p in $(ls /proc | grep '^[0-9]' | sort -n); do
             [ \"$(readlink /proc/$p/ns/mnt)\" != \"$(readlink /proc/{of}/ns/mnt)\" ] || {{ readlink /proc/$p/root; return; }}
         done; }}
         for i in $(seq 100); do [ \"$(first)\" != /srv/empty ] || exit 0; sleep 0.05; done; exit 1"
    ))
    .ok();
}
