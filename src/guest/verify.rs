//! nvidia-smi's word that driver, libraries and nodes fit together.

use super::exec::{ExecError, Guest, fields};
use super::smi::{self, Gpu};
use crate::driver::desired::Desired;
use crate::exit::{Code, Context as _, Fault};
use crate::sys::process::Failure;
use crate::sys::text;
use crate::sys::time::{Deadline, human};
use crate::types::Version;
use std::fmt;

const SMI: &str = include_str!("scripts/smi.sh");
const OPEN_NODES: &str = include_str!("scripts/open-nodes.sh");
/// Of nvidia-smi's table, so many lines at most are logged.
const SHOWN: usize = 60;

/// What nvidia-smi confirmed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The driver that answers; `None` when no GPU was asked for.
    pub version: Option<Version>,
    /// The GPUs that it lists.
    pub gpus: Vec<Gpu>,
}

/// Runs nvidia-smi in the container and logs what it prints. `nodes` are the
/// device paths that the container should have; they are opened inside only
/// to name a reason after nvidia-smi has failed.
///
/// # Errors
/// [`Code::Software`] when it fails although GPUs are assigned, or lists
/// another number of them.
pub fn verify(
    guest: &Guest,
    desired: &Desired,
    nodes: &[String],
    deadline: &Deadline,
) -> anyhow::Result<Report> {
    let deadline = deadline.at_most(desired.limits.verify);
    let what = || Fault::new(Code::Software, format!("verify: nvidia-smi in container {}", guest.ctid()));
    let output = guest.pct_sh(SMI, []).keep(64 * 1024).must(&deadline).fault(what)?;
    let answer = Answer::parse(&output.text());
    for line in text::last_lines(answer.shown.as_bytes(), SHOWN) {
        log::debug!("nvidia-smi: {line}");
    }
    match judge(&answer, desired) {
        Verdict::Good(report) => {
            log::info!("{}, {}", report.line(), human(output.took));
            Ok(report)
        }
        Verdict::NoGpuAskedFor(why) => {
            log::info!("verify: no GPU is assigned, nvidia-smi says: {why}");
            Ok(Report::default())
        }
        Verdict::Bad(why) => {
            for line in text::last_lines(answer.shown.as_bytes(), 5) {
                log::info!("nvidia-smi: {line}");
            }
            let nodes = open_nodes(guest, nodes, &deadline);
            Err(explain(guest, desired, &answer, why, &nodes))
        }
    }
}

impl Report {
    fn line(&self) -> String {
        let version = self.version.as_ref().map_or("driver", Version::as_str);
        let list: Vec<String> =
            self.gpus.iter().map(|gpu| format!("{} {} at {}", gpu.index, gpu.uuid, gpu.pci)).collect();
        match list.len() {
            0 => format!("verify: {version} answers"),
            n if n > 4 => format!("verify: {version} answers, nvidia-smi lists {n} GPUs"),
            _ => format!("verify: {version} answers, GPU {}", list.join(", GPU ")),
        }
    }
}

/// What the script printed.
#[derive(Debug, Default)]
struct Answer {
    shown: String,
    code: Option<i32>,
    list: String,
}

impl Answer {
    fn parse(text: &str) -> Answer {
        let mut answer = Answer::default();
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
    Good(Report),
    NoGpuAskedFor(String),
    Bad(String),
}

/// What nvidia-smi's answer means for this assignment.
fn judge(answer: &Answer, desired: &Desired) -> Verdict {
    let gpus = smi::gpus(&answer.list);
    let code = answer.code.unwrap_or(-1);
    if code == 0 && desired.gpus.is_none_or(|wanted| wanted == gpus.len()) {
        let version = gpus.iter().find_map(|gpu| gpu.driver.clone());
        return match &version {
            Some(driver) if *driver != desired.driver => {
                Verdict::Bad(format!("the driver that answers is {driver}, wanted is {}", desired.driver))
            }
            _ => Verdict::Good(Report { version, gpus }),
        };
    }
    // Without a GPU: no devices (6), or not even a node that the kernel
    // driver would answer at (9).
    if desired.gpus == Some(0) && matches!(code, 0 | 6 | 9) && gpus.is_empty() {
        let line = text::last_lines(answer.shown.as_bytes(), 1).pop().unwrap_or_default();
        return Verdict::NoGpuAskedFor(line);
    }
    match desired.gpus {
        Some(wanted) if code == 0 => {
            Verdict::Bad(format!("it lists {} GPUs, assigned are {wanted}", gpus.len()))
        }
        _ => Verdict::Bad(format!("exit code {code}, {}", smi::meaning(code))),
    }
}

/// What opening a node from inside came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It opens, or fails behind the container's rules (ENXIO): they allow it.
    Allowed,
    /// EPERM: the device rule is missing.
    NoRule,
    /// EACCES: the node's mode does not let the container's root in.
    Mode,
    /// There is nothing at its path.
    Absent,
    /// An empty file: an entry whose source was missing at the start.
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
            // Some shells have words of their own for ENOENT.
            w if w.contains("No such file") => Opened::Absent,
            w if w.contains("No such device") => Opened::Allowed,
            w => Opened::Other(w.to_owned()),
        }
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Opened::Allowed => "may be opened",
            Opened::NoRule => "is not allowed by the container's device rules (EPERM)",
            Opened::Mode => "is closed by its mode (EACCES)",
            Opened::Absent => "is not in the container (ENOENT): no mount entry when it was started",
            Opened::File => {
                "is an empty file: the node was missing on the host when the container was started"
            }
            Opened::Other(why) => return write!(f, "cannot be opened: {why}"),
        })
    }
}

/// Opens the nodes inside; an empty list when that could not be done. One that
/// does not answer is the last of those tried.
pub fn open_nodes(guest: &Guest, nodes: &[String], deadline: &Deadline) -> Vec<(String, Opened)> {
    let args = nodes.iter().map(String::as_str);
    match guest.attach_sh(OPEN_NODES, args).run(&deadline.at_most(std::time::Duration::from_secs(30))) {
        Ok(output) => opened(&output.stdout, nodes),
        Err(ExecError::Failed(Failure::TimedOut { stdout, after, .. })) => {
            let mut tried = opened(&stdout, nodes);
            let silent = nodes.iter().find(|node| !tried.iter().any(|(done, _)| done == *node));
            let why = Opened::Other(format!("no answer within {}", human(after)));
            tried.extend(silent.map(|node| (node.clone(), why)));
            tried
        }
        Err(error) => {
            log::debug!("verify: the nodes could not be tried: {error}");
            Vec::new()
        }
    }
}

/// What the script printed of these nodes.
fn opened(stdout: &[u8], nodes: &[String]) -> Vec<(String, Opened)> {
    fields(stdout)
        .filter(|(key, _)| key == "node")
        .filter_map(|(_, value)| value.split_once(' ').map(|(n, w)| (n.to_owned(), Opened::read(w))))
        .filter(|(node, _)| nodes.contains(node))
        .collect()
}

/// The fault, with the reason that the nodes give.
fn explain(
    guest: &Guest,
    desired: &Desired,
    answer: &Answer,
    why: String,
    nodes: &[(String, Opened)],
) -> anyhow::Error {
    let ctid = guest.ctid();
    let mut message = format!("verify: nvidia-smi in container {ctid}: {why}");
    if smi::is_mismatch(&answer.shown) {
        let kernel = desired.kernel.as_ref().map_or("not known".to_owned(), ToString::to_string);
        message.push_str(&format!("; the container has {}, the kernel driver is {kernel}", desired.driver));
    }
    let bad: Vec<&(String, Opened)> = nodes.iter().filter(|(_, o)| *o != Opened::Allowed).collect();
    for (node, opened) in bad.iter().take(4) {
        message.push_str(&format!("; {node} {opened}"));
    }
    if bad.is_empty() && !nodes.is_empty() {
        message.push_str("; its device rules allow every node, so the host's driver does not answer");
    }
    let remedy = match bad.first() {
        None => "run nvidia-smi on the host".to_owned(),
        Some((_, Opened::Absent | Opened::File | Opened::NoRule)) => format!("pct reboot {ctid}"),
        Some((node, _)) => format!("ls -l {node} on the host, and phoenix-nvidia doctor {ctid}"),
    };
    Fault::new(Code::Software, message).remedy(remedy).into()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
