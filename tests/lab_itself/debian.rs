//! Real Debian userlands in the lab's containers.
use phoenix_lab::{Lab, Rootfs};

#[test]
fn debian_containers_start_have_a_network_and_know_the_mirror() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let mut kinds =
        vec![(101, Rootfs::Debian12.privileged(), "12"), (102, Rootfs::Debian12.unprivileged(), "12")];
    if phoenix_lab::thorough() {
        kinds.push((103, Rootfs::Debian11.unprivileged(), "11"));
        kinds.push((104, Rootfs::Debian13.unprivileged(), "13"));
    }
    for (id, spec, version) in kinds {
        let ct = lab.create(id, spec);
        lab.run(["pct", "start", &id.to_string()]).ok();
        ct.exec(["cat", "/etc/os-release"]).ok().says(&format!("VERSION_ID=\"{version}\""));
        ct.exec(["getent", "hosts", "mirror.lab"]).ok().says("192.0.2.1");
        ct.sh("echo > /dev/tcp/x 2>/dev/null; cat /proc/net/route").ok().says("eth0");
        ct.exec(["dpkg", "--version"]).ok();
        ct.exec(["modprobe", "--version"]).ok();
        ct.exec(["wget", "--version"]).ok();
    }
}

#[test]
fn debian_13_with_systemd_has_a_tmpfs_on_tmp() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    let ct = lab.create(105, Rootfs::Debian13Systemd.unprivileged());
    lab.run(["pct", "start", "105"]).ok().says("WARN: Systemd 257 detected.");
    ct.sh("until [ -S /run/systemd/private ]; do sleep 0.05; done; systemctl is-system-running --wait");
    assert_eq!(ct.exec(["stat", "-f", "-c", "%T", "/tmp"]).ok().stdout.trim(), "tmpfs");
}

#[test]
fn debian_with_systemd_boots_shuts_down_and_is_warned_of() {
    let Some(lab) = Lab::builder().gpus(1).start() else { return };
    for (id, spec) in
        [(103, Rootfs::Debian12Systemd.unprivileged()), (104, Rootfs::Debian12Systemd.privileged())]
    {
        let ct = lab.create(id, spec);
        let started = lab.run(["pct", "start", &id.to_string()]).ok();
        assert_eq!(started.stdout, "WARN: Systemd 252 detected. You may need to enable nesting.\n");
        assert_eq!(started.stderr, "Task finished with 1 warning(s)!\n");
        // systemd answers once its socket is there.
        let up = ct
            .sh("until [ -S /run/systemd/private ]; do sleep 0.05; done; systemctl is-system-running --wait");
        assert!(["running", "degraded"].contains(&up.stdout.trim()), "{up}");
        lab.run(["pct", "shutdown", &id.to_string()]).ok();
        assert!(!ct.running());
    }
}
