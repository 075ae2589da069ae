//! The lines of a container's conf.

use super::assigned::few;
use super::finding::Finding;
use super::read::Container;
use crate::device::assignment::Assignment;
use crate::device::{DevicePath, NVIDIA_MAJOR, is_dynamic};
use crate::driver::injection::Injection;
use crate::guest::install::steps;
use crate::guest::os;
use crate::guest::verify::Opened;
use crate::plan;
use crate::pve::conf::devices::{Flaw, Present, appended, present};
use crate::pve::conf::document::{Entry, Form};
use crate::pve::conf::host_files;
use crate::pve::conf::mounts::{mounts, over};
use crate::pve::conf::reconcile::reconcile;
use crate::pve::conf::rules::{Opens, Rule, passes_other_devices, rules};
use crate::pve::passthrough;
use crate::settings::keys;
use crate::sys::text;

/// Entries that LXC ignores, written by an older script.
pub fn absolute_targets(c: &Container) -> Vec<Finding> {
    let wrong = present(&c.conf)
        .into_iter()
        .filter(|p| matches!(p.flaw, Some(Flaw::AbsoluteTarget | Flaw::OtherTarget)));
    let finding = |line, path: DevicePath| {
        Finding::failure("target", format!("line {line}: device entry of {path} has no effect"))
            .why("LXC ignores an absolute mount target; it must be relative, like dev/nvidia0")
            .fix(format!("phoenix-nvidia {}", c.ctid))
    };
    few(wrong.map(|p| finding(p.line, p.path)).collect())
}

/// The same in the section of a snapshot: appended to the end of the file.
pub fn in_snapshots(c: &Container) -> Vec<Finding> {
    let finding = |entry: Entry| {
        let section = entry.section.as_deref().unwrap_or_default();
        let what =
            format!("section [{section}] holds a device entry, which has no effect: {}", quoted(&entry));
        Finding::warning("snapshot", what)
            .why("what a script appends to the end of the file belongs to the last snapshot: delete the line")
            .fix(edit(c))
    };
    few(appended(&c.conf).into_iter().map(finding).collect())
}

/// The same node by a `devN:` line and by an entry: LXC fails on the second.
pub fn double_pass(c: &Container) -> Vec<Finding> {
    let lines = passthrough::next(&c.conf);
    let twice = |pair: Present| {
        let path = pair.path;
        let key = &lines.iter().find(|line| line.device() == Some(path))?.key;
        let what = format!("does not start: {key} and the entry in line {} both pass {path}", pair.line);
        let finding = Finding::failure("twice", what)
            .why("LXC makes the node for one and fails on the existing file for the other")
            .fix(format!("pct set {} --delete {key}", c.ctid));
        Some(finding)
    };
    few(present(&c.conf).into_iter().filter_map(twice).collect())
}

/// `devN:` lines that give a GPU for reading only, or that take it away.
pub fn dev_lines(c: &Container) -> Vec<Finding> {
    let denied = passthrough::next(&c.conf).into_iter().filter_map(|line| {
        let device = line.value.ok().filter(|device| device.deny_write)?;
        device.path.parse::<DevicePath>().ok()?;
        let finding = Finding::warning("dev-line", format!("{} denies writing to {}", line.key, device.path))
            .why("the NVIDIA driver opens its nodes for writing: no program can use the GPU")
            .fix(format!("pct set {} --{} {}", c.ctid, line.key, device.path));
        Some(finding)
    });
    let going = plan::going(&c.conf, &plan::wanted_once_made(&c.choice)).into_iter().map(|what| {
        Finding::warning("pending", what)
            .why("the settings assign the device, and nothing else in the conf passes it")
            .fix(format!("phoenix-nvidia {}", c.ctid))
    });
    few(denied.chain(going).collect())
}

/// All devices of the host allowed: what tutorials write when a rule does not
/// work.
pub fn allow_all(c: &Container) -> Vec<Finding> {
    let rules = rules(&c.conf);
    let all = |e: &Entry| rules.iter().any(|rule| rule.opens == Opens::Everything && rule.line == e.line);
    line(c, "allow-all", all, "the container may open every device of the host", "GPUs need no such rule")
}

/// Rules of a privileged container, which can make nodes, that allow more of
/// the GPUs than its settings, or a number that is another driver's by now.
pub fn wide_rules(c: &Container) -> Vec<Finding> {
    let assignment = c.settings.get(keys::GPU_ASSIGNMENT).ok();
    if assignment.is_none() || c.conf.get("unprivileged").as_deref() == Some("1") {
        return Vec::new();
    }
    let of_all = assignment == Some(Assignment::All);
    let entries = c.conf.entries();
    let others = passes_other_devices(&c.conf);
    let finding = |rule: &Rule| {
        let what = match rule.opens.major() {
            Some(NVIDIA_MAJOR) if !of_all => beyond_assignment(c, rule.opens)?,
            Some(major) if is_dynamic(major) && !others => stale(c, major)?,
            _ => return None,
        };
        let entry = entries.iter().find(|entry| entry.section.is_none() && entry.line == rule.line)?;
        let finding = Finding::warning("wide-rule", format!("line {} {what}: {}", rule.line, quoted(entry)))
            .why("each device entry has a rule of its own: delete the line, then restart the container");
        Some(finding.fix(edit(c)))
    };
    few(rules(&c.conf).iter().filter_map(finding).collect())
}

/// What a rule of the GPUs' major opens beyond the settings.
fn beyond_assignment(c: &Container, opens: Opens) -> Option<String> {
    match opens {
        Opens::One(number) => {
            let path = format!("/dev/nvidia{}", number.minor).parse::<DevicePath>().ok()?;
            let given = plan::wanted_once_made(&c.choice).iter().any(|device| device.path == path)
                || passthrough::next(&c.conf).iter().any(|line| line.device() == Some(path));
            (!given).then(|| format!("lets it open {path}, which is not assigned"))
        }
        _ => Some("lets it open every NVIDIA card, not only those assigned".to_owned()),
    }
}

/// A dynamic major that is not NVIDIA's now.
fn stale(c: &Container, major: u32) -> Option<String> {
    match c.majors.owner(major) {
        Some(owner) if owner.starts_with("nvidia") => None,
        Some(owner) => {
            Some(format!("allows a number that belongs to {} today", text::line(owner.as_bytes())))
        }
        None if c.majors.is_empty() => None,
        None => Some("allows a number that belongs to no driver today".to_owned()),
    }
}

/// Lines of guides that mount other DRM nodes over ours, as the next start will
/// have them; what a look inside tried is told with the rules.
pub fn covered(c: &Container) -> Vec<Finding> {
    let wanted = plan::wanted_once_made(&c.choice);
    let tried = |path: DevicePath| {
        let opened = c.inside.iter().flat_map(|inside| &inside.opened);
        opened
            .filter(|(node, _)| *node == path)
            .any(|(_, opened)| matches!(opened, Opened::Allowed | Opened::Mode))
    };
    let drm = wanted.iter().map(|device| device.path).filter(|path| path.is_drm() && !tried(*path));
    let finding = |path: DevicePath| {
        let why = covering(c, path)?;
        let what = format!("the container may not open {path}: {why}");
        Some(Finding::warning("rules", what).why(COVERED).fix(edit(c)))
    };
    few(drm.filter_map(finding).collect())
}

/// Why such a line is a fault.
pub(super) const COVERED: &str =
    "udev's node is closed to an unprivileged container: delete the line, then restart the container";

/// The line that mounts something else over a DRM node of an unprivileged
/// container: our entry may go before it, or stand there.
pub(super) fn covering(c: &Container, path: DevicePath) -> Option<String> {
    // With a map of its own its groups may open udev's nodes.
    if c.conf.get("unprivileged").as_deref() != Some("1") || c.conf.get("lxc.idmap").is_some() {
        return None;
    }
    let wanted = plan::wanted_once_made(&c.choice);
    let next = reconcile(&c.conf, &wanted, &mounts(&c.conf), Form::Pve);
    let next = next.as_ref().map_or(&c.conf, |edit| &edit.document);
    let line = over(next, path)?;
    let there = next.entries().into_iter().find(|entry| entry.line == line)?;
    let same =
        |entry: &Entry| entry.section.is_none() && (&entry.key, &entry.value) == (&there.key, &there.value);
    let line = c.conf.entries().into_iter().rfind(same)?.line;
    Some(format!("line {line} mounts the host's node over it"))
}

/// Why driver files of the host in a container are a fault.
pub(super) const HOST_FILES: &str = "no installer replaces a mount: remove those lines and restart the container, or keep them with INSTALL=off";

/// Lines that mount driver files of the host, where a driver is to be installed:
/// from the conf alone, if a look inside does not tell more.
pub fn host_files(c: &Container) -> Vec<Finding> {
    let told = c.inside.as_ref().is_some_and(|inside| matches!(inside.software, Some(Ok(_))));
    let lines = host_files::shown(&c.conf).filter(|_| !told && c.desired().is_some());
    let finding = |lines: String| {
        Finding::warning("host-files", format!("{lines} of its conf mount driver files of the host"))
            .why(HOST_FILES)
            .fix(edit(c))
    };
    lines.map(finding).into_iter().collect()
}

/// AppArmor switched off.
pub fn apparmor(c: &Container) -> Vec<Finding> {
    let off = |e: &Entry| {
        ["lxc.apparmor.profile", "lxc.aa_profile"].contains(&e.key.as_str()) && e.value.trim() == "unconfined"
    };
    line(c, "apparmor", off, "AppArmor is off for the container", "GPUs work with AppArmor on")
}

/// The first such line of the main section.
fn line(
    c: &Container,
    check: &'static str,
    is_it: impl Fn(&Entry) -> bool,
    what: &str,
    why: &str,
) -> Vec<Finding> {
    let entry = c.conf.entries().into_iter().find(|e| e.section.is_none() && is_it(e));
    let finding = |entry: Entry| {
        Finding::warning(check, format!("{what}: {}", quoted(&entry)))
            .why(format!("{why}: delete the line, then restart the container"))
            .fix(edit(c))
    };
    entry.map(finding).into_iter().collect()
}

/// A line as the user finds it, where it stood when it was read.
fn quoted(entry: &Entry) -> String {
    text::line(format!("`{}: {}` (line {})", entry.key, entry.value, entry.line).as_bytes())
}

/// Nothing that a command could say by line numbers: the conf may have changed.
pub(super) fn edit(c: &Container) -> String {
    format!("nano /etc/pve/lxc/{}.conf", c.ctid)
}

/// A template never starts.
pub fn template(c: &Container) -> Vec<Finding> {
    if !c.conf.is_template() {
        return Vec::new();
    }
    let what = "a template never starts, and each of its clones has its settings and GPUs";
    vec![Finding::warning("template", what).fix("phoenix-nvidia attach CLONE --gpus 0")]
}

/// A container in which no driver can be, as its conf shows it. A look inside
/// tells more.
pub fn unsupported(c: &Container) -> Vec<Finding> {
    // What the host's driver needs is told with it.
    if c.host_driver.injection != Injection::Off {
        return Vec::new();
    }
    let looked = c.inside.as_ref().is_some_and(|inside| matches!(inside.software, Some(Ok(_))));
    os::foreseen(&c.conf).filter(|_| !looked).map(|why| unfit(c, &why)).into_iter().collect()
}

/// No driver can be in it, and why.
pub fn unfit(c: &Container, why: &str) -> Finding {
    let wanted = c.desired().map(|_| steps::without_driver(c.ctid));
    Finding::warning("version", format!("{why}: GPUs without a driver")).fix_if(wanted)
}

/// The same where a driver is asked for.
pub fn without_driver(c: &Container) -> Vec<Finding> {
    if c.desired().is_some() { unsupported(c) } else { Vec::new() }
}
