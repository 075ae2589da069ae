//! What a container's conf shows. Each finding is a pure function of it.

use super::finding::Finding;
use crate::commands::level::Level;
use crate::device::{self, Device, DevicePath};
use crate::exit;
use crate::host::choose::Choice;
use crate::host::gpus::Inventory;
use crate::job::chain::Lacks;
use crate::plan;
use crate::pve::conf::devices::Flaw;
use crate::pve::conf::devices::Present;
use crate::pve::conf::devices::present;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Entry;
use crate::pve::conf::mounts::Mount;
use crate::pve::conf::mounts::mounts;
use crate::pve::hookscript::Hookscript;
use crate::pve::passthrough;
use crate::pve::startable::Obstacle;
use crate::settings::Problem;
use crate::state::State;
use crate::state::recorded;
use crate::state::recorded::Bearing;
use crate::state::recorded::Now;
use crate::sys::text;
use crate::types::Ctid;

/// Of one kind, so many findings are told one by one.
const MOST_FINDINGS: usize = 20;

/// Settings that are missing or cannot be read.
pub fn settings(ctid: Ctid, problems: &[Problem]) -> Vec<Finding> {
    let finding = |p: &Problem| Finding::failure("settings", p.message.clone()).mend(p.remedy(Some(ctid)));
    problems.iter().map(finding).collect()
}

/// A wanted driver that the loaded kernel driver cannot work with.
pub fn driver_version(ctid: Ctid, fits: anyhow::Result<()>) -> Option<Finding> {
    let error = fits.err()?;
    let mend = exit::remedy_of(&error).map_or_else(|| format!("phoenix-nvidia {ctid}"), str::to_owned);
    Some(Finding::failure("settings", exit::one_line(&error)).mend(mend))
}

/// GPUs that the settings name and this host does not have.
pub fn gpus(choice: &Choice, words: &str) -> Vec<Finding> {
    if choice.missing.is_empty() {
        return vec![Finding::ok("gpus", words.to_owned())];
    }
    let finding = |missing: &crate::host::resolve::Missing| {
        let finding = Finding::failure("gpus", missing.to_string());
        match &missing.remedy {
            Some(remedy) => finding.mend(remedy.clone()),
            None => finding.mend("nvidia-smi -L; phoenix-nvidia attach CTID --gpus LIST assigns others"),
        }
    };
    few("gpus", choice.missing.iter().map(finding).collect())
}

/// A conf can have thousands of lines of one kind: some, and how many more.
fn few(check: &'static str, mut findings: Vec<Finding>) -> Vec<Finding> {
    if let Some(more) = findings.len().checked_sub(MOST_FINDINGS).filter(|more| *more > 0) {
        let level = findings[0].level;
        findings.truncate(MOST_FINDINGS);
        findings.push(Finding::new(check, level, format!("and {more} more of the kind")));
    }
    findings
}

/// The hookscript: without it nothing happens, and a broken one stops every
/// start.
pub fn hookscript(ctid: Ctid, hook: &Hookscript) -> Finding {
    let attach = format!("phoenix-nvidia attach {ctid}");
    match hook {
        Hookscript::Ours(place) => Finding::ok("hookscript", place.volume.clone()),
        Hookscript::None => {
            Finding::warning("hookscript", "none is attached: nothing is done at its starts").mend(attach)
        }
        Hookscript::Foreign(place) => Finding::warning(
            "hookscript",
            format!("{} is not ours: nothing is done at its starts", place.volume),
        )
        .mend(format!("{attach} --chain")),
        Hookscript::NoStorage(volume) => Finding::failure(
            "hookscript",
            format!("{volume} is in no storage of this node: the container does not start"),
        )
        .mend(format!("pct set {ctid} --delete hookscript; {attach}")),
        Hookscript::Missing(place) => {
            let what = format!(
                "{} is missing ({}): the container does not start",
                place.volume,
                place.path.display()
            );
            let finding = Finding::failure("hookscript", what);
            let cause = "it was removed, or the container came from another node";
            if hook.is_meant() {
                finding.cause(cause).mend(attach)
            } else {
                finding.mend(format!("pct set {ctid} --delete hookscript"))
            }
        }
        Hookscript::Unseen(place, why) => {
            let what = format!("cannot check {} ({}): {why}", place.volume, place.path.display());
            let finding = Finding::unknown("hookscript", what)
                .cause("while its storage does not answer, the container does not start");
            if hook.is_meant() { finding.mend(format!("{attach} --storage local")) } else { finding }
        }
        Hookscript::NotExecutable(place) => {
            let path = place.path.display();
            Finding::failure("hookscript", format!("{path} cannot be executed: the container does not start"))
                .mend(format!("chmod 755 {}", text::word(&place.path.to_string_lossy())))
        }
    }
}

/// The user's own hookscript, which runs beside ours and cannot.
pub fn chain(lacks: &Lacks) -> Finding {
    Finding::failure("chain", lacks.to_string()).mend(lacks.remedy())
}

/// The same where nobody knows: its path, and why.
pub fn chain_unseen(unseen: Option<(String, String)>) -> Option<Finding> {
    let (path, why) = unseen?;
    Some(Finding::unknown("chain", format!("cannot check the chained hookscript {path}: {why}")))
}

/// Entries that LXC ignores, written by an older script.
pub fn absolute_targets(ctid: Ctid, conf: &Document) -> Vec<Finding> {
    let wrong = present(conf)
        .into_iter()
        .filter(|p| matches!(p.flaw, Some(Flaw::AbsoluteTarget | Flaw::OtherTarget)));
    let wrong = wrong
        .map(|p| {
            Finding::failure("target", format!("line {}: the entry of {} has no effect", p.line, p.path))
                .cause("its target must be relative (dev/nvidia0): LXC ignores an absolute one; an older script wrote it so")
                .mend(format!("phoenix-nvidia {ctid}"))
        })
        .collect();
    few("target", wrong)
}

/// The same in the section of a snapshot: appended to the end of the file.
pub fn in_snapshots(ctid: Ctid, conf: &Document) -> Option<Finding> {
    let stray = |entry: &&Entry| {
        let mut words = entry.value.split_ascii_whitespace();
        let (source, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        entry.section.is_some()
            && entry.key == "lxc.mount.entry"
            && source.starts_with("/dev/nvidia")
            && target.starts_with('/')
    };
    let entries = conf.entries();
    let found: Vec<&Entry> = entries.iter().filter(stray).collect();
    let section = found.first()?.section.clone().unwrap_or_default();
    let lines: Vec<String> = found.iter().map(|e| format!("{}d", e.line)).collect();
    Some(
        Finding::warning(
            "snapshot",
            format!(
                "{} NVIDIA entries stand in the section [{section}], where they have no effect",
                found.len()
            ),
        )
        .cause("an older script appended them to the end of the file, which belongs to the last snapshot")
        .mend(format!("sed -i '{}' /etc/pve/lxc/{ctid}.conf", lines.join(";"))),
    )
}

/// The same node by a `devN:` line and by an entry: LXC fails on the second.
pub fn double_pass(ctid: Ctid, conf: &Document) -> Vec<Finding> {
    let lines = passthrough::next(conf);
    let twice = |pair: Present| {
        let path = pair.path;
        let key = &lines.iter().find(|line| line.device() == Some(path))?.key;
        let what = format!(
            "{path} is passed by {key} and by the entry in line {}: the container does not start",
            pair.line
        );
        Some(
            Finding::failure("twice", what)
                .cause("LXC makes the node for the one and fails on the existing file for the other")
                .mend(format!("pct set {ctid} --delete {key}; or keep that, and: phoenix-nvidia {ctid}")),
        )
    };
    few("twice", present(conf).into_iter().filter_map(twice).collect())
}

/// What is wrong with the `devN:` lines themselves: one that Proxmox cannot
/// read, one that lets a GPU only be read, one whose GPU goes with it.
pub fn dev_lines(ctid: Ctid, conf: &Document, wanted: &[Device]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for passthrough::DevLine { key, line, device } in passthrough::next(conf) {
        match device {
            Err(why) => findings.push(
                Finding::failure("dev-line", format!("line {line}: {key} cannot be read: {why:#}"))
                    .cause("Proxmox refuses to start a container with such a line")
                    .mend(format!("pct set {ctid} --delete {key}")),
            ),
            Ok(device) if device.deny_write && device.path.parse::<DevicePath>().is_ok() => findings.push(
                Finding::warning("dev-line", format!("{key} denies writing to {}", device.path))
                    .cause("deny-write: the NVIDIA driver opens its nodes for writing, so no program can use the GPU")
                    .mend(format!("pct set {ctid} --{key} {}", device.path)),
            ),
            Ok(_) => {}
        }
    }
    let going = plan::going(conf, wanted).into_iter();
    findings.extend(going.map(|what| {
        Finding::warning("pending", what)
            .cause("the settings assign it, and nothing else in the conf passes it on")
            .mend(format!("phoenix-nvidia {ctid}"))
    }));
    findings
}

/// All devices of the host allowed: what tutorials write when a rule does not
/// work.
pub fn allow_all(conf: &Document) -> Option<Finding> {
    let all = |e: &Entry| {
        let word = e.value.split_ascii_whitespace().next().unwrap_or_default();
        e.section.is_none() && e.key == "lxc.cgroup2.devices.allow" && word == "a"
    };
    let entry = conf.entries().into_iter().find(all)?;
    Some(
        Finding::warning(
            "allow-all",
            format!("line {}: the container may open every device of the host", entry.line),
        )
        .cause("lxc.cgroup2.devices.allow: a; the pairs that phoenix-nvidia writes need no such rule")
        .mend("remove that line from the conf, then restart the container"),
    )
}

/// AppArmor switched off.
pub fn apparmor(conf: &Document) -> Option<Finding> {
    let off = |e: &Entry| {
        e.section.is_none()
            && matches!(e.key.as_str(), "lxc.apparmor.profile" | "lxc.aa_profile")
            && e.value.trim() == "unconfined"
    };
    let entry = conf.entries().into_iter().find(off)?;
    Some(
        Finding::warning("apparmor", format!("line {}: AppArmor is off for the container", entry.line))
            .cause("GPUs do not need that")
            .mend("remove that line from the conf, then restart the container"),
    )
}

/// A template never starts.
pub fn template(ctid: Ctid, conf: &Document) -> Option<Finding> {
    let is_template = conf.get("template").is_some_and(|v| v == "1");
    is_template.then(|| {
        Finding::warning(
            "template",
            "it is a template: it never starts, and each clone has its settings and its GPUs",
        )
        .mend(format!("phoenix-nvidia attach CLONE --gpus LIST, for each clone of {ctid}"))
    })
}

/// Another operation owns the container.
pub fn lock(ctid: Ctid, conf: &Document) -> Option<Finding> {
    let owner = conf.get("lock")?;
    Some(
        Finding::warning("lock", format!("it is locked ({owner}): another operation owns its conf"))
            .mend(format!("wait until that has ended; if it died: pct unlock {ctid}")),
    )
}

/// What the next start would be refused for and no other check tells.
pub fn refused(ctid: Ctid, obstacles: &[Obstacle], running: bool) -> Vec<Finding> {
    let finding = |obstacle: &Obstacle| {
        let what = match (obstacle.is_certain(), running) {
            (true, true) => format!("the container would not start again: {obstacle}"),
            (true, false) => format!("the container does not start: {obstacle}"),
            (false, true) => format!("the container may not start again: {obstacle}"),
            (false, false) => format!("the container may not start: {obstacle}"),
        };
        let finding = match obstacle {
            Obstacle::Device { .. } | Obstacle::MountPoint { .. } | Obstacle::Storage { .. } => {
                Finding::failure("start", what)
            }
            Obstacle::Silent { .. } => Finding::warning("start", what),
            _ => return None,
        };
        Some(finding.mend(obstacle.remedy(ctid)))
    };
    obstacles.iter().filter_map(finding).collect()
}

/// A reboot that an install could not make.
pub fn restart_due(ctid: Ctid, due: bool) -> Option<Finding> {
    due.then(|| {
        Finding::warning("restart-due", "its services run with the driver from before the last install")
            .cause("it is rebooted after an install as soon as it would start again")
            .mend(format!("phoenix-nvidia {ctid}"))
    })
}

/// Node modes that keep an unprivileged container's root out.
pub fn modes(conf: &Document, inventory: &Inventory, choice: &Choice) -> Vec<Finding> {
    let closed = plan::closed(conf, inventory, choice);
    let (caps, nodes): (Vec<DevicePath>, Vec<DevicePath>) =
        closed.into_iter().partition(|path| matches!(path, DevicePath::CapFile(_)));
    let finding = |paths: &[DevicePath], what: &str| {
        Finding::failure(
            "modes",
            format!(
                "the container is unprivileged and may not open {}{what} (EACCES)",
                device::joined(paths, ", ")
            ),
        )
    };
    let mut findings = Vec::new();
    if !nodes.is_empty() {
        findings.push(
            finding(&nodes, "")
                .cause("to the host it is nobody: the nodes' mode must let everybody read and write")
                .mend(format!(
                    "chmod 666 {}; for good: options nvidia NVreg_DeviceFileMode=0666 in /etc/modprobe.d/nvidia.conf",
                    device::joined(&nodes, " ")
                )),
        );
    }
    if !caps.is_empty() {
        findings.push(
            finding(&caps, ", the capabilities of its MIG instances")
                .cause(
                    "the driver gives these nodes to root alone (mode 0400), anew for each new instance; to the host \
                     the container's root is nobody",
                )
                .mend(format!("chmod 444 {}", device::joined(&caps, " "))),
        );
    }
    findings
}

/// Whether the container is shown its own GPUs alone. Nothing that it must not
/// have depends on that.
pub fn masks(ctid: Ctid, conf: &Document, wanted: &[Mount], copied: bool) -> Option<Finding> {
    if wanted.is_empty() {
        return None;
    }
    if mounts(conf) == wanted && copied {
        return Some(Finding::ok("proc", plan::MASKS));
    }
    let what = match copied {
        true => "the conf lacks the two mounts over /proc/driver/nvidia",
        false => "what is to be mounted over /proc/driver/nvidia is not there",
    };
    Some(
        Finding::warning("proc", format!("{what}: the next start shows all GPUs of the host there"))
            .cause("its last start was without phoenix-nvidia, or before this version; a start with the hookscript adds them")
            .mend(format!("phoenix-nvidia {ctid}")),
    )
}

/// What the last run came to, as far as that is still so.
pub fn last_run(ctid: Ctid, state: &State, now: &Now) -> Option<Finding> {
    let log = format!("/var/log/phoenix-nvidia/{ctid}.log and journalctl -t phoenix-nvidia have the details");
    match recorded::bearing(state, now) {
        Bearing::None | Bearing::Running => None,
        Bearing::Past => Some(Finding::ok("last-run", format!("past: {}", recorded::sentence(state)))),
        Bearing::Stands => Some(
            Finding::new("last-run", Level::of(state.outcome), recorded::sentence(state))
                .cause(log)
                .mend(format!("phoenix-nvidia {ctid}")),
        ),
    }
}
