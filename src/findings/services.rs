//! What doctor looks for inside a container, besides the driver.

use crate::guest::exec::Guest;
use crate::guest::own;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::collections::BTreeSet;
use std::time::Duration;

const SCRIPT: &str = include_str!("services.sh");
/// A container that does not answer in this time is not looked into.
const LIMIT: Duration = Duration::from_secs(15);
/// The lines that the script prints; anything else that the container may
/// print is dropped.
const KNOWN: [&str; 11] = [
    "persistenced enabled",
    "persistenced running",
    "docker installed",
    "docker running",
    "toolkit config",
    "toolkit installed",
    "no-cgroups true",
    "runfile installed",
    "stale cdi",
    "stale own",
    "stale opencl",
];

/// What the script printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(BTreeSet<String>);

impl Services {
    /// Looks inside.
    ///
    /// # Errors
    /// Why that could not be done.
    pub fn look(ctid: Ctid) -> Result<Services, String> {
        let output = Guest::new(ctid)
            .attach_sh(SCRIPT, own::FILES)
            .run(&Deadline::after(LIMIT))
            .map_err(|e| e.to_string())?;
        let last = || output.last_lines(1).pop().unwrap_or_else(|| output.ended.to_string());
        Services::parse(&output.text()).ok_or_else(last)
    }

    /// `None` if the script did not get to its end.
    pub(super) fn parse(text: &str) -> Option<Services> {
        let lines = text.lines().map(str::trim);
        let ours = |line: &str| line.strip_prefix("left ").is_some_and(|file| own::FILES.contains(&file));
        let known =
            lines.clone().filter(|line| KNOWN.contains(line) || ours(line)).map(str::to_owned).collect();
        lines.clone().any(|line| line == "end 1").then_some(Services(known))
    }

    /// Whether it printed one of these.
    pub fn has(&self, lines: &[&str]) -> bool {
        lines.iter().any(|line| self.0.contains(*line))
    }
}
