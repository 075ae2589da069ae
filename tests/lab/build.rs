//! Builds the lab's nvidia-smi as a static program and hands it to the library as bytes.
//!
//! The runfiles of the lab install it into containers of other releases, or of busybox alone, where a program linked
//! against this machine's C library would not start. Cargo can't link one binary of a package statically, so rustc is
//! called here; the ordinary `[[bin]]` of the same source is there for its tests and lints.

use std::path::PathBuf;
use std::process::Command;

fn variable(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) => value,
        Err(error) => panic!("cargo sets {name} for build scripts: {error}"),
    }
}

fn main() {
    let source = "src/bin/nvidia-smi";
    println!("cargo::rerun-if-changed={source}");
    println!("cargo::rerun-if-changed=build.rs");
    let program = PathBuf::from(variable("OUT_DIR")).join("nvidia-smi");
    let status = Command::new(variable("RUSTC"))
        .args(["--crate-name", "nvidia_smi", "--edition", "2024", "--cap-lints", "allow"])
        .args(["--target", &variable("TARGET")])
        .args(["-C", "target-feature=+crt-static", "-C", "panic=abort"])
        .args(["-C", "opt-level=s", "-C", "strip=symbols", "-o"])
        .arg(&program)
        .arg(format!("{source}/main.rs"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        other => panic!(
            "linking {} statically failed ({other:?}); it needs libc.a, on Debian: apt install libc6-dev",
            program.display()
        ),
    }
}
