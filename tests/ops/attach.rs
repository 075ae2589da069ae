//! attach and detach, in the lab.

use phoenix_lab::{Lab, Rootfs};

const SNIPPET: &str = "/var/lib/vz/snippets/phoenix-nvidia";
const NODE: &str = "NVIDIA_DRIVER_VERSION=host\nNVIDIA_REPO_URL=http://mirror.lab/\nNVIDIA_RUNFILE_URL=http://mirror.lab/x.run\nINSTALL=off\n";

/// A lab with the binary and the node's settings, without the snippet.
fn lab() -> Option<Lab> {
    let lab = Lab::builder().gpus(2).start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.write("/etc/default/phoenix-nvidia", NODE);
    lab.files().remove(SNIPPET);
    Some(lab)
}

#[test]
fn attach_gives_a_container_its_gpus_at_the_next_start_and_again_changes_nothing() {
    let Some(lab) = lab() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0", "--cuda", "none"]).ok().says("pct start 101");
    let conf = lab.conf(101);
    assert!(conf.contains("hookscript: local:snippets/phoenix-nvidia\n"), "{conf}");
    assert!(conf.contains("lxc.environment: GPU_ASSIGNMENT=0\n"), "{conf}");
    assert!(conf.contains("lxc.environment: CUDA_PACKAGES=none\n"), "{conf}");
    assert_eq!(lab.files().metadata(SNIPPET).permissions().mode() & 0o7777, 0o755);
    lab.run(["pct", "start", "101"]).ok();
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(phoenix_lab::Errno::ENXIO));

    let (conf, inode, calls) = (lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"), lab.calls().len());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0", "--cuda", "none"]).ok();
    assert_eq!((lab.conf(101), lab.inode("/etc/pve/lxc/101.conf"), lab.calls().len()), (conf, inode, calls));
    // A second call changes what differs, and nothing else.
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0,1", "--driver", "host"]).ok();
    let conf = lab.conf(101);
    assert!(conf.contains("GPU_ASSIGNMENT=0,1\n") && conf.contains("CUDA_PACKAGES=none\n"), "{conf}");
    assert!(conf.contains("NVIDIA_DRIVER_VERSION=host\n"), "{conf}");
}

use std::os::unix::fs::PermissionsExt as _;

#[test]
fn detach_leaves_the_conf_as_it_was_and_says_what_it_took() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    // As Proxmox itself writes it, so that the bytes can be compared.
    lab.run(["pct", "set", "101", "--description", "mine"]).ok();
    let before = lab.conf(101);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "all", "--by-uuid"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    assert_ne!(lab.conf(101), before);
    lab.run(["phoenix-nvidia", "detach", "101"])
        .ok()
        .says("removed setting GPU_ASSIGNMENT=all")
        .says("removed /dev/nvidia1 (c 195:1)")
        .says_not("nvidia-uninstall");
    assert_eq!(lab.conf(101), before);
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("nothing to remove").says_not("nvidia-uninstall");
    lab.run(["pct", "start", "101"]).ok();
}

#[test]
fn indices_are_offered_as_uuids_and_written_so() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    let uuid = lab.nvidia().uuid(1);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "1"]).ok().says(&uuid).says("--by-uuid");
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "1", "--by-uuid"]).ok();
    assert!(lab.conf(101).contains(&format!("GPU_ASSIGNMENT={uuid}\n")));
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.create(102, Rootfs::Busybox.privileged());
    let before = (lab.conf(101), lab.conf(102));
    let attach = |args: &[&str]| lab.run([&["phoenix-nvidia", "attach"], args].concat());
    attach(&["101"]).code(2).says("--gpus none, all or a list");
    attach(&["101", "--gpus", "x"]).code(2);
    attach(&["101", "--gpus", "0", "--driver", "new"]).code(2).says("--driver");
    attach(&["101", "--gpus", "0", "--cuda", "a;b"]).code(2).says("--cuda");
    attach(&["101", "--gpus", "7"]).code(4).says("GPU 7");
    attach(&["101", "999", "--gpus", "0"]).code(3).says("container 999 does not exist");
    attach(&["101", "--gpus", "0", "--storage", "tape"]).code(2).says("tape");
    lab.append("/etc/pve/lxc/102.conf", "lock: backup\n");
    attach(&["101", "102", "--gpus", "0"]).code(4).says("locked by another operation (backup)");
    lab.write("/etc/pve/lxc/102.conf", &before.1);
    lab.write("/etc/pve/storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent vztmpl,iso\n");
    attach(&["101", "--gpus", "0"]).code(2).says("pvesm set local --content vztmpl,iso,snippets");
    // What is written below an empty mount point is hidden once the storage is there.
    lab.append("/etc/pve/storage.cfg", "\nnfs: share\n\tserver 192.0.2.9\n\texport /x\n\tcontent snippets\n");
    lab.sh("mkdir -p /mnt/pve/share").ok();
    attach(&["101", "--gpus", "0"]).code(4).says("storage share is not mounted");
    assert!(!lab.exists("/mnt/pve/share/snippets"));
    assert_eq!((lab.conf(101), lab.conf(102)), before);
    assert!(!lab.exists(SNIPPET));
}

#[test]
fn a_foreign_hookscript_is_kept_by_chaining_and_comes_back() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.snippet("mine", "#!/bin/sh\necho \"$@\" >> /run/mine\n");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/mine"]).ok();
    let before = lab.conf(101);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).code(2).says("--chain");
    assert_eq!(lab.conf(101), before);
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0", "--chain"]).ok();
    assert!(lab.conf(101).contains("HOOK_CHAIN=/var/lib/vz/snippets/mine\n"));
    lab.run(["pct", "start", "101"]).ok();
    assert!(lab.read("/run/mine").starts_with("101 pre-start\n"));
    lab.run(["phoenix-nvidia", "detach", "101", "--keep-driver"])
        .ok()
        .says("restored hookscript local:snippets/mine");
    assert_eq!(lab.conf(101), before);
}

#[test]
fn a_step_that_fails_rolls_the_others_back() {
    let Some(lab) = lab() else { return };
    for id in [101, 102] {
        lab.create(id, Rootfs::Busybox.privileged());
        lab.run(["pct", "set", &id.to_string(), "--description", "mine"]).ok();
    }
    let before = (lab.conf(101), lab.conf(102));
    // pct set fails for the second container only.
    let real = lab.sh("command -v pct").ok().stdout.trim().to_owned();
    lab.sh(&format!("cp {real} /usr/local/bin/real-pct || true")).ok();
    lab.replace_program(
        "/usr/sbin/pct",
        "#!/bin/sh\n[ \"$1 $2\" = 'set 102' ] && { echo no quorum >&2; exit 2; }\nexec /usr/local/bin/real-pct \"$@\"\n",
    );
    lab.run(["phoenix-nvidia", "attach", "101", "102", "--gpus", "0"])
        .code(4)
        .says("no quorum")
        .says("rolled back: the settings");
    assert_eq!((lab.conf(101), lab.conf(102)), before);
    assert!(!lab.exists(SNIPPET));
}

/// Of a running container the features are pending, before and after.
#[test]
fn features_of_a_running_container_are_rolled_back_too() {
    let Some(lab) = lab() else { return };
    for (ctid, features) in [(101, None), (102, Some("fuse=1"))] {
        let id = ctid.to_string();
        lab.create(ctid, Rootfs::Busybox.privileged());
        lab.run(["pct", "set", &id, "--description", "mine"]).ok();
        lab.run(["pct", "start", &id]).ok();
        // Pending already, where the user has set some.
        features.iter().for_each(|it| drop(lab.run(["pct", "set", &id, "--features", it]).ok()));
    }
    let before = (lab.conf(101), lab.conf(102));
    assert!(before.1.contains("[pve:pending]\nfeatures: fuse=1\n"), "{}", before.1);
    let real = lab.sh("command -v pct").ok().stdout.trim().to_owned();
    lab.sh(&format!("cp {real} /usr/local/bin/real-pct")).ok();
    lab.replace_program(
        "/usr/sbin/pct",
        "#!/bin/sh\n[ \"$1 $3\" = 'set --hookscript' ] && { echo no quorum >&2; exit 2; }\nexec /usr/local/bin/real-pct \"$@\"\n",
    );
    for id in ["101", "102"] {
        lab.run(["phoenix-nvidia", "attach", id, "--gpus", "0", "--nested"])
            .code(4)
            .says("nesting=1")
            .says("rolled back: the features of container");
    }
    assert_eq!((lab.conf(101), lab.conf(102)), before);
}

#[test]
fn now_goes_on_to_the_end_and_templates_hand_their_gpus_on() {
    let Some(lab) = lab() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0", "--now"]).ok().says("container 101 started");
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(phoenix_lab::Errno::ENXIO));
    // It runs, so it is restarted, once.
    let before = ct.init_pid();
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "1", "--now"]).ok();
    assert_ne!(ct.init_pid(), before);
    assert_eq!(ct.open_node("/dev/nvidia1"), Err(phoenix_lab::Errno::ENXIO));
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(phoenix_lab::Errno::ENOENT));
    lab.create(102, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/102.conf", "template: 1\n");
    lab.run(["phoenix-nvidia", "attach", "102", "--gpus", "0", "--now"]).ok().says("is a template");
    assert!(!lab.container(102).running());
    // Detaching says that a running container keeps what it has.
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("keeps its GPUs until it is restarted");
}

#[test]
fn one_call_attaches_many() {
    let Some(lab) = lab() else { return };
    for id in [101, 102, 103] {
        lab.create(id, Rootfs::Busybox.unprivileged());
    }
    // A C library that no driver runs with is told beforehand.
    let alpine = lab.conf(103).replace("ostype: unmanaged", "ostype: alpine");
    lab.write("/etc/pve/lxc/103.conf", alpine);
    let attach = lab.run(["phoenix-nvidia", "attach", "101", "102", "103", "102", "--gpus", "none"]).ok();
    attach.says("container 103: Alpine Linux has no glibc");
    for id in [101, 102, 103] {
        assert!(lab.conf(id).contains("GPU_ASSIGNMENT=none\n") && lab.conf(id).contains("hookscript: "));
    }
    assert_eq!(lab.calls().iter().filter(|call| call.contains("--hookscript")).count(), 3);
    lab.run(["phoenix-nvidia", "detach", "101", "102", "103"]).ok();
    assert!(!lab.conf(102).contains("hookscript") && !lab.conf(103).contains("GPU_ASSIGNMENT"));
}

#[test]
fn the_cluster_s_other_nodes_and_ha_are_spoken_of() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.sh("mkdir -p /etc/pve/nodes/beta/lxc /etc/pve/nodes/gamma/lxc /etc/pve/ha").ok();
    lab.write(
        "/etc/pve/.members",
        r#"{"nodename": "x", "version": 3, "cluster": {"name": "c", "version": 2, "nodes": 3, "quorate": 1},
            "nodelist": {"beta": {"id": 2, "online": 1, "ip": "192.0.2.12"}, "gamma": {"id": 3, "online": 0}}}"#,
    );
    lab.write("/etc/pve/ha/resources.cfg", "ct: 101\n\tstate started\n");
    lab.replace_program("/usr/bin/ssh", "#!/bin/sh\necho package=1\necho snippet=0\n");
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"])
        .ok()
        .says("node beta lacks the hookscript")
        .says("install -D -m 755")
        .says("cannot ask node gamma")
        .says("START_POLICY=fail");
}
