//! status, in the lab.

use phoenix_lab::{Lab, Rootfs};

const NODE: &str = "NVIDIA_DRIVER_VERSION=host\nNVIDIA_REPO_URL=http://mirror.lab/\nNVIDIA_RUNFILE_URL=http://mirror.lab/x.run\nINSTALL=off\n";

fn lab() -> Option<Lab> {
    let lab = Lab::builder().gpus(2).start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.write("/etc/default/phoenix-nvidia", NODE);
    Some(lab)
}

fn json(lab: &Lab, args: &[&str]) -> serde_json::Value {
    let out = lab.run([&["phoenix-nvidia", "status", "--json"], args].concat()).ok();
    serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", out.stdout))
}

#[test]
fn a_row_tells_what_a_container_has_and_whether_that_is_right() {
    let Some(lab) = lab() else { return };
    lab.run(["phoenix-nvidia", "status"]).ok().says("No container of this node has GPUs");
    lab.create(101, Rootfs::Busybox.privileged());
    lab.create(102, Rootfs::Busybox.privileged());
    lab.create(103, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "102", "--gpus", "0,1"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    let all = json(&lab, &[]);
    assert_eq!(all["schema"], 1);
    assert_eq!(all["kernel_driver"], "580.95.05");
    let rows = all["containers"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "103 has nothing of ours: {all:#}");
    assert_eq!((&rows[0]["ctid"], &rows[0]["running"]), (&101.into(), &true.into()));
    assert_eq!((&rows[1]["ctid"], &rows[1]["running"]), (&102.into(), &false.into()));
    assert_eq!((&rows[0]["hookscript"], &rows[0]["assignment"]), (&"yes".into(), &"0,1".into()));
    assert_eq!(rows[0]["gpus"][1]["minor"], 1);
    assert_eq!(rows[0]["verdict"], "ok", "{all:#}");
    assert_eq!(
        (&rows[1]["verdict"], &rows[1]["reasons"][0]),
        (&"ok".into(), &"device entries out of date; next start updates them".into())
    );
    lab.run(["phoenix-nvidia", "status"])
        .ok()
        .says("CTID")
        .says("0,1 NVIDIA")
        .says("running")
        .says_not("\u{1b}[");
    lab.run(["phoenix-nvidia", "status", "103"]).ok().says("no hookscript");
    lab.run(["phoenix-nvidia", "status", "999"]).code(3);

    lab.nvidia().remove_gpu(1);
    assert_eq!(json(&lab, &["101"])["containers"][0]["verdict"], "failure");
    lab.nvidia().unload();
    assert!(
        json(&lab, &["101"])["containers"][0]["reasons"][0]
            .as_str()
            .unwrap()
            .starts_with("no NVIDIA kernel driver")
    );
}

#[test]
fn a_hundred_containers_need_no_process_of_their_own() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    lab.run(["pct", "start", "101"]).ok();
    let conf = lab.conf(101);
    for id in 201..300 {
        lab.write(format!("/etc/pve/lxc/{id}.conf"), &conf);
    }
    let traced = lab.trace(["phoenix-nvidia", "status", "--json"]);
    // The ones that look: at the host, and at the storages.
    assert!(traced.execs.len() <= 3, "{:?}", traced.execs);
    assert_eq!(json(&lab, &[])["containers"].as_array().unwrap().len(), 100);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]).ok();
    let out = lab.sh("{ phoenix-nvidia status; echo rc=$? >&2; } | true").ok();
    assert!(out.stderr.contains("rc=0") && !out.stderr.contains("panicked"), "{}", out.stderr);
}

#[test]
fn a_number_that_is_given_again_shows_nothing_of_its_former_owner() {
    let Some(lab) = lab() else { return };
    lab.create(101, Rootfs::Busybox.privileged());
    lab.command("phoenix-nvidia").arg("101").env("GPU_ASSIGNMENT", "0").run().ok();
    assert_eq!(json(&lab, &["101"])["containers"][0]["last"]["what"], "by hand");
    lab.run(["pct", "stop", "101"]).ok();
    lab.run(["pct", "destroy", "101"]).ok();
    lab.create(101, Rootfs::Busybox.privileged());
    lab.write("/etc/pve/lxc/101.conf", lab.conf(101).replace("hostname: ct101", "hostname: heir"));
    let row = &json(&lab, &["101"])["containers"][0];
    assert!(row["last"].is_null() && row["last_success"].is_null(), "{row:#}");
    lab.command("phoenix-nvidia").arg("101").env("GPU_ASSIGNMENT", "0").run().ok();
    assert_eq!(json(&lab, &["101"])["containers"][0]["last"]["outcome"], "ok");
}
