//! The main job, shown: a container without a GPU is started once and has its
//! GPU and driver. `lab-demo PROGRAM`, as root; see `make demo`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // printing is what it is for

use phoenix_lab::{Errno, Lab, Output, Rootfs};
use std::process::ExitCode;
use std::time::Instant;

const VERSION: &str = "580.95.05";

fn main() -> ExitCode {
    let Some(program) = std::env::args_os().nth(1) else {
        eprintln!("usage: lab-demo PATH-OF-phoenix-nvidia");
        return ExitCode::from(2);
    };
    let Some(lab) = Lab::builder().gpus(2).driver(VERSION).start() else {
        return ExitCode::FAILURE;
    };
    let begun = Instant::now();
    title("A Proxmox-shaped host with two GPUs, kernel driver 580.95.05, and a plain Debian 12 container");
    lab.install(&program);
    lab.web().standard(&[VERSION]);
    lab.sh("rm -r /etc/pve/nodes/pve2").ok();
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    lab.web().use_distribution(&ct);
    show(&lab, "cat /etc/pve/lxc/101.conf");
    title("GPU 0 for it, in one line");
    show(&lab, "phoenix-nvidia attach 101 --gpus 0");
    title("The first start: its task log");
    let first = show(&lab, "pct start 101");
    wait_for_reboot(&lab);
    title("Inside: the assigned GPU opens (ENXIO: allowed, and no driver behind the lab's nodes)");
    for node in ["nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia1"] {
        let path = format!("/dev/{node}");
        let said = match ct.open_node(&path) {
            Ok(()) => "opens".to_owned(),
            Err(Errno::ENXIO) => "ENXIO: access is allowed".to_owned(),
            Err(Errno::ENOENT) => "does not exist: not assigned".to_owned(),
            Err(errno) => errno.to_string(),
        };
        println!("{path:<22} {said}");
    }
    show(&lab, "pct exec 101 -- nvidia-smi");
    title("What was written: one pair of lines for each device");
    show(&lab, "grep ^lxc /etc/pve/lxc/101.conf");
    title("The second start: nothing to do");
    show(&lab, "pct shutdown 101");
    let second = show(&lab, "pct start 101");
    show(&lab, "phoenix-nvidia status");
    println!(
        "\nfirst start {:.1} s with the install, second {:.2} s; all of it {:.0} s",
        first.took.as_secs_f64(),
        second.took.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
    let right = first.exit() == Some(0) && ct.open_node("/dev/nvidia0") == Err(Errno::ENXIO);
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The install process reboots the container once, after the task has ended.
fn wait_for_reboot(lab: &Lab) {
    let line = "until grep -q 'container rebooted' /var/log/phoenix-nvidia/101.log; do sleep 0.1; done; \
                tail -n 1 /var/log/phoenix-nvidia/101.log";
    show(lab, line);
}

fn title(text: &str) {
    println!("\n== {text}");
}

/// Runs a command of the lab's host as a person would see it.
fn show(lab: &Lab, line: &str) -> Output {
    println!("root@pve1:~# {line}");
    let output = lab.sh(line);
    print!("{}{}", output.stdout, output.stderr);
    match output.exit() {
        Some(0) => println!("[{:.2} s]", output.took.as_secs_f64()),
        code => println!("[{:.2} s, exit {code:?}]", output.took.as_secs_f64()),
    }
    output
}
