//! `plan`: what a call by hand would do. It looks as the call itself does,
//! with the same functions, and stops there.

mod diff;
mod live;

use crate::driver::injection::Injection;
use crate::exit::{self, Code, Fault};
use crate::guest::exec::Guest;
use crate::guest::install::steps::{self, InstallSteps, cuda_foreseen, cuda_refused};
use crate::guest::os;
use crate::guest::probe::{self, Ask};
use crate::host::choose::Choice;
use crate::host::gpus::Gpu;
use crate::host::kernel_driver;
use crate::host::nvidia_smi;
use crate::job::by_hand::{ByHand, Restart, TEMPLATE};
use crate::job::desired::{self, Software};
use crate::job::devices;
use crate::job::injection;
use crate::job::mode;
use crate::job::nested;
use crate::job::occupied;
use crate::job::startable;
use crate::plan::narrow::Narrowing;
use crate::plan::{self, Intent, dropped};
use crate::pve::conf::document::Form;
use crate::pve::conf::reconcile::{Change, reconcile};
use crate::pve::conf::store::Conf;
use crate::pve::net;
use crate::pve::sharing;
use crate::pve::startable::Obstacle;
use crate::state::Record;
use crate::sys::look::{Look, View};
use crate::sys::out::{Out, Style};
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::time::Duration;

/// Tells the steps and the conf's diff.
///
/// # Errors
/// Those of the call by hand, as far as looking shows them.
pub fn run(ctid: Ctid) -> anyhow::Result<Code> {
    let hand = ByHand::read(ctid, Conf::of(ctid).called(format!("plan {ctid}")))?;
    let (intent, software) = hand.validate()?;
    let (inventory, choice) =
        devices::look(ctid, &intent, &hand.settings, &hand.document, &Deadline::after(nvidia_smi::LIMIT));
    if let Some(fault) = plan::fault(&choice) {
        return Err(fault.into());
    }
    let out = Out::stdout();
    out.line(out.paint(Style::Bold, format_args!("Container {ctid}: {}", plan::describe(&choice))));
    let injection = mode::look_anew(&hand.settings, &hand.document);
    let mut steps = Steps { hand, choice, injection, all: Vec::new(), notes: Vec::new(), refused: None };
    steps.configure(&intent);
    steps.no_effect();
    // As `status` looks: no program is needed to see that a container runs.
    if steps.hand.document.is_template() {
        steps.notes.push(format!("container {ctid} {TEMPLATE}"));
    } else if sharing::is_running(&mut Look::host(), ctid) {
        steps.install_and_restart(&software)?;
        steps.live(&intent, &software, &inventory);
        steps.nested(true);
    } else {
        steps.start(&software);
        steps.nested(false);
    }
    steps.tell(&out)
}

struct Steps {
    hand: ByHand,
    choice: Choice,
    /// What DRIVER_MODE means for it.
    injection: Injection,
    /// What would be done, each with the lines of a diff.
    all: Vec<(String, Vec<diff::Line>)>,
    /// What is no step.
    notes: Vec<String>,
    /// What the run would fail with.
    refused: Option<anyhow::Error>,
}

impl Steps {
    fn add(&mut self, step: impl ToString) {
        self.all.push((step.to_string(), Vec::new()));
    }

    /// The device nodes and the conf.
    fn configure(&mut self, intent: &Intent) {
        for node in self.choice.to_make.clone() {
            self.add(format!("make device node {}: it {}", node.path.on_host(), node.why));
        }
        let document = &self.hand.document;
        let wanted = plan::wanted_once_made(&self.choice);
        let kernel = kernel_driver::version(View::host());
        let supply = desired::supply(&self.hand.settings, Some(Duration::MAX));
        let tree = injection::plan(self.hand.ctid, document, &self.injection, kernel.as_ref(), supply);
        self.all.extend(tree.step.map(|step| (step, Vec::new())));
        self.refused = tree.refused;
        let mounts = plan::mounts(self.hand.ctid, intent, document, &self.injection);
        self.notes.extend(self.choice.notes.iter().cloned());
        self.notes.extend(self.choice.gpus.iter().filter_map(Gpu::undriven));
        self.notes.extend(self.choice.left_out.iter().cloned());
        for told in Narrowing::of(document).told(&self.hand.settings, &self.choice) {
            self.notes.push(told.line.clone());
            self.notes.extend(told.fix(self.hand.ctid).map(|fix| exit::fix(&fix)));
        }
        self.notes.extend((!mounts.is_empty()).then(|| plan::MASKS.to_owned()));
        self.notes.extend(plan::going(document, &wanted));
        let Some(edit) = reconcile(document, &wanted, &mounts, Form::Pve) else { return };
        let dropped = |change: &Change| match change {
            Change::Removed(path, _) => {
                let why = dropped::why(*path, intent, &self.choice, document)?;
                let keep = path.is_display().then(|| dropped::kept_by(self.hand.ctid, intent)).flatten();
                let keep = keep.map(|keep| format!("; to keep it: {keep}")).unwrap_or_default();
                Some(format!("removes {path}: {why}{keep}"))
            }
            _ => None,
        };
        self.notes.extend(edit.changes.iter().filter_map(dropped));
        let lines = diff::lines(document.as_bytes(), edit.document.as_bytes());
        let changes: Vec<String> = edit.changes.iter().map(ToString::to_string).collect();
        self.all.push((format!("edit {}: {}", self.hand.conf.path().display(), changes.join(", ")), lines));
        self.refused = self.refused.take().or_else(|| self.hand.must_be_editable(document).err());
    }

    /// Settings that have no effect as they stand.
    fn no_effect(&mut self) {
        let told = self
            .hand
            .idle
            .iter()
            .flat_map(|idle| [format!("{}: {}", idle.what, idle.why), exit::fix(&idle.fix)]);
        self.notes.extend(text::few(told.collect(), 2 * plan::MOST_LINES));
    }

    /// What an install in the running container would do, and its restart.
    fn install_and_restart(&mut self, software: &Software) -> anyhow::Result<()> {
        let mut compared = self.hand.compare(&self.choice)?;
        self.notes.extend(compared.unseen);
        let kernel = kernel_driver::version(View::host());
        if let Some(difference) = injection::difference(self.hand.ctid, &self.injection, kernel.as_ref()) {
            if let (Injection::On(place), Ok(desired)) = (&self.injection, software.desired()) {
                let hides = occupied::look(self.hand.ctid, place, desired);
                self.refused = self.refused.take().or(hides.map(|it| it.fault(self.hand.ctid).into()));
            }
            // The restart for it comes first.
            compared.differences.push(difference);
            self.add(Restart::of(self.hand.ctid, std::mem::take(&mut compared.differences)));
            self.refused_by(startable::refusal, |_| true);
        }
        let driver = self.install(software)?;
        if let Some(restart) = self.hand.restart(compared.differences, driver) {
            self.add(restart);
            self.refused_by(startable::refusal, |_| true);
        }
        Ok(())
    }

    /// What engines in the container read, after all else.
    fn nested(&mut self, running: bool) {
        let version = kernel_driver::version(View::host());
        let ByHand { ctid, document, settings, .. } = &self.hand;
        let step = nested::planned(*ctid, settings, document, version.as_ref(), running);
        step.into_iter().for_each(|step| self.add(step));
    }

    /// Whether the driver changes.
    fn install(&mut self, software: &Software) -> anyhow::Result<bool> {
        let mut desired = match software.desired() {
            Ok(desired) => desired.clone(),
            Err(skipped) => {
                self.notes.push(skipped.to_owned());
                return Ok(false);
            }
        };
        desired.gpus = Some(self.choice.gpus.len());
        let ctid = self.hand.ctid;
        let deadline = Deadline::after(desired.limits.check);
        if desired.injected && os::application(&self.hand.document).is_some() {
            return Ok(false);
        }
        let check = probe::check(&Guest::new(ctid), &desired, Ask::Files, &deadline)?;
        if let Err(unfit) = steps::fit(ctid, &check) {
            self.refused = self.refused.take().or(Some(unfit));
            return Ok(false);
        }
        let linked = check.links && !check.lost && injection::is_linked(ctid, &desired);
        if self.injection.is_on() && !linked {
            self.add(format!("make links to driver {} of this host in the container", desired.driver));
        }
        // As a call by hand: what failed before is tried again.
        let steps = InstallSteps::of(&check, &desired, true);
        for step in steps.iter() {
            self.add(step);
            self.refused = self.refused.take().or_else(|| step.possible(ctid, &check).err());
        }
        if let Some(refused) = cuda_refused(ctid, &check) {
            self.without_cuda(refused, desired.cuda_named);
        }
        if self.all.is_empty() {
            let nodes = plan::nodes(&self.choice.devices, self.choice.monitor).len();
            self.notes.push(format!("{}; a run verifies it with {nodes} nodes", desired.right()));
        }
        Ok(steps.driver())
    }

    /// CUDA packages that a run will not install: it fails where somebody named
    /// them.
    fn without_cuda(&mut self, refused: Fault, named: bool) {
        if named {
            self.refused = self.refused.take().or_else(|| Some(refused.into()));
            return;
        }
        self.notes.push(refused.message);
        self.notes.extend(refused.remedy.map(|remedy| exit::fix(&remedy)));
    }

    /// The start of a stopped container, and what shows only then.
    fn start(&mut self, software: &Software) {
        self.add(format!("start container {}", self.hand.ctid));
        let identity = net::identity(&self.hand.document);
        let last = Record::of(self.hand.ctid).load_of(&identity).container_driver;
        let installed = software.desired().is_ok_and(|desired| !desired.injected);
        if let Some(why) = os::foreseen(&self.hand.document).filter(|_| installed) {
            self.refused_by(startable::refused_start, Obstacle::refuses_start);
            self.refused = self.refused.take().or_else(|| Some(steps::unfit(self.hand.ctid, &why)));
            return;
        }
        self.notes.push(match (software.desired(), last) {
            (Err(skipped), _) => skipped.to_owned(),
            (Ok(desired), _) if desired.injected => {
                format!("driver {} of this host is mounted at the start", desired.driver)
            }
            (Ok(desired), Some(last)) if last == desired.driver.as_str() => {
                format!("driver {last} when last seen running: checked again after the start")
            }
            (Ok(desired), Some(last)) => {
                format!("after the start: upgrade driver {last} → {}", desired.driver)
            }
            (Ok(desired), None) => format!("after the start: install driver {} if missing", desired.driver),
        });
        self.refused_by(startable::refused_start, Obstacle::refuses_start);
        let ostype = self.hand.document.get("ostype").unwrap_or_default();
        let foreseen = software
            .desired()
            .ok()
            .and_then(|d| Some((cuda_foreseen(self.hand.ctid, d, &ostype)?, d.cuda_named)));
        if let Some((refused, named)) = foreseen {
            self.without_cuda(refused, named);
        }
    }

    /// The same look that the run takes before it stops or starts anything;
    /// nodes that it makes first are not missing then.
    fn refused_by(&mut self, with: fn(Ctid, &[Obstacle]) -> anyhow::Error, counts: fn(&Obstacle) -> bool) {
        let made = |path: &str| self.choice.to_make.iter().any(|node| node.path.to_string() == path);
        let ByHand { ctid, document, settings, .. } = &self.hand;
        let mut found = startable::obstacles_of(document, settings, Some(&self.choice));
        found.retain(|obstacle| {
            counts(obstacle) && !matches!(obstacle, Obstacle::Device { path, .. } if made(path))
        });
        if !found.is_empty() {
            self.refused = self.refused.take().or_else(|| Some(with(*ctid, &found)));
        }
    }

    fn tell(self, out: &Out) -> anyhow::Result<Code> {
        for (n, (step, lines)) in self.all.iter().enumerate() {
            out.line(format_args!("{:>3}. {step}", n + 1));
            for line in lines {
                out.line(format_args!("       {}", out.paint(line.style(), line)));
            }
        }
        for note in &self.notes {
            out.line(out.paint(Style::Faint, format_args!("     {note}")));
        }
        if self.all.is_empty() && self.refused.is_none() {
            out.line("     Nothing to do.");
            return Ok(Code::Success);
        }
        self.refused.map_or(Ok(Code::Pending), Err)
    }
}
