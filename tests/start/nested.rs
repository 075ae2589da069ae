//! NESTED: Podman and Docker in a container get its GPUs, by a description that is written for them.
#![allow(clippy::unwrap_used)] // a failing helper fails its test
use crate::support;

use phoenix_lab::nvidia::runfile::Runfile;
use phoenix_lab::nvidia::userspace::packed;
use phoenix_lab::{Container, Lab, Rootfs, Spec};
use serde_json::Value;
use std::time::Duration;
use support::{again, lab, node, start};

const PROGRAM: &str = "/usr/sbin/phoenix-nvidia";
const OLD: &str = "580.95.05";
const NEW: &str = "580.105.08";
const FILES: [&str; 2] = ["/etc/cdi/phoenix-nvidia.json", "/etc/cdi/phoenix-nvidia-index.json"];

/// What NVIDIA's toolkit writes, for a driver version.
fn of_toolkit(version: &str) -> String {
    format!(
        "---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n  - name: all\n    containerEdits:\n      deviceNodes:\n        - \
         path: /dev/nvidia0\ncontainerEdits:\n  mounts:\n    - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{version}\n      \
         containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.{version}\n"
    )
}

/// A host with two cards; container 101 has those of `gpus`, the host's driver, and what engines need. Not started.
fn injected(spec: Spec, gpus: &str, options: &[&str]) -> Option<Lab> {
    let lab = lab(Lab::builder().gpus(2).driver(OLD))?;
    lab.sh("mount --make-rshared /").ok();
    lab.nvidia().user_space(OLD);
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none");
    lab.create(101, spec);
    lab.nvidia().printer(101);
    lab.run([&[PROGRAM, "attach", "101", "--gpus", gpus, "--inject"], options].concat()).ok();
    Some(lab)
}

/// A description, checked by the rules of CDI's specification.
#[track_caller]
fn description(ct: &Container<'_>, file: usize) -> Value {
    let text = ct.read(FILES[file]);
    let all: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    // An engine refuses a file with a key that it does not know.
    assert_eq!(keys(&all), ["cdiVersion", "containerEdits", "devices", "kind"]);
    assert_eq!(all["kind"], "nvidia.com/gpu");
    let devices = all["devices"].as_array().unwrap();
    assert!(!devices.is_empty(), "without a device it is none");
    let mut names = std::collections::BTreeSet::new();
    for device in devices {
        assert_eq!(keys(device), ["containerEdits", "name"]);
        let name = device["name"].as_str().unwrap();
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        assert!(ends(name.chars().next()) && ends(name.chars().last()), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c)), "{name}");
        assert!(names.insert(name.to_owned()), "{name} twice");
        assert!(!device["containerEdits"]["deviceNodes"].as_array().unwrap().is_empty());
    }
    // The least that it needs: a name may begin with a digit from 0.5.0 on.
    let digit = names.iter().any(|name| name.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(all["cdiVersion"], if digit { "0.5.0" } else { "0.3.0" });
    for edits in devices.iter().map(|device| &device["containerEdits"]).chain([&all["containerEdits"]]) {
        for key in keys(edits) {
            assert!(["env", "deviceNodes", "mounts"].contains(&key.as_str()), "no hook program: {key}");
        }
        for node in edits["deviceNodes"].as_array().into_iter().flatten() {
            assert_eq!(keys(node), ["path"], "hostPath needs 0.5.0, and a number would go stale");
            assert!(node["path"].as_str().unwrap().starts_with("/dev/"));
        }
        for mount in edits["mounts"].as_array().into_iter().flatten() {
            assert_eq!(keys(mount), ["containerPath", "hostPath", "options"]);
            for path in ["containerPath", "hostPath"] {
                assert!(mount[path].as_str().unwrap().starts_with('/'));
            }
            assert!(mount["options"].as_array().unwrap().contains(&"ro".into()));
        }
        for line in edits["env"].as_array().into_iter().flatten() {
            assert!(line.as_str().unwrap().find('=').is_some_and(|at| at > 0));
        }
    }
    all
}

/// The names of a description, each with its nodes.
fn names(all: &Value) -> Vec<String> {
    let nodes = |device: &Value| {
        let nodes = device["containerEdits"]["deviceNodes"].as_array().unwrap();
        nodes
            .iter()
            .map(|node| node["path"].as_str().unwrap().replace("/dev/", ""))
            .collect::<Vec<_>>()
            .join("+")
    };
    let devices = all["devices"].as_array().unwrap();
    devices.iter().map(|device| format!("{} {}", device["name"].as_str().unwrap(), nodes(device))).collect()
}

/// Where the driver's files come from, by where they go.
#[track_caller]
fn mount_at(all: &Value, target: &str) -> String {
    let mounts = all["containerEdits"]["mounts"].as_array().unwrap();
    let found = mounts.iter().find(|mount| mount["containerPath"] == target);
    found.unwrap_or_else(|| panic!("{target}: {mounts:#?}"))["hostPath"].as_str().unwrap().to_owned()
}

/// A start after which nothing is left to do runs no more in the container than the look at an installed driver.
#[track_caller]
fn runs_nothing_but(lab: &Lab, looks: usize) {
    lab.sh("mv /usr/bin/lxc-attach /root/lxc-attach; : >/root/attached").ok();
    lab.replace_program(
        "/usr/bin/lxc-attach",
        "#!/bin/sh\necho x >>/root/attached\nexec /root/lxc-attach \"$@\"\n",
    );
    again(lab).ok().says_not("engines").says_not("WARNING");
    assert_eq!(lab.read("/root/attached").lines().count(), looks);
    lab.sh("mv /root/lxc-attach /usr/bin/lxc-attach").ok();
}

#[track_caller]
fn changes_nothing(lab: &Lab) {
    runs_nothing_but(lab, 0);
}

#[test]
fn the_description_is_that_of_the_containers_own_cards_and_changes_with_them() {
    let Some(lab) = injected(Rootfs::Debian12.unprivileged(), "1", &["--nested"]) else { return };
    assert!(lab.conf(101).contains("features: nesting=1,keyctl=1"), "{}", lab.conf(101));
    start(&lab).ok().says("engines in the container: nvidia.com/gpu = 0, all").says_not("WARNING");
    let ct = lab.container(101);
    let by_index = description(&ct, 1);
    assert_eq!(names(&by_index), ["0 nvidia1"], "as nvidia-smi in the container counts");
    let by_name = description(&ct, 0);
    assert_eq!(names(&by_name), [format!("{} nvidia1", lab.nvidia().uuid(1)), "all nvidia1".to_owned()]);
    let common = |all: &Value| all["containerEdits"]["deviceNodes"].to_string();
    assert_eq!(
        common(&by_index),
        r#"[{"path":"/dev/nvidiactl"},{"path":"/dev/nvidia-uvm"},{"path":"/dev/nvidia-uvm-tools"}]"#
    );
    let hwcaps = "/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2";
    for target in [hwcaps, "/usr/lib64/glibc-hwcaps/x86-64-v2", "/usr/local/nvidia/lib64"] {
        assert_eq!(mount_at(&by_index, target), hwcaps);
    }
    assert_eq!(mount_at(&by_name, "/usr/bin/nvidia-smi"), format!("{hwcaps}/bin/nvidia-smi"));
    assert_eq!(
        ct.sh("ls /etc/cdi; stat -c %a /etc/cdi/*").ok().stdout,
        "phoenix-nvidia-index.json\nphoenix-nvidia.json\n644\n644\n"
    );
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    changes_nothing(&lab);
    // A reboot from inside runs no hookscript.
    ct.wait_ready();
    let before = ct.init_pid();
    ct.exec(["reboot"]);
    ct.wait_rebooted(before);
    ct.wait_ready();
    assert_eq!((description(&ct, 1), description(&ct, 0)), (by_index, by_name));

    // Other cards, and another driver: both at their next start, and then nothing again.
    lab.run([PROGRAM, "attach", "101", "--gpus", "all"]).ok();
    again(&lab).ok().says("nvidia.com/gpu = 0, 1, all");
    assert_eq!(names(&description(&ct, 1)), ["0 nvidia0", "1 nvidia1"]);
    assert!(names(&description(&ct, 0)).contains(&"all nvidia0+nvidia1".to_owned()));
    changes_nothing(&lab);
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    // The mount is the same: the file is right as it is.
    let before = ct.read(FILES[0]);
    again(&lab).ok().says_not("WARNING");
    assert_eq!(ct.read(FILES[0]), before);
    changes_nothing(&lab);

    // What somebody removed is there again by hand; with no card there is nothing to describe.
    ct.sh("rm /etc/cdi/*").ok();
    lab.run([PROGRAM, "plan", "101"])
        .code(10)
        .says("1. describe the GPUs for Docker and Podman in the container");
    lab.run([PROGRAM, "101"]).ok().says("engines in the container: nvidia.com/gpu");
    description(&ct, 0);
    lab.run([PROGRAM, "attach", "101", "--gpus", "none"]).ok();
    again(&lab).ok().says("no GPU to describe");
    assert!(!ct.exists(FILES[0]) && !ct.exists(FILES[1]));

    lab.run([PROGRAM, "attach", "101", "--gpus", "0"]).ok();
    again(&lab).ok();
    description(&ct, 1);
    let stays = "container 101: features nesting=1,keyctl=1 stay";
    lab.run([PROGRAM, "attach", "101", "--no-nested"]).ok().says(stays);
    lab.run([PROGRAM, "attach", "101", "--no-nested"]).ok().says_not(" stay");
    again(&lab).ok().says("removed /etc/cdi/phoenix-nvidia.json");
    assert!(!ct.exists("/etc/cdi"), "it was made for these");
    changes_nothing(&lab);
}

#[test]
fn detach_leaves_nothing_for_engines_behind() {
    let Some(lab) = injected(Rootfs::Debian12.privileged(), "0", &["--nested-replace"]) else { return };
    assert!(lab.conf(101).contains("features: nesting=1\n"), "{}", lab.conf(101));
    let ct = lab.container(101);
    ct.write("/etc/cdi/nvidia.yaml", of_toolkit("570.86.15"));
    ct.files().program("/usr/bin/dockerd", "#!/bin/sh\necho 'Docker version 26.1.5+dfsg1, build 411e817'\n");
    start(&lab)
        .ok()
        .says("put aside: /etc/cdi/nvidia.yaml.phoenix-nvidia")
        .says("features.cdi set")
        .says_not("WARNING");
    assert!(!ct.exists("/etc/cdi/nvidia.yaml"));
    assert_eq!(ct.read("/etc/docker/daemon.json"), "{\"features\":{\"cdi\":true}}\n");
    description(&ct, 0);
    changes_nothing(&lab);
    lab.run([PROGRAM, "detach", "101"]).ok().says("container 101: features nesting=1 stay\n");
    assert_eq!(ct.sh("ls /etc/cdi").ok().stdout, "nvidia.yaml\n");
    assert!(!ct.exists("/etc/docker/daemon.json") && !ct.exists("/var/lib/phoenix-nvidia"));
    assert_eq!(ct.read("/etc/cdi/nvidia.yaml"), of_toolkit("570.86.15"));

    // A stopped one: what stays is named, and goes with the same command later.
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--inject", "--nested-replace"]).ok();
    again(&lab).ok();
    lab.run(["pct", "stop", "101"]).ok();
    lab.run([PROGRAM, "detach", "101", "--keep-driver"])
        .ok()
        .says("phoenix-nvidia-index.json stay in it")
        .says("fix: pct start 101 && phoenix-nvidia detach 101 --keep-driver\n")
        .says_not("detach 101\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.run([PROGRAM, "detach", "101"]).ok();
    assert_eq!(ct.sh("ls /etc/cdi").ok().stdout, "nvidia.yaml\n");
}

/// Each with what is said, and whether ours is there.
#[test]
fn another_description_a_read_only_etc_and_an_old_engine_have_clear_outcomes() {
    let Some(lab) = injected(Rootfs::Debian12.privileged(), "0", &["--nested"]) else { return };
    let ct = lab.container(101);
    let theirs = "/etc/cdi/nvidia.yaml";
    ct.write(theirs, of_toolkit(OLD));
    start(&lab)
        .ok()
        .says("/etc/cdi/nvidia.yaml describes the GPUs; ours is not written")
        .says("--nested-replace");
    assert!(!ct.exists(FILES[0]));
    assert_eq!(ct.read(theirs), of_toolkit(OLD));
    ct.write(theirs, of_toolkit("570.86.15"));
    // It is looked at again at each start until it is right.
    again(&lab).ok().says("/etc/cdi/nvidia.yaml was made for driver 570.86.15, the driver is 580.95.05");
    assert!(!ct.exists(FILES[0]));
    ct.sh("rm /etc/cdi/nvidia.yaml").ok();
    again(&lab).ok().says("nvidia.com/gpu = 0, all").says_not("WARNING");
    description(&ct, 0);
    // One of another device is nobody's business.
    ct.write("/etc/cdi/amd.json", "{\"cdiVersion\":\"0.5.0\",\"kind\":\"amd.com/gpu\"}");
    changes_nothing(&lab);

    // The older runtime's settings: one word, and nothing else.
    let toml = "disable-require = false\n\n[nvidia-container-cli]\nenvironment = []\n#no-cgroups = false\nload-kmods = true\n";
    let toolkit = "/etc/nvidia-container-runtime/config.toml";
    ct.sh("mkdir -p /etc/nvidia-container-runtime").ok();
    ct.sh(&format!("printf '{}' >{toolkit} && chmod 640 {toolkit}", toml.replace('\n', "\\n"))).ok();
    lab.run([PROGRAM, "101"]).ok().says("set no-cgroups = true");
    assert_eq!(ct.read(toolkit), toml.replace("#no-cgroups = false", "no-cgroups = true"));
    assert_eq!(ct.sh(&format!("stat -c %a {toolkit}")).ok().stdout, "640\n");

    let docker = |version: &str| format!("#!/bin/sh\necho 'Docker version {version}, build 0'\n");
    ct.files().program("/usr/bin/dockerd", docker("20.10.24+dfsg1"));
    lab.run([PROGRAM, "101"]).ok().says("older than 25");
    assert!(!ct.exists("/etc/docker/daemon.json"));
    ct.files().program("/usr/bin/dockerd", docker("28.5.1"));
    lab.run([PROGRAM, "101"]).ok().says_not("Docker");
    assert!(!ct.exists("/etc/docker/daemon.json"));
    let podman = |version: &str| format!("#!/bin/sh\necho podman version {version}\n");
    ct.files().program("/usr/bin/podman", podman("3.0.1"));
    lab.run([PROGRAM, "101"]).ok().says("Podman in the container is older than 4.1 and cannot use it");
    ct.files().program("/usr/bin/podman", podman("4.2.0"));
    lab.run([PROGRAM, "101"]).ok().says("by index only from 4.3 on").says_not("WARNING");
    ct.files().program("/usr/bin/podman", podman("4.3.1"));
    lab.run([PROGRAM, "101"]).ok().says_not("Podman");
    // Settings of somebody are his.
    ct.files().program("/usr/bin/dockerd", docker("26.1.5"));
    ct.write("/etc/docker/daemon.json", "{\n  \"log-driver\": \"local\"\n}\n");
    lab.run([PROGRAM, "101"])
        .ok()
        .says("features.cdi is not set")
        .says("fix: pct exec 101 -- sh -c 'cd /etc/docker");
    assert_eq!(ct.read("/etc/docker/daemon.json"), "{\n  \"log-driver\": \"local\"\n}\n");

    // A typing error takes nothing away.
    let conf = lab.conf(101);
    lab.write("/etc/pve/lxc/101.conf", conf.replace("NESTED=cdi", "NESTED=cid"));
    again(&lab).ok().says("NESTED").says("must be none or cdi or replace");
    description(&ct, 0);
    lab.write("/etc/pve/lxc/101.conf", conf);

    // Read-only, and no start fails for it.
    ct.sh("rm /etc/cdi/phoenix*").ok();
    lab.append("/etc/pve/lxc/101.conf", "lxc.mount.entry: tmpfs etc/cdi tmpfs ro,create=dir 0 0\n");
    lab.run([PROGRAM, "attach", "101", "--gpus", "all"]).ok();
    let said =
        again(&lab).ok().says("WARNING").says("cannot write /etc/cdi/phoenix-nvidia.json in container 101");
    said.says("Read-only file system").says("fix: phoenix-nvidia doctor 101");
    assert!(ct.running());
}

/// Only of one kind there may be one alone; and a container's root can make any number of files.
#[test]
fn descriptions_of_other_kinds_stay_beside_ours_and_many_names_are_few_lines() {
    let Some(lab) = injected(Rootfs::Debian12.privileged(), "0", &["--nested"]) else { return };
    let ct = lab.container(101);
    let others = [
        "kind: k8s.device-plugin.nvidia.com/gpu\n",
        "{\"cdiVersion\":\"0.5.0\",\"kind\":\"management.nvidia.com/gpu\"}",
        "# kind: nvidia.com/gpu\nkind: nvidia.com/gpu-other\n",
        "kind: example.com/x\nnote: no kind of nvidia.com/gpu\n",
    ];
    for (number, text) in others.iter().enumerate() {
        ct.write(format!("/etc/cdi/other{number}.yaml"), text);
    }
    start(&lab).ok().says("nvidia.com/gpu = 0, all").says_not("WARNING");
    description(&ct, 0);
    for text in [
        "kind: nvidia.com/gpu\r\n",
        "kind : \"nvidia.com/gpu\" # x\n",
        "'kind': 'nvidia.com/gpu'\n",
        "{\"cdiVersion\":\"0.5.0\",\"kind\":\"nvidia.com/gpu\",\"devices\":[]}",
        "{\n  \"kind\": \"nvidia.com/gpu\"}\n",
    ] {
        ct.write("/etc/cdi/theirs.yaml", text);
        lab.run([PROGRAM, "101"]).ok().says("/etc/cdi/theirs.yaml describes the GPUs");
        assert!(!ct.exists(FILES[0]), "{text}");
    }
    ct.sh("for i in $(seq 10 59); do cp /etc/cdi/theirs.yaml /etc/cdi/a$i.yaml; done").ok();
    let said = lab.run([PROGRAM, "101"]).ok().says("and 31 more");
    assert_eq!(format!("{}{}", said.stdout, said.stderr).matches("ours is not written").count(), 20);
}

/// No take-over loses what an earlier one put aside, and no detach that fails loses where it is.
#[test]
fn what_was_put_aside_is_kept_until_it_is_back() {
    let Some(lab) = injected(Rootfs::Debian12.privileged(), "0", &["--nested-replace"]) else { return };
    let (ct, theirs) = (lab.container(101), "/etc/cdi/nvidia.yaml");
    ct.write(theirs, of_toolkit("570.86.15"));
    start(&lab).ok().says("put aside: /etc/cdi/nvidia.yaml.phoenix-nvidia\n");
    for _ in 0..2 {
        ct.write(theirs, of_toolkit(OLD));
        lab.run([PROGRAM, "101"]).ok().says("put aside: /etc/cdi/nvidia.yaml.phoenix-nvidia.2\n");
    }
    assert_eq!(ct.read("/etc/cdi/nvidia.yaml.phoenix-nvidia"), of_toolkit("570.86.15"));
    assert_eq!(ct.read("/etc/cdi/nvidia.yaml.phoenix-nvidia.2"), of_toolkit(OLD));
    assert!(!ct.exists("/etc/cdi/nvidia.yaml.phoenix-nvidia.3"), "the same twice is one");

    ct.sh("mount --bind /etc/cdi /etc/cdi && mount -o remount,bind,ro /etc/cdi").ok();
    lab.run([PROGRAM, "detach", "101", "--keep-driver"])
        .ok()
        .says("cannot write /etc/cdi/phoenix-nvidia.json in container 101")
        .says("fix: phoenix-nvidia detach 101 --keep-driver\n");
    assert!(ct.read("/var/lib/phoenix-nvidia/cdi").contains("aside /etc/cdi/nvidia.yaml\n"));
    // Where only the last step fails the list stays too.
    ct.sh("umount /etc/cdi && rm /etc/cdi/phoenix-* && mount --bind /etc/cdi /etc/cdi && mount -o remount,bind,ro /etc/cdi").ok();
    lab.run([PROGRAM, "detach", "101"]).ok().says("cannot write /etc/cdi/nvidia.yaml in container 101");
    assert!(ct.exists("/var/lib/phoenix-nvidia/cdi"));
    ct.sh("umount /etc/cdi").ok();
    lab.run([PROGRAM, "detach", "101"]).ok().says_not("WARNING");
    assert_eq!(ct.sh("ls /etc/cdi").ok().stdout, "nvidia.yaml\nnvidia.yaml.phoenix-nvidia\n");
    assert_eq!(ct.read(theirs), of_toolkit(OLD), "the last that was there");
    assert!(!ct.exists("/var/lib/phoenix-nvidia"));

    // One that cannot be put aside is not passed over in silence.
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--inject", "--nested-replace"]).ok();
    ct.sh("mount --bind /etc/cdi /etc/cdi && mount -o remount,bind,ro /etc/cdi").ok();
    lab.run([PROGRAM, "101"]).says("cannot write /etc/cdi/nvidia.yaml in container 101");
}

/// Docker's settings: without content they are ours to write, with content there is a command that can be pasted.
#[test]
fn settings_of_docker_are_never_broken() {
    let Some(lab) = injected(Rootfs::Debian12.privileged(), "0", &["--nested"]) else { return };
    start(&lab).ok();
    let (ct, daemon) = (lab.container(101), "/etc/docker/daemon.json");
    // As Docker does: it takes an empty file, and no comma before a brace.
    let dockerd = "#!/bin/sh\n[ \"$1\" = --validate ] || exec echo 'Docker version 26.1.5, build 0'\n\
        f=/etc/docker/daemon.json; case $2 in --config-file=*) f=${2#*=} ;; esac\n\
        ! tr -d ' \\n' <\"$f\" | grep -q ',}'\n";
    ct.files().program("/usr/bin/dockerd", dockerd);
    ct.files().program("/usr/bin/systemctl", "#!/bin/sh\necho \"$@\" >>/root/systemctl\n");
    let mine = "{\n  \"log-driver\": \"local\"\n}\n";
    ct.write(daemon, mine);
    ct.sh("chmod 640 /etc/docker/daemon.json").ok();
    let said = lab.run([PROGRAM, "101"]).ok().says("features.cdi is not set");
    let said = format!("{}{}", said.stdout, said.stderr);
    let fix = said.lines().find_map(|line| line.split_once("fix: pct exec 101 -- sh")).unwrap().1;
    let paste = || lab.sh(&format!("pct exec 101 -- sh{fix}"));
    for _ in 0..2 {
        paste().ok();
        assert_eq!(ct.read(daemon), mine.replace('{', "{\"features\":{\"cdi\":true},"));
        assert_eq!(ct.read("/etc/docker/daemon.json.old"), mine);
    }
    assert_eq!(ct.read("/root/systemctl"), "restart docker\n".repeat(2));
    assert_eq!(ct.sh("stat -c %a /etc/docker/daemon.json").ok().stdout, "640\n");
    lab.run([PROGRAM, "101"]).ok().says_not("Docker");

    for text in ["{}", "{ }\n", "{\n}\n", "", " \n"] {
        ct.write(daemon, text);
        paste();
        assert_eq!(ct.read(daemon), text, "what Docker refuses changes nothing");
        assert_eq!(ct.read("/etc/docker/daemon.json.old"), mine, "the first stays");
        lab.run([PROGRAM, "101"]).ok().says("features.cdi set; it counts once Docker is restarted");
        assert_eq!(ct.read(daemon), "{\"features\":{\"cdi\":true}}\n");
    }
}

#[test]
fn an_installed_driver_is_described_by_its_files() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.web().runfile(&Runfile::new(OLD));
    lab.web().runfile(&Runfile::new(NEW));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    lab.create(101, Rootfs::Debian12.unprivileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--nested"]).ok();
    start(&lab).ok().says("installed 580.95.05");
    let ct = lab.container(101);
    let libraries = |version: &str| {
        let all = description(&ct, 1);
        let at = "/usr/lib/x86_64-linux-gnu";
        assert_eq!(mount_at(&all, &format!("{at}/libcuda.so.1")), format!("{at}/libcuda.so.1"));
        assert_eq!(
            mount_at(&all, &format!("/usr/lib64/libcuda.so.{version}")),
            format!("{at}/libcuda.so.{version}")
        );
        assert_eq!(mount_at(&all, "/usr/bin/nvidia-smi"), "/usr/bin/nvidia-smi");
        assert!(!all.to_string().contains("libGLX"), "not for compute");
    };
    libraries(OLD);
    runs_nothing_but(&lab, 1);
    lab.nvidia().set_driver(NEW);
    again(&lab).ok().says("installed 580.105.08");
    libraries(NEW);
    assert!(!ct.read(FILES[1]).contains(OLD));
    runs_nothing_but(&lab, 1);
    // Graphics bring their libraries, and the card's DRM nodes.
    let pci = format!("/run/lab/nvidia/pci/{}/drm", lab.nvidia().address(0));
    for (name, minor) in [("card0", 0), ("renderD128", 128)] {
        lab.write(format!("{pci}/{name}/dev"), format!("226:{minor}\n"));
        lab.sh(&format!(
            "mkdir -p /dev/dri && rm -f /dev/dri/{name} && mknod -m 660 /dev/dri/{name} c 226 {minor}"
        ))
        .ok();
    }
    lab.run([PROGRAM, "attach", "101", "--capabilities", "all"]).ok();
    again(&lab).ok();
    assert_eq!(names(&description(&ct, 1)), ["0 nvidia0+dri/card0+dri/renderD128"]);
    assert!(ct.read(FILES[1]).contains("libGLX_nvidia.so.0"));
}

/// Two instances on card 0, and an nvidia-smi of the host that tells their UUIDs.
fn split(lab: &Lab) -> [String; 2] {
    let caps = "/run/lab/nvidia/proc-driver/nvidia/capabilities/gpu0/mig";
    for (path, minor) in [("gi1", 12), ("gi1/ci0", 13), ("gi2", 21), ("gi2/ci0", 22)] {
        let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
        lab.write(format!("{caps}/{path}/access"), text);
    }
    let card = lab.nvidia().uuid(0);
    let uuids = ["a", "b"].map(|c| format!("MIG-{}1111-2222-5333-8444-555566667777", c.repeat(4)));
    let device = |n: usize| {
        format!(
            "<mig_device>\n<index>{n}</index>\n<gpu_instance_id>{}</gpu_instance_id>\n\
             <compute_instance_id>0</compute_instance_id>\n</mig_device>\n",
            n + 1
        )
    };
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>/root/asked\ncase $1 in\n-L) echo 'GPU 0: NVIDIA A100 (UUID: {card})'\n\
         echo '  MIG 1g.5gb     Device  0: (UUID: {})'\necho '  MIG 1g.5gb     Device  1: (UUID: {})' ;;\n\
         *) cat <<'X'\n<gpu id=\"00000000:07:00.0\">\n<mig_devices>\n{}{}</mig_devices>\n<uuid>{card}</uuid>\n\
         <minor_number>0</minor_number>\n</gpu>\nX\n;;\nesac\n",
        uuids[0],
        uuids[1],
        device(0),
        device(1)
    );
    lab.replace_program("/usr/bin/nvidia-smi", script);
    uuids
}

/// By whatever name it was given: nvidia-smi alone knows the UUIDs, and each look asks it alike.
#[test]
fn a_mig_instance_is_described_by_its_uuid_too_and_stays_described() {
    let Some(lab) = injected(Rootfs::Debian12.privileged(), "none", &["--nested"]) else { return };
    // The copy of the host's driver is made with its own nvidia-smi.
    start(&lab).ok().says("no GPU to describe");
    let [first, second] = split(&lab);
    let ct = lab.container(101);
    let has = |minors: [u32; 2]| minors.map(|minor| format!("nvidia-caps/nvidia-cap{minor}")).join("+");
    lab.run([PROGRAM, "attach", "101", "--gpus", &second]).ok();
    again(&lab).ok().says("nvidia.com/gpu = 0:0, all").says_not("WARNING");
    assert_eq!(names(&description(&ct, 1)), [format!("0:0 nvidia0+{}", has([21, 22]))]);
    let by_name = names(&description(&ct, 0));
    assert_eq!(by_name[0], format!("{second} nvidia0+{}", has([21, 22])));
    changes_nothing(&lab);
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    lab.run([PROGRAM, "101"]).ok();
    assert_eq!(names(&description(&ct, 0)), by_name);
    changes_nothing(&lab);
    // By its place: no start asks nvidia-smi for that, but the one that describes it.
    lab.run([PROGRAM, "attach", "101", "--gpus", "0:1/0"]).ok();
    again(&lab).ok().says("nvidia.com/gpu = 0:0, all");
    assert_eq!(names(&description(&ct, 0))[0], format!("{first} nvidia0+{}", has([12, 13])));
    lab.sh(": >/root/asked").ok();
    changes_nothing(&lab);
    assert_eq!(lab.read("/root/asked"), "");
    // All of it, narrowed by the container's own environment: a report finds what the start gave.
    lab.run([PROGRAM, "attach", "101", "--gpus", "all"]).ok();
    let conf = lab.conf(101);
    let line = format!("lxc.environment.runtime: NVIDIA_VISIBLE_DEVICES={second}\n");
    lab.write("/etc/pve/lxc/101.conf", conf + &line);
    again(&lab).ok().says("narrows GPU_ASSIGNMENT=all").says_not("WARNING");
    assert_eq!(names(&description(&ct, 1)), [format!("0:0 nvidia0+{}", has([21, 22]))]);
    changes_nothing(&lab);
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    lab.run([PROGRAM, "doctor", "101"])
        .says("the running container has its devices")
        .says_not("MIG instance");
}

/// The disk goes back, the conf says the same, and the record knows nothing of it.
#[test]
fn a_description_that_a_rollback_took_away_is_written_again() {
    let Some(lab) = injected(Rootfs::Debian12.unprivileged(), "0", &["--nested"]) else { return };
    let ct = lab.container(101);
    lab.run(["pct", "snapshot", "101", "before"]).ok();
    start(&lab).ok();
    let right = description(&ct, 1);
    changes_nothing(&lab);
    for _ in 0..2 {
        lab.run(["pct", "stop", "101"]).ok();
        lab.run(["pct", "rollback", "101", "before"]).ok();
        start(&lab).ok().says("nvidia.com/gpu = 0, all").says_not("WARNING");
        assert_eq!(description(&ct, 1), right);
        changes_nothing(&lab);
    }
}

/// Nodes without the driver's files are of no use to anybody, and are not right for ever.
#[test]
fn without_a_driver_inside_nothing_is_described_and_each_start_looks_again() {
    let Some(lab) = lab(Lab::builder().gpus(1).driver(OLD)) else { return };
    lab.web().runfile(&Runfile::new(OLD));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none\nINSTALL=off");
    lab.create(101, Rootfs::Debian12.unprivileged());
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--nested"]).ok();
    let ct = lab.container(101);
    let lacks = "no file of driver 580.95.05 in the container";
    let fix = "INSTALL=on phoenix-nvidia attach 101 && phoenix-nvidia 101";
    start(&lab).ok().says("WARNING").says(lacks).says(&format!("fix: {fix}"));
    assert!(!ct.exists("/etc/cdi"));
    lab.run([PROGRAM, "doctor", "101"]).says(lacks).says(&format!("fix: {fix}"));
    lab.run([PROGRAM, "plan", "101"]).ok().says("Nothing to do");
    again(&lab).ok().says(lacks);
    // The remedy, as it is printed.
    lab.sh(fix).ok().says("nvidia.com/gpu = 0, all");
    description(&ct, 1);
    // But for the check of the driver.
    runs_nothing_but(&lab, 1);
    lab.sh("INSTALL=off phoenix-nvidia attach 101").ok();
    // Somebody takes the driver away: what describes it goes with the next change.
    ct.sh("find /usr/lib -name 'lib*.so.580.95.05' -delete").ok();
    lab.run(["pct", "set", "101", "--memory", "700"]).ok();
    again(&lab).ok().says(lacks).says("removed /etc/cdi/phoenix-nvidia.json");
    assert!(!ct.exists(FILES[0]) && !ct.exists(FILES[1]));
}

#[test]
fn a_container_without_a_shell_gets_no_description_and_no_warning() {
    let Some(lab) = injected(Rootfs::Debian12.unprivileged(), "0", &["--nested"]) else { return };
    let root = "/var/lib/vz/images/101/subvol-101-disk-0.subvol";
    lab.sh(&format!("rm {root}/usr/bin/sh {root}/usr/bin/dash {root}/usr/bin/bash")).ok();
    start(&lab).ok().says("nothing is written for engines").says_not("WARNING");
    again(&lab).ok().says_not("engines");
    lab.run([PROGRAM, "doctor", "101"]).says("0 failure, 0 warning");
    lab.run([PROGRAM, "detach", "101"]).ok().says_not("WARNING");
}

/// What makes a container of the distribution's packages one in which engines run: an init would mount these. The image
/// has Debian's own dynamic linker and the program that prints what it finds.
const PREPARE: &str = "set -e
    mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /run
    [ ! -e /srv/image.tar ] || exit 0
    i=/srv/image; mkdir -p $i/bin $i/lib64 $i/dev $i/proc $i/sys $i/tmp $i/etc $i/root
    cp /usr/lib/lab/busybox $i/bin/busybox; for a in sh ls true echo; do ln -s busybox $i/bin/$a; done
    cp -L /lib64/ld-linux-x86-64.so.2 $i/lib64/; cp /root/driver-version $i/root/
    tar -C $i -c . >/srv/image.tar";
/// What runs in the nested container: its nodes, an open, and the libraries; nvidia-smi only where they load.
const NESTED: &str = "ls /dev/ | /bin/busybox grep nvidia; true <>/dev/nvidia0; true <>/dev/nvidiactl; /root/driver-version && nvidia-smi -L";

/// Both libraries were loaded, and nvidia-smi was run: its message and exit code where no driver answers, for the
/// engine's own /proc has nothing of what the lab mounts there.
#[track_caller]
fn has_libraries(out: phoenix_lab::Output, version: &str) -> phoenix_lab::Output {
    let out =
        out.code(9).says("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver");
    out.says(&format!("\n{version}\n{version}\nNVIDIA-SMI"))
}

/// What a nested container shows that has the first of two cards.
#[track_caller]
fn shows(out: phoenix_lab::Output, version: &str) {
    let out = has_libraries(out, version).says_not("nvidia1");
    let nodes: Vec<&str> = out.stdout.lines().filter(|line| line.starts_with("nvidia")).collect();
    assert_eq!(nodes, ["nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidiactl"], "{out}");
    // No driver is behind the nodes here: that they may be opened shows by that.
    for node in ["nvidia0", "nvidiactl"] {
        let denied = format!("{}{}", out.stdout, out.stderr);
        assert!(denied.contains(&format!("/dev/{node}: No such device or address")), "{out}");
    }
}

/// The same with both cards.
#[track_caller]
fn shows_both(out: phoenix_lab::Output, version: &str) {
    has_libraries(out, version).says("nvidia0\nnvidia1\n");
}

fn podman(ct: &Container<'_>, device: &str) -> phoenix_lab::Output {
    // The lab's host has the controllers of version 1: none is left for a nested group.
    let words = [
        "--storage-driver=vfs",
        "run",
        "--rm",
        "--network",
        "none",
        "--cgroups=disabled",
        "--device",
        device,
    ];
    ct.command("podman").args(words).args(["lab/image", "/bin/sh", "-c", NESTED]).run()
}

fn in_podman(spec: Spec) {
    let Some(lab) = injected(spec, "0,1", &["--nested"]) else { return };
    start(&lab).ok().says("nvidia.com/gpu = 0, 1, all");
    let ct = lab.container(101);
    ct.sh(PREPARE).ok();
    ct.sh("podman --storage-driver=vfs import /srv/image.tar lab/image").ok();
    let uuid = format!("nvidia.com/gpu={}", lab.nvidia().uuid(0));
    shows(podman(&ct, "nvidia.com/gpu=0"), OLD);
    shows(podman(&ct, &uuid), OLD);
    shows_both(podman(&ct, "nvidia.com/gpu=all"), OLD);
    podman(&ct, "nvidia.com/gpu=2").code(126).says("unresolvable CDI devices nvidia.com/gpu=2");
    // After an upgrade of the host and a start the same command has the new driver.
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    again(&lab).ok();
    ct.sh(PREPARE).ok();
    shows(podman(&ct, "nvidia.com/gpu=0"), NEW);
    // Of two descriptions it uses neither, and that is why ours is not written beside another.
    ct.sh("cp /etc/cdi/phoenix-nvidia-index.json /etc/cdi/nvidia.json").ok();
    podman(&ct, "nvidia.com/gpu=0").code(126).says("unresolvable CDI devices nvidia.com/gpu=0");
}

#[test]
#[ignore = "make test-all: an image with engines"]
fn podman_5_runs_containers_with_the_gpu() {
    in_podman(Rootfs::Debian13Engines.unprivileged());
    in_podman(Rootfs::Debian13Engines.privileged());
}

#[test]
#[ignore = "make test-all: an image with engines"]
fn podman_4_3_runs_containers_with_the_gpu() {
    in_podman(Rootfs::Debian12Engines.unprivileged());
}

/// dockerd runs as long as the command.
fn docker(ct: &Container<'_>, line: &str) -> phoenix_lab::Output {
    let script = "dockerd --iptables=false --bridge=none --storage-driver=vfs >/var/log/dockerd 2>&1 & d=$!
        for i in $(seq 300); do docker version >/dev/null 2>&1 && break; sleep 0.1; done
        [ -n \"$(docker images -q lab/image)\" ] || docker import /srv/image.tar lab/image >/dev/null
        eval \"$0\"; code=$?; kill $d; wait $d; exit $code";
    ct.command("bash").args(["-c", script, line]).timeout(Duration::from_secs(90)).run()
}

#[track_caller]
fn docker_run(ct: &Container<'_>, device: &str) -> phoenix_lab::Output {
    docker(ct, &format!("docker run --rm --network none --device {device} lab/image /bin/sh -c '{NESTED}'"))
}

fn in_docker(spec: Spec) {
    let Some(lab) = injected(spec, "0,1", &["--nested"]) else { return };
    start(&lab).ok().says("features.cdi set").says_not("WARNING");
    let ct = lab.container(101);
    ct.sh(PREPARE).ok();
    shows(docker_run(&ct, "nvidia.com/gpu=0"), OLD);
    shows_both(docker_run(&ct, "nvidia.com/gpu=all"), OLD);
    lab.nvidia().user_space(NEW);
    lab.nvidia().set_driver(NEW);
    again(&lab).ok();
    ct.sh(PREPARE).ok();
    shows(docker_run(&ct, "nvidia.com/gpu=0"), NEW);
    // The command that is printed for settings of somebody's own, and what Docker says without it.
    ct.write("/etc/docker/daemon.json", "{\n  \"log-driver\": \"local\"\n}\n");
    docker_run(&ct, "nvidia.com/gpu=0").code(125).says("could not select device driver \"cdi\"");
    ct.files().program("/usr/bin/systemctl", "#!/bin/sh\n");
    let fix = lab.run([PROGRAM, "101"]).ok();
    let fix = fix
        .stderr
        .lines()
        .chain(fix.stdout.lines())
        .find_map(|line| line.split_once("fix: pct exec 101 -- sh"))
        .unwrap()
        .1
        .to_owned();
    lab.sh(&format!("pct exec 101 -- sh{fix}")).ok();
    shows(docker_run(&ct, "nvidia.com/gpu=0"), NEW);
    assert!(ct.read("/etc/docker/daemon.json").contains("\"log-driver\": \"local\""));
    // Without content: what its own check refuses changes nothing, and the start writes the whole.
    for text in ["{}", ""] {
        ct.write("/etc/docker/daemon.json", text);
        lab.sh(&format!("pct exec 101 -- sh{fix}"));
        assert_eq!(ct.read("/etc/docker/daemon.json"), text);
        lab.run([PROGRAM, "101"]).ok().says("features.cdi set");
    }
    shows(docker_run(&ct, "nvidia.com/gpu=0"), NEW);
}

#[test]
#[ignore = "make test-all: an image with engines"]
fn docker_26_runs_containers_with_the_gpu() {
    in_docker(Rootfs::Debian13Engines.unprivileged());
    in_docker(Rootfs::Debian13Engines.privileged());
}

/// It knows no CDI, and that is said.
#[test]
#[ignore = "make test-all: an image with engines"]
fn docker_20_10_is_told_to_be_too_old() {
    let Some(lab) = injected(Rootfs::Debian12Engines.unprivileged(), "0", &["--nested"]) else { return };
    start(&lab).ok().says("Docker in the container is older than 25");
    let ct = lab.container(101);
    ct.sh(PREPARE).ok();
    docker_run(&ct, "nvidia.com/gpu=0").code(125).says("is not an absolute path");
}

/// An installed driver: file by file.
#[test]
#[ignore = "make test-all: an image with engines"]
fn podman_runs_containers_with_an_installed_driver() {
    let Some(lab) = lab(Lab::builder().gpus(2).driver(OLD)) else { return };
    lab.web().runfile(&packed(OLD, 0));
    node(&lab, "CUDA_PACKAGES=none\nUTILITY_PACKAGES=none\nAFTER_INSTALL=none");
    lab.create(101, Rootfs::Debian13Engines.unprivileged());
    lab.nvidia().printer(101);
    lab.run([PROGRAM, "attach", "101", "--gpus", "0", "--nested"]).ok();
    start(&lab).ok().says("installed 580.95.05");
    let ct = lab.container(101);
    ct.sh(PREPARE).ok();
    ct.sh("podman --storage-driver=vfs import /srv/image.tar lab/image").ok();
    let words =
        ["--storage-driver=vfs", "run", "--rm", "--network", "none", "--cgroups=disabled", "--device"];
    let line = format!("ls /usr/lib/x86_64-linux-gnu /usr/lib64; {NESTED}");
    let run = ct
        .command("podman")
        .args(words)
        .args(["nvidia.com/gpu=all", "lab/image", "/bin/sh", "-c", &line])
        .run();
    shows(run.says("libcuda.so.1\nlibcuda.so.580.95.05"), OLD);
}
