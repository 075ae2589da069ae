//! `doctor`: what is wrong, why, and the command that mends it.
//!
//! Everything is read first; each finding is then a small pure function of
//! what was read. What could not be looked at is unknown, not wrong.

mod cluster;
mod conf;
#[cfg(test)]
mod conf_tests;
mod finding;
mod host;
mod inside;

use super::level::Level;
use crate::commands::status;
use crate::exit::{Code, one_line};
use crate::guest::attached;
use crate::guest::exec::Guest;
use crate::guest::install::steps::InstallSteps;
use crate::guest::probe::{self, Ask};
use crate::guest::verify::open_nodes;
use crate::host::choose::Choice;
use crate::host::diagnose;
use crate::host::gpus::{Inventory, Scope};
use crate::host::kernel_driver;
use crate::host::masks;
use crate::job::chain;
use crate::job::desired;
use crate::job::locks;
use crate::job::startable;
use crate::plan::{self, Intent};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::hookscript::Hookscript;
use crate::pve::net;
use crate::pve::pct;
use crate::pve::sharing;
use crate::pve::storage;
use crate::pve::storage::Storage;
use crate::settings::load;
use crate::settings::secrets;
use crate::settings::{Settings, keys};
use crate::state::Record;
use crate::state::recorded::Now;
use crate::sys::look::View;
use crate::sys::look::{Look, Questions, Walk as _};
use crate::sys::out::{Out, Style};
use crate::sys::signal;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use finding::Finding;
use serde::Serialize;

/// The version of the JSON's form.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    findings: &'a [Finding],
}

/// Looks and tells.
///
/// # Errors
/// [`Code::NoContainer`] for a container that is not there.
pub fn run(ctid: Option<Ctid>, json: bool) -> anyhow::Result<Code> {
    let (mut doctor, patients) = Doctor::new(ctid)?;
    // What a signal of ours cut off is no finding.
    signal::check()?;
    let mut findings = doctor.host();
    for (ctid, document) in &patients {
        findings.extend(doctor.container(*ctid, document).into_iter().map(|f| f.of(*ctid)));
    }
    findings.extend(host::problems(&doctor.look.problems));
    // What was cut short is no result.
    signal::check()?;
    let out = Out::stdout();
    if json {
        out.json(&Report { schema: SCHEMA, findings: &findings })?;
    } else {
        print(&out, &findings);
    }
    let failed = findings.iter().any(|f| f.level == Level::Failure);
    Ok(if failed { Code::General } else { Code::Success })
}

fn print(out: &Out, findings: &[Finding]) {
    let mut subject = None;
    for finding in findings {
        if subject != Some(finding.container) {
            subject = Some(finding.container);
            let title = finding.container.map_or("host".to_owned(), |ctid| format!("container {ctid}"));
            out.line(out.paint(Style::Bold, title));
        }
        finding.print(out);
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    let words = [Level::Failure, Level::Warning, Level::Unknown]
        .map(|level| format!("{} {}", count(level), level.word()));
    out.line(words.join(", "));
}

struct Doctor {
    look: Look<'static>,
    /// The storages' files.
    files: Look<'static>,
    inventory: Inventory,
    storages: Vec<Storage>,
    cluster: cluster::Nodes,
}

impl Doctor {
    /// With the container that is named, or else those that have anything to
    /// do with us.
    fn new(only: Option<Ctid>) -> anyhow::Result<(Doctor, status::Confs)> {
        let mut look = Look::host();
        let storages = storage::read(&mut look);
        let cluster = cluster::Nodes::read(&mut look);
        let mut confs = match only {
            Some(ctid) => {
                vec![(ctid, Conf::of(ctid).called(format!("doctor {ctid}")).read()?)]
            }
            None => status::confs(&mut look),
        };
        let scope = Scope { display: true };
        let asked = confs.iter().flat_map(|(ctid, conf)| {
            let settings = load::of_next_start(*ctid, &Conf::of(*ctid), conf);
            startable::questions(&storages, conf, &settings)
        });
        let questions = Questions::asked_once(asked);
        let mut files = Look::of(View::host(), &[scope.asked(), questions]);
        let mut inventory = Inventory::seen(&mut files, &scope);
        inventory.add_other_cards(View::host());
        inventory.add_vms(View::host());
        confs.retain(|(_, conf)| only.is_some() || status::concerns_us(&files, &storages, conf));
        Ok((Doctor { look, files, inventory, storages, cluster }, confs))
    }

    fn host(&self) -> Vec<Finding> {
        let inventory = &self.inventory;
        let mut findings = vec![host::driver(inventory, || diagnose::no_driver(View::host()))];
        let next = kernel_driver::installed(View::host(), &Deadline::secs(10)).map_err(|e| one_line(&e));
        findings.extend(host::next_boot(inventory, next));
        findings.extend(host::nodes(inventory));
        findings.extend(host::boot_unit(boot_unit(&self.look)));
        findings.extend(host::quorum(crate::pve::cluster::has_quorum(&self.look)));
        findings.extend(host::problems(&inventory.problems));
        findings
    }

    fn container(&mut self, ctid: Ctid, conf: &Document) -> Vec<Finding> {
        let settings = load::of_next_start(ctid, &Conf::of(ctid), conf);
        let (intent, _) = Intent::of(&settings);
        let kernel = self.inventory.driver.as_ref().map(|d| d.version.clone());
        let choice = intent.on(&self.inventory, conf);
        let software = desired::read(&settings, kernel, Some(choice.gpus.len()));
        let hook = Hookscript::of(&self.files, &self.storages, conf);

        let mut findings = conf::settings(ctid, &settings.all_problems());
        let exposed = secrets::exposed(&settings, ctid);
        findings.extend(exposed.into_iter().map(|s| Finding::warning("secret", s.what).mend(s.remedy)));
        if self.inventory.driver.is_some() {
            findings.extend(conf::gpus(&choice, &plan::describe(&choice)));
        }
        findings.push(conf::hookscript(ctid, &hook));
        findings.extend(chain::lacks(&self.files, &settings).map(|lacks| conf::chain(&lacks)));
        findings.extend(conf::chain_unseen(chain::unseen(&self.files, &settings)));
        findings.extend(conf::absolute_targets(ctid, conf));
        findings.extend(conf::in_snapshots(ctid, conf));
        findings.extend(conf::double_pass(ctid, conf));
        findings.extend(conf::dev_lines(ctid, conf, &plan::wanted_once_made(&choice)));
        findings.extend(conf::allow_all(conf));
        findings.extend(conf::apparmor(conf));
        findings.extend(conf::template(ctid, conf));
        findings.extend(conf::lock(ctid, conf));
        let obstacles = startable::obstacles(&mut self.look, &self.files, conf, &settings, None);
        let is_running = sharing::is_running(&mut self.look, ctid);
        findings.extend(conf::refused(ctid, &obstacles, is_running));
        findings.extend(conf::modes(conf, &self.inventory, &choice));
        if self.inventory.shown.params.is_some() {
            let mounts = plan::mounts(ctid, &intent, conf);
            findings.extend(conf::masks(ctid, conf, &mounts, masks::exist(View::host(), ctid)));
        }
        let mut now = Now {
            running: is_running,
            startable: obstacles.is_empty(),
            devices: choice.missing.is_empty() && !status::pending(&intent, conf, &choice),
            ..Now::default()
        };
        if let Ok(desired::Software::Desired(desired)) = &software {
            now.asked = Some(desired.fingerprint());
            findings.extend(conf::driver_version(ctid, desired.matches_kernel()));
        }
        if now.running {
            let (more, right) = running(ctid, conf, &choice, software.ok(), &settings);
            findings.extend(more);
            now.software = right;
        }
        let state = Record::of(ctid).load_of(&net::identity(conf));
        findings.extend(conf::restart_due(ctid, startable::restart_is_due(&state, &settings)));
        findings.extend(conf::last_run(ctid, &locks::settled(state, ctid), &now));
        findings.extend(self.cluster.findings(ctid, &hook, &self.storages));
        findings
    }
}

/// Whether the boot unit is enabled; `None` where systemd does not run.
fn boot_unit(look: &Look) -> Option<bool> {
    let wants = "/etc/systemd/system/multi-user.target.wants/phoenix-nvidia-nodes.service";
    let runs = look.at("/run/systemd/system").is_dir();
    runs.then(|| look.at(wants).symlink_metadata().is_ok())
}

/// What only a running container shows, and whether the software in it is as
/// wanted, where that could be looked at.
fn running(
    ctid: Ctid,
    conf: &Document,
    choice: &Choice,
    software: Option<desired::Software>,
    settings: &Settings,
) -> (Vec<Finding>, Option<bool>) {
    let wanted = plan::wanted_once_made(choice);
    // One limit for all three looks, so that none has more than what the
    // others leave.
    let limit = settings.value(keys::CHECK_TIMEOUT);
    let deadline = Deadline::after(limit);
    let has = pct::init(ctid).map_err(|e| one_line(&e)).and_then(|init| match init {
        Some(init) => attached::read(&init, &deadline.at_most(limit / 3)).map_err(|e| e.to_string()),
        None => Err("it has just stopped".to_owned()),
    });
    let unseen = has.as_ref().map(attached::Attached::unseen).unwrap_or_default();
    let differences = has.map(|has| plan::differences(conf, &has, &wanted));
    let mut findings: Vec<Finding> =
        unseen.into_iter().map(|unseen| Finding::unknown("devices", unseen)).collect();
    if findings.is_empty() || differences.as_ref().is_ok_and(|differences| !differences.is_empty()) {
        findings.extend(inside::devices(ctid, differences));
    }
    let guest = Guest::new(ctid);
    let opened = open_nodes(&guest, &plan::nodes(choice), &deadline.at_most(limit / 3));
    findings.extend(inside::rules(ctid, &opened));
    let seen = inside::look(ctid);
    let mut right = None;
    if let Some(desired::Software::Desired(desired)) = software {
        // Here there is time for nvidia-smi.
        match probe::check(&guest, &desired, Ask::NvidiaSmi, &deadline) {
            Ok(check) => {
                let steps = InstallSteps::of(&check, &desired, true);
                right = Some(steps.is_empty());
                findings.push(inside::version(ctid, &check, seen.as_ref().ok(), &desired.driver));
                findings.extend(inside::packages(ctid, &steps));
            }
            Err(error) => findings.push(Finding::unknown("version", one_line(&error))),
        }
    }
    match &seen {
        Ok(seen) => {
            findings.extend(inside::persistenced(ctid, seen));
            findings.extend(inside::docker(ctid, seen));
        }
        Err(why) => findings.push(Finding::unknown("inside", format!("it could not be looked into: {why}"))),
    }
    (findings, right)
}
