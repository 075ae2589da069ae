//! Every pct command, called from inside each phase of a hook.

use std::collections::BTreeMap;
use std::time::Duration;

use phoenix_lab::{Lab, Rootfs};

use crate::{recorded, recording};

/// Runs the recorded calls of its phase all at once, since many of them wait ten seconds for the lock.
const HOOK: &str = r#"#!/bin/sh
n=0
while read -r line; do
    n=$((n + 1))
    {
        out=$(sh -c "$line" 2>&1)
        echo $? >/run/lab/answers/$2.$n.rc
        echo "$out" | head -3 | tr '\n' '|' >/run/lab/answers/$2.$n.out
    } </dev/null >/dev/null 2>&1 &
done </run/lab/calls.$2
wait
"#;

/// A recorded call: its line, its exit code, the first three lines of what it printed.
struct Call {
    line: String,
    rc: i32,
    said: String,
}

fn recorded_calls(phase: &str) -> Vec<Call> {
    let text = recording::text("calls-from-a-hook.txt");
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix(&format!("[{phase}] ")));
    let calls = lines.map(|line| {
        let (command, rest) = line.split_once("rc=").unwrap_or_else(|| panic!("{line}"));
        let mut words = rest.splitn(2, " ms  ");
        let numbers: Vec<i32> = words
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        Call {
            line: command.trim().to_owned(),
            rc: numbers[0],
            said: words.next().unwrap_or_default().to_owned(),
        }
    });
    // Not what LXC says of itself, in another version; not the lists of other containers; not a program that isn't there.
    let ours = |call: &Call| call.line.starts_with("pct ") && call.line != "pct list";
    calls.filter(ours).collect()
}

#[test]
fn calls_from_a_hook_are_answered_as_recorded() {
    let Some(lab) = Lab::builder().start() else { return };
    recorded(&lab, 101, Rootfs::Busybox.unprivileged());
    lab.write("/srv/push.src", "pushed\n");
    lab.files().mkdir("/run/lab/answers");
    lab.snippet("f.sh", HOOK);
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/f.sh"]).ok();
    let phases = ["pre-start", "post-start", "pre-stop"];
    let all: BTreeMap<&str, Vec<Call>> = phases.iter().map(|phase| (*phase, recorded_calls(phase))).collect();
    for (phase, calls) in &all {
        assert!(calls.len() > 8, "{phase}: {} calls", calls.len());
        let lines: String = calls.iter().map(|call| format!("{}\n", quoted(&call.line))).collect();
        lab.write(format!("/run/lab/calls.{phase}"), lines);
    }
    lab.run(["pct", "start", "101"]).ok();
    lab.run(["pct", "stop", "101"]).ok();
    for (phase, calls) in &all {
        for (number, call) in (1..).zip(calls) {
            let answer = |what: &str| lab.read(format!("/run/lab/answers/{phase}.{number}.{what}"));
            assert_eq!(answer("rc").trim(), call.rc.to_string(), "{phase}: {}", call.line);
            assert_eq!(answer("out"), call.said, "{phase}: {}", call.line);
        }
    }
}

/// The recording shows the arguments without the quotes that they had.
fn quoted(line: &str) -> String {
    line.replace("echo in; exit 4", "'echo in; exit 4'").replace(" set from ", " set-from-")
}

#[test]
fn a_call_from_outside_waits_for_the_lock_and_goes_on() {
    let Some(lab) = Lab::builder().start() else { return };
    recorded(&lab, 101, Rootfs::Busybox.unprivileged());
    lab.snippet("s.sh", "#!/bin/sh\n[ $2 = pre-start ] && touch /run/lab/held && sleep 1\nexit 0\n");
    lab.run(["pct", "set", "101", "--hookscript", "local:snippets/s.sh"]).ok();
    let start = lab.command("pct").args(["start", "101"]).spawn();
    lab.command("sh")
        .args(["-c", "until [ -e /run/lab/held ]; do sleep 0.02; done"])
        .timeout(Duration::from_secs(20))
        .run();
    let set = lab.run(["pct", "set", "101", "--description", "waited"]).ok();
    assert_eq!(set.stderr, "trying to acquire lock...\n OK\n");
    start.wait().ok();
    assert!(lab.conf(101).starts_with("#waited\n"));
}
