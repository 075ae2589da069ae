//! Driver files of the host that others mounted into a container: no installer runs over them.
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use support::{lab, node, setting};

const CONF: &str = "/etc/pve/lxc/131.conf";

/// A container whose conf mounts this much of the host's driver, attached.
fn mounted(entries: &[(&str, &str, &str)]) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(1).driver("580.95.05"))?;
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    lab.web().runfile(&Runfile::new("580.95.05"));
    lab.create(131, Rootfs::Debian12.unprivileged());
    for (source, target, create) in entries {
        match *create {
            "dir" => lab.sh(&format!("mkdir -p {source}; echo lib > {source}/libcuda.so.1")).ok(),
            _ => lab.sh(&format!("mkdir -p /opt/hostlib; echo lib > {source}; chmod 755 {source}")).ok(),
        };
        lab.append(
            CONF,
            format!("lxc.mount.entry: {source} {target} none bind,ro,optional,create={create}\n"),
        );
    }
    Some(lab)
}

/// `lines 9, 10` of the conf as it is now.
fn lines(lab: &Lab) -> String {
    let conf = lab.conf(131);
    let numbers = (1..).zip(conf.lines()).filter(|(_, line)| line.contains("/opt/hostlib"));
    let numbers: Vec<String> = numbers.map(|(n, _)| n.to_string()).collect();
    format!("line{} {}", if numbers.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

#[track_caller]
fn no_installer_runs(lab: &Lab) {
    lab.run(["phoenix-nvidia", "attach", "131", "--gpus", "0"])
        .ok()
        .says(&format!("{} of its conf mount driver files of the host", lines(lab)));
    let said = format!(
        "no driver is installed in container 131 over driver files of the host, mounted by {}",
        lines(lab)
    );
    for _ in 0..2 {
        lab.command("pct")
            .args(["start", "131"])
            .timeout(std::time::Duration::from_secs(150))
            .run()
            .says(&lines(lab));
        let ct = lab.container(131);
        assert!(!ct.exists("/var/log/nvidia-installer.log") && !ct.exists("/var/lib/nvidia/log"));
        lab.run(["phoenix-nvidia", "131"])
            .code(5)
            .says(&said)
            .says("INSTALL=off")
            .says("fix: nano /etc/pve/lxc/131.conf");
        lab.run(["phoenix-nvidia", "plan", "131"]).code(5).says(&said);
        lab.run(["phoenix-nvidia", "doctor", "131"]).code(1).says("host-files").says(&lines(lab));
        lab.run(["pct", "stop", "131"]).ok();
    }
    setting(lab, 131, "INSTALL=off");
    lab.run(["pct", "start", "131"]).ok().says_not("WARNING");
    lab.run(["phoenix-nvidia", "doctor", "131"]).ok().says_not("host-files");
}

#[test]
fn libraries_that_a_conf_mounts_file_by_file_are_left_alone_and_named() {
    let Some(lab) = mounted(&[
        ("/opt/hostlib/libnvidia-ml.so.570.148.08", "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "file"),
        ("/opt/hostlib/libcuda.so.570.148.08", "usr/lib/x86_64-linux-gnu/libcuda.so.1", "file"),
        ("/opt/hostlib/nvidia-smi", "usr/bin/nvidia-smi", "file"),
    ]) else {
        return;
    };
    no_installer_runs(&lab);
}

#[test]
fn a_directory_of_the_hosts_libraries_is_left_alone_and_named() {
    let Some(lab) = mounted(&[("/opt/hostlib/all", "usr/lib/x86_64-linux-gnu/nvidia", "dir")]) else {
        return;
    };
    no_installer_runs(&lab);
}
