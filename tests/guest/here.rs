//! Drivers that are on no public server (vGPU, GRID, OEM): the file that the
//! host's driver was installed from, by its path or in a directory.
#![allow(clippy::unwrap_used)] // a failing helper fails its test
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Output, Rootfs};
use support::{again, node, start};

const V: &str = "570.148.06";
/// Of the same release, for guests: public.
const OTHER: &str = "570.148.08";
const REMEDY: &str = "fix: set NVIDIA_RUNFILE_URL to the file that the host's driver was installed from";

/// A host whose driver is on no server.
fn host() -> Option<Lab> {
    let lab = support::lab(Lab::builder().gpus(1).driver(V))?;
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    lab.create(101, Rootfs::Debian12.unprivileged());
    support::hooked(&lab);
    lab.web().runfile(&Runfile::new(OTHER));
    Some(lab)
}

fn put(lab: &Lab, path: &str, version: &str) {
    lab.write(path, std::fs::read(Runfile::new(version).build().unwrap()).unwrap());
}

/// No word of what is not done with files of this host.
#[track_caller]
fn of_a_file(output: &Output) {
    for word in ["delete", "retry", "download", "server", "404", "tries again"] {
        assert!(!output.stdout.contains(word) && !output.stderr.contains(word), "{word}: {output}");
    }
}

#[test]
fn a_driver_that_is_not_published_is_one_sentence_and_what_to_set() {
    let Some(lab) = host() else { return };
    let words = "570.148.06 for x86_64 is not published there (vGPU, GRID and OEM drivers are not public)";
    start(&lab).ok().says(words).says(REMEDY).says("exit code 5").says_not("tries again");
    lab.run(["phoenix-nvidia", "101"]).code(5).says(words).says(REMEDY);
    lab.run(["phoenix-nvidia", "prefetch"]).code(5).says(words).says(REMEDY);
}

#[test]
fn a_file_of_another_version_is_told_and_left_alone_and_a_directory_is_searched() {
    let Some(lab) = host() else { return };
    let grid = "/root/nvidia/NVIDIA-Linux-x86_64-570.148.08-grid.run";
    put(&lab, grid, OTHER);
    node(&lab, &format!("NVIDIA_RUNFILE_URL=file://{grid}"));
    let refused =
        start(&lab).ok().says(&format!("{grid}: contains driver {OTHER}, expected {V}")).says(REMEDY);
    of_a_file(&refused);
    assert!(lab.exists(grid));
    node(&lab, "NVIDIA_RUNFILE_URL=/root/nvidia");
    let refused =
        again(&lab).ok().says("/root/nvidia has only driver 570.148.08").says("fix: copy the file that");
    of_a_file(&refused);
    // Beside what must not be opened, and under the name that a browser gave it.
    lab.sh("mkfifo /root/nvidia/nvidia.run; ln -s /dev/zero /root/nvidia/zero.run").ok();
    put(&lab, "/root/nvidia/NVIDIA-Linux-x86_64-570.148.06-vgpu (1).run", V);
    node(&lab, "NVIDIA_RUNFILE_URL=file:///root/nvidia/");
    let installed = again(&lab).ok().says("driver: installed 570.148.06").says_not("WARNING");
    of_a_file(&installed);
    lab.container(101).exec(["nvidia-smi"]).ok().says(V);
    lab.run(["phoenix-nvidia", "prefetch"]).ok().says("already in the cache");
    assert!(lab.exists(grid));
}

#[test]
fn a_path_without_a_runfile_is_told_in_one_sentence() {
    let Some(lab) = host() else { return };
    node(&lab, "NVIDIA_RUNFILE_URL=/root/none/NVIDIA-Linux-{arch}-{version}.run");
    let refused =
        start(&lab).ok().says("no such file: /root/none/NVIDIA-Linux-x86_64-570.148.06.run").says(REMEDY);
    of_a_file(&refused);
    lab.sh("mkdir -p /root/page; echo '<html>' >/root/page/NVIDIA.run").ok();
    node(&lab, "NVIDIA_RUNFILE_URL=/root/page/NVIDIA.run");
    of_a_file(&again(&lab).ok().says("/root/page/NVIDIA.run: not a runfile (a web page)").says(REMEDY));
    node(&lab, "NVIDIA_RUNFILE_URL=/root/page");
    of_a_file(&again(&lab).ok().says("/root/page has no runfile"));
}
