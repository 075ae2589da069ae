//! Why the settings remove a device entry from a conf, and what keeps it. Pure.

use crate::device::DevicePath;
use crate::device::assignment::{Assignment, GpuName};
use crate::host::choose::{Capabilities, Choice};
use crate::plan::Intent;
use crate::pve::conf::document::Document;
use crate::pve::conf::reconcile::Change;
use crate::pve::passthrough;
use crate::types::Ctid;

/// A change with the reason, if it is a removal that the settings are the reason
/// for.
pub fn explained(change: &Change, intent: &Intent, choice: &Choice, conf: &Document) -> String {
    let why = match change {
        Change::Removed(path, _) => why(*path, intent, choice, conf),
        _ => None,
    };
    why.map_or_else(|| change.to_string(), |why| format!("{change}: {why}"))
}

/// Why the settings remove the entry of a device; none where the host is the
/// reason.
pub fn why(path: DevicePath, intent: &Intent, choice: &Choice, conf: &Document) -> Option<String> {
    if let Some(line) = passthrough::next(conf).iter().find(|line| line.device() == Some(path)) {
        return Some(format!("{} passes it", line.key));
    }
    if path == DevicePath::Caps {
        return Some(
            "the host's own directory, which root in a privileged container can write to".to_owned(),
        );
    }
    let Intent::Assigned(assignment, capabilities) = intent else { return None };
    match path {
        path if path.is_display() && !capabilities.wants_display() => {
            Some(format!("not in GPU_CAPABILITIES={capabilities}, graphics keeps it"))
        }
        DevicePath::Card(_) | DevicePath::Render(_) if choice.missing.is_empty() => {
            Some(format!("of no card in GPU_ASSIGNMENT={assignment}"))
        }
        DevicePath::Gpu(minor) if !may_name(assignment, choice, minor) => {
            Some(format!("not in GPU_ASSIGNMENT={assignment}"))
        }
        DevicePath::CapFile(_) if choice.missing.is_empty() => {
            Some(format!("of no MIG instance in GPU_ASSIGNMENT={assignment}"))
        }
        _ => None,
    }
}

/// Whether the assignment names the card, or may: what is missing on this host
/// has no number.
fn may_name(assignment: &Assignment, choice: &Choice, minor: u32) -> bool {
    match assignment {
        Assignment::None => false,
        Assignment::All => true,
        Assignment::List(names) if names.iter().all(|name| matches!(name, GpuName::Index(_))) => {
            names.contains(&GpuName::Index(minor))
        }
        Assignment::List(_) => !choice.missing.is_empty(),
        Assignment::Narrowed { .. } => {
            !choice.missing.is_empty() || choice.gpus.iter().any(|gpu| gpu.minor == Some(minor))
        }
    }
}

/// The command that keeps the entries of mode setting and DRM; none where the
/// settings keep them.
pub fn kept_by(ctid: Ctid, intent: &Intent) -> Option<String> {
    let Intent::Assigned(_, capabilities) = intent else { return None };
    let more = Capabilities { graphics: true, ..*capabilities };
    let keeps = format!("phoenix-nvidia attach {ctid} --capabilities {more}");
    (!capabilities.wants_display()).then_some(keeps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, assignment: &str, capabilities: &str, conf: &str) -> Option<String> {
        let intent = Intent::Assigned(assignment.parse().unwrap(), capabilities.parse().unwrap());
        why(path.parse().unwrap(), &intent, &Choice::default(), &Document::parse(conf.as_bytes()))
    }

    #[test]
    fn the_reason_names_the_setting() {
        for (path, assignment, capabilities, conf, reason) in [
            ("/dev/nvidia1", "0", "compute", "", Some("not in GPU_ASSIGNMENT=0")),
            ("/dev/nvidia1", "none", "compute", "", Some("not in GPU_ASSIGNMENT=none")),
            ("/dev/nvidia1", "GPU-8f3c", "compute", "", Some("not in GPU_ASSIGNMENT=GPU-8f3c")),
            ("/dev/nvidia1", "0", "compute", "dev3: /dev/nvidia1\n", Some("dev3 passes it")),
            ("/dev/nvidia1", "0,1", "compute", "", None),
            ("/dev/nvidia1", "all", "compute", "", None),
            (
                "/dev/nvidia-modeset",
                "0",
                "compute",
                "",
                Some("not in GPU_CAPABILITIES=compute, graphics keeps it"),
            ),
            ("/dev/nvidia-modeset", "0", "graphics", "", None),
            (
                "/dev/dri/card1",
                "0",
                "utility",
                "",
                Some("not in GPU_CAPABILITIES=utility, graphics keeps it"),
            ),
            ("/dev/dri/card1", "0", "display", "", Some("of no card in GPU_ASSIGNMENT=0")),
            ("/dev/nvidia-uvm", "0", "compute", "", None),
        ] {
            assert_eq!(
                of(path, assignment, capabilities, conf).as_deref(),
                reason,
                "{path} {assignment} {capabilities}"
            );
        }
    }

    #[test]
    fn the_command_adds_to_the_capabilities_that_are_set() {
        let command = |capabilities: &str| {
            let intent = Intent::Assigned(Assignment::All, capabilities.parse().unwrap());
            kept_by("131".parse().unwrap(), &intent)
        };
        let keeps = "phoenix-nvidia attach 131 --capabilities compute,utility,graphics";
        assert_eq!(command("compute,utility").as_deref(), Some(keeps));
        assert_eq!(command("display"), None);
    }
}
