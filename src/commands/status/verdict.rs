//! What all that is known of a container comes to. Pure.

use crate::commands::level::Level;
use crate::pve::hookscript::Hookscript;
use crate::pve::startable::Obstacle;
use crate::state::State;
use crate::state::recorded;
use crate::state::recorded::Bearing;
use crate::state::recorded::Now;

/// What was seen.
pub struct Seen<'a> {
    /// Settings that are missing or cannot be read.
    pub problems: Vec<String>,
    /// Whether the kernel driver is loaded.
    pub driver_loaded: bool,
    /// What the settings ask for and the host does not have.
    pub missing: Vec<String>,
    /// The next start changes the conf's device pairs.
    pub pending: bool,
    /// The next start puts the mounts of ours in.
    pub new_mounts: bool,
    /// The hookscript.
    pub hook: &'a Hookscript,
    /// Whether the container runs.
    pub running: bool,
    /// Whether its driver is looked after.
    pub install: bool,
    /// Its driver and the kernel's, where they differ.
    pub mismatch: Option<(String, String)>,
    /// The fingerprint of the software that is wanted, if any is.
    pub asked: Option<String>,
    /// What was recorded.
    pub state: &'a State,
    /// The reboot after an install was not made yet.
    pub restart_due: bool,
    /// What its next start would be refused for.
    pub obstacles: Vec<Obstacle>,
}

/// The worst level, and the reasons, the worst first.
pub fn of(seen: &Seen<'_>) -> (Level, Vec<String>) {
    let mut reasons: Vec<(Level, String)> = Vec::new();
    let mut say = |level, text: String| reasons.push((level, text));
    if !seen.driver_loaded {
        say(Level::Failure, "no NVIDIA driver is loaded on this node".to_owned());
    }
    seen.problems.iter().for_each(|problem| say(Level::Failure, problem.clone()));
    if seen.driver_loaded {
        seen.missing.iter().for_each(|missing| say(Level::Failure, missing.clone()));
    }
    match seen.hook {
        Hookscript::Ours(_) => {}
        Hookscript::None => say(Level::Warning, "no hookscript: nothing is done at its starts".to_owned()),
        Hookscript::Foreign(place) => {
            say(
                Level::Warning,
                format!("another hookscript, {}: nothing is done at its starts", place.volume),
            );
        }
        Hookscript::NoStorage(volume) => {
            say(Level::Failure, format!("hookscript {volume}: no such storage, so it does not start"));
        }
        Hookscript::Missing(place) => {
            say(Level::Failure, format!("hookscript {} is missing, so it does not start", place.volume));
        }
        Hookscript::Unseen(place, why) => {
            say(Level::Unknown, format!("cannot check hookscript {}: {why}", place.volume));
        }
        Hookscript::NotExecutable(place) => {
            say(
                Level::Failure,
                format!("hookscript {} cannot be executed, so it does not start", place.volume),
            );
        }
    }
    refused(seen, &mut say);
    if seen.restart_due {
        say(Level::Warning, "restart due: its services run with the driver from before".to_owned());
    }
    recorded(seen, &mut say);
    if let Some((inside, kernel)) = seen.mismatch.as_ref().filter(|_| seen.install && seen.running) {
        say(Level::Failure, format!("driver {inside} in the container, {kernel} in the kernel: restart it"));
    }
    if seen.pending && seen.driver_loaded {
        // That is what a stopped container waits for.
        let level = if seen.running { Level::Warning } else { Level::Ok };
        say(level, "its next start changes its devices".to_owned());
    } else if seen.new_mounts && matches!(seen.hook, Hookscript::Ours(_)) {
        say(Level::Ok, "its next start adds the mounts over /proc/driver/nvidia".to_owned());
    }
    // The worst first, in the order in which they were found.
    reasons.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let level = reasons.first().map_or(Level::Ok, |(level, _)| *level);
    (level, reasons.into_iter().map(|(_, text)| text).collect())
}

/// What is not told by a reason of its own.
fn refused(seen: &Seen<'_>, say: &mut impl FnMut(Level, String)) {
    for obstacle in &seen.obstacles {
        let level = match obstacle {
            Obstacle::Template | Obstacle::Hookscript { .. } | Obstacle::Policy { .. } => continue,
            passes if passes.passes() || seen.running => Level::Warning,
            _ => Level::Failure,
        };
        let what = match (obstacle.is_certain(), seen.running) {
            (true, true) => "would not start again",
            (true, false) => "does not start",
            (false, true) => "may not start again",
            (false, false) => "may not start",
        };
        say(level, format!("{what}: {obstacle}"));
    }
}

fn recorded(seen: &Seen<'_>, say: &mut impl FnMut(Level, String)) {
    let state = seen.state;
    let now = Now {
        running: seen.running,
        startable: seen.obstacles.is_empty(),
        devices: seen.missing.is_empty() && !seen.pending,
        asked: seen.asked.clone(),
        software: None,
    };
    match recorded::bearing(state, &now) {
        Bearing::None => {}
        Bearing::Running => say(Level::Ok, format!("{} is under way", state.phase)),
        Bearing::Stands => say(Level::of(state.outcome), recorded::sentence(state)),
        Bearing::Past => say(Level::Ok, format!("past: {}", recorded::sentence(state))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pve::hookscript::Place;

    fn place() -> Place {
        Place { volume: "local:snippets/x".into(), path: "/x".into() }
    }

    fn judge(change: impl FnOnce(&mut Seen<'_>)) -> (Level, String) {
        let (hook, state) = (Hookscript::Ours(place()), State::default());
        let mut seen = Seen {
            problems: Vec::new(),
            driver_loaded: true,
            missing: Vec::new(),
            pending: false,
            new_mounts: false,
            hook: &hook,
            running: true,
            install: true,
            mismatch: None,
            asked: None,
            state: &state,
            restart_due: false,
            obstacles: Vec::new(),
        };
        change(&mut seen);
        let (level, reasons) = of(&seen);
        (level, reasons.first().cloned().unwrap_or_default())
    }

    #[test]
    fn a_healthy_container_is_ok_without_a_word() {
        assert_eq!(judge(|_| {}), (Level::Ok, String::new()));
    }

    #[test]
    fn the_worst_reason_comes_first() {
        let (level, first) = judge(|seen| {
            seen.pending = true;
            seen.missing = vec!["GPU 3: is not there".into()];
        });
        assert_eq!((level, first.as_str()), (Level::Failure, "GPU 3: is not there"));
        assert_eq!(judge(|seen| seen.pending = true).0, Level::Warning);
    }

    #[test]
    fn a_driver_mismatch_counts_only_where_it_matters() {
        let differ = || Some(("580.76.05".to_owned(), "580.95.05".to_owned()));
        assert_eq!(judge(|seen| seen.mismatch = differ()).0, Level::Failure);
        let stopped = |seen: &mut Seen<'_>| {
            seen.mismatch = differ();
            seen.running = false;
        };
        assert_eq!(judge(stopped).0, Level::Ok);
        let off = |seen: &mut Seen<'_>| {
            seen.mismatch = differ();
            seen.install = false;
        };
        assert_eq!(judge(off).0, Level::Ok);
    }

    #[test]
    fn what_refuses_the_next_start_is_a_failure_once_the_container_is_down() {
        let device = || vec![Obstacle::Device { key: "dev0".into(), path: "/dev/gone".into() }];
        let (level, first) = judge(|seen| seen.obstacles = device());
        assert_eq!(
            (level, first.as_str()),
            (Level::Warning, "would not start again: dev0 passes /dev/gone, which does not exist")
        );
        let stopped = |seen: &mut Seen<'_>| {
            seen.obstacles = device();
            seen.running = false;
        };
        assert_eq!(judge(stopped).0, Level::Failure);
        assert_eq!(judge(|seen| seen.restart_due = true).0, Level::Warning);
    }

    #[test]
    fn without_a_driver_its_missing_gpus_are_not_told_one_by_one() {
        let (level, reasons) = {
            let (hook, state) = (Hookscript::None, State::default());
            of(&Seen {
                problems: Vec::new(),
                driver_loaded: false,
                missing: vec!["GPU 0: x".into(), "GPU 1: x".into()],
                pending: true,
                new_mounts: false,
                hook: &hook,
                running: false,
                install: true,
                mismatch: None,
                asked: None,
                state: &state,
                restart_due: false,
                obstacles: Vec::new(),
            })
        };
        assert_eq!((level, reasons.len()), (Level::Failure, 2), "{reasons:?}");
    }
}
