//! doctor, in the lab: each finding comes from a host or container broken in
//! just that way, and none of them from a healthy one.
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs, Spec};
use support::{lab, node, setting};

/// What doctor found, and its exit code.
fn doctor(lab: &Lab, args: &[&str]) -> (Vec<serde_json::Value>, Option<i32>) {
    let out = lab.run([&["phoenix-nvidia", "doctor", "--json"], args].concat());
    let report: serde_json::Value =
        serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", out.stdout, out.stderr));
    assert_eq!(report["schema"], 2);
    (report["findings"].as_array().cloned().unwrap_or_default(), out.exit())
}

/// `check level` of all that is not well.
pub(super) fn bad(lab: &Lab) -> Vec<String> {
    let (findings, code) = doctor(lab, &["101"]);
    let text = |f: &serde_json::Value, key: &str| f[key].as_str().unwrap_or_default().to_owned();
    let failed = findings.iter().any(|f| f["level"] == "failure");
    assert_eq!(code, Some(i32::from(failed)), "{findings:#?}");
    for finding in findings.iter().filter(|f| f["level"] == "failure" || f["level"] == "warning") {
        assert!(finding["fix"].is_string(), "no remedy: {finding:#}");
        // To be pasted: nothing stands around the command.
        if ["proc", "target"].contains(&text(finding, "check").as_str()) {
            assert_eq!(finding["fix"], "phoenix-nvidia 101");
        }
    }
    let mut bad: Vec<String> = findings
        .iter()
        .filter(|f| f["level"] != "ok")
        .map(|f| format!("{} {}", text(f, "check"), text(f, "level")))
        .collect();
    bad.dedup();
    bad
}

/// A host with its kmod, and a container that runs with its GPU.
fn healthy(spec: Spec) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver("580.95.05"))?;
    lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 580.95.05\n");
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    let driver = !format!("{spec:?}").contains("Busybox");
    if driver {
        lab.web().runfile(&Runfile::new("580.95.05"));
    } else {
        node(&lab, "INSTALL=off");
    }
    lab.create(101, spec);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    let start = lab.command("pct").args(["start", "101"]).timeout(std::time::Duration::from_secs(150));
    start.run().ok();
    Some(lab)
}

#[track_caller]
fn finds(spec: Spec, expected: &[&str], break_it: impl FnOnce(&Lab)) {
    let Some(lab) = healthy(spec) else { return };
    break_it(&lab);
    assert_eq!(bad(&lab), expected, "{}", lab.run(["phoenix-nvidia", "doctor", "101"]).stdout);
}

fn busybox() -> Spec {
    Rootfs::Busybox.privileged()
}

fn conf(lab: &Lab, from: &str, to: &str) {
    let conf = lab.conf(101);
    assert!(conf.contains(from), "{conf}");
    lab.write("/etc/pve/lxc/101.conf", conf.replace(from, to));
}

fn append(lab: &Lab, line: &str) {
    lab.append("/etc/pve/lxc/101.conf", format!("{line}\n"));
}

#[test]
fn a_healthy_container_has_no_finding() {
    for spec in
        [Rootfs::Busybox.privileged(), Rootfs::Busybox.unprivileged(), Rootfs::Debian12.unprivileged()]
    {
        let Some(lab) = healthy(spec) else { return };
        assert_eq!(bad(&lab), [""; 0]);
        let plain = lab.run(["phoenix-nvidia", "doctor"]).ok();
        plain.says("container 101").says("0 failure, 0 warning, 0 unknown").says_not("\u{1b}[");
        // Stopped, it is as healthy.
        lab.run(["pct", "stop", "101"]).ok();
        assert_eq!(bad(&lab), [""; 0]);
    }
}

#[test]
fn a_driver_that_is_not_loaded() {
    let Some(lab) = healthy(busybox()) else { return };
    lab.run(["pct", "stop", "101"]).ok();
    lab.nvidia().unload();
    let found = bad(&lab);
    assert!(found.contains(&"driver failure".to_owned()), "{found:?}");
}

#[test]
fn a_driver_that_waits_for_the_next_boot() {
    finds(busybox(), &["next-boot warning"], |lab| {
        lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 590.48.01\n");
    });
}

#[test]
fn what_could_not_be_looked_at_is_unknown() {
    finds(busybox(), &["next-boot unknown"], |lab| {
        lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\nkill -9 $$\n");
        lab.files().remove("/usr/sbin/modinfo");
        lab.sh("rm -f /sbin/modinfo");
    });
}

/// nvidia-smi as it is where the driver drives no card.
fn finds_no_device(lab: &Lab) {
    let script = "#!/bin/sh\ncase $1 in\n--version) echo 'NVIDIA-SMI version  : 580.95.05' ;;\n\
                  *) echo 'No devices were found'; exit 6 ;;\nesac\n";
    lab.container(101).files().program("/usr/bin/nvidia-smi", script);
}

/// The remedy of a check.
fn fix(lab: &Lab, check: &str) -> String {
    let (findings, _) = doctor(lab, &["101"]);
    let of = |f: &&serde_json::Value| f["check"] == check && f["level"] != "ok";
    findings.iter().find(of).and_then(|f| Some(f["fix"].as_str()?.to_owned())).unwrap_or_default()
}

#[test]
fn a_card_that_the_module_lists_and_does_not_drive() {
    let Some(lab) = healthy(Rootfs::Debian12.privileged()) else { return };
    lab.nvidia().set_card(0, 0x1bb3, "Tesla P4");
    finds_no_device(&lab);
    let why = "GPU 0 (0000:01:00.0 Tesla P4): the open kernel module 580.95.05 does not drive this Pascal card, which has no GSP";
    let remedy =
        "install a driver of branch 580 with the proprietary kernel module on this host, then reboot it";
    lab.run(["phoenix-nvidia", "101"]).code(5).says(why).says(&format!("fix: {remedy}"));
    let found = bad(&lab);
    assert_eq!(found, ["cards warning", "gpus failure", "nvidia-smi failure", "last-run failure"]);
    for check in ["cards", "gpus", "nvidia-smi", "last-run"] {
        assert_eq!(fix(&lab, check), remedy, "{check}");
    }
    lab.run(["phoenix-nvidia", "status", "101"]).says(why);
    lab.run(["phoenix-nvidia", "plan", "101"]).says(why);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"])
        .ok()
        .says(why)
        .says(&format!("fix: {remedy}"));
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says(why);
}

#[test]
fn a_card_that_needs_the_open_module_and_one_that_a_branch_has_dropped() {
    let Some(lab) = healthy(busybox()) else { return };
    let proprietary = |version: &str| {
        let line = format!(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Mon Dec  8 13:05:00 UTC 2025\n"
        );
        lab.write("/run/lab/nvidia/proc-driver/nvidia/version", line);
        lab.write("/run/lab/nvidia/module/nvidia/version", format!("{version}\n"));
        lab.replace_program("/usr/sbin/modinfo", format!("#!/bin/sh\necho {version}\n"));
    };
    for (id, version, branch) in [
        (0x2b85, "580.95.05", "branch 570 or newer with the open kernel module"),
        (0x1004, "535.288.01", "branch 470 with the proprietary kernel module"),
    ] {
        lab.nvidia().set_card(0, id, "NVIDIA Some");
        lab.nvidia().set_card(1, 0x1eb8, "Tesla T4");
        proprietary(version);
        assert_eq!(bad(&lab), ["cards warning", "gpus failure"], "{version}");
        assert!(fix(&lab, "gpus").contains(branch), "{}", fix(&lab, "gpus"));
    }
}

#[test]
fn a_card_that_the_driver_does_not_number() {
    let Some(lab) = healthy(busybox()) else { return };
    lab.nvidia().hide_gpu(1);
    let log = "echo 'NVRM: GPU 0000:02:00.0: RmInitAdapter failed! (0x22:0x56:884)'";
    lab.replace_program("/usr/bin/dmesg", format!("#!/bin/sh\n{log}\n"));
    assert_eq!(bad(&lab), ["cards warning"]);
    let text = lab.run(["phoenix-nvidia", "doctor"]);
    text.says("card 0000:02:00.0 (NVIDIA card 10de:2684): bound to nvidia, which shows no device minor")
        .says("the kernel says: GPU 0000:02:00.0: RmInitAdapter failed! (0x22:0x56:884)");
    // Where it is assigned, it is the container's too.
    setting(&lab, 101, "GPU_ASSIGNMENT=0000:02:00.0");
    let found = bad(&lab);
    assert!(found.contains(&"gpus failure".to_owned()), "{found:?}");
    lab.run(["phoenix-nvidia", "status", "101"])
        .says("GPU 0000:02:00.0: bound to nvidia, which shows no device minor");
    let attach = lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0000:02:00.0"]).code(4);
    attach.says("bound to nvidia, which shows no device minor");
    setting(&lab, 101, "GPU_ASSIGNMENT=all");
    let left = "not among all GPUs: 0000:02:00.0 NVIDIA card 10de:2684 (bound to nvidia, which shows no device minor)";
    lab.run(["phoenix-nvidia", "status", "101"]).says(left);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "all"]).ok().says(left);
    // One that it refused, and one that nouveau has.
    lab.nvidia().set_card(1, 0x1b81, "");
    lab.sh("rm /run/lab/nvidia/pci/0000:02:00.0/driver").ok();
    let refused = lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0000:02:00.0"]).code(4);
    refused.says("bound to no driver: the open kernel module 580.95.05 does not drive this Pascal card");
    lab.nvidia().bind_gpu(1, "nouveau");
    assert!(fix(&lab, "cards").starts_with("printf 'blacklist %s\\n' nouveau > /etc/modprobe.d/"));
    // For a VM.
    lab.nvidia().bind_gpu(1, "vfio-pci");
    assert_eq!(fix(&lab, "cards"), "");
}

#[test]
fn nvidia_smi_that_fails_where_all_is_right_is_told_with_the_kernels_words() {
    let Some(lab) = healthy(Rootfs::Debian12.privileged()) else { return };
    finds_no_device(&lab);
    let log = "echo 'NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x40:2393)'";
    lab.replace_program("/usr/bin/dmesg", format!("#!/bin/sh\n{log}\n"));
    assert_eq!(bad(&lab), ["nvidia-smi failure"]);
    let said = lab.run(["phoenix-nvidia", "101"]).code(5);
    said.says("exit code 6, no devices found; the kernel says: GPU 0000:01:00.0: RmInitAdapter failed!");
    assert_eq!(bad(&lab), ["nvidia-smi failure", "last-run failure"]);
    assert_eq!(fix(&lab, "last-run"), "dmesg | grep NVRM | tail");
}

#[test]
fn nodes_that_are_missing_or_stale() {
    finds(busybox(), &["nodes warning"], |lab| lab.nvidia().remove_node("/dev/nvidia1"));
    finds(busybox(), &["nodes warning"], |lab| {
        lab.nvidia().remove_node("/dev/nvidia1");
        lab.nvidia().make_node("/dev/nvidia1", 195, 7);
    });
    finds(busybox(), &["nodes failure"], |lab| {
        lab.nvidia().remove_node("/dev/nvidia1");
        lab.sh("touch /dev/nvidia1").ok();
    });
}

/// As root of a privileged container can leave it (tests/vm).
#[test]
fn a_dev_that_is_read_only() {
    let Some(lab) = healthy(busybox()) else { return };
    lab.sh("mount -o remount,ro /dev").ok();
    assert_eq!(bad(&lab), ["dev failure"]);
    let remedy = fix(&lab, "dev");
    lab.sh(&remedy).ok();
    lab.nvidia().remove_node("/dev/nvidia1");
    lab.sh("mount -o remount,ro /dev").ok();
    assert_eq!(bad(&lab), ["dev failure", "nodes warning"]);
    let remedy = format!("{remedy} && phoenix-nvidia prepare");
    lab.run(["phoenix-nvidia", "prepare"])
        .code(4)
        .says("cannot make /dev/nvidia1 (c 195:1): EROFS: Read-only file system")
        .says(&format!("fix: {remedy}"));
    lab.sh(&remedy).ok();
    assert_eq!(bad(&lab), Vec::<String>::new());
}

#[test]
fn modes_that_keep_an_unprivileged_container_out() {
    finds(Rootfs::Busybox.unprivileged(), &["modes failure", "rules failure"], |lab| {
        lab.sh("chmod 600 /dev/nvidia0").ok();
    });
    finds(busybox(), &[], |lab| drop(lab.sh("chmod 600 /dev/nvidia0").ok()));
}

#[test]
fn settings_and_gpus_that_are_not_there() {
    finds(busybox(), &["settings failure"], |lab| append(lab, "lxc.environment: GPU_ASIGNMENT=1"));
    finds(busybox(), &["settings failure"], |lab| append(lab, "lxc.environment: CUDA_PACKAGES=a;b"));
    let Some(lab) = healthy(busybox()) else { return };
    setting(&lab, 101, "GPU_ASSIGNMENT=7");
    let found = bad(&lab);
    assert!(found.contains(&"gpus failure".to_owned()), "{found:?}");
}

#[test]
fn an_environment_that_names_no_gpu_of_the_assignment() {
    finds(busybox(), &["narrowed warning"], |lab| {
        append(lab, "lxc.environment.runtime: NVIDIA_VISIBLE_DEVICES=1")
    });
}

#[test]
fn settings_that_have_no_effect() {
    finds(busybox(), &["no-effect warning"], |lab| {
        append(lab, "lxc.environment: CUDA_PACKAGES=cuda-toolkit-13-0")
    });
    finds(busybox(), &["no-effect warning"], |lab| append(lab, "lxc.environment.runtime: GPU_ASSIGNMENT=1"));
    finds(busybox(), &["no-effect warning"], |lab| {
        append(lab, "\n[snap]\narch: amd64\nlxc.environment: INSTALL_WAIT=5");
    });
    finds(busybox(), &[], |lab| append(lab, "lxc.environment: INSTALL_WAIT=0"));
    let Some(lab) = healthy(busybox()) else { return };
    lab.run(["phoenix-nvidia", "attach", "101"]).ok().says_not("no effect");
    setting(&lab, 101, "GPU_ASSIGNMENT=none");
    setting(&lab, 101, "GPU_EXCLUSIVE=yes");
    let line = lab.conf(101).lines().count();
    for call in ["attach", "plan"] {
        let told = lab.run(["phoenix-nvidia", call, "101"]);
        let told = told.says(&format!("GPU_EXCLUSIVE (/etc/pve/lxc/101.conf line {line}) has no effect"));
        told.says(&format!("fix: remove line {line} of /etc/pve/lxc/101.conf"));
    }
    let plan = lab.command("phoenix-nvidia").args(["plan", "101"]).env("START_POLICY", "fail").run();
    plan.says("START_POLICY (the environment) has no effect: it decides in starts by this call alone");
    // Not at each start.
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "start", "101"]).ok().says_not("no effect");
}

#[test]
fn descriptions_of_a_driver_that_has_gone() {
    let Some(lab) = healthy(Rootfs::Debian12.privileged()) else { return };
    let ct = lab.container(101);
    let library = |version: &str| format!("/usr/lib/x86_64-linux-gnu/libcuda.so.{version}");
    let cdi = |version: &str| {
        format!("cdiVersion: 0.5.0\n  mounts:\n  - containerPath: {0}\n    hostPath: {0}\n", library(version))
    };
    ct.write("/etc/cdi/nvidia.yaml", cdi("580.95.05"));
    ct.write("/etc/OpenCL/vendors/nvidia.icd", "libnvidia-opencl.so.1\n");
    assert_eq!(bad(&lab), [""; 0]);
    ct.write("/etc/cdi/nvidia.yaml", cdi("570.148.08"));
    assert_eq!(bad(&lab), ["stale-files warning"]);
    lab.run(["phoenix-nvidia", "doctor", "101"])
        .says("fix: pct exec 101 -- nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml");
    // As JSON, and from OpenCL: each its own remedy, which ends it.
    ct.write("/etc/cdi/nvidia.yaml", cdi("580.95.05"));
    ct.write("/etc/cdi/nvidia-old.json", format!("{{\"hostPath\": \"{}\",}}\n", library("470.256.02")));
    assert_eq!(bad(&lab), ["stale-files warning"]);
    ct.sh("rm /etc/cdi/nvidia-old.json").ok();
    ct.write("/etc/OpenCL/vendors/nvidia.icd", "libnvidia-opencl.so.470.256.02\n");
    assert_eq!(bad(&lab), ["stale-files warning"]);
    let fix = "pct exec 101 -- sh -c 'echo libnvidia-opencl.so.1 >/etc/OpenCL/vendors/nvidia.icd'";
    lab.run(["phoenix-nvidia", "doctor", "101"]).says(fix);
    lab.sh(fix).ok();
    assert_eq!(bad(&lab), [""; 0]);
}

#[test]
fn an_install_that_runs_is_not_told_as_interrupted() {
    let Some(lab) = healthy(Rootfs::Debian12.privileged()) else { return };
    let ct = lab.container(101);
    ct.write("/var/lib/phoenix-nvidia/driver.installing", "580.95.05\n");
    assert_eq!(bad(&lab), ["version failure"]);
    let lock = "/run/lock/phoenix-nvidia/101.lock";
    let holder = lab.command("flock").args([lock, "sleep", "60"]).spawn();
    lab.sh(&format!("until ! flock -n {lock} true; do sleep 0.1; done")).ok();
    assert_eq!(bad(&lab), [""; 0]);
    lab.run(["phoenix-nvidia", "doctor", "101"]).ok().says("an install is running");
    drop(holder);
    assert_eq!(bad(&lab), ["version failure"]);
}

#[test]
fn hookscripts_that_are_missing_or_broken() {
    const SNIPPET: &str = "/var/lib/vz/snippets/phoenix-nvidia";
    finds(busybox(), &["hookscript warning"], |lab| {
        drop(lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok())
    });
    finds(busybox(), &["hookscript failure"], |lab| lab.files().remove(SNIPPET));
    finds(busybox(), &["hookscript failure"], |lab| lab.files().chmod(SNIPPET, 0o644));
    finds(busybox(), &["hookscript failure"], |lab| conf(lab, "local:snippets", "tape:snippets"));
    finds(busybox(), &["hookscript warning"], |lab| lab.snippet("phoenix-nvidia", "#!/bin/sh\n"));
}

#[test]
fn entries_that_older_scripts_left() {
    let old = "lxc.mount.entry = /dev/nvidia1 /dev/nvidia1 none bind,optional,create=file 0 0";
    finds(busybox(), &["target failure"], |lab| append(lab, old));
    finds(busybox(), &["snapshot warning"], |lab| append(lab, &format!("\n[snap]\narch: amd64\n{old}")));
    finds(busybox(), &["twice failure"], |lab| {
        let with = "dev0: /dev/nvidia0\nhookscript: ";
        conf(lab, "hookscript: ", with);
    });
    finds(busybox(), &["allow-all warning"], |lab| append(lab, "lxc.cgroup2.devices.allow: a"));
    finds(busybox(), &["apparmor warning"], |lab| append(lab, "lxc.apparmor.profile: unconfined"));
}

#[test]
fn dev_lines_that_do_not_do_what_is_meant() {
    let with = |lines: &str| format!("{lines}\nhookscript: ");
    let find = |expected: &str, lines: &str| {
        finds(busybox(), &[expected], |lab| conf(lab, "hookscript: ", &with(lines)));
    };
    find("dev-line failure", "dev0: /dev/nvidia1, gid=44");
    find("dev-line warning", "dev0: /dev/nvidia1,deny-write=1");
    finds(busybox(), &["pending warning"], |lab| {
        let pair = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0\n\
                    lxc.cgroup2.devices.allow: c 195:0 rwm\n";
        conf(lab, pair, "");
        conf(lab, "hookscript: ", &with("dev0: gid=44,path=/dev/nvidia0"));
        append(lab, "\n[pve:pending]\ndelete: dev0");
    });
}

#[test]
fn a_container_that_is_shown_the_gpus_of_others() {
    finds(busybox(), &["proc warning"], |lab| drop(lab.sh("umount -l /run/phoenix-nvidia/proc/101").ok()));
    finds(busybox(), &["proc warning"], |lab| {
        lab.sh("sed -i '\\,phoenix-nvidia/proc/101/gpus,d' /etc/pve/lxc/101.conf").ok();
    });
}

#[test]
fn a_chained_hookscript_that_cannot_run() {
    const MINE: &str = "/var/lib/vz/snippets/mine";
    let line = format!("lxc.environment: HOOK_CHAIN={MINE}");
    finds(busybox(), &[], |lab| {
        lab.snippet("mine", "#!/bin/sh\n");
        append(lab, &line);
    });
    finds(busybox(), &["chain failure"], |lab| append(lab, &line));
    finds(busybox(), &["chain failure"], |lab| {
        lab.snippet("mine", "#!/bin/sh\n");
        lab.files().chmod(MINE, 0o644);
        append(lab, &line);
    });
}

#[test]
fn a_boot_unit_that_is_not_enabled() {
    let wants = "/etc/systemd/system/multi-user.target.wants";
    finds(busybox(), &["boot-unit warning"], |lab| drop(lab.sh("mkdir -p /run/systemd/system").ok()));
    finds(busybox(), &[], |lab| {
        lab.sh("mkdir -p /run/systemd/system").ok();
        lab.sh(&format!(
            "mkdir -p {wants}; ln -s /lib/systemd/system/x {wants}/phoenix-nvidia-nodes.service"
        ))
        .ok();
    });
}

#[test]
fn templates_and_locks() {
    finds(busybox(), &["template warning"], |lab| conf(lab, "hookscript: ", "template: 1\nhookscript: "));
    finds(busybox(), &["lock warning"], |lab| conf(lab, "hookscript: ", "lock: backup\nhookscript: "));
}

#[test]
fn devices_and_rules_that_the_running_container_lacks() {
    finds(busybox(), &["devices failure"], |lab| conf(lab, "GPU_ASSIGNMENT=0", "GPU_ASSIGNMENT=0,1"));
    // Started with the entries and without the rules.
    let Some(lab) = healthy(busybox()) else { return };
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    let whole = lab.conf(101);
    let bare: String =
        whole.lines().filter(|l| !l.contains("devices.allow")).map(|l| format!("{l}\n")).collect();
    lab.write("/etc/pve/lxc/101.conf", bare);
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(bad(&lab), ["hookscript warning", "rules failure"]);
}

#[test]
fn drivers_that_do_not_fit() {
    let debian = || Rootfs::Debian12.privileged();
    let inside = |lab: &Lab, line: &str| drop(lab.container(101).sh(line).ok());
    finds(debian(), &["version failure"], |lab| {
        lab.nvidia().set_driver("580.76.05");
        lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 580.76.05\n");
    });
    finds(debian(), &["version failure"], |lab| {
        inside(lab, "nvidia-uninstall -s || rm -f /usr/bin/nvidia-smi")
    });
    // The tool alone, from elsewhere.
    finds(debian(), &["version failure"], |lab| {
        let script = "#!/bin/sh\\necho NVIDIA-SMI version  : 570.86.10\\n";
        inside(
            lab,
            &format!(
                "rm /usr/bin/nvidia-smi; printf '{script}' > /usr/bin/nvidia-smi; chmod 755 /usr/bin/nvidia-smi"
            ),
        );
    });
    finds(debian(), &["mixed-driver failure"], |lab| {
        inside(
            lab,
            "echo /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.1 > /var/lib/dpkg/info/libnvidia-ml1:amd64.list",
        );
    });
}

#[test]
fn services_that_do_not_belong_inside() {
    let Some(lab) = healthy(Rootfs::Debian12.privileged()) else { return };
    let ct = lab.container(101);
    ct.sh("mkdir -p /etc/systemd/system/multi-user.target.wants && ln -s /dev/zero /etc/systemd/system/multi-user.target.wants/nvidia-persistenced.service").ok();
    assert_eq!(bad(&lab), ["persistenced warning"]);
    ct.sh("rm /etc/systemd/system/multi-user.target.wants/nvidia-persistenced.service").ok();
    ct.sh("mkdir -p /etc/nvidia-container-runtime; echo '#no-cgroups = false' > /etc/nvidia-container-runtime/config.toml").ok();
    assert_eq!(bad(&lab), [""; 0]);
    ct.sh("printf '#!/bin/sh\\n' > /usr/bin/dockerd; chmod 755 /usr/bin/dockerd").ok();
    assert_eq!(bad(&lab), ["docker warning"]);
    ct.sh("echo 'no-cgroups = true' > /etc/nvidia-container-runtime/config.toml").ok();
    assert_eq!(bad(&lab), [""; 0]);
}

#[test]
fn a_container_that_does_not_answer_is_unknown_and_in_time() {
    let Some(lab) = healthy(busybox()) else { return };
    lab.replace_program("/usr/bin/lxc-attach", "#!/bin/sh\nsleep 1000\n");
    node(&lab, "CHECK_TIMEOUT=1");
    let found = bad(&lab);
    assert_eq!(found, ["rules unknown", "inside unknown"]);
}

#[test]
fn nodes_of_the_cluster_that_are_not_ready() {
    let Some(lab) = healthy(busybox()) else { return };
    lab.sh("mkdir -p /etc/pve/nodes/beta/lxc /etc/pve/ha").ok();
    lab.write("/etc/pve/.members", r#"{"nodelist": {"beta": {"id": 2, "online": 1, "ip": "192.0.2.12"}}}"#);
    assert_eq!(bad(&lab), [""; 0], "nothing brings it to another node by itself");
    let version = |version: &str| {
        let answer = format!("#!/bin/sh\necho package=1\necho snippet=1\necho phoenix-nvidia {version}\n");
        lab.replace_program("/usr/bin/ssh", answer);
    };
    version(env!("CARGO_PKG_VERSION"));
    assert_eq!(bad(&lab), [""; 0]);
    version("0.0.9");
    assert_eq!(bad(&lab), ["versions warning"]);
    lab.run(["phoenix-nvidia", "doctor", "101"]).says("node beta has phoenix-nvidia 0.0.9, this node");
    lab.write("/etc/pve/ha/resources.cfg", "ct: 101\n\tstate started\n");
    lab.replace_program("/usr/bin/ssh", "#!/bin/sh\necho package=1\necho snippet=1\n");
    assert_eq!(bad(&lab), [""; 0]);
    lab.replace_program("/usr/bin/ssh", "#!/bin/sh\necho package=0\necho snippet=0\n");
    assert_eq!(bad(&lab), ["other-node failure"]);
    lab.replace_program("/usr/bin/ssh", "#!/bin/sh\necho 'connection refused' >&2; exit 255\n");
    assert_eq!(bad(&lab), ["other-node unknown"]);
    lab.files().remove("/etc/pve/ha/resources.cfg");
    lab.write("/etc/pve/replication.cfg", "local: 101-0\n\ttarget beta\n");
    lab.replace_program("/usr/bin/ssh", "#!/bin/sh\necho package=0\necho snippet=1\n");
    assert_eq!(bad(&lab), ["other-node failure"]);
    lab.files().remove("/etc/pve/replication.cfg");
    // `local` is on every node, whatever its entry says; any other storage may not be.
    let nodes = "\tnodes alpha,pve,pve1,lab\n";
    let local = lab
        .read("/etc/pve/storage.cfg")
        .replace("\tpath /var/lib/vz\n", &format!("\tpath /var/lib/vz\n{nodes}"));
    let some = format!("\ndir: some\n\tpath /srv/some\n\tcontent snippets\n{nodes}");
    lab.write("/etc/pve/storage.cfg", local + &some);
    assert_eq!(bad(&lab), [""; 0]);
    lab.sh("mkdir -p /srv/some/snippets && cp /var/lib/vz/snippets/phoenix-nvidia /srv/some/snippets/").ok();
    conf(&lab, "local:snippets", "some:snippets");
    assert_eq!(bad(&lab), ["hook-storage warning"]);
}

#[test]
fn files_that_cannot_be_read_are_unknown() {
    finds(busybox(), &["look unknown"], |lab| {
        lab.sh("rm /etc/pve/storage.cfg && mkdir /etc/pve/storage.cfg").ok();
    });
}

#[test]
fn a_password_where_others_can_read_it_is_told() {
    // Nothing is installed, so it is of no use either.
    finds(busybox(), &["no-effect warning", "secret warning"], |lab| {
        append(lab, "lxc.environment: NVIDIA_REPO_URL=https://me:kr0kodil@mirror.lab/x");
    });
    finds(busybox(), &["secret warning"], |lab| {
        lab.append(
            "/etc/default/phoenix-nvidia",
            "NVIDIA_REPO_KEY_URL=https://mirror.lab/key?token=kr0kodil\n",
        );
    });
}

#[test]
fn rules_that_open_more_than_was_assigned() {
    for rule in ["c 195:* rwm", "c 195:1 rwm", "c 506:* rwm"] {
        finds(busybox(), &["wide-rule warning"], |lab| {
            append(lab, &format!("lxc.cgroup2.devices.allow: {rule}"));
        });
    }
    // It makes no nodes, so that no rule gives it one.
    finds(Rootfs::Busybox.unprivileged(), &[], |lab| append(lab, "lxc.cgroup2.devices.allow: c 195:* rwm"));
    finds(busybox(), &["allow-all warning"], |lab| append(lab, "lxc.cgroup2.devices.allow: c *:* rwm"));
    // It may be that of another device, wherever that stands.
    for other in
        ["dev5: /dev/null", "lxc.mount.entry: /dev/bus/usb dev/bus/usb none bind,optional,create=dir"]
    {
        finds(busybox(), &[], |lab| {
            append(lab, &format!("lxc.cgroup2.devices.allow: c 506:* rwm\n{other}"));
        });
    }
    let Some(lab) = healthy(busybox()) else { return };
    append(&lab, "lxc.cgroup2.devices.allow: c 511:* rwm");
    assert_eq!(bad(&lab), [""; 0], "nvidia-uvm has it today");
    lab.nvidia().set_uvm_major(509);
    lab.append("/run/lab/nvidia/devices", "");
    let devices = lab.read("/run/lab/nvidia/devices");
    lab.write("/run/lab/nvidia/devices", devices.replacen("\n\n", "\n511 hidraw\n\n", 1));
    let line = lab.conf(101).lines().count();
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"])
        .ok()
        .says(&format!("line {line} allows a number that belongs to hidraw today"));
}

#[test]
fn driver_files_of_the_host_that_a_conf_mounts() {
    finds(Rootfs::Debian12.unprivileged(), &["host-files warning"], |lab| {
        lab.run(["pct", "stop", "101"]).ok();
        append(lab, "lxc.mount.entry: /usr/bin/env usr/bin/nvidia-smi none bind,ro,optional,create=file");
    });
}

/// A container that has the host's driver, and a shell to look with.
fn injected() -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver("580.95.05"))?;
    lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 580.95.05\n");
    lab.nvidia().user_space("580.95.05");
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.create(101, Rootfs::Debian12.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0", "--inject"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(bad(&lab), [""; 0]);
    Some(lab)
}

#[test]
fn what_the_hosts_driver_in_a_container_needs() {
    let Some(lab) = injected() else { return };
    let ct = lab.container(101);
    // Unmounted below a container that has it.
    lab.sh("umount /run/phoenix-nvidia/driver/580.95.05").ok();
    assert_eq!(bad(&lab), ["tree failure"]);
    lab.run(["phoenix-nvidia", "prepare"]).ok();
    assert_eq!(bad(&lab), [""; 0]);
    ct.sh("rm /usr/lib/x86_64-linux-gnu/libcuda.so.1").ok();
    assert_eq!(bad(&lab), ["links warning"], "one that went");
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert_eq!(bad(&lab), [""; 0]);
    // A package with an encoder, say, that came later.
    let library = "/usr/lib/x86_64-linux-gnu/libnvidia-encode.so.580.95.05";
    lab.sh(&format!("echo | gcc -shared -nostdlib -x c - -Wl,-soname,libnvidia-encode.so.1 -o {library}"))
        .ok();
    assert_eq!(bad(&lab), ["tree warning"]);
    lab.run(["phoenix-nvidia", "doctor", "101"]).says("older than libnvidia-encode.so.580.95.05");
    lab.run(["phoenix-nvidia", "prepare"]).ok();
    assert_eq!(bad(&lab), [""; 0]);
    ct.sh("rm -r /var/lib/phoenix-nvidia").ok();
    assert_eq!(bad(&lab), ["links warning"]);
    lab.run(["phoenix-nvidia", "101"]).ok();
    ct.sh("cp /usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2/libcuda.so.580.95.05 /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10").ok();
    assert_eq!(bad(&lab), ["beside warning"]);
    ct.sh("rm /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10").ok();
    ct.sh("umount /usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2 /usr/lib/x86_64-linux-gnu/x86_64").ok();
    assert_eq!(bad(&lab), ["mounted failure"]);
    lab.run(["phoenix-nvidia", "101"]).ok().says("restart container 101");
    assert_eq!(bad(&lab), [""; 0]);
    conf(&lab, "arch: amd64", "arch: i386");
    let found = bad(&lab);
    assert!(found.contains(&"inject failure".to_owned()), "{found:?}");
}

/// Whoever wrote it: a conf may have thousands of lines of one kind.
#[test]
fn thousands_of_lines_of_one_kind_are_told_in_a_few() {
    let Some(lab) = healthy(busybox()) else { return };
    let lines = "lxc.environment: GPU_ASSIGNEMENT=0\n".repeat(20_000);
    lab.append("/etc/pve/lxc/101.conf", lines);
    let start = lab.run(["phoenix-nvidia", "101", "pre-start"]).ok();
    assert!(start.stderr.lines().count() < 20, "{} lines", start.stderr.lines().count());
    let start = start.says("did you mean GPU_ASSIGNMENT?").says("19990 more lines of the settings");
    assert!(start.took < std::time::Duration::from_secs(10), "{start}");
    lab.run(["phoenix-nvidia", "101"]).code(2).says("19990 more");
    assert!(doctor(&lab, &["101"]).0.len() < 60);
    let all: Vec<String> = (100..2000).map(|n| n.to_string()).collect();
    conf(&lab, &"lxc.environment: GPU_ASSIGNEMENT=0\n".repeat(20_000), "");
    append(&lab, &format!("lxc.environment: GPU_ASSIGNMENT={}", all.join(",")));
    let start = lab.run(["phoenix-nvidia", "101", "pre-start"]).ok().says("and 1880 more");
    assert!(start.stderr.lines().count() < 40, "{} lines", start.stderr.lines().count());
    assert!(doctor(&lab, &["101"]).0.len() < 60);
}

#[test]
fn two_files_of_one_repository_and_files_that_a_detached_container_has() {
    const SOURCE: &str = "/etc/apt/sources.list.d/phoenix-nvidia.sources";
    let Some(lab) = healthy(Rootfs::Debian12.unprivileged()) else { return };
    let ct = lab.container(101);
    ct.write(SOURCE, "Types: deb\nURIs: http://h/x/\nSuites: /\nSigned-By: /a.gpg\n");
    assert_eq!(bad(&lab), [""; 0]);
    ct.write("/etc/apt/sources.list.d/mine.list", "deb [signed-by=/a.gpg] http://h/x /\n");
    assert_eq!(bad(&lab), ["apt-source warning"]);
    ct.write("/etc/apt/sources.list.d/mine.list", "deb [signed-by=/b.gpg] http://h/x /\n");
    assert_eq!(bad(&lab), ["apt-source failure"]);
    // Settings and hookscript are gone, as a restore without root's rights has it.
    lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    let conf: String =
        lab.conf(101).lines().filter(|l| !l.contains("GPU_")).map(|l| format!("{l}\n")).collect();
    lab.write("/etc/pve/lxc/101.conf", conf);
    let found = bad(&lab);
    assert!(found.contains(&"left-files warning".to_owned()), "{found:?}");
}

#[test]
fn a_capabilities_directory_into_which_a_container_could_write() {
    for left in ["mknod /dev/nvidia-caps/x b 8 0", "chmod 777 /dev/nvidia-caps"] {
        finds(busybox(), &["caps failure"], |lab| drop(lab.sh(left).ok()));
    }
    finds(busybox(), &["caps warning"], |lab| {
        // As version 0.2.0 started it.
        lab.run(["pct", "stop", "101"]).ok();
        let new = "/dev/nvidia-caps/nvidia-cap2 dev/nvidia-caps/nvidia-cap2 none bind,optional,create=file";
        conf(lab, new, "/dev/nvidia-caps dev/nvidia-caps none bind,optional,create=dir");
        lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
        lab.run(["pct", "start", "101"]).ok();
        lab.run(["pct", "set", "101", "--hookscript", "local:snippets/phoenix-nvidia"]).ok();
    });
}

/// A new check comes with the lab that shows it.
#[test]
fn every_check_is_shown_by_a_broken_lab() {
    let shown = concat!(
        include_str!("doctor.rs"),
        include_str!("nested.rs"),
        include_str!("recorded.rs"),
        include_str!("../robust/startable.rs")
    );
    // A check's name is the first string of a finding, or that of an obstacle.
    let starts =
        ["Finding::warning(\"", "Finding::failure(\"", "Finding::unknown(\"", "line(c,\"", "..}=>\""];
    let mut checks = std::collections::BTreeSet::new();
    let findings = concat!(env!("CARGO_MANIFEST_DIR"), "/src/findings");
    for file in std::fs::read_dir(findings).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let flat: String = text.split("#[cfg(test)]").next().unwrap_or_default().split_whitespace().collect();
        for start in starts {
            let names = flat.split(start).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
            checks.extend(names);
        }
    }
    // What attach alone warns of.
    checks.retain(|check| !["ha", "glibc"].contains(&check.as_str()));
    assert!(checks.len() >= 20, "{checks:?}");
    for check in checks {
        let levels = ["warning", "failure", "unknown"];
        assert!(levels.iter().any(|level| shown.contains(&format!("\"{check} {level}\""))), "{check}");
    }
}
