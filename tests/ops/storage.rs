//! The storage `local` as Proxmox takes it to be, and what attach says of
//! storages.

use phoenix_lab::{Lab, Rootfs};

const SNIPPET: &str = "/var/lib/vz/snippets/phoenix-nvidia";
const NODE: &str = "NVIDIA_DRIVER_VERSION=host\nNVIDIA_REPO_URL=http://mirror.lab/\nNVIDIA_RUNFILE_URL=http://mirror.lab/x.run\nINSTALL=off\n";
const CFG: &str = "/etc/pve/storage.cfg";

fn lab() -> Option<Lab> {
    let lab = Lab::builder().gpus(1).start()?;
    lab.install(env!("CARGO_BIN_EXE_phoenix-nvidia"));
    lab.write("/etc/default/phoenix-nvidia", NODE);
    lab.files().remove(SNIPPET);
    lab.create(101, Rootfs::Busybox.privileged());
    Some(lab)
}

#[test]
fn local_serves_where_no_entry_of_that_directory_says_otherwise() {
    let Some(lab) = lab() else { return };
    let files = [
        None,
        Some("dir: other\n\tpath /srv/other\n\tcontent iso\n"),
        Some("dir: local\n\tpath /srv/local\n\tcontent iso\n\tnodes nowhere\n"),
        Some("zfspool: local\n\tpool rpool\n\tcontent images\n"),
        Some("dir: local\n\tpath /var/lib/vz\n\tcontent rootdir,snippets\n\tnodes nowhere\n"),
    ];
    for file in files {
        match file {
            Some(text) => lab.write(CFG, text),
            None => lab.files().remove(CFG),
        }
        let out = lab.run(["phoenix-nvidia", "attach", "101", "--gpus", "0"]);
        assert_eq!(out.exit(), Some(0), "{file:?}: {out}");
        assert!(lab.conf(101).contains("hookscript: local:snippets/phoenix-nvidia\n"), "{file:?}");
        assert!(lab.exists(SNIPPET), "{file:?}");
        lab.run(["pct", "start", "101"])
            .ok()
            .says("GPU 0 (NVIDIA GeForce RTX 4090): configured")
            .says_not("script");
        let doctor = lab.run(["phoenix-nvidia", "doctor", "101"]);
        doctor.says("ok       hookscript");
        lab.run(["pct", "stop", "101"]).ok();
        lab.run(["phoenix-nvidia", "detach", "101"]).ok();
        lab.files().remove(SNIPPET);
    }
}

/// `pvesm set --content` replaces the list: what is left out of it is gone.
#[test]
fn the_command_that_allows_snippets_takes_nothing_away() {
    let Some(lab) = lab() else { return };
    let attach =
        |args: &[&str]| lab.run([&["phoenix-nvidia", "attach", "101", "--gpus", "0"], args].concat());
    lab.write(CFG, "dir: local\n\tpath /var/lib/vz\n\tcontent iso,rootdir,images\n");
    attach(&[]).code(2).says("pvesm set local --content iso,rootdir,images,snippets");
    // Without `content` Proxmox has a default of its own for each kind.
    lab.write(CFG, "dir: local\n\tpath /var/lib/vz\n\nnfs: share\n\tserver 192.0.2.9\n\texport /x\n");
    attach(&[]).code(2).says("pvesm set local --content images,rootdir,snippets");
    attach(&["--storage", "share"]).code(2).says("pvesm set share --content images,snippets");
    assert!(!lab.conf(101).contains("hookscript") && !lab.exists(SNIPPET));
}

/// Proxmox runs a hookscript of any storage's snippets directory.
#[test]
fn a_chained_hookscript_comes_back_from_a_storage_without_snippets_among_its_content() {
    let Some(lab) = lab() else { return };
    lab.write(
        CFG,
        "dir: local\n\tpath /var/lib/vz\n\tcontent iso\n\ndir: some\n\tpath /srv/some\n\tcontent snippets\n",
    );
    lab.snippet("mine", "#!/bin/sh\n");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/mine"]).ok();
    let before = lab.conf(101);
    // The lab's pct knows the snippets of `local` alone, so the conf is written here.
    let volume = "lxc.environment: HOOK_CHAIN=/var/lib/vz/snippets/mine\n";
    lab.snippet("phoenix-nvidia", "#!/bin/sh\n# The hookscript of phoenix-nvidia\n");
    lab.write("/etc/pve/lxc/101.conf", before.replace("snippets/mine", "snippets/phoenix-nvidia") + volume);
    lab.run(["phoenix-nvidia", "detach", "101"]).ok().says("restored hookscript local:snippets/mine");
    assert_eq!(lab.conf(101), before);
}
