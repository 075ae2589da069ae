//! detach: what it says without quorum, and of the driver that stays; what a
//! start without an install leaves for status.
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use support::{lab, node};

const SNIPPET: &str = "/var/lib/vz/snippets/phoenix-nvidia";

#[test]
fn without_quorum_attach_and_detach_say_so_and_change_nothing() {
    let Some(lab) = lab(Lab::builder().gpus(1)) else { return };
    node(&lab, "INSTALL=off");
    let pve = lab.pmxcfs();
    lab.create(101, Rootfs::Busybox.privileged());
    lab.create(102, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.files().remove(SNIPPET);
    let before = (lab.conf(101), lab.conf(102), lab.calls().len());
    pve.lose_quorum(&lab);
    for call in
        [&["detach", "101"][..], &["attach", "102", "--gpus", "0"], &["attach", "101", "102", "--gpus", "0"]]
    {
        lab.run([&["phoenix-nvidia"], call].concat())
            .code(4)
            .says("this node has no quorum: /etc/pve is read-only; conf not changed")
            .says("pvecm status")
            .says_not("Permission denied")
            .says_not("rolled back");
    }
    assert_eq!((lab.conf(101), lab.conf(102), lab.calls().len()), before);
    assert!(!lab.exists(SNIPPET));
    // There is nothing to be changed here.
    lab.run(["phoenix-nvidia", "detach", "102"]).ok().says("nothing to remove");
    pve.find_quorum(&lab);
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("removed hookscript");
}

#[test]
fn only_a_driver_that_is_there_stays() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.web().runfile(&Runfile::new("580.95.05"));
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("removed setting").says_not("nvidia-uninstall");
    lab.create(102, Rootfs::Debian12.privileged());
    lab.run(["phoenix-nvidia", "attach", "102", "--gpus", "0", "--now"]).ok();
    // A boot of the host forgets what is of its time.
    lab.run(["pct", "stop", "102"]).ok();
    lab.sh("umount -l /run/phoenix-nvidia/proc/*; rm -rf /run/phoenix-nvidia").ok();
    lab.run(["phoenix-nvidia", "detach", "102"])
        .ok()
        .says("Driver 580.95.05 stays in container 102")
        .says("nvidia-uninstall");
}

/// A conf of a guide, as Proxmox writes it.
const GUIDE: &str = "lxc.cgroup2.devices.allow: c 195:* rwm
lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file
lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file
lxc.mount.entry: /dev/nvidiactl dev/nvidiactl none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-modeset dev/nvidia-modeset none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm dev/nvidia-uvm none bind,optional,create=file
lxc.mount.entry: /dev/nvidia-uvm-tools dev/nvidia-uvm-tools none bind,optional,create=file
lxc.mount.entry: /dev/dri dev/dri none bind,optional,create=dir
";

#[test]
fn the_entries_of_a_guide_are_explained_when_they_go_and_come_back_at_detach() {
    let Some(lab) = lab(Lab::builder().gpus(2)) else { return };
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/101.conf", GUIDE);
    lab.run(["pct", "set", "101", "--description", "mine"]).ok();
    let before = lab.conf(101);
    let keep = "phoenix-nvidia attach 101 --capabilities compute,utility,graphics";
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"])
        .ok()
        .says("takes over its device entries of /dev/nvidia0, /dev/nvidiactl, /dev/nvidia-uvm, /dev/nvidia-uvm-tools")
        .says("its next start removes the entry of /dev/nvidia1: not in GPU_ASSIGNMENT=0")
        .says("the entry of /dev/nvidia-modeset: not in GPU_CAPABILITIES=compute,utility, graphics keeps it")
        .says(&format!("fix: {keep}"));
    // Without a start in between nothing has changed.
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("restored the entries from before attach");
    assert_eq!(lab.conf(101), before);

    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["phoenix-nvidia", "plan", "101"])
        .code(10)
        .says("removes /dev/nvidia1: not in GPU_ASSIGNMENT=0")
        .says(&format!("removes /dev/nvidia-modeset: not in GPU_CAPABILITIES=compute,utility, graphics keeps it; to keep it: {keep}"));
    lab.run(["pct", "start", "101"])
        .ok()
        .says("removed /dev/nvidia1: not in GPU_ASSIGNMENT=0")
        .says("removed /dev/nvidia-modeset: not in GPU_CAPABILITIES=compute,utility, graphics keeps it");
    lab.run(["pct", "stop", "101"]).ok();
    // A second attach does not take ours for the user's.
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "1"]).ok().says_not("takes over");
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    // A clone has it too.
    lab.run(["pct", "clone", "101", "102", "--full"]).ok();
    for ctid in ["101", "102"] {
        lab.run(["phoenix-nvidia", "detach", ctid])
            .ok()
            .says("restored the entries from before attach: /dev/nvidia0, /dev/nvidia1, /dev/nvidiactl, /dev/nvidia-modeset");
    }
    assert_eq!(lab.conf(101), before);
    assert!(lab.conf(102).ends_with(GUIDE), "{}", lab.conf(102));
}

/// The second is what the first one's own `fix:` asks for.
#[test]
fn a_second_detach_leaves_the_entries_that_the_first_put_back() {
    let Some(lab) = lab(Lab::builder().gpus(2).driver("580.95.05")) else { return };
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.web().runfile(&Runfile::new("580.95.05"));
    lab.create(101, Rootfs::Debian12.privileged());
    // One just as attach writes it, too.
    let entry = "dev/nvidiactl none bind,optional,create=file";
    let exact = GUIDE.replace(entry, &format!("{entry} 0 0\nlxc.cgroup2.devices.allow: c 195:255 rwm"));
    lab.append("/etc/pve/lxc/101.conf", exact);
    lab.run(["pct", "set", "101", "--description", "mine"]).ok();
    let before = lab.conf(101);
    let not_attached = "container 101 is not attached: its device entries stay: /dev/nvidia0, /dev/nvidia1";
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0", "--now"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    // Repeated while it is stopped, it does not claim that there is nothing.
    for said in ["restored the entries", not_attached] {
        let detach =
            lab.run(["phoenix-nvidia", "detach", "101"]).ok().says(said).says("files of phoenix-nvidia stay");
        detach
            .says("fix: pct start 101 && phoenix-nvidia detach 101")
            .says("Driver 580.95.05 stays")
            .says_not("nothing to remove");
        assert_eq!(lab.conf(101), before);
    }
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["phoenix-nvidia", "doctor", "101"]).says("fix: phoenix-nvidia detach 101");
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says(not_attached).says("removed in it");
    assert_eq!(lab.conf(101), before);
    assert_eq!(lab.sh("ls -A /var/lib/phoenix-nvidia/state | grep 101").stdout, "");
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("nothing to remove");
    // A mistyped number: never attached.
    lab.create(102, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/102.conf", GUIDE);
    let other = lab.conf(102);
    lab.run(["phoenix-nvidia", "detach", "102"]).ok().says("is not attached").says("nothing to remove");
    assert_eq!(lab.conf(102), other);
}

#[test]
fn an_entry_that_a_dev_line_replaced_does_not_come_back() {
    let Some(lab) = lab(Lab::builder().gpus(2)) else { return };
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/101.conf", GUIDE);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "set", "101", "--dev0", "/dev/nvidia0"]).ok();
    lab.run(["phoenix-nvidia", "detach", "101"])
        .ok()
        .says("restored the entries from before attach: /dev/nvidia1, /dev/nvidiactl");
    assert!(!lab.conf(101).contains("/dev/nvidia0 dev/nvidia0"), "{}", lab.conf(101));
    lab.run(["pct", "start", "101"]).ok();
    assert!(lab.container(101).running());
}

#[test]
fn pairs_of_an_attach_whose_hookscript_was_deleted_go_at_detach() {
    let Some(lab) = lab(Lab::builder().gpus(2)) else { return };
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.run(["pct", "set", "101", "--description", "mine"]).ok();
    let before = lab.conf(101);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "set", "101", "--delete", "hookscript"]).ok();
    // Without mounts, as where the driver's parameters could not be read.
    let conf = lab.conf(101);
    let rest = conf.lines().filter(|line| !line.contains("/run/phoenix-nvidia"));
    lab.write("/etc/pve/lxc/101.conf", rest.map(|line| format!("{line}\n")).collect::<String>());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "1"]).ok().says_not("takes over");
    lab.run(["phoenix-nvidia", "detach", "101"])
        .ok()
        .says("removed /dev/nvidia0")
        .says_not("restored the entries");
    assert_eq!(lab.conf(101), before);
}

#[test]
fn with_graphics_the_entries_of_a_guide_stay() {
    let Some(lab) = lab(Lab::builder().gpus(2)) else { return };
    node(&lab, "INSTALL=off");
    for index in 0..2 {
        let drm = format!("/run/lab/nvidia/pci/{}/drm/card{index}/dev", lab.nvidia().address(index));
        lab.write(drm, format!("226:{index}\n"));
    }
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.append("/etc/pve/lxc/101.conf", GUIDE);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0,1", "--capabilities", "graphics"])
        .ok()
        .says("takes over its device entries")
        .says_not("removes")
        .says_not("fix: phoenix-nvidia attach");
    assert!(lab.conf(101).contains("GPU_CAPABILITIES=graphics\n"), "{}", lab.conf(101));
}

#[test]
fn a_start_without_an_install_is_the_last_that_was_done() {
    let Some(lab) = lab(Lab::builder().gpus(1)) else { return };
    node(&lab, "INSTALL=off");
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    let last = || {
        let out = lab.run(["phoenix-nvidia", "status", "--json", "101"]).ok();
        let all: serde_json::Value =
            serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out}"));
        all["containers"][0]["last"].clone()
    };
    assert!(last().is_null());
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!((&last()["outcome"], &last()["what"]), (&"ok".into(), &"pre-start".into()));
    lab.run(["phoenix-nvidia", "status", "101"]).ok().says(" s ago").says_not("never");
    lab.run(["pct", "stop", "101"]).ok();
    // What it could not have is still told.
    lab.nvidia().remove_gpu(0);
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(last()["outcome"], "warning");
    assert!(last()["message"].as_str().unwrap_or_default().contains("GPU 0"));
}
