//! Making the nodes that are missing, on fixture hosts whose programs are
//! scripts that log how they were called.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use crate::hosts;

use hosts::FixtureHost;
use phoenix_nvidia::device::{DevicePath, Number};
use phoenix_nvidia::host::choose::Choice;
use phoenix_nvidia::host::device_node::DeviceNode;
use phoenix_nvidia::host::gpus::Inventory;
use phoenix_nvidia::host::provide::{Provided, Request, inspect, provide, provide_named};
use phoenix_nvidia::sys::time::Deadline;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

/// A host, and scripts in place of its programs.
struct Host(FixtureHost);

impl Host {
    fn unpack(name: &str) -> Option<Host> {
        Some(Host(FixtureHost::unpack(name)?))
    }

    /// A program that logs its arguments and then does `body`; `$R` is the root.
    fn program(&self, path: &str, body: &str) -> &Host {
        let (file, root) = (self.0.at(path), self.0.root().display().to_string());
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("#!/bin/sh\nR={root}\necho {name} \"$@\" >> $R/calls\n{body}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.at("/calls")).unwrap_or_default();
        text.lines().map(String::from).collect()
    }

    fn write(&self, path: &str, content: &str) -> &Host {
        assert!(self.0.add(&format!("file {path}"), content));
        self
    }

    fn give(&self, assignment: &str) -> Provided {
        self.give_within(assignment, Duration::from_secs(30))
    }

    fn give_within(&self, assignment: &str, time: Duration) -> Provided {
        provide(self.0.root(), &Host::request(assignment), &Deadline::after(time))
    }

    fn request(assignment: &str) -> Request {
        Request {
            assignment: assignment.parse().unwrap(),
            capabilities: Default::default(),
            exclusive: "101".parse().ok(),
        }
    }

    /// What a report finds, which makes nothing.
    fn inspect(&self, assignment: &str) -> Choice {
        inspect(self.0.root(), &Host::request(assignment), &Deadline::secs(30)).1
    }

    fn node(&self, path: &str) -> String {
        match fs::symlink_metadata(self.0.at(path)) {
            Ok(m) => {
                let (major, minor) = (nix::sys::stat::major(m.rdev()), nix::sys::stat::minor(m.rdev()));
                format!("{major}:{minor} {:o} {}:{}", m.mode() & 0o7777, m.uid(), m.gid())
            }
            Err(_) => "absent".into(),
        }
    }

    /// Everything under /dev, so that leftovers are seen.
    fn dev(&self) -> Vec<String> {
        let names = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(self.0.at(dir)).into_iter().flatten();
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut all = names("/dev");
        all.extend(names("/dev/nvidia-caps"));
        all.sort();
        all
    }
}

fn paths(provided: &Provided) -> Vec<String> {
    provided.choice.devices.iter().map(|d| d.path.to_string()).collect()
}

const ALL_OF_ONE: [&str; 5] = [
    "/dev/nvidia0",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-caps/nvidia-cap2",
];
/// What loading nvidia-uvm does to /proc/devices.
const LOAD_UVM: &str = "echo '511 nvidia-uvm' > $R/t; sed -i \"/nvidiactl/r $R/t\" $R/proc/devices; rm $R/t";

#[test]
fn with_every_node_in_place_no_program_runs() {
    for name in ["one-gpu", "four-gpus", "mig", "aarch64", "branch-470"] {
        let Some(host) = Host::unpack(name) else { return };
        for program in
            ["/usr/bin/nvidia-modprobe", "/usr/sbin/modprobe", "/usr/bin/nvidia-smi", "/usr/sbin/modinfo"]
        {
            host.program(program, "exit 1");
        }
        let given = host.give("0");
        assert!(host.calls().is_empty(), "{name}: {:?}", host.calls());
        assert!(given.choice.missing.is_empty() && given.warnings.is_empty(), "{name}: {given:?}");
        assert!(given.made.is_empty(), "{name}");
    }
}

#[test]
fn without_nvidia_modprobe_nodes_are_made_as_params_say() {
    let Some(host) = Host::unpack("after-boot") else { return };
    let params = host.0.at("/proc/driver/nvidia/params");
    let text = fs::read_to_string(&params).unwrap();
    let text =
        text.replace("DeviceFileMode: 438", "DeviceFileMode: 432").replace("FileGID: 0", "FileGID: 44");
    fs::write(&params, text).unwrap();
    host.program("/usr/sbin/modprobe", LOAD_UVM);
    let given = host.give("0");
    assert_eq!(paths(&given), ALL_OF_ONE, "{given:?}");
    assert!(given.choice.missing.is_empty() && given.warnings.is_empty(), "{given:?}");
    assert_eq!(given.made.len(), 5);
    assert_eq!(host.calls(), ["modprobe nvidia-uvm"]);
    assert_eq!(host.node("/dev/nvidia0"), "195:0 660 0:44");
    assert_eq!(host.node("/dev/nvidiactl"), "195:255 660 0:44");
    assert_eq!(host.node("/dev/nvidia-uvm"), "511:0 660 0:44");
    assert_eq!(host.node("/dev/nvidia-uvm-tools"), "511:1 660 0:44");
    // A capability has a mode of its own.
    assert_eq!(host.node("/dev/nvidia-caps/nvidia-cap2"), "236:2 444 0:0");
    assert_eq!(
        host.dev(),
        ["nvidia-cap2", "nvidia-caps", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidiactl"]
    );
    // And once they are there, nothing runs.
    fs::remove_file(host.0.at("/calls")).unwrap();
    assert!(host.give("0").made.is_empty() && host.calls().is_empty());
}

#[test]
fn nvidia_modprobe_is_asked_for_what_is_missing_and_for_nothing_else() {
    let Some(host) = Host::unpack("after-boot") else { return };
    let body = format!(
        "case \"$*\" in\n*-u*) {LOAD_UVM}; mknod $R/dev/nvidia-uvm c 511 0; mknod $R/dev/nvidia-uvm-tools c 511 1 ;;\n\
         *) mkdir -p $R/dev/nvidia-caps; mknod $R/dev/nvidia0 c 195 0; mknod $R/dev/nvidiactl c 195 255;\n\
         mknod $R/dev/nvidia-caps/nvidia-cap2 c 236 2 ;;\nesac"
    );
    host.program("/usr/bin/nvidia-modprobe", &body).program("/usr/sbin/modprobe", "exit 1");
    let given = host.give("0");
    assert_eq!(paths(&given), ALL_OF_ONE, "{given:?}");
    assert!(given.warnings.is_empty(), "{given:?}");
    assert_eq!(
        host.calls(),
        [
            "nvidia-modprobe -c 0 -c 255 -f /proc/driver/nvidia/capabilities/mig/monitor",
            "nvidia-modprobe -u -c 0"
        ]
    );
}

#[test]
fn mig_capabilities_are_asked_for_by_their_files() {
    let Some(host) = Host::unpack("mig-two-compute") else { return };
    host.program("/usr/bin/nvidia-modprobe", "exit 1");
    let given = host.give("0:2/1");
    assert_eq!(
        host.calls(),
        ["nvidia-modprobe -f /proc/driver/nvidia/capabilities/gpu0/mig/gi2/access \
          -f /proc/driver/nvidia/capabilities/gpu0/mig/gi2/ci1/access"]
    );
    // It failed: that is said, and the nodes are made all the same.
    assert!(given.choice.missing.is_empty(), "{given:?}");
    assert_eq!(host.node("/dev/nvidia-caps/nvidia-cap23"), "236:23 444 0:0");
    assert!(given.warnings[0].contains("exit code 1"), "{:?}", given.warnings);
}

#[test]
fn an_nvidia_modprobe_that_hangs_ends_at_its_deadline_and_the_nodes_are_made() {
    let Some(host) = Host::unpack("after-boot") else { return };
    // The driver with uvm loaded, so that only nodes are missing.
    host.program("/usr/bin/nvidia-modprobe", "exec sleep 1000");
    let devices = host.0.at("/proc/devices");
    let text = fs::read_to_string(&devices).unwrap().replace("\n\nBlock", "\n511 nvidia-uvm\n\nBlock");
    fs::write(&devices, text).unwrap();
    let started = Instant::now();
    let given = host.give_within("0", Duration::from_secs(2));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(paths(&given), ALL_OF_ONE, "{given:?}");
    assert_eq!(host.calls().len(), 1, "a program that hangs is not tried again: {:?}", host.calls());
    assert!(given.warnings[0].contains("nvidia-modprobe timed out after"), "{:?}", given.warnings);
}

#[test]
fn a_stale_major_is_replaced_when_nobody_has_it_now() {
    let Some(host) = Host::unpack("stale-uvm") else { return };
    host.program("/usr/bin/nvidia-modprobe", "exit 0");
    let given = host.give("0");
    assert!(given.choice.missing.is_empty(), "{given:?}");
    assert_eq!(host.node("/dev/nvidia-uvm"), "509:0 666 0:0");
    assert_eq!(host.node("/dev/nvidia-uvm-tools"), "509:1 666 0:0");
    // nvidia-modprobe would have removed the node first.
    assert!(host.calls().is_empty(), "{:?}", host.calls());
}

#[test]
fn a_node_that_is_another_drivers_device_now_is_left_alone() {
    let Some(host) = Host::unpack("stale-uvm-foreign") else { return };
    host.program("/usr/bin/nvidia-modprobe", "rm -f $R/dev/nvidia-uvm")
        .program("/usr/sbin/modprobe", "exit 0");
    let given = host.give("0");
    assert!(host.calls().is_empty(), "{:?}", host.calls());
    assert_eq!(host.node("/dev/nvidia-uvm"), "511:0 666 0:0");
    assert_eq!(paths(&given), ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-caps/nvidia-cap2"]);
    let missing: Vec<String> = given.choice.missing.iter().map(ToString::to_string).collect();
    assert_eq!(missing[0], "/dev/nvidia-uvm: is c 511:0 instead of c 509:0");
    assert!(given.warnings[0].contains("is c 511:0 of driver dax"), "{:?}", given.warnings);
}

#[test]
fn nvidia_modprobe_is_not_let_at_a_node_that_is_left_alone() {
    // It makes the two uvm nodes together, and would remove the first one.
    let Some(host) = Host::unpack("stale-uvm-foreign") else { return };
    fs::remove_file(host.0.at("/dev/nvidia-uvm-tools")).unwrap();
    host.program("/usr/bin/nvidia-modprobe", "rm -f $R/dev/nvidia-uvm");
    let given = host.give("0");
    assert!(host.calls().is_empty(), "{:?}", host.calls());
    assert_eq!(host.node("/dev/nvidia-uvm"), "511:0 666 0:0");
    assert_eq!(paths(&given)[2], "/dev/nvidia-uvm-tools");
}

#[test]
fn where_the_administrator_makes_the_nodes_nobody_else_does() {
    let Some(host) = Host::unpack("stale-uvm") else { return };
    let params = host.0.at("/proc/driver/nvidia/params");
    let text = fs::read_to_string(&params).unwrap().replace("ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0");
    fs::write(&params, text).unwrap();
    let given = host.give("0");
    assert_eq!(host.node("/dev/nvidia-uvm"), "511:0 666 0:0");
    assert_eq!(given.choice.missing.len(), 2, "{given:?}");
    assert!(given.warnings[0].contains("ModifyDeviceFiles: 0"), "{:?}", given.warnings);
}

#[test]
fn a_link_and_a_file_in_a_nodes_place_are_left_alone() {
    let Some(host) = Host::unpack("odd-dev") else { return };
    let ctl = host.0.at("/dev/nvidiactl");
    fs::rename(&ctl, host.0.at("/dev/elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &ctl).unwrap();
    let given = host.give("0");
    assert!(fs::symlink_metadata(&ctl).unwrap().file_type().is_symlink());
    assert!(fs::metadata(host.0.at("/dev/nvidia0")).unwrap().is_file());
    assert_eq!(paths(&given), ["/dev/nvidia-uvm-tools", "/dev/nvidia-caps/nvidia-cap2"]);
    assert!(given.warnings.iter().any(|w| w.contains("symlink")), "{:?}", given.warnings);
}

#[test]
fn loading_the_driver_brings_everything_in_one_call() {
    let Some(host) = Host::unpack("no-driver") else { return };
    let Some(loaded) = FixtureHost::unpack("after-boot") else { return };
    let from = loaded.root().display();
    let body = format!(
        "case $1 in\nnvidia) mkdir -p $R/proc/driver; cp -r {from}/proc/driver/nvidia $R/proc/driver/;\n\
         cp {from}/proc/devices $R/proc/devices ;;\nnvidia-uvm) {LOAD_UVM} ;;\nesac"
    );
    host.program("/usr/sbin/modprobe", &body);
    let given = host.give("0");
    assert_eq!(paths(&given), ALL_OF_ONE, "{given:?}");
    assert_eq!(host.calls(), ["modprobe nvidia", "modprobe nvidia-uvm"]);
}

#[test]
fn no_driver_is_one_message_with_the_cause() {
    let table = [
        ("no-driver", "no module installed for the running kernel 6.14.8-2-pve (only for 6.8.12-1-pve)"),
        ("vfio-all", "0000:01:00.0 bound to vfio-pci, in hostpci of VM 300"),
        ("secure-boot", "Secure Boot is on"),
        ("no-card", "no NVIDIA card on the PCI bus"),
    ];
    for (name, cause) in table {
        let Some(host) = Host::unpack(name) else { return };
        host.program("/usr/sbin/modprobe", "echo 'FATAL: Module not found' >&2; exit 1");
        let given = host.give("0,1,GPU-ffff");
        let said: Vec<String> = given.choice.missing.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 1, "{name}: {said:?}");
        assert!(
            said[0].starts_with("no NVIDIA kernel driver loaded: ") && said[0].contains(cause),
            "{said:?}"
        );
        assert!(given.warnings.is_empty() && given.choice.devices.is_empty(), "{name}: {given:?}");
    }
}

#[test]
fn a_uuid_that_the_driver_does_not_tell_yet_is_asked_for() {
    let Some(host) = Host::unpack("uuid-unknown") else { return };
    let answer = "echo '00000000:01:00.0, GPU-aaaaaaaa-1111-2222-3333-444455556666'\n\
                  echo '00000000:02:00.0, GPU-bbbbbbbb-1111-2222-3333-444455556666'";
    host.program("/usr/bin/nvidia-smi", answer);
    let given = host.give("GPU-bbbb");
    assert_eq!(paths(&given)[0], "/dev/nvidia1", "{given:?}");
    assert_eq!(host.calls().len(), 1);
    // An index needs no question.
    host.give("1");
    assert_eq!(host.calls().len(), 1);
    host.program("/usr/bin/nvidia-smi", "echo 'No devices were found'; exit 6");
    let given = host.give("GPU-bbbb");
    assert!(given.warnings[0].contains("exit code 6: No devices"), "{:?}", given.warnings);
    assert!(given.choice.missing[0].to_string().contains("unknown until first use"), "{given:?}");
}

#[test]
fn a_mig_uuid_is_resolved_through_nvidia_smi() {
    let Some(host) = Host::unpack("mig") else { return };
    let card = "GPU-8f3c2a10-1d5e-4b77-9c01-5a5b6c7d8e90";
    let body = format!(
        "case $1 in\n-L) echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: {card})'\n\
         echo '  MIG 1g.5gb     Device  0: (UUID: MIG-aaaa1111-2222-5333-8444-555566667777)'\n\
         echo '  MIG 1g.5gb     Device  1: (UUID: MIG-bbbb1111-2222-5333-8444-555566667777)' ;;\n\
         *) cat <<'X'\n<gpu id=\"00000000:07:00.0\">\n<mig_devices>\n<mig_device>\n<index>0</index>\n\
         <gpu_instance_id>7</gpu_instance_id>\n<compute_instance_id>0</compute_instance_id>\n</mig_device>\n\
         <mig_device>\n<index>1</index>\n<gpu_instance_id>9</gpu_instance_id>\n\
         <compute_instance_id>0</compute_instance_id>\n</mig_device>\n</mig_devices>\n<uuid>{card}</uuid>\n\
         <minor_number>0</minor_number>\n</gpu>\nX\n;;\nesac"
    );
    host.program("/usr/bin/nvidia-smi", &body);
    let given = host.give("MIG-bbbb1111-2222-5333-8444-555566667777");
    let devices = paths(&given);
    assert_eq!(devices.last().map(String::as_str), Some("/dev/nvidia-caps/nvidia-cap85"), "{given:?}");
    assert_eq!(devices[0], "/dev/nvidia0");
    // A look finds what the start gave, and asks for no names that need no answer.
    let seen = host.inspect("MIG-bbbb1111-2222-5333-8444-555566667777");
    assert_eq!((seen.devices, seen.missing), (given.choice.devices, Vec::new()));
    let asked = host.calls().len();
    assert!(host.inspect("0:9/0").missing.is_empty());
    assert_eq!(host.calls().len(), asked);
    host.program("/usr/bin/nvidia-smi", "exit 9");
    let seen = host.inspect("MIG-bbbb1111-2222-5333-8444-555566667777");
    assert!(
        seen.missing[0].to_string().contains("no known instance has this UUID: cannot read UUIDs"),
        "{seen:?}"
    );
}

#[test]
fn an_exclusive_card_is_refused_while_another_running_container_has_it() {
    let Some(host) = Host::unpack("four-gpus") else { return };
    let line = |n: u32| {
        format!("lxc.mount.entry: /dev/nvidia{n} dev/nvidia{n} none bind,optional,create=file 0 0\n")
    };
    host.write("/etc/pve/lxc/101.conf", &line(0)) // itself
        .write("/etc/pve/lxc/102.conf", &line(1)) // runs
        .write("/etc/pve/lxc/103.conf", &line(2)) // stopped
        .write("/sys/fs/cgroup/lxc/101/cgroup.events", "populated 1\n")
        .write("/sys/fs/cgroup/lxc/102/cgroup.events", "populated 1\nfrozen 0\n")
        .write("/sys/fs/cgroup/lxc/103/cgroup.events", "populated 0\nfrozen 0\n");
    let given = host.give("0,1,2");
    assert_eq!(paths(&given)[..3], ["/dev/nvidia0", "/dev/nvidia2", "/dev/nvidiactl"]);
    let said = given.choice.missing[0].to_string();
    assert_eq!(said, "GPU 1: in use by running container 102, and GPU_EXCLUSIVE=yes");
    // It is not this container's to stop that one: what else there is comes first.
    let remedy = given.choice.missing[0].remedy.clone().unwrap();
    assert!(remedy.starts_with("other GPUs for this container (attach --gpus)"), "{remedy}");
    assert!(remedy.ends_with("pct shutdown 102"), "{remedy}");
}

#[test]
fn different_mig_instances_of_one_card_are_not_shared() {
    let Some(host) = Host::unpack("mig") else { return };
    let entry = |path: &str| format!("lxc.mount.entry: {path} {} none bind 0 0\n", &path[1..]);
    let conf = [
        entry("/dev/nvidia0"),
        entry("/dev/nvidia-caps/nvidia-cap66"),
        entry("/dev/nvidia-caps/nvidia-cap67"),
    ];
    host.write("/etc/pve/lxc/102.conf", &conf.concat())
        .write("/sys/fs/cgroup/lxc/102/cgroup.events", "populated 1\n");
    assert!(host.give("0:8/0").choice.missing.is_empty());
    assert_eq!(host.give("0:7/0").choice.missing.len(), 1);
    assert_eq!(host.give("0").choice.missing.len(), 1);
    assert!(host.give("1").choice.missing.is_empty());
}

#[test]
fn two_at_once_make_the_nodes_once_and_right() {
    let Some(host) = Host::unpack("stale-uvm") else { return };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(host.give("0").choice.missing.is_empty()));
        }
    });
    assert!(Inventory::read(host.0.root()).node(DevicePath::Uvm).is(Number { major: 509, minor: 0 }));
    assert!(!host.dev().iter().any(|name| name.contains("phoenix")), "{:?}", host.dev());
    assert!(!matches!(Inventory::read(host.0.root()).node(DevicePath::Gpu(0)), DeviceNode::Absent));
}

#[test]
fn what_a_conf_names_is_kept_with_its_nodes_and_nothing_is_added() {
    let Some(host) = Host::unpack("after-boot") else { return };
    host.program("/usr/sbin/modprobe", LOAD_UVM);
    let named = [DevicePath::Gpu(0), DevicePath::Gpu(7), DevicePath::Uvm, DevicePath::Caps];
    let given = provide_named(host.0.root(), &named, &Deadline::secs(30));
    assert_eq!(
        paths(&given),
        ["/dev/nvidia0", "/dev/nvidia-uvm", "/dev/nvidia-caps/nvidia-cap2"],
        "{given:?}"
    );
    assert!(given.choice.missing.is_empty());
    assert_eq!(host.node("/dev/nvidiactl"), "absent");
    // On a host split by MIG, both what is passed whole and an instance.
    let Some(host) = Host::unpack("mig") else { return };
    for (named, node) in [
        // The directory of an older version, or of a guide: the node in it.
        (DevicePath::Caps, "/dev/nvidia-caps/nvidia-cap2"),
        (DevicePath::CapFile(2), "/dev/nvidia-caps/nvidia-cap2"),
        (DevicePath::CapFile(84), "/dev/nvidia-caps/nvidia-cap84"),
    ] {
        let given = provide_named(host.0.root(), &[named], &Deadline::secs(30));
        assert_eq!(paths(&given), [node]);
    }
}

#[test]
fn a_card_that_a_vm_has_in_its_conf_too_is_said() {
    let Some(host) = Host::unpack("vfio-one-of-two") else { return };
    assert!(host.give("0").choice.notes.is_empty());
    host.write("/etc/pve/nodes/pve1/qemu-server/300.conf", "hostpci1: 01:00.0;01:00.1\n");
    let given = host.give("0");
    assert!(given.choice.missing.is_empty());
    assert_eq!(
        given.choice.notes,
        ["GPU 0 (0000:01:00.0) is also in hostpci of VM 300: starting that VM takes the card away"]
    );
}
