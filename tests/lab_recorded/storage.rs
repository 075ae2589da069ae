//! The storage that is always there.

use phoenix_lab::{Lab, Rootfs};

use crate::recording;

const OTHER: &str = "dir: other\n\tpath /srv/other\n\tcontent iso\n";
const MOVED: &str = "dir: local\n\tpath /srv/moved\n\tcontent iso\n\tnodes pve2\n";

#[test]
fn local_is_what_was_recorded_for_each_storage_cfg() {
    let Some(lab) = Lab::builder().start() else { return };
    let text = recording::text("implied-local.txt");
    let recorded: Vec<&str> = text.lines().filter(|line| line.starts_with("local: ")).collect();
    assert_eq!(recorded.len(), 3);
    for (line, file) in recorded.iter().zip([None, Some(OTHER), Some(MOVED)]) {
        match file {
            None => lab.files().remove("/etc/pve/storage.cfg"),
            Some(text) => lab.write("/etc/pve/storage.cfg", text),
        }
        let shown = lab.run(["pvesm", "__config"]).ok().stdout;
        let local = shown.lines().find(|line| line.starts_with("local: ")).unwrap_or_default();
        assert_eq!(local, line.trim_end_matches(" nodes "), "{file:?}");
    }
}

#[test]
fn without_a_storage_cfg_pvesm_shows_it_and_a_hookscript_is_found_in_it() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.files().remove("/etc/pve/storage.cfg");
    let steps = recording::calls("implied-local.txt");
    let words = |text: &str, line: usize, count: usize| -> Vec<String> {
        let line = text.lines().nth(line).unwrap_or_default();
        line.split_whitespace().take(count).map(str::to_owned).collect()
    };
    let status = lab.run(["pvesm", "status"]).ok().stdout;
    assert_eq!(status.lines().next(), steps[0].out.lines().next());
    assert_eq!(words(&status, 1, 3), words(&steps[0].out, 1, 3));
    assert_eq!(lab.run(["pvesm", "list", "local", "--content", "snippets"]).ok().stdout, steps[1].out);
    lab.create(101, Rootfs::Busybox.unprivileged());
    lab.snippet("x", "#!/bin/sh\n");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/x"]).ok();
    lab.run(["pct", "start", "101"]).ok();
}

#[test]
fn a_content_list_that_is_set_replaces_the_one_before() {
    let Some(lab) = Lab::builder().start() else { return };
    lab.write("/etc/pve/storage.cfg", OTHER);
    lab.run(["pvesm", "set", "local", "--content", "iso,snippets"]).ok();
    lab.run(["pvesm", "__config"])
        .ok()
        .says("local: iso,snippets path /var/lib/vz\n")
        .says("other: iso path /srv/other\n");
}
