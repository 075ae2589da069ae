//! `status`: a row for each container that has anything of ours.
//!
//! It reads files and runs no program for a container: with a hundred of them, a
//! `pct` for each would take a minute.

mod row;
mod table;

use crate::exit::Code;
use crate::findings::finding::{Finding, Level};
use crate::findings::read::{Container, Host, Reader};
use crate::findings::{assigned, conf, host, injected, record, start};
use crate::sys::out::Out;
use crate::sys::signal;
use crate::types::Ctid;
use row::Row;
use serde::Serialize;
use std::cmp::Reverse;

/// The checks of the host that a row tells.
const HOST: &[fn(&Host) -> Vec<Finding>] = &[host::driver, host::quorum];

/// The checks of a container that a row tells: those that need no program.
const CONTAINER: &[fn(&Container) -> Vec<Finding>] = &[
    assigned::settings,
    assigned::gpus,
    assigned::modes,
    start::hookscript,
    start::obstacles,
    injected::tree,
    injected::mounted,
    record::restart_due,
    record::last_run,
    record::version,
    assigned::pending,
    assigned::kept,
    conf::without_driver,
];

/// Where all is well, these have a column.
const COLUMNS: [&str; 5] = ["driver", "gpus", "hookscript", "tree", "mounted"];
/// What these refuse is the next start: no failure of a container that runs.
const NEXT_START: [&str; 4] = ["start", "chain", "dev-line", "quorum"];

/// The version of the JSON's form.
const SCHEMA: u32 = 1;

/// All that is printed.
#[derive(Serialize)]
struct StatusJson {
    schema: u32,
    kernel_driver: Option<String>,
    containers: Vec<Row>,
    /// What could not be looked at.
    problems: Vec<String>,
}

/// Prints the rows.
///
/// # Errors
/// [`Code::NoContainer`] for one that is named and not there.
pub fn run(ctids: &[Ctid], json: bool) -> anyhow::Result<Code> {
    let (mut reader, host, confs) = Reader::open(ctids, |ctid| format!("status {ctid}"))?;
    // What a signal of ours cut off is no finding.
    signal::check()?;
    let mut rows = Vec::new();
    for (ctid, conf) in confs {
        let container = reader.container(&host, ctid, conf);
        let (verdict, reasons) = verdict(&host, &container);
        rows.push(Row::of(&container, verdict, reasons));
    }
    let out = Out::stdout();
    let problems = [reader.problems(), host.inventory.problems.clone()].concat();
    if json {
        let kernel_driver = host.driver().map(ToString::to_string);
        out.json(&StatusJson { schema: SCHEMA, kernel_driver, containers: rows, problems })?;
        return Ok(Code::Success);
    }
    problems.iter().for_each(|problem| log::warn!("{problem}"));
    table::print(&out, &rows);
    Ok(Code::Success)
}

/// The worst level, and the findings, the worst first.
fn verdict(host: &Host, container: &Container) -> (Level, Vec<String>) {
    let of_host = HOST.iter().flat_map(|check| check(host));
    let mut found: Vec<Finding> =
        of_host.chain(CONTAINER.iter().flat_map(|check| check(container))).collect();
    found.retain(|finding| finding.level != Level::Ok || !COLUMNS.contains(&finding.check));
    for finding in found.iter_mut().filter(|f| container.running && NEXT_START.contains(&f.check)) {
        finding.level = finding.level.min(Level::Warning);
    }
    // Of one level in the order of the checks.
    found.sort_by_key(|finding| Reverse(finding.level));
    let level = found.first().map_or(Level::Ok, |finding| finding.level);
    (level, found.into_iter().map(|finding| finding.what).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::diagnose::{Cause, Diagnosis};
    use crate::host::resolve::Missing;
    use crate::pve::hookscript::{Hookscript, Place};
    use crate::pve::startable::Obstacle;
    use crate::settings::{Call, Places, Settings};

    fn judge(change: impl FnOnce(&mut Container)) -> (Level, String) {
        let place = Place { volume: "local:snippets/x".into(), path: "/x".into() };
        let mut container = Container { hook: Hookscript::Ours(place), ..Container::plain("") };
        change(&mut container);
        let (level, reasons) = verdict(&Host { quorum: true, ..Host::default() }, &container);
        (level, reasons.first().cloned().unwrap_or_default())
    }

    #[test]
    fn a_healthy_container_is_ok_without_a_word() {
        assert_eq!(judge(|_| {}), (Level::Ok, String::new()));
    }

    #[test]
    fn the_worst_reason_comes_first() {
        let (level, first) = judge(|c| {
            c.pending = true;
            c.closed = vec!["/dev/nvidia0".parse().unwrap()];
        });
        assert!(level == Level::Failure && first.contains("may not open /dev/nvidia0"), "{first}");
        assert_eq!(judge(|c| c.pending = true).0, Level::Warning);
    }

    #[test]
    fn a_driver_mismatch_counts_only_where_the_container_runs() {
        let differ = |c: &mut Container| c.state.container_driver = Some("580.76.05".into());
        assert_eq!(judge(differ).0, Level::Failure);
        let off = |c: &mut Container| {
            differ(c);
            let (conf, node) = (Vec::new(), Ok(b"INSTALL=off\n".to_vec()));
            let places = Places { conf, cluster: Ok(Vec::new()), node, environment: Vec::new() };
            c.settings = Settings::of(Call::Hook, places, None);
        };
        assert_eq!(judge(off).0, Level::Ok);
        let stopped = |c: &mut Container| {
            differ(c);
            c.running = false;
        };
        assert_eq!(judge(stopped).0, Level::Ok);
    }

    #[test]
    fn what_refuses_the_next_start_is_a_failure_once_the_container_is_down() {
        let device = |c: &mut Container| {
            c.obstacles =
                vec![Obstacle::Device { key: "dev0".into(), path: "/dev/gone".into(), made: false }];
        };
        assert_eq!(judge(device).0, Level::Warning);
        let stopped = |c: &mut Container| {
            device(c);
            c.running = false;
        };
        assert_eq!(judge(stopped).0, Level::Failure);
    }

    #[test]
    fn without_a_driver_its_missing_gpus_are_not_told_one_by_one() {
        let why = Diagnosis { cause: Cause::NoCard, taken: Vec::new() };
        let mut container = Container { kernel: None, pending: true, running: false, ..Container::plain("") };
        container.choice.missing = ["GPU 0", "GPU 1"]
            .map(|what| Missing { what: what.into(), why: "x".into(), ..Missing::default() })
            .into();
        let (level, reasons) =
            verdict(&Host { quorum: true, no_driver: Some(why), ..Host::default() }, &container);
        assert_eq!((level, reasons.len()), (Level::Failure, 2), "{reasons:?}");
    }
}
