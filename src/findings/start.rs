//! What the next start would be refused for, and what it would do without.

use super::finding::Finding;
use super::read::Container;
use crate::pve::hookscript::Hookscript;
use crate::pve::startable::Obstacle;
use crate::sys::text;

/// The hookscript: without it nothing happens, and a broken one stops every
/// start.
pub fn hookscript(c: &Container) -> Vec<Finding> {
    let attach = format!("phoenix-nvidia attach {}", c.ctid);
    let delete = format!("pct set {} --delete hookscript", c.ctid);
    // Another one's place is not ours to fill.
    let again = if c.hook.is_meant() { attach.clone() } else { delete };
    let failure = |what| Finding::failure("hookscript", format!("does not start: {what}"));
    let finding = match &c.hook {
        Hookscript::Ours(place) => Finding::ok("hookscript", place.volume.clone()),
        Hookscript::None => {
            Finding::warning("hookscript", "no hookscript: starts without GPU setup").fix(attach)
        }
        Hookscript::Foreign(place) => {
            let what = format!("hookscript {} is another one: starts without GPU setup", place.volume);
            Finding::warning("hookscript", what).fix(format!("{attach} --chain"))
        }
        Hookscript::NoStorage(volume) => {
            failure(format!("hookscript {volume} is in no storage of this node")).fix(again)
        }
        Hookscript::Missing(place) => {
            failure(format!("hookscript {} is missing ({})", place.volume, place.path.display())).fix(again)
        }
        Hookscript::NotExecutable(place) => {
            let path = text::word(&place.path.to_string_lossy());
            failure(format!("hookscript {} is not executable", place.path.display()))
                .fix(format!("chmod 755 {path}"))
        }
        Hookscript::Unseen(place, why) => {
            let what = format!("cannot check hookscript {}: {why}", place.volume);
            let fix = c.hook.is_meant().then(|| format!("{attach} --storage local"));
            Finding::unknown("hookscript", what)
                .why("the container does not start while the storage does not answer")
                .fix_if(fix)
        }
    };
    vec![finding]
}

/// What Proxmox or our own pre-start would refuse the next start for, and no
/// other check tells: those of the hookscript, of a template, of the quorum and
/// of missing GPUs.
pub fn obstacles(c: &Container) -> Vec<Finding> {
    let finding = |obstacle: &Obstacle| {
        let check = match obstacle {
            Obstacle::Template
            | Obstacle::Hookscript { .. }
            | Obstacle::NoQuorum
            | Obstacle::Policy { .. } => return None,
            Obstacle::Lock { .. } => "lock",
            Obstacle::Chain { .. } => "chain",
            Obstacle::DeviceLine { .. } => "dev-line",
            Obstacle::Device { .. }
            | Obstacle::MountPoint { .. }
            | Obstacle::Storage { .. }
            | Obstacle::Silent { .. } => "start",
        };
        let verb = match (obstacle.is_certain(), c.running) {
            // Where no hookscript is ours, nobody calls the chained one yet.
            _ if check == "chain" && !c.hook.is_meant() => "would not start once attached",
            (true, true) => "would not start again",
            (true, false) => "does not start",
            (false, true) => "may not start again",
            (false, false) => "may not start",
        };
        let what = format!("{verb}: {obstacle}");
        let finding = match obstacle.passes() {
            true => Finding::warning(check, what),
            false => Finding::failure(check, what),
        };
        Some(finding.fix(obstacle.remedy(c.ctid)))
    };
    let chained = c.chained.iter().filter(|chained| !c.obstacles.contains(chained));
    c.obstacles.iter().chain(chained).filter_map(finding).collect()
}
