//! How long pre-start looks at the host: the inventory, and the whole of
//! `provide` with every node in place, on hosts from one card to 56 MIG
//! instances. Prints medians in microseconds, and how many programs ran.

#![allow(clippy::print_stdout, clippy::expect_used, clippy::disallowed_methods)] // a table is its purpose

#[path = "../tests/fixtures/hosts.rs"]
mod hosts;

use hosts::FixtureHost;
use phoenix_nvidia::host::choose::Capabilities;
use phoenix_nvidia::host::gpus::Inventory;
use phoenix_nvidia::host::provide::{Request, provide};
use phoenix_nvidia::sys::time::Deadline;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

fn main() {
    let cases = [
        ("1 GPU", hosts::big(1, 0), "0"),
        ("8 GPUs", hosts::big(8, 0), "all"),
        ("8 GPUs, 56 MIG instances", hosts::big(8, 8), "3:9/0"),
        ("8 GPUs, 56 MIG instances", hosts::big(8, 8), "all"),
    ];
    println!("| host | GPU_ASSIGNMENT | inventory, µs | full inventory, µs | provide, µs | programs run |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, text, assignment) in cases {
        let Some(host) = FixtureHost::from_text(&text) else { return };
        for program in ["usr/bin/nvidia-modprobe", "usr/sbin/modprobe", "usr/bin/nvidia-smi"] {
            logging_program(&host, program);
        }
        let request = Request {
            assignment: assignment.parse().expect("an assignment"),
            capabilities: Capabilities::default(),
            exclusive: None,
        };
        let fast = median(|| drop(Inventory::read_for(host.root(), false)));
        let full = median(|| drop(Inventory::read(host.root())));
        let whole = median(|| {
            let provided = provide(host.root(), &request, &Deadline::secs(10));
            assert!(provided.choice.missing.is_empty(), "{provided:?}");
        });
        let programs = fs::read_to_string(host.at("/calls")).unwrap_or_default().lines().count();
        println!("| {name} | {assignment} | {fast} | {full} | {whole} | {programs} |");
    }
}

/// A program that would be seen if it ran.
fn logging_program(host: &FixtureHost, path: &str) {
    let calls = host.at("/calls");
    assert!(
        host.add(&format!("file /{path}"), &format!("#!/bin/sh\necho x >> {}\nexit 1\n", calls.display()))
    );
    fs::set_permissions(host.at(path), fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// The median of 200 runs, in microseconds.
fn median(mut run: impl FnMut()) -> u128 {
    let mut times: Vec<u128> = (0..200)
        .map(|_| {
            let begun = Instant::now();
            run();
            begun.elapsed().as_micros()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}
