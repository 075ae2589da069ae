//! status with 100 containers, against the goal of 50 ms: medians of single
//! runs, in a lab.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use phoenix_lab::{Lab, Rootfs};

/// Runs a program many times and prints what each run took, in microseconds.
const LOOP: &str = r#"
for ((i = 0; i < 50; i++)); do
    a=$EPOCHREALTIME
    "$@" >/dev/null 2>&1 || exit 1
    b=$EPOCHREALTIME
    echo $((${b/./} - ${a/./}))
done
"#;

fn main() {
    let Some(lab) = Lab::builder().gpus(8).start() else { return };
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.write("/run/lab/loop", LOOP);
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0,1"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    let conf = lab.conf(101);
    for id in 200..299 {
        lab.write(format!("/etc/pve/lxc/{id}.conf"), &conf);
    }
    for (what, arguments) in [("as a table", vec!["status"]), ("as JSON", vec!["status", "--json"])] {
        let words = ["/run/lab/loop", "/usr/sbin/phoenix-nvidia"].into_iter().chain(arguments);
        let run = lab.command("bash").args(words).run().ok();
        let mut times: Vec<u64> = run.stdout.lines().map(|line| line.trim().parse().unwrap()).collect();
        times.sort_unstable();
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        println!("status {what}, 100 containers: median {median} µs, maximum {most} µs (goal: 50000 µs)");
    }
}
