//! What was recorded of a container's last run, measured against what is now.
//! Findings are of what is: a failure that is over is told as past. Pure.

use super::{Outcome, State};
use crate::exit::Code;

/// What is now, as far as it was looked at.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// The container runs.
    pub running: bool,
    /// Nothing that can be seen keeps it from being restarted.
    pub startable: bool,
    /// Every assigned device can be given, and the conf has its pairs.
    pub devices: bool,
    /// The fingerprint of the software that is wanted; `None`: none is.
    pub asked: Option<String>,
    /// Whether a look inside found it; `None`: nobody looked.
    pub software: Option<bool>,
}

/// What the record means now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bearing {
    /// Nothing was recorded, or all went well.
    None,
    /// An install runs.
    Running,
    /// Something went wrong, and is not the case any more.
    Past,
    /// What went wrong is still wanted and not there.
    Stands,
}

/// Measures the record against what is now.
pub fn bearing(state: &State, now: &Now) -> Bearing {
    match state.outcome {
        Outcome::None | Outcome::Ok => return Bearing::None,
        Outcome::Running => return Bearing::Running,
        Outcome::Warning | Outcome::Failed => {}
    }
    let over = match state.phase.as_str() {
        "pre-start" => now.devices,
        "check" | "install" => software_is_right(state, now),
        // By hand. Wrong input changed nothing, and was that call's alone.
        _ if state.code == Code::Passthrough as u8 => now.devices,
        // One that was refused is still wanted, and the reason is still there.
        _ if state.code == Code::Restart as u8 => now.running && now.startable,
        _ if state.code == Code::Software as u8 => software_is_right(state, now),
        _ if state.outcome == Outcome::Warning => now.devices && software_is_right(state, now),
        _ => true,
    };
    if over { Bearing::Past } else { Bearing::Stands }
}

/// Whether no software is wanted, other software than the one that failed,
/// or it is there.
fn software_is_right(state: &State, now: &Now) -> bool {
    let Some(asked) = &now.asked else { return true };
    let other = state.asked.as_ref().is_some_and(|failed| failed != asked);
    other || now.software == Some(true)
}

/// How the record is told, for a person.
pub fn sentence(state: &State) -> String {
    let word = if state.outcome == Outcome::Failed { "failed" } else { "warned" };
    match state.message.as_str() {
        "" => format!("{} {word}", state.phase),
        message => format!("{} {word}: {message}", state.phase),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(phase: &str, code: Code) -> State {
        State { phase: phase.into(), code: code as u8, outcome: Outcome::Failed, ..State::default() }
    }

    fn wanted(fingerprint: &str) -> Now {
        Now { asked: Some(fingerprint.into()), ..Now::default() }
    }

    #[test]
    fn a_failure_of_devices_stands_while_they_cannot_be_given() {
        for state in [failed("pre-start", Code::Passthrough), failed("by hand", Code::Passthrough)] {
            assert_eq!(bearing(&state, &Now::default()), Bearing::Stands);
            assert_eq!(bearing(&state, &Now { devices: true, ..Now::default() }), Bearing::Past);
        }
        let warned = State { outcome: Outcome::Warning, ..failed("pre-start", Code::Success) };
        assert_eq!(bearing(&warned, &Now::default()), Bearing::Stands);
    }

    #[test]
    fn a_failed_install_stands_until_it_is_there_or_not_wanted() {
        let state = State { asked: Some("a".into()), ..failed("install", Code::Software) };
        assert_eq!(bearing(&state, &wanted("a")), Bearing::Stands);
        assert_eq!(bearing(&state, &Now::default()), Bearing::Past, "INSTALL=off");
        assert_eq!(bearing(&state, &wanted("b")), Bearing::Past, "other inputs");
        assert_eq!(bearing(&state, &Now { software: Some(true), ..wanted("a") }), Bearing::Past);
        assert_eq!(bearing(&state, &Now { software: Some(false), ..wanted("a") }), Bearing::Stands);
    }

    #[test]
    fn wrong_input_and_a_restart_that_came_about_are_past() {
        assert_eq!(bearing(&failed("by hand", Code::Input), &Now::default()), Bearing::Past);
        let restart = failed("by hand", Code::Restart);
        assert_eq!(bearing(&restart, &Now::default()), Bearing::Stands);
        let runs = Now { running: true, ..Now::default() };
        assert_eq!(bearing(&restart, &runs), Bearing::Stands, "refused, and would be again");
        assert_eq!(bearing(&restart, &Now { startable: true, ..runs }), Bearing::Past);
    }

    #[test]
    fn what_went_well_or_never_ran_says_nothing() {
        assert_eq!(bearing(&State::default(), &Now::default()), Bearing::None);
        let ok = State { outcome: Outcome::Ok, ..failed("install", Code::Success) };
        assert_eq!(bearing(&ok, &wanted("a")), Bearing::None);
    }
}
