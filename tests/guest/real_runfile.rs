//! NVIDIA's own runfiles, as Ubuntu's source packages carry them: what containers get of them is what NVIDIA's lists say,
//! and works; the genuine installer in a container gives the same files.
// NVIDIA's script unpacks them for comparison, within a time limit; helpers of a test may panic.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)]
use crate::support;

use phoenix_lab::{Lab, Rootfs};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::real::runfile;
use support::{lab, node, setting, unpacks_without_running};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";

/// What its own script unpacks.
fn unpacked(file: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(file.parent().unwrap()).unwrap();
    let all = dir.path().join("all");
    let mut command = Command::new("timeout");
    command.args(["300", "sh"]).arg(file).args(["-x", "--target"]).arg(&all);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    dir
}

/// What a container needs by NVIDIA's list for container tools. Of that are not in a tree: the loader of OpenCL, which
/// is not NVIDIA's; what is for Windows; Vulkan's file for safety-critical systems.
fn listed(all: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(all.join("sandboxutils-filelist.json")).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let host = ["firmware", "modprobe", "nvpd", "powerd", "xdriver", "utils", "nvsandboxutils"];
    let wanted = |entry: &&serde_json::Value| {
        let name = entry["name"].as_str().unwrap();
        let categories = entry["category"].as_array().unwrap();
        entry.get("is_32bit_compat").is_none()
            && entry["type"] != "SYMLINK"
            && (categories.iter().any(|c| !host.contains(&c.as_str().unwrap()))
                || name.contains("nvidia-cfg"))
            && !name.starts_with("libOpenCL")
            && !name.ends_with(".dll")
            && name != "nvidia_icd_vksc.json"
    };
    list.iter().filter(wanted).map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

/// The links to these libraries that the manifest names.
fn links(all: &Path, files: &BTreeSet<String>) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(all.join(".manifest")).unwrap();
    let native = text.lines().filter(|line| line.contains(" 0000 ") && line.contains(" NATIVE "));
    let word = |line: &str| -> (String, String) {
        let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with("MODULE:")).collect();
        (words[0].to_owned(), words.last().unwrap().rsplit('/').next().unwrap().to_owned())
    };
    let all: BTreeMap<String, String> = native.map(word).collect();
    let end = |name: &String| {
        let mut name = name;
        while let Some(next) = all.get(name) {
            name = next;
        }
        name.clone()
    };
    let ours = all.keys().filter(|name| name.starts_with("lib")).map(|name| (name.clone(), end(name)));
    ours.filter(|(_, end)| files.contains(end)).collect()
}

/// Prints the CUDA version that a libcuda says to have.
const CUDA: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    int version = 0;
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!cuda) return puts(dlerror()), 1;
    int (*get)(int *) = (int (*)(int *))dlsym(cuda, "cuDriverGetVersion");
    if (!get || get(&version)) return 2;
    printf("%d\n", version);
    return 0;
}
"#;

fn host(version: &str, file: &Path, mode: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver(version))?;
    let lines =
        "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nINSTALL_WAIT=300\nREADY_TIMEOUT=60";
    node(&lab, &format!("{lines}\nDRIVER_MODE={mode}\nNVIDIA_RUNFILE_URL={}", file.display()));
    lab.create(101, Rootfs::Debian12.unprivileged());
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    Some(lab)
}

/// All files below the tree by their names, with their paths.
fn files(lab: &Lab, tree: &str) -> BTreeMap<String, String> {
    let found = lab.sh(&format!("cd {tree} && find . -type f ! -name .phoenix-nvidia")).ok().stdout;
    let pair = |path: &str| (path.rsplit('/').next().unwrap().to_owned(), format!("{tree}/{path}"));
    found.lines().map(pair).collect()
}

fn unpacked_without_running_it(branch: &str, cuda: &str) {
    let Some((version, file)) = runfile(branch) else { return };
    let Some(lab) = host(&version, &file, "inject") else { return };
    // The window of its compression is 128 MiB.
    let run = unpacks_without_running(&lab, 500_000);
    run.says(&format!("driver {version}: unpacked from")).says_not("WARNING");
    let reference = unpacked(&file);
    let (all, tree) = (reference.path().join("all"), format!("/var/lib/phoenix-nvidia/driver/{version}"));
    let (listed, files) = (listed(&all), files(&lab, &tree));
    assert!(listed.len() > 40, "{listed:?}");
    assert_eq!(files.keys().cloned().collect::<BTreeSet<_>>(), listed);
    for (name, path) in &files {
        lab.sh(&format!("cmp {path} {}/{name}", all.display())).ok();
    }
    let links = links(&all, &listed);
    assert!(links.len() > 15, "{links:?}");
    for (name, end) in &links {
        let found = lab.sh(&format!("basename $(readlink -f {tree}/{name})")).ok().stdout;
        assert_eq!(found.trim(), end, "{name}");
    }
    // Each library is found by the name that others ask for.
    let sonames = format!(
        "cd {tree} && for file in $(find . -maxdepth 1 -type f -name 'lib*'); do \
         name=$(objdump -p $file | awk '$1 == \"SONAME\" {{ print $2 }}'); \
         [ -z \"$name\" ] || [ $(readlink -f $name) = $(readlink -f $file) ] || echo $name $file; done"
    );
    assert_eq!(lab.sh(&sonames).ok().stdout, "");
    lab.write("/root/cuda.c", CUDA);
    lab.sh("gcc -o /root/cuda /root/cuda.c -ldl").ok();
    assert_eq!(lab.sh(&format!("LD_LIBRARY_PATH={tree} /root/cuda")).ok().stdout.trim(), cuda);
    // In a container: 12 is "library not found", 9 "no kernel driver".
    let start = lab.command("pct").args(["start", "101"]).timeout(Duration::from_secs(300)).run().ok();
    start.says("the host's, mounted").says_not("unpacked").says_not("WARNING");
    let ct = lab.container(101);
    ct.exec(["nvidia-smi"]).code(9);
    ct.exec(["nvidia-smi", "-h"]).ok().says(&format!("-- v{version}"));
}

#[test]
#[ignore = "make test-all: 0.4 GB to download, 4 GB of space"]
fn nvidias_590_is_unpacked_as_its_lists_say() {
    unpacked_without_running_it("590", "13010");
}

#[test]
#[ignore = "make test-all: 0.4 GB to download, 4 GB of space"]
fn nvidias_570_is_unpacked_as_its_lists_say() {
    unpacked_without_running_it("570", "12080");
}

/// The requirements' path with the installer that NVIDIA ships, in a container without a card, where its nvidia-smi finds
/// no kernel driver: the same files as in a tree.
#[test]
#[ignore = "make test-all: 0.4 GB to download, 5 GB of space"]
fn nvidias_own_installer_gives_a_container_the_same_files() {
    let Some((version, file)) = runfile("590") else { return };
    let Some(lab) = host(&version, &file, "install") else { return };
    setting(&lab, 101, "GPU_ASSIGNMENT=none");
    let run = lab.command(PROGRAM).arg("101").timeout(Duration::from_secs(500)).run().ok();
    run.says(&format!("driver: installed {version}")).says("verify: no GPU assigned").says_not("WARNING");
    let ct = lab.container(101);
    ct.exec(["nvidia-smi"]).code(9);
    ct.exec(["nvidia-smi", "-h"]).ok().says(&format!("-- v{version}"));
    let reference = unpacked(&file);
    let all = reference.path().join("all");
    let root = "/var/lib/vz/images/101/subvol-101-disk-0.subvol";
    for name in listed(&all).iter().filter(|name| name.ends_with(&version) && !name.starts_with("libvdpau")) {
        lab.sh(&format!("cmp {}/{name} {root}/usr/lib/x86_64-linux-gnu/{name}", all.display())).ok();
    }
    let odd =
        format!("find {root} -name 'nvidia*.ko*' -o -path '*/i386-linux-gnu/*nvidia*' -o -name '*.run'");
    assert_eq!(lab.sh(&odd).ok().stdout, "");
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    lab.run([PROGRAM, "101"]).ok().says_not("driver: installed").says_not("restart");
}
