//! Settings: where they may stand, what each verb says of bad ones, and what a
//! start makes of them.
use crate::support;

use phoenix_lab::{Builder, Errno, Lab, Output, Rootfs};
use support::{lab, node, setting};

const SNIPPET: &str = "/var/lib/vz/snippets/phoenix-nvidia";

/// A stopped container without any setting; no driver is installed.
fn plain(builder: Builder) -> Option<Lab> {
    let lab = lab(builder)?;
    node(&lab, "INSTALL=off");
    lab.files().remove(SNIPPET);
    lab.create(101, Rootfs::Busybox.privileged());
    Some(lab)
}

fn run(lab: &Lab, args: &[&str]) -> Output {
    lab.run([&["phoenix-nvidia"], args].concat())
}

/// `check: what` of doctor's failures.
fn failures(lab: &Lab) -> Vec<String> {
    let out = run(lab, &["doctor", "--json", "101"]);
    let report: serde_json::Value =
        serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out}"));
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let failed = findings.iter().filter(|f| f["level"] == "failure");
    failed
        .map(|f| format!("{}: {}", f["check"].as_str().unwrap_or(""), f["what"].as_str().unwrap_or("")))
        .collect()
}

/// The next start knows nothing of the environment of this call.
#[test]
fn attach_writes_what_its_environment_alone_says() {
    let Some(lab) = plain(Lab::builder().gpus(2)) else { return };
    let attach = |env: &[(&str, &str)], args: &[&str]| {
        let command = lab.command("phoenix-nvidia").args(["attach", "101"]).args(args);
        env.iter().fold(command, |command, (key, value)| command.env(key, value)).run()
    };
    // The node says INSTALL=off itself.
    let env = [("GPU_ASSIGNMENT", "1"), ("INSTALL_WAIT", "7"), ("INSTALL", "off"), ("HOOK_CHAIN", "")];
    attach(&env, &[]).ok().says("GPU_ASSIGNMENT=1").says("INSTALL_WAIT=7");
    let conf = lab.conf(101);
    let ours: Vec<&str> = conf.lines().filter(|line| line.starts_with("lxc.environment")).collect();
    assert_eq!(ours.len(), 2, "{conf}");
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(lab.container(101).open_node("/dev/nvidia1"), Err(Errno::ENXIO));
    lab.run(["pct", "stop", "101"]).ok();
    // An option is nearer than the environment.
    attach(&env, &["--gpus", "0"]).ok();
    assert!(lab.conf(101).contains("GPU_ASSIGNMENT=0\n"));

    let before = lab.conf(101);
    attach(&[("NVIDIA_REPO_URL", "https://me:secret@mirror.lab/")], &[])
        .code(2)
        .says("NVIDIA_REPO_URL in the environment holds a password or a token")
        .says("fix: echo \"NVIDIA_REPO_URL=${NVIDIA_REPO_URL:?}\" >>/etc/default/phoenix-nvidia && chmod 600")
        .says_not("secret");
    attach(&[("INSTALL_WAIT", "soon")], &[]).code(2).says("INSTALL_WAIT");
    attach(&[], &["--cuda", ""]).code(2).says("--cuda");
    attach(&[], &["--driver", " "]).code(2).says("--driver");
    assert_eq!(lab.conf(101), before);
}

#[test]
fn every_bad_setting_is_told_at_once_with_its_place_by_every_verb() {
    let Some(lab) = plain(Lab::builder().gpus(1)) else { return };
    node(&lab, "HOOK_CHAIN=mine.sh\nGPU_CAPABILITIES=compute,video");
    for line in ["GPU_ASSIGNMENT=0", "CUDA_PACKAGES=a;b", "MAX_INSTALLS=0", "GPU_EXCLUSIVE=maybe"] {
        setting(&lab, 101, line);
    }
    let bad = [
        "HOOK_CHAIN=mine.sh",
        "GPU_CAPABILITIES=compute,video",
        "CUDA_PACKAGES=a;b",
        "MAX_INSTALLS=0",
        "GPU_EXCLUSIVE=maybe",
    ];
    let before = lab.conf(101);
    for call in [&["101"][..], &["plan", "101"], &["attach", "101", "--gpus", "0"]] {
        let out = run(&lab, call).code(2);
        for value in bad {
            assert!(out.stderr.contains(value), "{call:?}: {value}: {out}");
        }
        assert!(
            out.stderr.contains("/etc/pve/lxc/101.conf line ")
                && out.stderr.contains("/etc/default/phoenix-nvidia line ")
        );
    }
    assert_eq!(lab.conf(101), before);
    assert!(!lab.exists(SNIPPET));
    let found = failures(&lab);
    for value in bad {
        assert!(found.iter().any(|f| f.starts_with(&format!("settings: {value} ("))), "{value}: {found:#?}");
    }
}

/// Each of them costs the container its own effect and nothing else.
#[test]
fn at_a_start_a_bad_value_is_a_warning_and_its_default_counts() {
    for bad in [
        "HOOK_CHAIN=mine.sh",
        "GPU_EXCLUSIVE=maybe",
        "GPU_CAPABILITIES=compute,video",
        "PRE_START_TIMEOUT=soon",
    ] {
        let Some(lab) = plain(Lab::builder().gpus(1)) else { return };
        run(&lab, &["attach", "101", "--gpus", "0"]).ok();
        setting(&lab, 101, bad);
        lab.run(["pct", "start", "101"]).ok().says(bad).says("using the default");
        assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO), "{bad}");
        // With `fail`, what the devices depend on stops the start.
        lab.run(["pct", "stop", "101"]).ok();
        setting(&lab, 101, "START_POLICY=FAIL");
        let devices = bad.starts_with("GPU_");
        let start = lab.run(["pct", "start", "101"]);
        assert_eq!(start.exit(), Some(if devices { 255 } else { 0 }), "{bad}: {start}");
    }
}

#[test]
fn a_chained_hookscript_that_cannot_run_is_refused_before_it_stops_a_start() {
    let Some(lab) = plain(Lab::builder().gpus(1)) else { return };
    setting(&lab, 101, "GPU_ASSIGNMENT=0");
    setting(&lab, 101, "HOOK_CHAIN=/var/lib/vz/snippets/mine");
    let refused = |what: &str| {
        for call in [&["101"][..], &["plan", "101"], &["attach", "101"]] {
            run(&lab, call).code(2).says("HOOK_CHAIN=/var/lib/vz/snippets/mine").says(what);
        }
        assert!(failures(&lab)[0].starts_with("chain: "), "{:?}", failures(&lab));
    };
    refused("does not exist");
    lab.snippet("mine", "#!/bin/sh\n");
    lab.files().chmod("/var/lib/vz/snippets/mine", 0o644);
    refused("chmod 755 /var/lib/vz/snippets/mine");
    lab.files().chmod("/var/lib/vz/snippets/mine", 0o755);
    run(&lab, &["attach", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok();
}

#[test]
fn words_are_read_in_any_case_and_form() {
    let Some(lab) = plain(Lab::builder().gpus(1)) else { return };
    node(
        &lab,
        "CUDA_PACKAGES=None\nUTILITY_PACKAGES=NONE\nSTART_POLICY=Continue\nAFTER_INSTALL=Reboot\nINSTALL=False\nHOOK_CHAIN=None\nNVIDIA_DRIVER_VERSION=Host",
    );
    run(&lab, &["attach", "101", "--gpus", "0"]).ok();
    run(&lab, &["101"]).ok().says("driver check skipped: INSTALL=off");
    lab.create(102, Rootfs::Busybox.privileged());
    run(&lab, &["attach", "102", "--gpus", "0"]).ok();
    for yes in ["true", "On", "YES", "1"] {
        setting(&lab, 102, &format!("GPU_EXCLUSIVE={yes}"));
        run(&lab, &["102"]).code(4).says("in use by running container 101");
    }
    setting(&lab, 102, "GPU_EXCLUSIVE=False");
    run(&lab, &["102"]).ok();
}

#[test]
fn an_empty_value_in_the_conf_does_not_hide_the_node_s() {
    let Some(lab) = plain(Lab::builder().gpus(1)) else { return };
    lab.snippet("mine", "#!/bin/sh\necho \"$@\" >> /run/mine\n");
    node(&lab, "GPU_ASSIGNMENT=0\nHOOK_CHAIN=/var/lib/vz/snippets/mine");
    for line in ["GPU_ASSIGNMENT=", "NVIDIA_DRIVER_VERSION=", "HOOK_CHAIN="] {
        setting(&lab, 101, line);
    }
    run(&lab, &["attach", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(lab.container(101).open_node("/dev/nvidia0"), Err(Errno::ENXIO));
    assert!(lab.read("/run/mine").starts_with("101 pre-start\n"));
    // A container that wants none of it says so.
    lab.run(["pct", "stop", "101"]).ok();
    lab.files().remove("/run/mine");
    setting(&lab, 101, "HOOK_CHAIN=none");
    lab.run(["pct", "start", "101"]).ok();
    assert!(!lab.exists("/run/mine"));
}
