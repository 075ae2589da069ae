//! plan, in the lab: it says what a run would do, and touches nothing.

use crate::robust_support;

use phoenix_lab::{Lab, Rootfs};
use robust_support::{installing, node, says, wait_for_the_end};

const NODE: &str = "NVIDIA_DRIVER_VERSION=host\nNVIDIA_REPO_URL=http://mirror.lab/\nNVIDIA_RUNFILE_URL=http://mirror.lab/x.run\nCUDA_PACKAGES=none\n";

fn lab() -> Option<Lab> {
    let lab = Lab::builder().gpus(2).start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.write("/etc/default/phoenix-nvidia", NODE);
    Some(lab)
}

/// Every file of the host that could be changed, with its bytes, numbers and
/// times, and what runs.
fn everything(lab: &Lab) -> String {
    lab.sh(
        "find /etc/pve /etc/default /var/lib/lxc /var/lib/vz /var/lib/phoenix-nvidia /var/cache/phoenix-nvidia /var/log/phoenix-nvidia \
         /run/phoenix-nvidia /run/lock /dev /tmp -printf '%p %i %m %U:%G %s %T@ %l\\n' 2>/dev/null | grep -v ' /dev/pts' | sort; \
         find /etc/pve /var/lib/lxc -type f -exec md5sum {} + | sort; ls -l /dev/nvidia*; ps -eo comm= | grep -v -e '^ps$' -e '^sh$' -e '^sort$' -e '^grep$' | sort",
    )
    .ok()
    .stdout
}

#[test]
fn plan_tells_the_steps_and_the_diff_and_changes_nothing() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\nlxc.environment: INSTALL=off\n");
    lab.nvidia().remove_node("/dev/nvidia-uvm");
    let before = everything(&lab);
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(10)
        .says("make device node /dev/nvidia-uvm: it is missing")
        .says("+ lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file 0 0")
        .says("+ lxc.cgroup2.devices.allow: c 195:0 rwm")
        .says("added /dev/nvidia-uvm (c 511:0)")
        .says("start container 101")
        .says_not("\u{1b}[");
    assert_eq!(everything(&lab), before);

    // On a terminal the diff has colours, unless they are not wanted.
    let terminal =
        |env: &str| lab.sh(&format!("{env} script -qc 'phoenix-nvidia plan 101' /dev/null")).stdout;
    assert!(terminal("TERM=xterm").contains("\u{1b}[32m+ lxc.mount.entry"), "{}", terminal(""));
    assert!(!terminal("NO_COLOR=1").contains("\u{1b}["));

    // The run does what the plan said, and then there is nothing left to do.
    lab.run(["phoenix-nvidia", "101"]).ok();
    lab.run(["phoenix-nvidia", "plan", "101"])
        .ok()
        .says("Nothing to do")
        .says("driver check skipped: INSTALL=off");
    let conf = lab.conf(101);
    lab.write("/etc/pve/lxc/101.conf", conf.replace("GPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT=1\n"));
    let before = everything(&lab);
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(10)
        .says("- lxc.mount.entry: /dev/nvidia0")
        .says("+ lxc.mount.entry: /dev/nvidia1")
        .says("restart container 101: the running container does not have /dev/nvidia1 yet; the running container still has /dev/nvidia0");
    assert_eq!(everything(&lab), before);
}

#[test]
fn plan_looks_into_a_running_container() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Debian12.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(10)
        .says("after the start: install driver 580.95.05 if missing");
    lab.run(["pct", "start", "101"]).ok();
    let before = everything(&lab);
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(10)
        .says("install driver 580.95.05 (found none)")
        .says("its driver changes");
    assert_eq!(everything(&lab), before);
}

#[test]
fn a_run_s_errors_are_plan_s_errors() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "plan", "101"]).code(2).says("GPU_ASSIGNMENT");
    lab.run(["phoenix-nvidia", "plan", "999"]).code(3).says("999");
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=7\n");
    lab.run(["phoenix-nvidia", "plan", "101"]).code(4).says("GPU 7");
    let out = lab.sh("phoenix-nvidia plan 101 2>/dev/null | head -0; exit 0");
    out.ok();
}

#[test]
fn a_template_is_not_started_and_plan_says_so() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.run(["pct", "template", "101"]).ok();
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(10)
        .says("added /dev/nvidia0")
        .says("is a template")
        .says_not("start container");
    lab.run(["phoenix-nvidia", "101"]).ok();
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");
}

/// A container without glibc can have the devices and no driver: what the run
/// fails with, plan says, with the steps that come before.
#[test]
fn plan_fails_with_what_the_run_fails_with() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.run(["pct", "start", "101"]).ok();
    let plan = lab.run(["phoenix-nvidia", "plan", "101"]).code(5).says("added /dev/nvidia0");
    let plan = plan.says("cannot install a driver in container 101").says_not("Nothing to do");
    let run = lab.run(["phoenix-nvidia", "101"]).code(5);
    let reason = |text: &str| {
        let line = text.lines().find(|l| l.contains("cannot install a driver")).unwrap_or_default();
        line.split("ERROR: ").nth(1).unwrap_or_default().to_owned()
    };
    assert!(!reason(&plan.stderr).is_empty(), "{plan}");
    assert_eq!(reason(&plan.stderr), reason(&run.stderr));
}

/// Another repository in the settings: plan tells the step, the run does that
/// one and no other, and then there is nothing to do.
#[test]
fn an_outdated_apt_source_is_a_step_of_plan_and_run() {
    let Some(lab) = Lab::builder().gpus(1).driver("580.95.05").start() else { return };
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.web().standard(&["580.95.05"]);
    lab.append(
        "/etc/default/phoenix-nvidia",
        "NVIDIA_RUNFILE_URL=http://127.0.0.1/XFree86/Linux-x86_64/{version}/NVIDIA-Linux-x86_64-{version}.run\n",
    );
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    lab.web().use_distribution(&ct);
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\n");
    lab.run(["phoenix-nvidia", "101"]).ok().says("to do: install driver 580.95.05 (found none)");
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");

    lab.sh("cp -a $(find /run/lab/web -type d -path '*compute/cuda/repos') $(find /run/lab/web -type d -path '*compute/cuda')/repos2").ok();
    lab.append(
        "/etc/default/phoenix-nvidia",
        "NVIDIA_REPO_URL=http://mirror.lab/compute/cuda/repos2/{distro}/{arch}\n",
    );
    let said = "replace the apt source";
    lab.run(["phoenix-nvidia", "plan", "101"]).code(10).says(said).says_not("install ");
    let run = lab.run(["phoenix-nvidia", "101"]).ok();
    run.says(&format!("to do: {said}")).says("set up").says_not("cuda: installed");
    ct.sh("cat /etc/apt/sources.list.d/phoenix-nvidia.sources").ok().says("/cuda/repos2/");
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");
    lab.run(["phoenix-nvidia", "101"]).ok().says_not("to do");
}

/// Device rules are those of the start. A container that was started without
/// them, by an edit of the conf say, has the nodes and may not open them.
#[test]
fn rules_that_the_running_container_lacks_are_a_restart_of_plan_and_run() {
    let Some(lab) = lab() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\nlxc.environment: INSTALL=off\n");
    lab.run(["phoenix-nvidia", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    let conf = lab.conf(101);
    let bare: Vec<&str> = conf.lines().filter(|line| !line.contains("devices.allow")).collect();
    lab.write("/etc/pve/lxc/101.conf", format!("{}\n", bare.join("\n")));
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(phoenix_lab::Errno::EPERM));
    // Whoever repairs the conf by hand has not repaired the container that runs.
    lab.write("/etc/pve/lxc/101.conf", &conf);
    let said = "the running container has no device rule for /dev/nvidia0";
    lab.run(["phoenix-nvidia", "plan", "101"]).code(10).says(&format!("restart container 101: {said}"));
    lab.run(["phoenix-nvidia", "101"]).ok().says(said);
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(phoenix_lab::Errno::ENXIO));
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");
}

/// An install whose restart is still due, and then INSTALL=off: what plan says,
/// the run does, once.
#[test]
fn a_restart_that_is_due_is_a_step_of_plan_and_run_without_an_install_too() {
    let Some(lab) = installing() else { return };
    node(&lab, "AFTER_INSTALL=none");
    lab.run(["pct", "start", "101"]).ok();
    wait_for_the_end(&lab);
    let ct = lab.container(101);
    let before = ct.init_pid();
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");
    node(&lab, "AFTER_INSTALL=reboot\nINSTALL=off");
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(10)
        .says("restart container 101: its services run with the previous driver");
    lab.run(["phoenix-nvidia", "doctor", "101"]).says("restart-due");
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert!(ct.running() && ct.init_pid() != before);
    assert_eq!(says(&lab, 101, "restart_due"), "null");
    lab.run(["phoenix-nvidia", "plan", "101"]).ok().says("Nothing to do");
    lab.run(["phoenix-nvidia", "doctor", "101"]).says_not("restart-due");
    let after = ct.init_pid();
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert_eq!(ct.init_pid(), after);
}

/// What keeps the conf from being edited comes before what keeps the container
/// from being restarted, for the run and for plan.
#[test]
fn a_conf_that_cannot_be_edited_is_the_same_failure_of_plan_and_run() {
    let Some(lab) = lab() else { return };
    let pve = lab.pmxcfs();
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/101.conf", "lxc.environment: GPU_ASSIGNMENT=0\nlxc.environment: INSTALL=off\n");
    lab.run(["phoenix-nvidia", "101"]).ok();
    let init = ct.init_pid();
    let other = lab.conf(101).replace("GPU_ASSIGNMENT=0\n", "GPU_ASSIGNMENT=1\n");
    let agree = |said: &str| {
        let before = lab.conf(101);
        let errors = ["phoenix-nvidia plan 101", "phoenix-nvidia 101"].map(|call| {
            let out = lab.sh(call).code(4).says(said);
            let all = out.stderr.lines().filter_map(|line| Some(line.split_once("ERROR: ")?.1.to_owned()));
            all.collect::<Vec<_>>()
        });
        assert_eq!(errors[0], errors[1]);
        assert_eq!((lab.conf(101), ct.init_pid()), (before, init));
    };
    lab.write("/etc/pve/lxc/101.conf", other.replacen("memory:", "lock: backup\nmemory:", 1));
    agree("locked by another operation (backup)");
    lab.run(["pct", "unlock", "101"]).ok();
    pve.lose_quorum(&lab);
    agree("this node has no quorum");
    pve.find_quorum(&lab);
    lab.run(["phoenix-nvidia", "101"]).ok();
    assert!(ct.running() && ct.init_pid() != init);
}
