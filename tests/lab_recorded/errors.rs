//! Messages and exit codes of wrong calls.

use phoenix_lab::Lab;

use crate::{all_recorded, recording};

#[test]
fn wrong_calls_are_answered_as_recorded() {
    let Some(lab) = Lab::builder().start() else { return };
    all_recorded(&lab);
    // The recording has both streams of these calls together, and no exit status after the two that succeeded.
    let calls = [
        ("status 999", true),
        ("config 999", true),
        ("status abc", true),
        ("list", false),
        ("start 104", false),
        ("start 104", true),
        ("stop 104", false),
        ("stop 104", true),
        ("shutdown 104", true),
        ("exec 104 -- true", true),
        ("exec 999 -- true", true),
    ];
    let mut seen = String::new();
    for (call, coded) in calls {
        let output = lab.run(format!("pct {call}").split(' '));
        seen += &format!("{}{}", output.stdout, output.stderr);
        if coded {
            seen += &format!("rc={}\n", output.exit().unwrap_or(-1));
        }
    }
    assert_eq!(seen, recording::text("errors.txt"));
}
