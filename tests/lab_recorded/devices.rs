//! Device nodes inside: with and without a rule, by lines in the conf and by lines that a hook added in pre-start.

use std::collections::BTreeMap;

use phoenix_lab::{Container, Errno, Lab, Rootfs, Spec};

use crate::recording;

/// A node that really opens where the machine has KVM: a device of ours by name, of the machine by number.
const REAL: &str = "/dev/nvidia-fake0";
const NODES: [&str; 4] = ["/dev/nvidia0", "/dev/nvidiactl", REAL, "/dev/null"];

type Answers = BTreeMap<String, Result<(), Errno>>;

/// What a part of a recording says about nodes: `PATH: what open said`.
fn recorded_answers(text: &str) -> Answers {
    let said = text.lines().filter_map(|line| line.trim_start().split_once(": "));
    let nodes = said.filter(|(path, _)| NODES.contains(path));
    nodes.map(|(path, said)| (path.to_owned(), meaning(said))).collect()
}

fn meaning(said: &str) -> Result<(), Errno> {
    let meanings =
        [("OPEN_OK", None), ("absent", Some(Errno::ENOENT)), ("No such file", Some(Errno::ENOENT))]
            .into_iter()
            .chain([
                ("No such device or address", Some(Errno::ENXIO)),
                ("Operation not permitted", Some(Errno::EPERM)),
            ]);
    let found = meanings.into_iter().find(|(text, _)| said.contains(text));
    let (_, errno) = found.unwrap_or_else(|| panic!("{said:?} is not understood"));
    errno.map_or(Ok(()), Err)
}

/// A part of a recording, from its heading to the next.
fn part<'a>(text: &'a str, mark: &str, heading: &str) -> &'a str {
    let found = text.split(mark).find(|part| part.starts_with(heading));
    found.unwrap_or_else(|| panic!("no {heading:?}"))
}

/// Opens from inside what the recording opened, and compares. Without KVM here the real node says nothing.
#[track_caller]
fn same(lab: &Lab, ct: Container<'_>, part: &str) {
    let mut recorded = recorded_answers(part);
    assert!(recorded.len() > 1, "the recording opens nothing:\n{part}");
    if lab.sh(&format!("exec 3<>{REAL}")).exit() != Some(0) {
        recorded.remove(REAL);
    }
    let seen: Answers = recorded.keys().map(|path| (path.clone(), ct.open_node(path))).collect();
    assert_eq!(
        seen,
        recorded,
        "what the recording says is on the right:\n{part}\n{}",
        lab.generated(ct.id())
    );
}

fn with_nodes() -> Option<Lab> {
    let lab = Lab::builder().gpus(1).start()?;
    lab.nvidia().make_node(REAL, 10, 232);
    Some(lab)
}

fn entry(path: &str) -> String {
    format!("lxc.mount.entry: {path} {} none bind,optional,create=file\n", path.trim_start_matches('/'))
}

const RULE_195: &str = "lxc.cgroup2.devices.allow: c 195:* rwm\n";
const RULE_REAL: &str = "lxc.cgroup2.devices.allow: c 10:232 rwm\n";

#[test]
fn device_rules_decide_as_recorded() {
    let Some(lab) = with_nodes() else { return };
    let kinds: [(u32, Spec, &str); 2] = [
        (102, Rootfs::Busybox.privileged(), "device-rules-privileged.txt"),
        (103, Rootfs::Busybox.unprivileged(), "device-rules-unprivileged.txt"),
    ];
    for (id, spec, file) in kinds {
        let ct = lab.create(id, spec);
        let text = recording::text(file);
        let plain = lab.conf(id);
        let entries: String = NODES[..3].iter().map(|path| entry(path)).collect();
        let cases = [
            ("A: ", entries.clone()),
            ("B: ", entries.clone() + RULE_195),
            ("C: ", entries + RULE_195 + RULE_REAL),
            ("D: ", format!("dev0: {REAL}\n")),
        ];
        for (heading, lines) in cases {
            // The recording of D in the privileged container is of a machine that had lost the node.
            if heading == "D: " && id == 102 {
                continue;
            }
            lab.write(format!("/etc/pve/lxc/{id}.conf"), plain.clone() + &lines);
            lab.run(["pct", "start", &id.to_string()]).ok();
            let part = part(&text, "== ", heading);
            same(&lab, ct, part);
            let generated = lab.generated(id);
            for line in part.lines().filter_map(|line| line.trim().strip_prefix("cfg: ")) {
                assert!(generated.lines().any(|known| known == line), "{line:?} is not in\n{generated}");
            }
            lab.run(["pct", "stop", &id.to_string()]).ok();
        }
    }
}

#[test]
fn a_devn_whose_node_is_missing_fails_before_any_hook() {
    let Some(lab) = with_nodes() else { return };
    lab.create(102, Rootfs::Busybox.privileged());
    lab.snippet("h.sh", "#!/bin/sh\ntouch /run/lab/hook-ran\n");
    lab.run(["pct", "set", "102", "--hookscript", "local:snippets/h.sh", "--dev0", REAL]).ok();
    lab.nvidia().remove_node(REAL);
    let start = lab.run(["pct", "start", "102"]).code(255);
    assert!(recording::text("device-rules-privileged.txt").contains(&start.stderr), "{start}");
    assert!(!lab.exists("/run/lab/hook-ran"));
}

#[test]
fn both_a_devn_and_a_mount_entry_for_one_device_fail_the_start() {
    let Some(lab) = with_nodes() else { return };
    lab.create(102, Rootfs::Busybox.privileged());
    lab.append("/etc/pve/lxc/102.conf", format!("dev0: /dev/nvidia0\n{}", entry("/dev/nvidia0")));
    lab.run(["pct", "start", "102"]).code(255);
}

/// Appends lines to a file in pre-start, once.
fn appender(file: &str, lines: &str) -> String {
    format!("#!/bin/sh\n[ $2 = pre-start ] || exit 0\ncat >>{file} <<END\n{lines}END\n")
}

#[test]
fn edits_in_pre_start_have_the_recorded_effects() {
    let Some(lab) = with_nodes() else { return };
    lab.write("/srv/shared/hi", "hi\n");
    let kinds: [(u32, Spec, &str); 2] = [
        (102, Rootfs::Busybox.privileged(), "edits-in-pre-start-privileged.txt"),
        (103, Rootfs::Busybox.unprivileged(), "edits-in-pre-start-unprivileged.txt"),
    ];
    for (id, spec, file) in kinds {
        let ct = lab.create(id, spec);
        let text = recording::text(file);
        let recorded = |heading: &str| part(&text, "--- ", heading).to_owned();
        lab.snippet("c.sh", "#!/bin/sh\n");
        lab.run(["pct", "set", &id.to_string(), "--hookscript", "local:snippets/c.sh"]).ok();
        let (conf, config) = (format!("/etc/pve/lxc/{id}.conf"), format!("/var/lib/lxc/{id}/config"));
        let plain = lab.conf(id);
        let entries = entry("/dev/nvidia0") + &entry(REAL);
        let lines = entries.clone() + RULE_195 + RULE_REAL;
        let as_lxc = |lines: &str| lines.replace(": ", " = ");
        let start = |hook: &str| {
            lab.snippet("c.sh", hook);
            lab.run(["pct", "start", &id.to_string()]).ok();
        };
        let stop = || {
            lab.run(["pct", "stop", &id.to_string()]).ok();
        };
        start(&appender(&conf, &lines));
        same(&lab, ct, &recorded("c1: "));
        stop();
        start("#!/bin/sh\n");
        same(&lab, ct, &recorded("c1b: "));
        stop();
        lab.write(&conf, &plain);
        start(&appender(&config, &as_lxc(&lines)));
        same(&lab, ct, &recorded("c2: "));
        let before = ct.init_pid();
        ct.wait_ready();
        ct.exec(["reboot"]);
        ct.wait_rebooted(before);
        same(&lab, ct, &recorded("c2b: "));
        assert!(!lab.generated(id).contains("nvidia"));
        stop();
        start(&appender(&config, &as_lxc(&entries)));
        same(&lab, ct, &recorded("c3: "));
        stop();
        start(&appender(&conf, &format!("dev0: {REAL}\nmp0: /srv/shared,mp=/srv/inside\n")));
        let part = recorded("c4: ") + "   /dev/null: OPEN_OK\n";
        same(&lab, ct, &part);
        assert_eq!(ct.exec(["cat", "/srv/inside/hi"]).ok().stdout, "hi\n");
        stop();
    }
}
