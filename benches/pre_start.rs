//! pre-start with nothing to change, against the requirements' shell version
//! of the same step, in a lab: medians of single runs in microseconds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use phoenix_lab::{Lab, Rootfs};

/// `configure_host_gpu_passthrough()` of the requirements, to the letter.
const SHELL: &str = r#"#!/bin/bash
CTID=$1
LXC_CONF_FILE="/etc/pve/lxc/${CTID}.conf"
[ -f "$LXC_CONF_FILE" ] || exit 4
entries=()
if [ "$GPU_ASSIGNMENT" != none ]; then
    IFS=, read -ra indices <<<"$GPU_ASSIGNMENT"
    for IDX in "${indices[@]}"; do
        DEVICE_PATH="/dev/nvidia${IDX}"
        test -e "$DEVICE_PATH" || echo "no $DEVICE_PATH" >&2
        entries+=("lxc.mount.entry = ${DEVICE_PATH} ${DEVICE_PATH} none bind,optional,create=file 0 0")
    done
fi
for STD in /dev/nvidiactl /dev/nvidia-uvm /dev/nvidia-uvm-tools; do
    test -e "$STD" && entries+=("lxc.mount.entry = ${STD} ${STD} none bind,optional,create=file 0 0")
done
test -e /dev/nvidia-caps && entries+=("lxc.mount.entry = /dev/nvidia-caps /dev/nvidia-caps none bind,optional,create=dir 0 0")
for ENTRY in "${entries[@]}"; do
    if grep -Fxq "$ENTRY" "$LXC_CONF_FILE"; then
        echo "already there: $ENTRY" >&2
    else
        echo "adding $ENTRY" >&2
        echo "$ENTRY" >>"$LXC_CONF_FILE"
    fi
done
"#;

/// Runs a program many times and prints what each run took, in microseconds.
const LOOP: &str = r#"
for ((i = 0; i < 200; i++)); do
    a=$EPOCHREALTIME
    "$@" >/dev/null 2>&1 || exit 1
    b=$EPOCHREALTIME
    echo $((${b/./} - ${a/./}))
done
"#;

fn main() {
    for gpus in [1, 8] {
        let Some(lab) = Lab::builder().gpus(gpus).start() else { return };
        lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
        lab.write("/run/lab/loop", LOOP);
        lab.files().program("/run/lab/requirements", SHELL);
        let all: Vec<String> = (0..gpus).map(|gpu| gpu.to_string()).collect();
        let assignment = all.join(",");
        let median = |number: u32, program: &[&str]| {
            lab.create(number, Rootfs::Busybox.privileged());
            let id = number.to_string();
            let words = ["/run/lab/loop"].into_iter().chain(program.iter().copied());
            let words: Vec<&str> = words.map(|word| if word == "ID" { &id } else { word }).collect();
            let run = || lab.command("bash").args(&words).env("GPU_ASSIGNMENT", &assignment).run().ok();
            run(); // makes the changes
            let mut times: Vec<u64> = run().stdout.lines().map(|line| line.trim().parse().unwrap()).collect();
            times.sort_unstable();
            times[times.len() / 2]
        };
        let ours = median(101, &["/usr/sbin/phoenix-nvidia", "ID", "pre-start"]);
        let shell = median(102, &["/run/lab/requirements", "ID"]);
        println!(
            "pre-start, nothing to change, {gpus} GPUs: {ours} µs; the requirements' shell version: {shell} µs"
        );
    }
}
