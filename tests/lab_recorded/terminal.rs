//! From a terminal a hookscript keeps that terminal, without one it has none.

use phoenix_lab::{Lab, Rootfs};

use crate::{recorded, recording};

/// On its second line, as in the recording, whose messages name it.
const HOOK: &str = r#"#!/bin/sh
set -- "hook $2"; echo "$1: sid $(ps -o sid= -p $$) pid $$ tty $(ps -o tty= -p $$)"; : </dev/tty; echo "$1: /dev/tty opens"
"#;

/// The numbers of processes and terminals are other ones each time.
fn without_numbers(text: &str) -> Vec<String> {
    let word = |word: &str| match word.trim_start_matches("pts/") {
        number if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => "N".to_owned(),
        _ => word.to_owned(),
    };
    let line = |line: &str| line.split_ascii_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).filter(|line| !line.is_empty()).collect()
}

/// What was recorded below a heading.
fn heard(heading: &str) -> String {
    let text = recording::text("terminal.txt");
    let found =
        text.split("### ").find_map(|part| part.strip_prefix(heading)?.strip_prefix('\n').map(str::to_owned));
    found.unwrap_or_else(|| panic!("nothing below {heading:?}"))
}

#[test]
fn a_hookscript_has_the_terminal_that_its_start_was_called_at() {
    let Some(lab) = Lab::builder().start() else { return };
    recorded(&lab, 102, Rootfs::Busybox.privileged());
    lab.snippet("tty.sh", HOOK);
    lab.run(["pct", "set", "102", "--hookscript", "local:snippets/tty.sh"]).ok();
    let start = lab.command("pct").args(["start", "102"]).on_a_terminal().run().ok();
    // The recording's stop was called without one.
    let stop = lab.run(["pct", "stop", "102"]).ok();
    let seen = format!("{}{}", start.stdout, stop.stdout);
    assert_eq!(without_numbers(&seen), without_numbers(&heard("pct start from a terminal")), "{start}{stop}");
    let session: Vec<&str> = start.stdout.lines().filter_map(|line| line.split("sid ").nth(1)).collect();
    for line in session {
        let numbers: Vec<&str> = line.split_ascii_whitespace().collect();
        assert_ne!(numbers[0], numbers[2], "its session is its caller's: {line}");
    }
    let alone = lab.run(["pct", "start", "102"]).code(255);
    let recorded = heard("pct start without a terminal");
    assert_eq!(
        without_numbers(&format!("{}{}", alone.stdout, alone.stderr)),
        without_numbers(&recorded),
        "{alone}"
    );
}
