//! What doctor says of Docker and Podman in a container, each from a lab that is broken in just that way.
use super::doctor::bad;
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::{Lab, Rootfs};
use support::{lab, node};

const PROGRAM: &str = "phoenix-nvidia";

/// What doctor finds bad after each change, with what it says.
struct Case<'a> {
    lab: &'a Lab,
}

impl Case<'_> {
    #[track_caller]
    fn finds(&self, expected: &[&str], says: &[&str]) {
        assert_eq!(bad(self.lab), expected);
        let shown = self.lab.run([PROGRAM, "doctor", "101"]);
        for text in says {
            assert!(shown.stdout.contains(text), "{text}: {shown}");
        }
    }
}

#[test]
fn what_engines_in_a_container_need() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 580.95.05\n");
    lab.nvidia().user_space("580.95.05");
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.create(101, Rootfs::Debian12.privileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--inject", "--nested"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    let (ct, case) = (lab.container(101), Case { lab: &lab });
    case.finds(&[], &["Docker and Podman find a description of the GPUs"]);

    let conf = lab.conf(101);
    lab.write("/etc/pve/lxc/101.conf", conf.replace("features: nesting=1\n", "features: fuse=1\n"));
    case.finds(&["nested-features warning"], &["fix: pct set 101 --features fuse=1,nesting=1"]);
    lab.write("/etc/pve/lxc/101.conf", conf);

    ct.sh("mv /etc/cdi/phoenix-nvidia.json /etc/cdi/phoenix-nvidia-index.json /root").ok();
    case.finds(
        &["nested warning"],
        &["no description of the GPUs for Docker and Podman", "fix: phoenix-nvidia 101"],
    );
    let theirs =
        "kind: nvidia.com/gpu\ncontainerEdits:\n  mounts:\n  - hostPath: /usr/lib/libcuda.so.570.86.15\n";
    ct.write("/etc/cdi/nvidia.yaml", theirs);
    case.finds(
        &["nested warning"],
        &[
            "made for driver 570.86.15",
            "fix: phoenix-nvidia attach 101 --nested-replace && phoenix-nvidia 101",
        ],
    );
    ct.sh("mv /root/phoenix-nvidia*.json /etc/cdi").ok();
    case.finds(&["nested failure"], &["ours is there too", "fix: phoenix-nvidia 101"]);
    // The remedies, as they are printed.
    lab.run([PROGRAM, "101"]).ok();
    case.finds(&["nested warning"], &["ours is not written beside it"]);
    lab.run([PROGRAM, "attach", "101", "--nested-replace"]).ok();
    lab.run([PROGRAM, "101"]).ok().says("put aside");
    case.finds(&[], &[]);

    // As an installed driver leaves it that changed without us.
    ct.sh("sed -i 's,\"hostPath\":\"[^\"]*\",\"hostPath\":\"/usr/lib/libcuda.so.570.86.15\",' /etc/cdi/phoenix-nvidia.json").ok();
    case.finds(&["nested warning"], &["names files that are not there"]);
    lab.run([PROGRAM, "101"]).ok();
    case.finds(&[], &[]);

    let docker = |version: &str| format!("#!/bin/sh\necho 'Docker version {version}, build 0'\n");
    ct.files().program("/usr/bin/dockerd", docker("20.10.24"));
    case.finds(
        &["nested-docker warning"],
        &["older than 25", "fix: install a newer Docker in the container: https://docs.docker.com"],
    );
    // Only a Podman that knows CDI mends it.
    let apt = |version: &str| format!("#!/bin/sh\necho podman:\necho '  Candidate: 1:{version}+ds1-8'\n");
    for (version, fix) in
        [("3.4.4", "fix: install a newer"), ("4.9.3", "fix: pct exec 101 -- apt-get install podman")]
    {
        ct.files().program("/usr/bin/apt-cache", apt(version));
        case.finds(&["nested-docker warning"], &[fix]);
    }
    let podman = |version: &str| format!("#!/bin/sh\necho podman version {version}\n");
    ct.files().program("/usr/bin/podman", podman("3.0.1"));
    case.finds(
        &["nested-docker warning", "nested-podman warning"],
        &["Podman in the container is older than 4.1", "fix: install a newer Docker"],
    );
    ct.files().program("/usr/bin/podman", podman("4.2.0"));
    case.finds(&[], &["by index only from 4.3 on", "Podman in it finds the GPUs"]);
    ct.sh("rm /usr/bin/podman").ok();
    ct.files().program("/usr/bin/dockerd", docker("26.1.5"));
    case.finds(&["nested-docker warning"], &["features.cdi of Docker", "fix: phoenix-nvidia 101"]);
    lab.run([PROGRAM, "101"]).ok().says("features.cdi set");
    case.finds(&[], &[]);
    ct.sh("mkdir -p /var/lib/docker/vfs").ok();
    let install = "fix: pct exec 101 -- apt-get install fuse-overlayfs &&";
    case.finds(
        &["nested-storage warning"],
        &[&format!("{install} pct set 101 --features nesting=1,fuse=1 && pct reboot 101")],
    );
    let conf = lab.conf(101);
    for (features, command) in [
        ("fuse=1,nesting=1", ""),
        ("nesting=1,mount=nfs;cifs", " pct set 101 --features 'nesting=1,mount=nfs;cifs,fuse=1' &&"),
    ] {
        let features = format!("features: {features}\n");
        lab.write("/etc/pve/lxc/101.conf", conf.replace("features: nesting=1\n", &features));
        case.finds(&["nested-storage warning"], &[&format!("{install}{command} pct reboot 101")]);
    }
}

/// The description of a driver file by file has targets that no one image has all of, and that this container has not.
#[test]
fn a_description_file_by_file_is_judged_by_the_files_of_the_container() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 580.95.05\n");
    lab.web().runfile(&Runfile::new("580.95.05"));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    lab.create(101, Rootfs::Debian12.privileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--nested"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    let (ct, case) = (lab.container(101), Case { lab: &lab });
    assert!(ct.read("/etc/cdi/phoenix-nvidia.json").contains("\"/usr/lib64/libcuda.so.580.95.05\""));
    assert!(!ct.exists("/usr/lib64/libcuda.so.580.95.05"));
    case.finds(&[], &["Docker and Podman find a description of the GPUs"]);

    // Another one that is out of date is not ours.
    let theirs = "{\"kind\":\"management.nvidia.com/gpu\",\"hostPath\":\"/usr/lib/libcuda.so.570.86.15\"}\n";
    ct.write("/etc/cdi/z-nvidia.json", theirs);
    case.finds(&[], &[]);
    ct.sh("rm /etc/cdi/z-nvidia.json").ok();

    let gone =
        "s,\"hostPath\":\"[^\"]*/libcuda.so.580.95.05\",\"hostPath\":\"/usr/lib/libcuda.so.570.86.15\",";
    ct.sh(&format!("sed -i '{gone}' /etc/cdi/phoenix-nvidia.json")).ok();
    case.finds(&["nested warning"], &["names files that are not there", "fix: phoenix-nvidia 101"]);
    lab.run([PROGRAM, "101"]).ok();
    case.finds(&[], &[]);
}

/// What could not be looked at is not wrong.
#[test]
fn a_look_for_engines_that_fails_is_told_as_unknown() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver("580.95.05")) else { return };
    lab.replace_program("/usr/sbin/modinfo", "#!/bin/sh\necho 580.95.05\n");
    lab.nvidia().user_space("580.95.05");
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.create(101, Rootfs::Debian12.privileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--inject", "--nested"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    // A program of the container's that ends each shell of the look, and that alone.
    lab.container(101)
        .files()
        .program("/usr/bin/dockerd", "#!/bin/sh\np=$PPID\nwhile [ $p -gt 1 ]; do q=$(cut -d' ' -f4 /proc/$p/stat); kill -9 $p; p=$q; done\n");
    let found = bad(&lab);
    assert!(found.contains(&"nested unknown".to_owned()), "{found:?}");
}
