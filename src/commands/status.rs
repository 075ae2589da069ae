//! `status`: a row for each container that has GPUs or is to have them.
//!
//! It reads files and runs no program: with a hundred containers, a `pct` for
//! each would take a minute.

mod table;
mod verdict;

use super::level::Level;
use crate::exit::Code;
use crate::host::choose::Choice;
use crate::host::gpus::{Inventory, Scope};
use crate::job::desired;
use crate::job::locks;
use crate::job::startable;
use crate::plan::{self, Intent};
use crate::pve::cluster;
use crate::pve::conf::devices::present;
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::mounts;
use crate::pve::conf::mounts::mounts;
use crate::pve::conf::reconcile::pairs_are_right;
use crate::pve::conf::store::Conf;
use crate::pve::hookscript::Hookscript;
use crate::pve::net;
use crate::pve::sharing;
use crate::pve::startable::Obstacle;
use crate::pve::storage;
use crate::pve::storage::Storage;
use crate::settings::load;
use crate::settings::{Settings, keys};
use crate::state::Record;
use crate::state::{Outcome, State};
use crate::sys::look::View;
use crate::sys::look::{Look, Questions, Walk as _};
use crate::sys::out::Out;
use crate::sys::signal;
use crate::types::Ctid;
use serde::Serialize;

/// The version of the JSON's form.
const SCHEMA: u32 = 1;

/// All that is printed.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    kernel_driver: Option<String>,
    containers: Vec<Row>,
    /// What could not be looked at.
    problems: Vec<String>,
}

/// One container.
#[derive(Debug, Serialize)]
struct Row {
    ctid: u32,
    name: Option<String>,
    running: bool,
    template: bool,
    /// GPU_ASSIGNMENT, as it is written.
    assignment: Option<String>,
    gpus: Vec<Gpu>,
    kernel_driver: Option<String>,
    container_driver: Option<String>,
    /// `yes`, `no`, `other`, `broken` or `unknown`.
    hookscript: &'static str,
    last: Option<Last>,
    last_success: Option<u64>,
    /// Its services run with the driver from before an install, and the
    /// reboot for that was not made yet.
    restart_due: bool,
    /// What its next start would be refused for.
    obstacles: Vec<Obstacle>,
    verdict: Level,
    /// What is to be said about it; the first is the worst.
    reasons: Vec<String>,
}

/// A GPU of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Gpu {
    minor: Option<u32>,
    model: String,
    uuid: Option<String>,
    pci: Option<String>,
}

/// What was done last.
#[derive(Clone, Debug, Serialize)]
struct Last {
    what: String,
    outcome: Outcome,
    exit_code: u8,
    message: String,
    at: u64,
    took_ms: u64,
}

/// Prints the rows.
///
/// # Errors
/// [`Code::NoContainer`] for one that is named and not there.
pub fn run(ctids: &[Ctid], json: bool) -> anyhow::Result<Code> {
    let (mut host, confs) = Host::read(ctids)?;
    // What a signal of ours cut off is no finding.
    signal::check()?;
    let rows = host.rows(&confs, ctids.is_empty());
    let out = Out::stdout();
    if json {
        let report = Report {
            schema: SCHEMA,
            kernel_driver: host.kernel_driver(),
            containers: rows,
            problems: host.problems(),
        };
        out.json(&report)?;
        return Ok(Code::Success);
    }
    for problem in host.problems() {
        log::warn!("{problem}");
    }
    table::print(&out, &rows);
    Ok(Code::Success)
}

/// What all rows go by, read once.
struct Host {
    look: Look<'static>,
    /// The storages' files.
    files: Look<'static>,
    storages: Vec<Storage>,
    inventory: Inventory,
}

/// Containers with their confs.
pub type Confs = Vec<(Ctid, Document)>;

impl Host {
    /// With the containers that are named, all of this node's where none is.
    fn read(ctids: &[Ctid]) -> anyhow::Result<(Host, Confs)> {
        let mut look = Look::host();
        let storages = storage::read(&mut look);
        let named = |ctid: &Ctid| {
            let conf = Conf::of(*ctid).called(format!("status {ctid}"));
            Ok((*ctid, conf.read()?))
        };
        let confs = if ctids.is_empty() {
            confs(&mut look)
        } else {
            ctids.iter().map(named).collect::<anyhow::Result<_>>()?
        };
        let scope = Scope { display: true };
        let questions = confs.iter().flat_map(|(ctid, conf)| {
            let settings = load::of_next_start(*ctid, &Conf::of(*ctid), conf);
            startable::questions(&storages, conf, &settings)
        });
        let mut files = Look::of(View::host(), &[scope.asked(), Questions::asked_once(questions)]);
        let inventory = Inventory::seen(&mut files, &scope);
        Ok((Host { look, files, storages, inventory }, confs))
    }

    fn kernel_driver(&self) -> Option<String> {
        self.inventory.driver.as_ref().map(|driver| driver.version.to_string())
    }

    fn problems(&self) -> Vec<String> {
        self.look.problems.iter().chain(&self.inventory.problems).cloned().collect()
    }

    /// A row for each; of all, for those that have anything to do with us.
    fn rows(&mut self, confs: &Confs, all: bool) -> Vec<Row> {
        let mut rows = Vec::new();
        for (ctid, conf) in confs {
            if !all || concerns_us(&self.files, &self.storages, conf) {
                rows.push(self.row(*ctid, conf));
            }
        }
        rows
    }

    /// Whether the next start would put the mounts of ours in, as the first
    /// one after an upgrade does.
    fn new_mounts(&self, ctid: Ctid, intent: &Intent, conf: &Document) -> bool {
        let assigned = matches!(intent, Intent::Assigned(..)) && self.inventory.shown.params.is_some();
        assigned && !mounts::are_right(conf, &plan::mounts(ctid, intent, conf), Form::Pve)
    }

    fn row(&mut self, ctid: Ctid, conf: &Document) -> Row {
        let settings = load::of_next_start(ctid, &Conf::of(ctid), conf);
        let (intent, _) = Intent::of(&settings);
        let problems = settings.all_problems();
        let choice = intent.on(&self.inventory, conf);
        let state = locks::settled(Record::of(ctid).load_of(&net::identity(conf)), ctid);
        let hook = Hookscript::of(&self.files, &self.storages, conf);
        let running = sharing::is_running(&mut self.look, ctid);
        let template = conf.get("template").is_some_and(|v| v == "1");
        let seen = verdict::Seen {
            problems: problems.iter().map(ToString::to_string).collect(),
            driver_loaded: self.inventory.driver.is_some(),
            missing: not_given(conf, &self.inventory, &choice),
            pending: pending(&intent, conf, &choice),
            new_mounts: self.new_mounts(ctid, &intent, conf),
            hook: &hook,
            running,
            install: settings.value(keys::INSTALL),
            asked: desired::asked(&settings, self.inventory.driver.as_ref().map(|d| d.version.clone())),
            mismatch: mismatch(&state, self.kernel_driver().as_deref()),
            state: &state,
            restart_due: startable::restart_is_due(&state, &settings),
            obstacles: startable::obstacles(&mut self.look, &self.files, conf, &settings, Some(&choice)),
        };
        let (verdict, reasons) = verdict::of(&seen);
        Row {
            ctid: ctid.get(),
            name: conf.get("hostname"),
            running,
            template,
            assignment: assignment(&settings),
            gpus: choice.gpus.iter().map(Gpu::of).collect(),
            kernel_driver: self.kernel_driver(),
            container_driver: state.container_driver.clone(),
            hookscript: hook.word(),
            last: Last::of(&state),
            last_success: state.last_success,
            restart_due: seen.restart_due,
            obstacles: seen.obstacles,
            verdict,
            reasons,
        }
    }
}

/// The containers of this node with their confs; one that was destroyed or migrated meanwhile is
/// none.
pub fn confs(look: &mut Look) -> Confs {
    let read = |ctid: Ctid| Some((ctid, Conf::of(ctid).read().ok()?));
    cluster::containers(look).unwrap_or_default().into_iter().filter_map(read).collect()
}

/// Whether a conf has settings, entries or a hookscript of ours.
pub fn concerns_us(look: &Look, storages: &[Storage], conf: &Document) -> bool {
    conf.environment().iter().any(|line| keys::by_name(&line.key).is_some())
        || present(conf).iter().any(|p| !p.path.is_drm())
        || !mounts(conf).is_empty()
        || Hookscript::of(look, storages, conf).is_meant()
}

fn assignment(settings: &Settings) -> Option<String> {
    settings.text(keys::GPU_ASSIGNMENT).map(|(text, _)| text.to_owned())
}

/// What the host cannot give the container, or gives it with a mode that keeps
/// it out.
fn not_given(conf: &Document, inventory: &Inventory, choice: &Choice) -> Vec<String> {
    let missing = choice.missing.iter().map(ToString::to_string);
    let closed = plan::closed(conf, inventory, choice).into_iter();
    missing
        .chain(closed.map(|path| format!("{path}: its mode keeps the unprivileged container out")))
        .collect()
}

/// Whether the next start would change the device pairs. Mounts that are to
/// come give no device and take none.
pub fn pending(intent: &Intent, conf: &Document, choice: &Choice) -> bool {
    let assigned = matches!(intent, Intent::Assigned(..));
    assigned && !pairs_are_right(conf, &plan::wanted_once_made(choice), Form::Pve)
}

/// The driver in the container, as last seen, and the kernel's, if they differ.
fn mismatch(state: &State, kernel: Option<&str>) -> Option<(String, String)> {
    let (inside, kernel) = (state.container_driver.as_deref()?, kernel?);
    (inside != kernel).then(|| (inside.to_owned(), kernel.to_owned()))
}

impl Gpu {
    fn of(gpu: &crate::host::gpus::Gpu) -> Gpu {
        Gpu {
            minor: gpu.minor,
            model: gpu.model.clone(),
            uuid: gpu.uuid.clone(),
            pci: gpu.pci.map(|pci| pci.to_string()),
        }
    }
}

impl Last {
    fn of(state: &State) -> Option<Last> {
        (state.outcome != Outcome::None).then(|| Last {
            what: state.phase.clone(),
            outcome: state.outcome,
            exit_code: state.code,
            message: state.message.clone(),
            at: state.at,
            took_ms: state.took_ms,
        })
    }
}
