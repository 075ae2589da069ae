//! Thirty containers started one after another, as at boot, with nothing to
//! do: what a start takes in the lab without the hookscript, with it, and how
//! much of that is each phase of ours. Milliseconds.
#![allow(clippy::print_stdout, clippy::expect_used)] // a table is its purpose

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use std::time::Duration;

const CONTAINERS: std::ops::Range<u32> = 101..131;
const DRIVER: &str = "580.95.05";
const SETTINGS: &str = "NVIDIA_RUNFILE_URL=/srv/driver.run\nCUDA_PACKAGES=none\nUTILITY_PACKAGES=none\n\
                        AFTER_INSTALL=none\nMAX_INSTALLS=2\n";

/// Stands between Proxmox and the program, and writes down what each phase
/// takes.
const TIMED: &str = "#!/bin/bash
a=$EPOCHREALTIME
/usr/sbin/phoenix-nvidia \"$@\"
code=$?
b=$EPOCHREALTIME
echo \"$2 $((${b/./} - ${a/./}))\" >>/tmp/phases
exit $code
";

fn main() {
    let Some(lab) = Lab::builder().gpus(1).driver(DRIVER).start() else { return };
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    let runfile = Runfile::new(DRIVER).build().expect("a runfile");
    lab.write("/srv/driver.run", std::fs::read(runfile).expect("a runfile"));
    lab.append("/etc/default/phoenix-nvidia", SETTINGS);
    lab.snippet("timed", TIMED);
    for id in CONTAINERS {
        lab.create(id, Rootfs::Debian12.unprivileged());
        lab.append(format!("/etc/pve/lxc/{id}.conf"), "lxc.environment: GPU_ASSIGNMENT=0\n");
    }
    println!("| 30 starts, one after another | median, ms | longest, ms |");
    println!("| --- | --- | --- |");
    row("a start in the lab, no hookscript", boot(&lab));
    for id in CONTAINERS {
        let id = id.to_string();
        lab.run(["pct", "set", &id, "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
        lab.run(["pct", "start", &id]).ok();
        lab.run(["pct", "stop", &id]).ok();
        lab.run(["pct", "set", &id, "--hookscript", "local:snippets/timed"]).ok();
    }
    row("a start with the hookscript, nothing to do", boot(&lab));
    let phases = lab.read("/tmp/phases");
    for phase in ["pre-start", "post-start", "post-stop"] {
        let of = |line: &str| line.strip_prefix(phase)?.trim().parse().ok().map(Duration::from_micros);
        row(&format!("of that {phase}, our process"), phases.lines().filter_map(of).collect());
    }
}

/// Starts all of them, then stops them.
fn boot(lab: &Lab) -> Vec<Duration> {
    let took = CONTAINERS.map(|id| lab.run(["pct", "start", &id.to_string()]).ok().took).collect();
    for id in CONTAINERS {
        lab.run(["pct", "stop", &id.to_string()]).ok();
    }
    took
}

fn row(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let (Some(median), Some(longest)) = (took.get(took.len() / 2), took.last()) else {
        return println!("| {what} | none | none |");
    };
    let ms = |d: &Duration| d.as_secs_f64() * 1000.0;
    println!("| {what} | {:.1} | {:.1} |", ms(median), ms(longest));
}
