//! nvidia-smi in the container: driver, libraries and device nodes work together.

use super::exec::{ExecError, Guest, fields};
use super::smi::{self, ListedGpu};
use crate::device::DevicePath;
use crate::driver::desired::Desired;
use crate::exit::{Code, Context as _, Fault};
use crate::host::gpus::Inventory;
use crate::host::kernel_log::KernelLog;
use crate::sys::look::View;
use crate::sys::process::Failure;
use crate::sys::text;
use crate::sys::time::{Deadline, human};
use crate::types::Version;
use std::fmt;
use std::time::Duration;

const SMI: &str = include_str!("scripts/smi.sh");
const OPEN_NODES: &str = include_str!("scripts/open-nodes.sh");
/// How many lines of nvidia-smi's table are logged.
const SHOWN: usize = 60;
/// The time limit of a look at the host after a failure.
const HOST_LIMIT: Duration = Duration::from_secs(5);

/// Runs nvidia-smi in the container and logs its output. `nodes` are the
/// devices that the container should have; they are opened inside only after
/// nvidia-smi failed, to find the reason.
///
/// # Errors
/// [`Code::Software`]: it fails although GPUs are assigned, or lists another
/// number of GPUs.
pub fn verify(
    guest: &Guest,
    desired: &Desired,
    nodes: &[DevicePath],
    deadline: &Deadline,
) -> anyhow::Result<()> {
    let deadline = deadline.at_most(desired.limits.verify);
    let fault =
        || Fault::new(Code::Software, format!("verify: cannot run nvidia-smi in container {}", guest.ctid()));
    let output = guest.pct_sh(SMI, []).keep(64 * 1024).must(&deadline).fault(fault)?;
    let answer = SmiAnswer::parse(&output.text());
    for line in text::last_lines(answer.shown.as_bytes(), SHOWN) {
        log::debug!("nvidia-smi: {line}");
    }
    match judge(&answer, desired) {
        Verdict::Good { version, gpus } => {
            log::info!("{}, {}", line(version.as_ref(), &gpus), human(output.took));
            Ok(())
        }
        Verdict::NoGpuAssigned(says) => {
            log::info!("verify: no GPU assigned; nvidia-smi: {says}");
            Ok(())
        }
        Verdict::Bad(why) => {
            for line in text::last_lines(answer.shown.as_bytes(), 5) {
                log::info!("nvidia-smi: {line}");
            }
            let opened = open_nodes(guest, nodes, &deadline);
            let host = on_host(nodes, &deadline.at_most(HOST_LIMIT));
            Err(explain(guest, desired, &answer, why, &opened, host))
        }
    }
}

/// Why nvidia-smi in the container fails; `None` if it does not, or if it could
/// not be asked. Without Proxmox' `pct`, for a look.
pub fn failure(guest: &Guest, deadline: &Deadline) -> Option<String> {
    let output = guest.attach_sh(SMI, []).keep(64 * 1024).run(deadline).ok()?;
    let code = SmiAnswer::parse(&output.text()).code.filter(|code| *code != 0)?;
    Some(format!("exit code {code}, {}", smi::meaning(code)))
}

/// What the host knows of the cards with these nodes: why the driver does not
/// drive one of them, or what the kernel said of it, and what to do.
fn on_host(nodes: &[DevicePath], deadline: &Deadline) -> Option<(String, String)> {
    let inventory = Inventory::read(View::host_until(deadline));
    let mine = || inventory.gpus.iter().filter(|gpu| gpu.path().is_some_and(|path| nodes.contains(&path)));
    let unfit = mine().find_map(|gpu| Some((gpu.undriven()?, gpu.unfit.as_ref()?.remedy())));
    unfit.or_else(|| {
        let log = KernelLog::read(View::host(), deadline);
        let said = mine().find_map(|gpu| log.about(gpu.pci?)).or_else(|| log.refusal())?;
        Some((format!("the kernel says: {said}"), "dmesg | grep NVRM | tail".to_owned()))
    })
}

/// The line of a success.
fn line(version: Option<&Version>, gpus: &[ListedGpu]) -> String {
    let version = version.map_or("driver", Version::as_str);
    let list = || gpus.iter().map(|gpu| format!(", GPU {} {} at {}", gpu.index, gpu.uuid, gpu.pci));
    match gpus.len() {
        n if n > 4 => format!("verify: {version} works, {n} GPUs"),
        _ => format!("verify: {version} works{}", list().collect::<String>()),
    }
}

/// The script's output.
#[derive(Debug, Default)]
struct SmiAnswer {
    shown: String,
    code: Option<i32>,
    list: String,
}

impl SmiAnswer {
    fn parse(text: &str) -> SmiAnswer {
        let mut answer = SmiAnswer::default();
        for line in text.lines() {
            if let Some(code) = line.strip_prefix("rc ") {
                answer.code = code.trim().parse().ok();
            } else if line.starts_with("list-rc ") || line.starts_with("shown ") {
                continue;
            } else if answer.code.is_none() {
                answer.shown.extend([line, "\n"]);
            } else {
                answer.list.extend([line, "\n"]);
            }
        }
        answer
    }
}

enum Verdict {
    Good { version: Option<Version>, gpus: Vec<ListedGpu> },
    NoGpuAssigned(String),
    Bad(String),
}

/// Compares nvidia-smi's answer with the assignment.
fn judge(answer: &SmiAnswer, desired: &Desired) -> Verdict {
    let gpus = smi::gpus(&answer.list);
    let code = answer.code.unwrap_or(-1);
    if code == 0 && desired.gpus.is_none_or(|wanted| wanted == gpus.len()) {
        let version = gpus.iter().find_map(|gpu| gpu.driver.clone());
        return match &version {
            Some(driver) if *driver != desired.driver => {
                Verdict::Bad(format!("driver is {driver}, expected {}", desired.driver))
            }
            _ => Verdict::Good { version, gpus },
        };
    }
    // Without a GPU: no devices (6), or no device node at all (9).
    if desired.gpus == Some(0) && matches!(code, 0 | 6 | 9) && gpus.is_empty() {
        let line = text::last_lines(answer.shown.as_bytes(), 1).pop().unwrap_or_default();
        return Verdict::NoGpuAssigned(line);
    }
    match desired.gpus {
        Some(wanted) if code == 0 => Verdict::Bad(format!("lists {} GPUs, {wanted} assigned", gpus.len())),
        _ => Verdict::Bad(format!("exit code {code}, {}", smi::meaning(code))),
    }
}

/// The result of opening a device node in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It opens, or fails after the device rules (ENXIO): they allow it.
    Allowed,
    /// EPERM: the device rule is missing.
    NoRule,
    /// EACCES: the node's mode does not allow the container's root.
    Mode,
    /// It does not exist.
    Absent,
    /// An empty file: the node was missing on the host when the container started.
    File,
    /// Something else.
    Other(String),
}

impl Opened {
    fn read(word: &str) -> Opened {
        let word = word.trim();
        match word {
            "opens" | "directory" | "No such device or address" => Opened::Allowed,
            "Operation not permitted" => Opened::NoRule,
            "Permission denied" => Opened::Mode,
            "absent" => Opened::Absent,
            "file" => Opened::File,
            // Some shells have their own words for ENOENT.
            w if w.contains("No such file") => Opened::Absent,
            w if w.contains("No such device") => Opened::Allowed,
            w => Opened::Other(w.to_owned()),
        }
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Opened::Allowed => "can be opened",
            Opened::NoRule => "denied by the container's device rules (EPERM)",
            Opened::Mode => "denied by its mode (EACCES)",
            Opened::Absent => "missing (ENOENT): no mount entry when the container started",
            Opened::File => "an empty file: missing on the host when the container started",
            Opened::Other(why) => return write!(f, "cannot be opened: {why}"),
        })
    }
}

/// Opens the nodes in the container; empty if that failed. A node that does
/// not answer is the last one.
pub fn open_nodes(guest: &Guest, nodes: &[DevicePath], deadline: &Deadline) -> Vec<(DevicePath, Opened)> {
    let args: Vec<String> = nodes.iter().map(DevicePath::to_string).collect();
    match guest
        .attach_sh(OPEN_NODES, args.iter().map(String::as_str))
        .run(&deadline.at_most(std::time::Duration::from_secs(30)))
    {
        Ok(output) => opened(&output.stdout, nodes),
        Err(ExecError::Failed(Failure::TimedOut { stdout, after, .. })) => {
            let mut tried = opened(&stdout, nodes);
            let silent = nodes.iter().find(|node| !tried.iter().any(|(done, _)| done == *node));
            let why = Opened::Other(format!("no answer within {}", human(after)));
            tried.extend(silent.map(|node| (*node, why)));
            tried
        }
        Err(error) => {
            log::debug!("verify: cannot open the nodes: {error}");
            Vec::new()
        }
    }
}

/// The script's output for these nodes.
fn opened(stdout: &[u8], nodes: &[DevicePath]) -> Vec<(DevicePath, Opened)> {
    fields(stdout)
        .filter(|(key, _)| key == "node")
        .filter_map(|(_, value)| {
            let (node, word) = value.split_once(' ')?;
            Some((node.parse().ok()?, Opened::read(word)))
        })
        .filter(|(node, _)| nodes.contains(node))
        .collect()
}

/// The fault, with the reason from the nodes.
fn explain(
    guest: &Guest,
    desired: &Desired,
    answer: &SmiAnswer,
    why: String,
    nodes: &[(DevicePath, Opened)],
    host: Option<(String, String)>,
) -> anyhow::Error {
    let ctid = guest.ctid();
    let mut message = format!("verify: nvidia-smi in container {ctid}: {why}");
    let mismatch = smi::is_mismatch(&answer.shown);
    if mismatch {
        let kernel = desired.kernel.as_ref().map_or("unknown", Version::as_str);
        message.push_str(&format!("; the container has {}, the kernel driver is {kernel}", desired.driver));
    }
    let bad: Vec<&(DevicePath, Opened)> = nodes.iter().filter(|(_, o)| *o != Opened::Allowed).collect();
    for (node, opened) in bad.iter().take(4) {
        message.push_str(&format!("; {node} {opened}"));
    }
    let host = host.filter(|_| bad.is_empty() && !mismatch);
    match &host {
        Some((why, _)) => message.push_str(&format!("; {why}")),
        None if bad.is_empty() && !nodes.is_empty() => {
            message.push_str("; all nodes are allowed, so the kernel driver does not answer");
        }
        None => {}
    }
    let remedy = match bad.first() {
        None => host.map_or_else(|| "nvidia-smi".to_owned(), |(_, remedy)| remedy),
        Some((_, Opened::Absent | Opened::File | Opened::NoRule)) => format!("pct reboot {ctid}"),
        Some(_) => format!("phoenix-nvidia doctor {ctid}"),
    };
    Fault::new(Code::Software, message).remedy(remedy).into()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
