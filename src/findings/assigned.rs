//! What the settings give a container, and whether it has it.

use super::finding::Finding;
use super::read::{Container, of_masks};
use crate::device::{DevicePath, joined};
use crate::exit::{one_line, remedy_of};
use crate::guest::attached::Attached;
use crate::host::cards::Unfit;
use crate::host::gpus::Gpu;
use crate::plan;
use crate::plan::narrow::{Narrowing, Told};
use crate::pve::hookscript::Hookscript;
use crate::settings::idle::Idle;

/// Of one kind, so many findings are told one by one.
const MOST: usize = 20;

/// A conf can have thousands of lines of one kind: some, and how many more.
pub(super) fn few(mut findings: Vec<Finding>) -> Vec<Finding> {
    if let Some(more) = findings.len().checked_sub(MOST).filter(|more| *more > 0) {
        let (check, level) = (findings[0].check, findings[0].level);
        findings.truncate(MOST);
        findings.push(Finding::new(check, level, format!("and {more} more of the kind")));
    }
    findings
}

/// Settings that are missing, cannot be read, or ask for a driver that the
/// loaded kernel driver cannot work with.
pub fn settings(c: &Container) -> Vec<Finding> {
    let problems = c.problems.iter().map(|problem| {
        Finding::failure("settings", problem.message.clone()).fix(problem.remedy(Some(c.ctid)))
    });
    let unfit = c.desired().and_then(|desired| desired.matches_kernel().err());
    let unfit = unfit.map(|error| {
        let fix = remedy_of(&error).map_or_else(|| format!("phoenix-nvidia {}", c.ctid), str::to_owned);
        Finding::failure("settings", one_line(&error)).fix(fix)
    });
    problems.chain(unfit).collect()
}

/// Settings that have no effect as they stand.
pub fn no_effect(c: &Container) -> Vec<Finding> {
    let finding = |idle: &Idle| {
        Finding::warning("no-effect", idle.what.clone()).why(idle.why.clone()).fix(idle.fix.clone())
    };
    few(c.idle.iter().map(finding).collect())
}

/// Passwords and tokens that others can read.
pub fn secrets(c: &Container) -> Vec<Finding> {
    let finding = |s: &crate::settings::secrets::Exposed| {
        Finding::warning("secret", s.what.clone()).fix(s.remedy.clone())
    };
    c.secrets.iter().map(finding).collect()
}

/// GPUs that the settings name and this host does not have. Without a driver
/// nobody knows which those are.
pub fn gpus(c: &Container) -> Vec<Finding> {
    if c.kernel.is_none() {
        return Vec::new();
    }
    let undriven = undriven(c);
    if c.choice.missing.is_empty() && undriven.is_empty() {
        return vec![Finding::ok("gpus", plan::describe(&c.choice))];
    }
    let findings = c.choice.missing.iter().map(|missing| {
        let other =
            || format!("phoenix-nvidia attach {} --gpus LIST, of the GPUs that this host has", c.ctid);
        Finding::failure("gpus", missing.to_string()).fix(missing.remedy.clone().unwrap_or_else(other))
    });
    few(findings.chain(undriven).collect())
}

/// GPUs that it has and that the loaded driver does not drive, and those that it
/// does not have because the driver does not number them.
pub fn undriven(c: &Container) -> Vec<Finding> {
    let finding = |gpu: &Gpu| {
        let fix = gpu.unfit.as_ref().map(Unfit::remedy);
        Some(Finding::failure("gpus", gpu.undriven()?).fix_if(fix))
    };
    let left_out = c.choice.left_out.iter();
    let left_out = left_out.map(|card| Finding::warning("gpus", card.clone()).fix("phoenix-nvidia doctor"));
    few(c.choice.gpus.iter().filter_map(finding).chain(left_out).collect())
}

/// Why a DRM node of ours is closed: each start gives it that mode again.
pub(super) const DRM_MODE: &str = "its node has the mode of the driver's parameter DeviceFileMode: unprivileged root is uid 100000 and needs 0666";
pub(super) const DRM_FIX: &str = "set `options nvidia NVreg_DeviceFileMode=0666` in /etc/modprobe.d, then update-initramfs -u and reboot this host";

/// Node modes that keep an unprivileged container's root out.
pub fn modes(c: &Container) -> Vec<Finding> {
    let (drm, others): (Vec<DevicePath>, Vec<DevicePath>) = c.closed.iter().partition(|path| path.is_drm());
    let (caps, nodes): (Vec<DevicePath>, Vec<DevicePath>) =
        others.into_iter().partition(|path| matches!(path, DevicePath::CapFile(_)));
    let finding = |paths: &[DevicePath], what: &str, mode: &str, why: &str| {
        let what = format!("unprivileged container may not open {}{what} (EACCES)", joined(paths, ", "));
        Finding::failure("modes", what)
            .why(format!("unprivileged root is uid 100000: {why}"))
            .fix(format!("chmod {mode} {}", joined(paths, " ")))
    };
    let mut findings = Vec::new();
    if !nodes.is_empty() {
        let why = "nodes need 0666; for good, `options nvidia NVreg_DeviceFileMode=0666` in /etc/modprobe.d/nvidia.conf, then update-initramfs -u and a reboot of this host";
        findings.push(finding(&nodes, "", "666", why));
    }
    if !caps.is_empty() {
        let why = "capability nodes need 0444; the driver makes each new one with 0400";
        findings.push(finding(&caps, ", the capabilities of its MIG instances", "444", why));
    }
    if !drm.is_empty() {
        let what = format!("unprivileged container may not open {} (EACCES)", joined(&drm, ", "));
        findings.push(Finding::failure("modes", what).why(DRM_MODE).fix(DRM_FIX));
    }
    findings
}

/// Whether the container is shown its own GPUs alone. Nothing that it must not
/// have depends on that.
pub fn masks(c: &Container) -> Vec<Finding> {
    if c.mounts.is_empty() {
        return Vec::new();
    }
    if of_masks(&c.conf) == c.mounts && c.masked {
        return vec![Finding::ok("proc", plan::MASKS)];
    }
    let what = match c.masked {
        true => "the conf lacks the two mounts over /proc/driver/nvidia",
        false => "the files to mount over /proc/driver/nvidia are missing",
    };
    let finding = Finding::warning("proc", format!("{what}: the container sees all GPUs of the host there"))
        .why("its last start was without phoenix-nvidia, or before this version")
        .fix(format!("phoenix-nvidia {}", c.ctid));
    vec![finding]
}

/// What the next start changes in the conf. A stopped container waits for just
/// that. Mounts that come give no device and take none.
pub fn pending(c: &Container) -> Vec<Finding> {
    let what = if c.pending && c.kernel.is_some() {
        "device entries out of date; next start updates them"
    } else if c.new_mounts && matches!(c.hook, Hookscript::Ours(_)) {
        return vec![Finding::ok("pending", "next start adds the mounts over /proc/driver/nvidia")];
    } else {
        return Vec::new();
    };
    let finding = match c.running {
        true => Finding::warning("pending", what).fix(format!("phoenix-nvidia {}", c.ctid)),
        false => Finding::ok("pending", what),
    };
    vec![finding]
}

/// Devices that it may open and should not have, as far as that is noted.
pub fn kept(c: &Container) -> Vec<Finding> {
    let has = Attached { noted: c.noted.clone(), ..Attached::default() };
    let kept = plan::kept(&c.conf, &has, &plan::wanted_once_made(&c.choice));
    if kept.is_empty() || c.kernel.is_none() {
        return Vec::new();
    }
    let what = format!("the running container still has {}", joined(&kept, ", "));
    vec![Finding::warning("devices", what).fix(format!("phoenix-nvidia {}", c.ctid))]
}

/// What the container's own environment takes away of its assignment.
pub fn narrowed(c: &Container) -> Vec<Finding> {
    let finding = |told: Told| match told.fix(c.ctid) {
        Some(fix) => Finding::warning("narrowed", told.line)
            .why("the names are those of GPU_ASSIGNMENT: an index is the N of the host's /dev/nvidiaN")
            .fix(fix),
        None => Finding::ok("narrowed", told.line),
    };
    Narrowing::of(&c.conf).told(&c.settings, &c.choice).into_iter().map(finding).collect()
}
