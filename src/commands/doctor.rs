//! `doctor`: what is wrong, why, and the remedy. Everything is read first;
//! then each check says what it finds.

use crate::exit::Code;
use crate::findings::finding::{Finding, Level};
use crate::findings::read::{Container, Host, Reader};
use crate::findings::{assigned, caps, conf, elsewhere, host, injected, inside, nested, record, start};
use crate::sys::out::{Out, Style};
use crate::sys::{signal, text};
use crate::types::Ctid;
use serde::Serialize;

/// The checks of the host, in the order in which they are told.
const HOST: &[fn(&Host) -> Vec<Finding>] = &[
    host::driver,
    host::undriven,
    host::next_boot,
    host::dev,
    host::nodes,
    caps::planted,
    host::boot_unit,
    host::quorum,
    host::versions,
    host::problems,
];

/// The checks of a container, in the order in which they are told.
const CONTAINER: &[fn(&Container) -> Vec<Finding>] = &[
    assigned::settings,
    assigned::no_effect,
    assigned::secrets,
    assigned::gpus,
    assigned::narrowed,
    start::hookscript,
    start::obstacles,
    conf::absolute_targets,
    conf::in_snapshots,
    conf::double_pass,
    conf::dev_lines,
    conf::allow_all,
    conf::wide_rules,
    conf::covered,
    conf::apparmor,
    conf::host_files,
    conf::template,
    assigned::modes,
    assigned::masks,
    injected::tree,
    injected::mounted,
    injected::links,
    injected::beside,
    caps::mounted,
    inside::devices,
    inside::rules,
    inside::software,
    inside::nvidia_smi,
    inside::foreseen,
    inside::stale_files,
    conf::without_driver,
    inside::left_files,
    inside::persistenced,
    inside::docker,
    nested::features,
    nested::description,
    nested::docker,
    nested::podman,
    nested::storage,
    inside::unseen,
    record::restart_due,
    record::last_run,
    elsewhere::nodes,
];

/// The version of the JSON's form.
const SCHEMA: u32 = 2;

#[derive(Serialize)]
struct DoctorJson<'a> {
    schema: u32,
    findings: &'a [Finding],
}

/// Looks and tells.
///
/// # Errors
/// [`Code::NoContainer`] for a container that is not there.
pub fn run(ctid: Option<Ctid>, json: bool) -> anyhow::Result<Code> {
    let findings = look(ctid)?;
    // What a signal of ours cut short is no result.
    signal::check()?;
    let out = Out::stdout();
    if json {
        out.json(&DoctorJson { schema: SCHEMA, findings: &findings })?;
    } else {
        print(&out, &findings);
    }
    let failed = findings.iter().any(|f| f.level == Level::Failure);
    Ok(if failed { Code::General } else { Code::Success })
}

fn look(ctid: Option<Ctid>) -> anyhow::Result<Vec<Finding>> {
    let (mut reader, mut host, confs) = Reader::open(ctid.as_slice(), |ctid| format!("doctor {ctid}"))?;
    signal::check()?;
    host.look_closer();
    let mut containers = Vec::new();
    for (ctid, conf) in confs {
        let mut container = reader.container(&host, ctid, conf);
        container.look_inside();
        reader.ask_nodes(&host, &mut container);
        containers.push(container);
    }
    host.other_versions = reader.other_versions();
    host.problems = reader.problems();
    let mut findings: Vec<Finding> = HOST.iter().flat_map(|check| check(&host)).collect();
    for container in &containers {
        let found = CONTAINER.iter().flat_map(|check| check(container));
        findings.extend(found.map(|finding| finding.of(container.ctid)));
    }
    Ok(findings)
}

/// For people. What came from a container is escaped where it was read; once
/// more costs nothing.
fn print(out: &Out, findings: &[Finding]) {
    let mut subject = None;
    for finding in findings {
        if subject != Some(finding.container) {
            subject = Some(finding.container);
            let title = finding.container.map_or("host".to_owned(), |ctid| format!("container {ctid}"));
            out.line(out.paint(Style::Bold, title));
        }
        let level = out.paint(finding.level.style(), format_args!("{:<8}", finding.level.word()));
        out.line(format_args!("  {level} {:<15} {}", finding.check, text::message(&finding.what)));
        for (label, more) in [("why", &finding.why), ("fix", &finding.fix)] {
            if let Some(more) = more {
                let label = out.paint(Style::Faint, format_args!("{label}:"));
                out.line(format_args!("           {label} {}", text::message(more)));
            }
        }
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let words = [Level::Failure, Level::Warning, Level::Unknown]
        .map(|level| format!("{} {}", count(level), level.word()));
    out.line(words.join(", "));
}
