//! What a past run left on record, in `status` and `doctor`: a failure is a
//! finding only while what failed is still wanted and not there.
#![allow(clippy::unwrap_used)] // a helper that fails, fails its test
use crate::support;

use phoenix_lab::web::Fault;
use phoenix_lab::{Lab, Rootfs};
use support::{lab, node, setting};

/// A server with NVIDIA's files and a container with GPU 0, not started.
fn host(more: &str) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver("580.95.05"))?;
    lab.web().standard(&["580.95.05"]);
    node(
        &lab,
        "NVIDIA_RUNFILE_URL=http://127.0.0.1/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run",
    );
    // What doctor asks inside has an answer where other programs keep the disk busy for seconds, too.
    node(&lab, "AFTER_INSTALL=none\nUTILITY_PACKAGES=none\nCHECK_TIMEOUT=60");
    node(&lab, more);
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    lab.web().use_distribution(&ct);
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    Some(lab)
}

/// The findings about the container: check, level, words.
fn all(lab: &Lab) -> Vec<[String; 3]> {
    let out = lab.run(["phoenix-nvidia", "doctor", "101", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter().filter(|f| f["container"] == 101);
    findings.map(|f| ["check", "level", "what"].map(|key| f[key].as_str().unwrap().to_owned())).collect()
}

/// Those of one check, each as its level and words.
fn findings(lab: &Lab, check: &str) -> Vec<String> {
    let of = all(lab).into_iter().filter(|f| f[0] == check);
    of.map(|[_, level, what]| format!("{level} {what}")).collect()
}

/// Those that are not well, as check and level.
fn bad(lab: &Lab) -> Vec<String> {
    let of = all(lab).into_iter().filter(|f| f[1] != "ok");
    of.map(|[check, level, _]| format!("{check} {level}")).collect()
}

fn verdict(lab: &Lab) -> String {
    let out = lab.run(["phoenix-nvidia", "status", "101", "--json"]).ok();
    let report: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
    report["containers"][0]["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn one_call_with_a_bad_environment_leaves_a_healthy_container_healthy() {
    let Some(lab) = host("CUDA_PACKAGES=none") else { return };
    lab.run(["pct", "start", "101"]).ok().says("driver: installed 580.95.05");
    let doctor = || lab.run(["phoenix-nvidia", "doctor", "101"]);
    doctor().ok();
    let bad = [
        ("GPU_ASSIGNMENT", "9", 4),
        ("NVIDIA_DRIVER_VERSION", "580.76.05", 5),
        ("CUDA_PACKAGES", "cuda-no-such-thing", 5),
        ("GPU_ASSIGNMENT", "first", 2),
    ];
    for (key, value, code) in bad {
        lab.command("phoenix-nvidia").arg("101").env(key, value).run().code(code);
        doctor().ok();
        assert_eq!(verdict(&lab), "ok", "{key}={value}");
    }
    assert!(
        findings(&lab, "last-run")[0].starts_with("ok past: by hand failed:"),
        "{doctor}",
        doctor = doctor()
    );
}

#[test]
fn a_failed_install_is_a_finding_until_it_is_there_or_not_wanted() {
    let Some(lab) = host("CUDA_PACKAGES=none") else { return };
    lab.web().fail("*.run", Fault::Status(404));
    lab.run(["pct", "start", "101"]).ok().says("exit code 5");
    let last = findings(&lab, "last-run");
    assert!(last.len() == 1 && last[0].starts_with("failure install failed:"), "{last:?}");
    assert_eq!(bad(&lab), ["version failure", "last-run failure"]);
    assert_eq!(verdict(&lab), "failure");

    setting(&lab, 101, "INSTALL=off");
    let last = findings(&lab, "last-run");
    assert!(last[0].starts_with("ok past: install failed:"), "{last:?}");
    assert_eq!(verdict(&lab), "ok");

    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("lxc.environment: INSTALL=off\n", ""));
    assert_eq!(verdict(&lab), "failure");
    lab.web().heal();
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert!(findings(&lab, "last-run").is_empty());
    assert_eq!(verdict(&lab), "ok");
}

#[test]
fn the_remedy_of_the_last_run_is_told_again_and_not_that_run() {
    let Some(lab) = host("CUDA_PACKAGES=none\nDOWNLOAD_MAX=1") else { return };
    let remedy =
        "fix: correct NVIDIA_RUNFILE_URL, or set a larger DOWNLOAD_MAX in /etc/default/phoenix-nvidia";
    lab.run(["pct", "start", "101"]).ok().says("exceeds DOWNLOAD_MAX (1 MiB)").says(remedy);
    lab.run(["phoenix-nvidia", "doctor", "101"]).says("last-run").says(remedy);
    node(&lab, "DOWNLOAD_MAX=1024");
    lab.run(["phoenix-nvidia", "101"]).ok();
    lab.run(["phoenix-nvidia", "doctor", "101"]).says_not("last-run").says_not("DOWNLOAD_MAX");
}

/// What `status` warns of, `doctor` warns of.
#[test]
fn packages_that_could_not_be_had_are_in_doctor_too() {
    let Some(lab) = host("CUDA_PACKAGES=cuda-toolkit-13-0") else { return };
    lab.web().fail("*/compute/cuda/repos/*", Fault::Status(503));
    node(&lab, "NETWORK_TIMEOUT=1");
    lab.run(["pct", "start", "101"])
        .ok()
        .says("CUDA packages are missing")
        .says("driver: installed 580.95.05");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says("CUDA packages failed earlier");
    assert_eq!(verdict(&lab), "warning");
    assert_eq!(bad(&lab), ["packages warning", "last-run warning"]);
    assert_eq!(findings(&lab, "packages"), ["warning to do: install with apt: cuda-toolkit-13-0"]);
    let last = findings(&lab, "last-run");
    assert!(last.len() == 1 && last[0].starts_with("warning check warned:"), "{last:?}");
    lab.web().heal();
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert!(findings(&lab, "packages").is_empty() && findings(&lab, "last-run").is_empty());
    assert_eq!(verdict(&lab), "ok");
}

/// The first start after an upgrade adds the mounts over /proc/driver/nvidia: until then nothing is wrong with the
/// devices, and a failure of theirs that is over stays over.
#[test]
fn mounts_that_are_to_come_are_no_change_of_devices() {
    let Some(lab) = host("INSTALL=off") else { return };
    lab.run(["pct", "start", "101"]).ok();
    lab.command("phoenix-nvidia").arg("101").env("GPU_ASSIGNMENT", "9").run().code(4);
    let conf = lab.conf(101);
    let older: Vec<&str> =
        conf.lines().filter(|line| !line.contains("/run/phoenix-nvidia/proc/101/")).collect();
    assert_eq!(older.len() + 2, conf.lines().count(), "{conf}");
    lab.write("/etc/pve/lxc/101.conf", older.join("\n") + "\n");
    let out = lab.run(["phoenix-nvidia", "status", "101", "--json"]).ok();
    let row = &serde_json::from_str::<serde_json::Value>(&out.stdout).unwrap()["containers"][0];
    assert_eq!(row["verdict"], "ok", "{row:#}");
    let reasons = row["reasons"].to_string();
    assert!(reasons.contains("next start adds the mounts over /proc/driver/nvidia"), "{row:#}");
    assert!(!reasons.contains("out of date"), "{row:#}");
    let last = findings(&lab, "last-run");
    assert!(last.len() == 1 && last[0].starts_with("ok past: by hand failed:"), "{last:?}");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    assert!(!lab.run(["phoenix-nvidia", "status", "101", "--json"]).ok().stdout.contains("next start"));
}
