//! The lab's NVIDIA side in real containers: what the other tests stand on.

use phoenix_lab::nvidia::runfile::{Flaw, Runfile};
use phoenix_lab::repo::{Repo, Signing, catalogue};
use phoenix_lab::web::Fault;
use phoenix_lab::{Container, Errno, Lab, Output, Rootfs};

const OPTIONS: &str = "--silent --no-kernel-module --no-x-check --no-nouveau-check --no-distro-scripts \
                       --no-systemd --no-install-compat32-libs --install-libglvnd";

/// Gives a stopped container GPU 0 and the control node by the pairs that the product writes.
fn pass(lab: &Lab, id: u32, nodes: &[(&str, u32)]) {
    for (node, minor) in nodes {
        let entry = format!(
            "lxc.mount.entry: /dev/{node} dev/{node} none bind,optional,create=file 0 0\nlxc.cgroup2.devices.allow: c 195:{minor} rwm\n"
        );
        lab.append(format!("/etc/pve/lxc/{id}.conf"), entry);
    }
}

/// Downloads a runfile inside and runs it.
fn install(lab: &Lab, ct: &Container<'_>, runfile: &Runfile) -> Output {
    let path = lab.web().runfile(runfile);
    ct.sh(&format!("wget -q -O /root/driver.run {}", lab.web().url(&path))).ok();
    ct.sh(&format!(
        "sh /root/driver.run {OPTIONS} --tmpdir=/var/tmp; code=$?; ls -A /var/tmp >&2; exit $code"
    ))
}

#[test]
fn a_runfile_installs_and_nvidia_smi_answers() {
    let Some(lab) = Lab::builder().gpus(2).driver("580.95.05").start() else { return };
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    pass(&lab, 101, &[("nvidiactl", 255), ("nvidia1", 1)]);
    lab.run(["pct", "start", "101"]).ok();
    install(&lab, &ct, &Runfile::new("580.76.05")).ok();
    ct.exec(["nvidia-smi"]).code(18).says("Driver/library version mismatch");
    install(&lab, &ct, &Runfile::new("580.95.05")).ok();
    assert!(ct.read("/var/lib/nvidia/log").starts_with("1.0-5809505 (580.95.05)\n"));
    ct.sh("ls /usr/lib/*/libcuda.so.580.76.05").code(2);
    ct.sh("ldconfig -p").ok().says("libcuda.so.1 ");
    ct.exec(["nvidia-smi", "--version"]).ok().says("NVIDIA-SMI version  : 580.95.05\n");
    let query = ["nvidia-smi", "--query-gpu=index,uuid,pci.bus_id,driver_version", "--format=csv,noheader"];
    let expected = format!("0, {}, 00000000:02:00.0, 580.95.05\n", lab.nvidia().uuid(1));
    assert_eq!(ct.exec(query).ok().stdout, expected);
    ct.exec(["nvidia-smi"]).ok().says("CUDA Version: 13.0");
    lab.nvidia().set_driver("590.48.01");
    ct.exec(["nvidia-smi", "-L"]).code(18);
    ct.exec(["nvidia-uninstall", "-s"]).ok();
    ct.sh("nvidia-smi").code(127);
}

#[test]
fn nvidia_smi_tells_what_is_wrong_with_the_nodes() {
    let Some(lab) = Lab::builder().gpus(1).driver("580.95.05").start() else { return };
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok();
    install(&lab, &ct, &Runfile::new("580.95.05")).ok();
    lab.nvidia().modify_device_files(false);
    ct.exec(["nvidia-smi"]).code(9);
    lab.nvidia().modify_device_files(true);
    ct.exec(["nvidia-smi"]).code(255).says("Failed to initialize NVML: Unknown Error");
    assert_eq!(ct.open_node("/dev/nvidiactl"), Err(Errno::EPERM));
    lab.run(["lxc-cgroup", "-n", "101", "devices.allow", "c 195:255 rwm"]).ok();
    assert_eq!(ct.open_node("/dev/nvidiactl"), Err(Errno::ENXIO));
    lab.nvidia().modify_device_files(false);
    ct.exec(["nvidia-smi"]).code(6).says("No devices were found");
    ct.exec(["nvidia-smi", "-L"]).ok();
    ct.exec(["nvidia-smi", "--version"]).ok();
    lab.nvidia().modify_device_files(true);
    ct.exec(["nvidia-smi"]).code(255).says("Unable to determine the device handle");
    assert_eq!(ct.open_node("/dev/nvidia0"), Err(Errno::EPERM));
    ct.sh("rm /usr/lib/*/libnvidia-ml.so.1").ok();
    ct.exec(["nvidia-smi"]).code(12);
}

/// As root in a privileged container it makes the nodes of all cards that the driver shows, as seen on a real host.
#[test]
fn nvidia_smi_makes_nodes_as_root_of_a_privileged_container_alone() {
    let Some(lab) = Lab::builder().gpus(2).driver("580.95.05").start() else { return };
    for (id, spec) in [(101, Rootfs::Debian12.privileged()), (102, Rootfs::Debian12.unprivileged())] {
        let ct = lab.create(id, spec);
        pass(&lab, id, &[("nvidiactl", 255), ("nvidia0", 0)]);
        lab.run(["pct", "start", &id.to_string()]).ok();
        install(&lab, &ct, &Runfile::new("580.95.05")).ok();
        for _ in 0..2 {
            let list = ct.exec(["nvidia-smi", "-L"]).ok();
            list.says(&lab.nvidia().uuid(0)).says_not(&lab.nvidia().uuid(1));
        }
        let expected = if id == 101 { Errno::EPERM } else { Errno::ENOENT };
        assert_eq!(ct.open_node("/dev/nvidia1"), Err(expected), "{id}");
    }
}

#[test]
fn an_installer_fails_as_the_real_ones_do() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = lab.create(101, Rootfs::Debian12.unprivileged());
    lab.run(["pct", "start", "101"]).ok();
    install(&lab, &ct, &Runfile::new("580.95.05").flaw(Flaw::Fails)).code(1);
    install(&lab, &ct, &Runfile::new("580.95.05").flaw(Flaw::Damaged)).code(1).says("checksums");
    install(&lab, &ct, &Runfile::new("580.95.05").flaw(Flaw::NothingInstalled)).ok();
    assert!(!ct.exists("/var/lib/nvidia/log"));
    install(&lab, &ct, &Runfile::new("580.95.05").flaw(Flaw::HalfInstalled)).code(135);
    assert!(ct.exists("/var/lib/nvidia/log"));
    install(&lab, &ct, &Runfile::new("440.100")).code(1).says("unrecognized option: \"--no-systemd\"");
    ct.sh("mv /sbin/modprobe /sbin/modprobe.away").ok();
    let kmod = install(&lab, &ct, &Runfile::new("580.95.05")).code(1);
    kmod.says("Unable to find the module utility 'modprobe'");
    ct.sh("mv /sbin/modprobe.away /sbin/modprobe").ok();
    install(&lab, &ct, &Runfile::new("580.95.05")).ok();
    assert!(ct.exists("/usr/bin/nvidia-smi"));
}

#[test]
fn an_installer_meets_what_is_there_already() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = lab.create(101, Rootfs::Debian12.privileged());
    lab.run(["pct", "start", "101"]).ok();
    let good = Runfile::new("580.95.05");

    ct.sh("mkdir -p /usr/lib/nvidia; touch /usr/lib/nvidia/alternate-install-present").ok();
    install(&lab, &ct, &good).code(1).says("alternate-install-present");
    ct.sh("rm /usr/lib/nvidia/alternate-install-present").ok();

    ct.sh("touch /usr/lib/x86_64-linux-gnu/libGLX.so.0").ok();
    ct.sh("sh /root/driver.run -s --no-kernel-module --no-nouveau-check").code(1).says("libglvnd");
    ct.sh("mount -t tmpfs -o noexec none /mnt").ok();
    ct.sh("sh /root/driver.run -s --no-kernel-module --tmpdir /mnt")
        .code(1)
        .says("No program can be run in /mnt");

    // A library of somebody else's is moved aside and comes back.
    ct.sh("echo theirs > /usr/lib/x86_64-linux-gnu/libcuda.so.1").ok();
    install(&lab, &ct, &good).ok();
    assert_ne!(ct.read("/usr/lib/x86_64-linux-gnu/libcuda.so.1"), "theirs\n");
    ct.exec(["nvidia-uninstall", "-s"]).ok();
    assert_eq!(ct.read("/usr/lib/x86_64-linux-gnu/libcuda.so.1"), "theirs\n");

    // What can't be written is left out, and the exit code is 0; a full disk is another matter.
    ct.sh("echo old > /usr/bin/nvidia-smi; mount --bind -o ro /usr/bin/nvidia-smi /usr/bin/nvidia-smi").ok();
    install(&lab, &ct, &good).ok();
    assert_eq!(ct.sh("cat /usr/bin/nvidia-smi").ok().stdout, "old\n");
    ct.sh("umount /usr/bin/nvidia-smi && nvidia-uninstall -s").ok();
    ct.sh("mkdir /small && mount -t tmpfs -o size=16k none /small && mkdir /small/up /small/work").ok();
    let lib = "/usr/lib/x86_64-linux-gnu";
    ct.sh(&format!("mount -t overlay -o lowerdir={lib},upperdir=/small/up,workdir=/small/work none {lib}"))
        .ok();
    install(&lab, &ct, &good).code(135);
}

#[test]
fn the_server_plays_nvidia_over_tls() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let web = lab.web();
    web.standard(&["580.95.05"]);
    let url = format!("https://us.download.nvidia.com{}", Runfile::new("580.95.05").url_path());
    let get = || lab.run(["wget", "-q", "-t", "1", "-T", "10", "-O", "/tmp/file", &url]);
    lab.run([
        "wget",
        "-q",
        "-t",
        "1",
        "-T",
        "10",
        "-O",
        "/tmp/file",
        &url.replace("us.download.nvidia.com", "mirror.lab"),
    ])
    .ok();
    // The name can't be resolved without a network; then it is there, and trusted.
    get().code(4);
    web.play_nvidia();
    get().ok();
    assert_eq!(lab.web().requests().ending(".run")[1].host.as_deref(), Some("us.download.nvidia.com"));
    let ct = lab.create(101, Rootfs::Debian12.unprivileged());
    web.play_nvidia_in(&ct);
    lab.run(["pct", "start", "101"]).ok();
    let site = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64";
    ct.sh(&format!("wget -q -O /usr/share/keyrings/lab.asc {site}/3bf863cc.pub")).ok();
    ct.write("/etc/apt/sources.list", format!("deb [signed-by=/usr/share/keyrings/lab.asc] {site}/ /\n"));
    ct.sh("apt-get update -o APT::Update::Error-Mode=any").ok();
}

#[test]
fn nvidia_smi_runs_where_there_is_no_c_library() {
    let Some(lab) = Lab::builder().gpus(1).driver("580.95.05").start() else { return };
    let ct = lab.create(101, Rootfs::Busybox.privileged());
    let program = phoenix_lab::nvidia::runfile::smi("580.95.05").unwrap();
    ct.files().program("/usr/bin/nvidia-smi", program);
    lab.run(["pct", "start", "101"]).ok();
    ct.exec(["nvidia-smi", "-h"]).ok().says("v580.95.05");
    ct.exec(["nvidia-smi"]).code(12);
}

/// Adds a repository at `path`, with its key, and runs `apt-get update`.
fn update(lab: &Lab, ct: &Container<'_>, path: &str, key: &str) -> Output {
    let url = lab.web().url(path);
    ct.sh(&format!("wget -q -O /usr/share/keyrings/lab.asc {url}/{key}")).ok();
    ct.write(
        "/etc/apt/sources.list.d/lab.list",
        format!("deb [signed-by=/usr/share/keyrings/lab.asc] {url}/ /\n"),
    );
    ct.sh("apt-get update -o APT::Update::Error-Mode=any")
}

#[test]
fn apt_installs_from_the_labs_repositories() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    lab.web().standard(&[]);
    let releases = [
        (101, Rootfs::Debian12, "/compute/cuda/repos/debian12/x86_64", "3bf863cc.pub"),
        (102, Rootfs::Debian13, "/compute/cuda/repos/debian13/x86_64", "8793F200.pub"),
    ];
    for (id, rootfs, path, key) in releases.into_iter().take(Rootfs::releases().len()) {
        let ct = lab.create(id, rootfs.unprivileged());
        lab.web().use_distribution(&ct);
        lab.run(["pct", "start", &id.to_string()]).ok();
        update(&lab, &ct, path, key).ok();
        let install = "DEBIAN_FRONTEND=noninteractive apt-get -y -o Dpkg::Use-Pty=0 install";
        ct.sh(&format!("{install} cuda-toolkit-13-0 nvtop")).ok();
        ct.exec(["/usr/local/cuda/bin/nvcc"]).ok().says("release 13.0");
        ct.exec(["nvtop"]).ok();
        let plan = ct.sh("apt-get -s install cuda-drivers-580").ok();
        plan.says("Inst nvidia-kernel-dkms").says("Inst libnvidia-ml1");
    }
    assert!(!lab.web().requests().ending("/nvtop_3.2.0-1_amd64.deb").is_empty());
}

#[test]
fn apt_of_every_release_refuses_what_is_not_rightly_signed() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let kinds = [
        ("/unsigned", Signing::Unsigned),
        ("/other", Signing::OtherKey),
        ("/sha1", Signing::Sha1),
        ("/altered", Signing::Altered),
        ("/sha1-bound", Signing::Sha1Bound),
        ("/good", Signing::Good),
    ];
    for (path, signing) in kinds {
        lab.web().repo(path, &Repo::flat().package(catalogue::nvtop()).signing(signing));
    }
    for (id, &rootfs) in (101..).zip(Rootfs::releases()) {
        let ct = lab.create(id, rootfs.privileged());
        lab.run(["pct", "start", &id.to_string()]).ok();
        for (path, signing) in kinds {
            // Debian 13 no longer takes a key that only SHA-1 binds to its owner.
            let old_key = signing == Signing::Sha1Bound && rootfs == Rootfs::Debian12;
            let expected = if signing == Signing::Good || old_key { 0 } else { 100 };
            update(&lab, &ct, path, "3bf863cc.pub").code(expected);
        }
    }
}

#[test]
fn the_server_fails_on_demand_and_tells_what_was_asked() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let web = lab.web();
    let path = web.runfile(&Runfile::new("580.95.05"));
    let get = || lab.run(["wget", "-q", "-t", "1", "-T", "1", "-O", "/tmp/file", &web.url(&path)]);
    get().ok();
    web.fail("*.run", Fault::Status(404));
    get().code(8);
    web.heal();
    web.fail_times("*.run", 1, Fault::Stall(1_000));
    get().code(4);
    get().ok();
    web.stop();
    get().code(4);
    web.start();
    get().ok();
    assert_eq!(web.requests().of(&path).len(), 5);
    assert_eq!(lab.sh("cmp /tmp/file /run/lab/web/www/XFree86/*/*/*.run").exit(), Some(0));
}
