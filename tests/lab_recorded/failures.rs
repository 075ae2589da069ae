//! Hooks that fail in each phase, are killed, missing, not executable, or leave a child behind.

use phoenix_lab::{Container, Lab, Rootfs};

use crate::{recorded, recording, replay};

/// A hook that prints on both streams and then does `what` in one phase.
fn hook(phase: &str, what: &str) -> String {
    format!("#!/bin/sh\necho \"$2 out\"\necho \"$2 err\" >&2\n[ \"$2\" != {phase} ] || {what}\nexit 0\n")
}

fn with_hook(lab: &Lab) -> Container<'_> {
    let ct = recorded(lab, 101, Rootfs::Busybox.unprivileged());
    lab.snippet("b.sh", "#!/bin/sh\n");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/b.sh"]).ok();
    ct
}

fn play(lab: &Lab, heading: &str) {
    for step in recording::section("failures.txt", heading) {
        replay(lab, &step);
    }
}

#[test]
fn a_failing_hook_has_the_recorded_consequences() {
    let Some(lab) = Lab::builder().start() else { return };
    with_hook(&lab);
    lab.snippet("b.sh", &hook("pre-start", "exit 3"));
    play(&lab, "pre-start exit 3");
    let log = lab.sh("cat /var/log/pve/tasks/?/UPID:*vzstart:101:*").ok().stdout;
    let message = "hookscript error for 101 on pre-start: \
                   command '/var/lib/vz/snippets/b.sh 101 pre-start' failed: exit code 3 ";
    assert_eq!(log, format!("pre-start out\npre-start err\n\nTASK ERROR: {message}\n"));
    lab.snippet("b.sh", &hook("pre-start", "kill -9 $$"));
    play(&lab, "pre-start killed by SIGKILL");
    lab.snippet("b.sh", &hook("post-start", "exit 3"));
    play(&lab, "post-start exit 3");
    lab.snippet("b.sh", &hook("pre-stop", "exit 3"));
    play(&lab, "pre-stop exit 3");
    lab.snippet("b.sh", "#!/bin/sh\n");
    lab.run(["pct", "start", "101"]).ok();
    lab.snippet("b.sh", &hook("post-stop", "exit 3"));
    play(&lab, "post-stop exit 3");
}

#[test]
fn an_unfit_hookscript_has_the_recorded_consequences() {
    let Some(lab) = Lab::builder().start() else { return };
    with_hook(&lab);
    lab.files().chmod("/var/lib/vz/snippets/b.sh", 0o644);
    play(&lab, "hook not executable");
    lab.files().remove("/var/lib/vz/snippets/b.sh");
    play(&lab, "hook missing");
    lab.write("/var/lib/vz/snippets/noexec.sh", "#!/bin/sh\n");
    play(&lab, "pct set with missing");
}

#[test]
fn a_child_that_keeps_the_hook_s_output_open_holds_up_the_start() {
    let Some(lab) = Lab::builder().start() else { return };
    with_hook(&lab);
    let sleeping = || lab.leftovers().processes.iter().any(|process| process == "sleep 2.5");
    lab.snippet("b.sh", &hook("post-start", "sleep 2.5 &"));
    play(&lab, "background child holding stdout");
    // Its last step was the stop; a start alone shows that the child was waited for.
    lab.run(["pct", "start", "101"]).ok();
    assert!(!sleeping());
    lab.run(["pct", "stop", "101"]).ok();
    let detached = "setsid sleep 2.5 </dev/null >/dev/null 2>&1 &";
    lab.snippet("b.sh", &hook("post-start", detached));
    play(&lab, "background child detached");
    lab.snippet("b.sh", &hook("post-start", &detached.replace("2.5", "60")));
    lab.run(["pct", "start", "101"]).ok();
    // It may still be setsid that runs.
    assert!(lab.leftovers().processes.iter().any(|process| process.ends_with("sleep 60")));
}

#[test]
fn a_container_that_can_t_start_fails_after_pre_start_and_ends_with_post_stop() {
    let Some(lab) = Lab::builder().start() else { return };
    with_hook(&lab);
    lab.snippet("b.sh", "#!/bin/sh\necho \"$2\" >>/run/lab/phases\n");
    // Without `optional`, a source that isn't there is a failure of LXC's.
    lab.append("/etc/pve/lxc/101.conf", "lxc.mount.entry: /dev/gone dev/gone none bind,create=file 0 0\n");
    lab.run(["pct", "start", "101"]).code(255).says("startup for container '101' failed");
    lab.run(["pct", "status", "101"]).ok().says("status: stopped");
    assert_eq!(lab.read("/run/lab/phases"), "pre-start\npost-stop\n");
}
