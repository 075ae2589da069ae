//! What was recorded of a container's last run: a finding while it is still
//! so, and told as past afterwards.

use super::finding::{Finding, Level};
use super::read::Container;
use crate::driver::injection::Injection;
use crate::guest::install::steps::InstallSteps;
use crate::job::startable;
use crate::settings::keys;
use crate::state::Outcome;
use crate::state::recorded::{Bearing, Now, bearing, sentence};

fn now(c: &Container) -> Now {
    let seen = c.inside.as_ref().and_then(|inside| inside.software.as_ref()?.as_ref().ok());
    let right = |desired| seen.map(|check| InstallSteps::of(check, desired, true).is_empty());
    let works = c.inside.as_ref().is_none_or(|inside| inside.smi.is_none());
    Now {
        running: c.running,
        startable: c.obstacles.is_empty(),
        devices: c.choice.missing.is_empty() && !c.pending,
        asked: c.desired().map(|desired| desired.fingerprint()),
        software: c.desired().and_then(right).map(|right| right && works),
    }
}

/// What the last run came to, as far as that is still so.
pub fn last_run(c: &Container) -> Vec<Finding> {
    let level = if c.state.outcome == Outcome::Failed { Level::Failure } else { Level::Warning };
    let finding = match bearing(&c.state, &now(c)) {
        Bearing::None => return Vec::new(),
        Bearing::Running => Finding::ok("last-run", format!("{} running", c.state.phase)),
        Bearing::Past => Finding::ok("last-run", format!("past: {}", sentence(&c.state))),
        Bearing::Stands => Finding::new("last-run", level, sentence(&c.state))
            .why(format!("details: /var/log/phoenix-nvidia/{}.log, journalctl -t phoenix-nvidia", c.ctid))
            // The run's own remedy, where it had one.
            .fix(c.state.fix.clone().unwrap_or_else(|| format!("phoenix-nvidia {}", c.ctid))),
    };
    vec![finding]
}

/// A reboot after an install that was not made yet.
pub fn restart_due(c: &Container) -> Vec<Finding> {
    if !startable::restart_is_due(&c.state, &c.settings) {
        return Vec::new();
    }
    let finding = Finding::warning("restart-due", "restart due: its services run with the previous driver")
        .why("the reboot after an install waits until the container would start again")
        .fix(format!("phoenix-nvidia {}", c.ctid));
    vec![finding]
}

/// The driver that was last seen in a running container against the kernel's,
/// where nobody looks inside.
pub fn version(c: &Container) -> Vec<Finding> {
    let (Some(inside), Some(kernel)) = (&c.state.container_driver, &c.kernel) else { return Vec::new() };
    if inside == kernel.as_str()
        || !c.running
        || !c.settings.value(keys::INSTALL)
        || c.host_driver.injection != Injection::Off
    {
        return Vec::new();
    }
    let what = format!("driver {inside} in the container, {kernel} in the kernel");
    vec![Finding::failure("version", what).fix(format!("phoenix-nvidia {}", c.ctid))]
}
