use super::*;
use std::fs;

/// A directory that looks like a host with this kernel driver and library; nodes need root, so they are made apart.
struct Host(tempfile::TempDir);

impl Host {
    fn new(kernel: &str, library: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.write(
            "proc/driver/nvidia/version",
            &format!(
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {kernel}  Release Build  (a@b)\n"
            ),
        );
        host.write(
            "proc/driver/nvidia/gpus/0000:01:00.0/information",
            "Model: \t\t NVIDIA L40S\nGPU UUID: \t GPU-11111111-2222-3333-4444-555555555555\nBus Location: \t 0000:01:00.0\nDevice Minor: \t 1\n",
        );
        if !library.is_empty() {
            let arch = std::env::consts::ARCH;
            host.write(
                &format!("usr/lib/{arch}-linux-gnu/libnvidia-ml.so.1"),
                &format!("\x7fELF…lab nvidia library {library}\0…"),
            );
        }
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes a node as a host has it; false where this user can't.
    fn node(&self, name: &str, minor: &str) -> bool {
        fs::create_dir_all(self.0.path().join("dev")).unwrap();
        let path = self.0.path().join("dev").join(name);
        let mknod = std::process::Command::new("mknod").arg(path).args(["c", "195", minor]).status();
        mknod.is_ok_and(|status| status.success())
    }

    fn run(&self, arguments: &[&str], version: &str) -> (String, u8) {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        run(&arguments, version, self.0.path())
    }
}

#[test]
fn the_stamp_is_empty_until_a_runfile_is_built() {
    assert_eq!(own_version(), "");
    assert_eq!(STAMP.iter().filter(|&&byte| byte == b'.').count(), 48 - STAMP_TEXT_AT);
}

#[test]
fn without_library_or_node_the_codes_are_the_measured_ones() {
    let host = Host::new("580.95.05", "");
    assert_eq!(host.run(&["-L"], "580.95.05").1, 12);
    let host = Host::new("580.95.05", "580.95.05");
    assert_eq!(host.run(&["--version"], "580.95.05").1, 9);
    assert_eq!(host.run(&["--nonsense"], "580.95.05").1, 9);
    assert_eq!(host.run(&["-h"], "580.95.05").1, 0);
    fs::remove_file(host.0.path().join("proc/driver/nvidia/version")).unwrap();
    assert_eq!(host.run(&[], "580.95.05").1, 9);
}

#[test]
fn with_nodes_it_answers_as_its_branch_does() {
    let host = Host::new("580.95.05", "580.95.05");
    if !host.node("nvidiactl", "255") {
        return;
    }
    let (text, code) = host.run(&["--version"], "580.95.05");
    assert_eq!(code, 0, "{text}");
    assert_eq!(
        text,
        "NVIDIA-SMI version  : 580.95.05\nNVML version        : 580.95\nDRIVER version      : 580.95.05\nCUDA Version        : 13.0\n"
    );
    assert_eq!(host.run(&[], "580.95.05"), ("No devices were found\n".to_owned(), 6));
    assert_eq!(host.run(&["-L"], "580.95.05").1, 0);
    assert!(host.node("nvidia1", "1"));
    let query = ["--query-gpu=index,uuid,pci.bus_id,driver_version", "--format=csv,noheader"];
    let expected = "0, GPU-11111111-2222-3333-4444-555555555555, 00000000:01:00.0, 580.95.05\n";
    assert_eq!(host.run(&query, "580.95.05"), (expected.to_owned(), 0));
    let (table, code) = host.run(&[], "580.95.05");
    assert!(code == 0 && table.contains("NVIDIA L40S"), "{table}");
    assert_eq!(host.run(&["-i", "3"], "580.95.05").1, 6);
    assert_eq!(host.run(&["--nonsense"], "580.95.05").1, 255);
    assert_eq!(host.run(&["--query-gpu=index"], "580.95.05").1, 2);
    assert_eq!(host.run(&["--query-gpu=shoe.size", "--format=csv"], "580.95.05").1, 2);
}

#[test]
fn a_mismatch_and_old_options_go_by_branch() {
    for (version, mismatch, unknown) in [("470.256.02", 255, 2), ("535.183.01", 18, 255)] {
        let host = Host::new("580.95.05", version);
        if !host.node("nvidiactl", "255") {
            return;
        }
        assert_eq!(host.run(&[], version).1, mismatch);
        let host = Host::new(version, version);
        assert!(host.node("nvidiactl", "255"));
        assert_eq!(host.run(&["--version"], version).1, unknown);
    }
    let host = Host::new("615.71.09", "615.71.09");
    assert!(host.node("nvidiactl", "255"));
    let (text, code) = host.run(&["--version"], "615.71.09");
    assert!(code == 0 && text.contains("KMD version         : 615.71.09\n"), "{text}");
    assert!(text.contains("Deprecated, see \"KMD version\" instead"), "{text}");
}

#[test]
fn a_file_in_a_nodes_place_is_no_node() {
    let host = Host::new("580.95.05", "580.95.05");
    host.write("dev/nvidiactl", "");
    assert_eq!(host.run(&[], "580.95.05").1, 9);
    let host = Host::new("580.95.05", "580.95.05");
    if !host.node("nvidiactl", "255") {
        return;
    }
    host.write("dev/nvidia1", "");
    assert_eq!(host.run(&[], "580.95.05").1, 6);
}
