//! What doctor says of Docker and Podman in a container, each from a lab that is broken in just that way.
use super::doctor::bad;
use crate::support;

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
    ct.sh("sed -i 's,/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2\",/usr/lib/libcuda.so.570.86.15\",' /etc/cdi/phoenix-nvidia.json").ok();
    case.finds(&["nested warning"], &["names files that are not there"]);
    lab.run([PROGRAM, "101"]).ok();
    case.finds(&[], &[]);

    let docker = |version: &str| format!("#!/bin/sh\necho 'Docker version {version}, build 0'\n");
    ct.files().program("/usr/bin/dockerd", docker("20.10.24"));
    case.finds(&["nested-docker warning"], &["older than 25"]);
    ct.files().program("/usr/bin/dockerd", docker("26.1.5"));
    case.finds(&["nested-docker warning"], &["features.cdi of Docker", "fix: phoenix-nvidia 101"]);
    lab.run([PROGRAM, "101"]).ok().says("features.cdi set");
    case.finds(&[], &[]);
    ct.sh("mkdir -p /var/lib/docker/vfs").ok();
    case.finds(&["nested-storage warning"], &["--features nesting=1,fuse=1"]);
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
    // A program of the container's that breaks the look alone.
    lab.container(101)
        .files()
        .program("/usr/bin/dockerd", "#!/bin/sh\nkill -9 $PPID\nkill -9 $(cut -d' ' -f4 /proc/$PPID/stat)\n");
    let found = bad(&lab);
    assert!(found.contains(&"nested unknown".to_owned()), "{found:?}");
}
