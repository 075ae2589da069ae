//! What `pct set` makes of a conf: comments, forms, sections, unknown lines.

use phoenix_lab::{Lab, Rootfs};

use crate::recording::{self, Step};
use crate::{compare, recorded, replay};

const CONF: &str = "/etc/pve/lxc/101.conf";
const FILE: &str = "rewriting.txt";

fn with_conf(conf: &str) -> Option<Lab> {
    let lab = Lab::builder().start()?;
    recorded(&lab, 101, Rootfs::Busybox.unprivileged());
    lab.write(CONF, conf);
    Some(lab)
}

/// The first command below a heading.
fn step(heading: &str) -> Step {
    recording::section(FILE, heading).swap_remove(0)
}

#[test]
fn a_conf_is_shown_and_rewritten_as_recorded() {
    let Some(lab) = with_conf(&recording::file(FILE, "d1: input")) else { return };
    assert_eq!(lab.conf(101).len(), 949);
    for step in recording::section(FILE, "d1: input") {
        // How a snapshot's time is shown is not the lab's concern.
        if step.title != "pct listsnapshot 101" {
            replay(&lab, &step);
        }
    }
    replay(&lab, &step("d2"));
    assert_eq!(lab.conf(101), recording::file(FILE, "d2"));
    assert_eq!(lab.conf(101).len(), 869);
    let inode = lab.inode(CONF);
    replay(&lab, &step("d3"));
    assert_eq!(lab.conf(101), recording::file(FILE, "d2"));
    assert_ne!(lab.inode(CONF), inode);
    let description = "line a\nline: b # MANAGED {\"x\":1}";
    compare(&step("d4"), &lab.run(["pct", "set", "101", "--description", description]));
    assert_eq!(lab.conf(101), recording::file(FILE, "d4"));
    replay(&lab, &step("d5"));
    assert_eq!(lab.conf(101), recording::file(FILE, "d5"));
    assert_eq!(lab.conf(101).len(), 714);
}

#[test]
fn lines_after_a_snapshot_s_header_belong_to_the_snapshot() {
    let expected = recording::file(FILE, "d6");
    let Some(lab) = with_conf(&expected.replace("memory: 258", "memory: 256")) else { return };
    lab.run(["pct", "set", "101", "--memory", "258"]).ok();
    assert_eq!(lab.conf(101), expected);
    assert_eq!(expected.len(), 349);
    lab.run(["pct", "start", "101"]).ok();
    assert!(!lab.generated(101).contains("nvidia"));
}

#[test]
fn an_append_to_a_file_without_its_last_newline_spoils_the_last_key() {
    let conf = recording::text("101.conf");
    let appended = format!("{}lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind\n", conf.trim_end());
    let Some(lab) = with_conf(&appended) else { return };
    replay(&lab, &step("d7"));
}

#[test]
fn blanks_and_line_ends_are_taken_as_recorded() {
    let conf = recording::text("101.conf").replace("memory: 256\n", "memory: 256\r\nmemory: 99\n")
        + " lxc.mount.entry: /dev/a dev/a none bind\n\tlxc.mount.entry: /dev/b dev/b none bind\n"
        + "lxc.mount.entry:/dev/c dev/c none bind\nlxc.mount.entry =   /dev/d dev/d none bind\n"
        + "lxc.mount.entry : /dev/e dev/e none bind\nlxc.mount.entry: /dev/f dev/f none bind\r\n";
    let Some(lab) = with_conf(&conf) else { return };
    let step = step("d8");
    compare(&step, &lab.run(["pct", "config", "101"]));
    lab.run(["pct", "set", "101", "--memory", "259"]).ok();
    let written = lab.conf(101).replace('\n', "$\n");
    assert_eq!(written, recording::file(FILE, "d8"));
}

#[test]
fn a_clone_takes_the_lxc_lines_along() {
    let conf = recording::text("101.conf")
        + "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n";
    let Some(lab) = with_conf(&conf) else { return };
    lab.run(["pct", "clone", "101", "199", "--hostname", "c199"]).ok();
    assert_eq!(lab.conf(199), recording::file(FILE, "d10"));
    lab.run(["pct", "start", "199"]).ok();
    lab.container(199).exec(["hostname"]).ok().says("c199");
}

#[test]
fn a_locked_container_is_neither_started_nor_changed() {
    let conf = recording::text("101.conf").replace("memory:", "lock: backup\nmemory:");
    let Some(lab) = with_conf(&conf) else { return };
    for step in recording::section(FILE, "d11") {
        replay(&lab, &step);
    }
}
