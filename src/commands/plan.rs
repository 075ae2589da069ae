//! `plan`: what a call by hand would do. It looks as the call itself does,
//! with the same functions, and stops there.

mod diff;

use crate::driver::desired::Desired;
use crate::exit::Code;
use crate::guest::exec::Guest;
use crate::guest::install::steps::InstallSteps;
use crate::guest::probe::{self, Ask};
use crate::host::choose::Choice;
use crate::host::gpus::Inventory;
use crate::host::provide::inspect;
use crate::job::by_hand::ByHand;
use crate::job::desired::Software;
use crate::job::startable;
use crate::plan::{self, Intent};
use crate::pve::conf::document::Document;
use crate::pve::conf::document::Form;
use crate::pve::conf::reconcile::reconcile;
use crate::pve::conf::store::Conf;
use crate::pve::net;
use crate::pve::sharing;
use crate::pve::startable::Obstacle;
use crate::settings::{Settings, keys};
use crate::state::Record;
use crate::sys::look::Look;
use crate::sys::look::View;
use crate::sys::out::{Out, Style};
use crate::sys::time::Deadline;
use crate::types::Ctid;

/// Tells the steps and the conf's diff.
///
/// # Errors
/// Those of the call by hand, as far as looking shows them.
pub fn run(ctid: Ctid) -> anyhow::Result<Code> {
    let conf = Conf::of(ctid).called(format!("plan {ctid}"));
    let hand = ByHand::read(ctid, conf)?;
    let document = hand.document.clone();
    let (intent, software) = hand.validate()?;
    let choice = choice(ctid, &intent, &hand.settings, &document);
    if let Some(fault) = plan::fault(&choice) {
        return Err(fault.into());
    }
    let mut steps = Steps::default();
    steps.nodes(&choice);
    let wanted = plan::wanted_once_made(&choice);
    let mounts = plan::mounts(ctid, &intent, &document);
    let edit = reconcile(&document, &wanted, &mounts, Form::Pve);
    steps.notes.extend((!mounts.is_empty()).then(|| plan::MASKS.to_owned()));
    steps.notes.extend(plan::going(&document, &wanted));
    // As `status` looks: no program is needed to see that a container runs.
    let running = sharing::is_running(&mut Look::host(), ctid);
    let out = Out::stdout();
    out.line(out.paint(Style::Bold, format_args!("Container {ctid}: {}", plan::describe(&choice))));
    if let Some(edit) = &edit {
        let lines = diff::lines(document.as_bytes(), edit.document.as_bytes());
        let changes: Vec<String> = edit.changes.iter().map(ToString::to_string).collect();
        steps.add(format!("edit {}: {}", hand.conf.path().display(), changes.join(", ")), lines);
        steps.refused = hand.must_be_editable(&document).err();
    }
    if document.get("template").as_deref() == Some("1") {
        steps.notes.push(
            "it is a template: its clones inherit this, and get their driver at their first start".into(),
        );
    } else if running {
        let compared = hand.compare(&wanted)?;
        steps.notes.extend(compared.unseen);
        steps.software(&hand, &software, &choice)?;
        if steps.restart(&hand, compared.differences) {
            steps.refused_by(startable::refusal, &hand, &choice, &document, |_| true);
        }
    } else {
        steps.add(format!("start container {ctid}"), Vec::new());
        steps.later(&hand, &software, &document);
        steps.refused_by(startable::refused_start, &hand, &choice, &document, Obstacle::refuses_start);
    }
    steps.tell(&out)
}

/// The devices on this host, with those whose nodes a run would make.
fn choice(ctid: Ctid, intent: &Intent, settings: &Settings, document: &Document) -> Choice {
    let exclusive = settings.value(keys::GPU_EXCLUSIVE).then_some(ctid);
    match intent.request(exclusive) {
        Some(request) => inspect(View::host(), &request).1,
        None => intent.on(&Inventory::read_for(View::host(), intent.display(document)), document),
    }
}

#[derive(Default)]
struct Steps {
    /// What would be done, each with the lines of a diff.
    all: Vec<(String, Vec<diff::Line>)>,
    /// What cannot be told from here.
    notes: Vec<String>,
    /// The driver in the container would change.
    driver: bool,
    /// What the run would fail with.
    refused: Option<anyhow::Error>,
}

impl Steps {
    fn add(&mut self, step: String, lines: Vec<diff::Line>) {
        self.all.push((step, lines));
    }

    fn nodes(&mut self, choice: &Choice) {
        for node in &choice.to_make {
            self.add(format!("make the device node {}, which {}", node.path, node.why), Vec::new());
        }
        self.notes.extend(choice.notes.iter().cloned());
    }

    /// What an install in the running container would do.
    fn software(&mut self, hand: &ByHand, software: &Software, choice: &Choice) -> anyhow::Result<()> {
        let Some(desired) = self.desired(software) else { return Ok(()) };
        let mut desired = desired.clone();
        desired.gpus = Some(choice.gpus.len());
        let deadline = Deadline::after(desired.limits.check);
        let check = probe::check(&Guest::new(hand.ctid), &desired, Ask::Files, &deadline)?;
        // As a call by hand: what failed before is tried again.
        let install = InstallSteps::of(&check, &desired, true);
        self.driver = install.driver();
        for step in install.iter() {
            self.add(step.to_string(), Vec::new());
            if self.refused.is_none() {
                self.refused = step.possible(hand.ctid, &check).err();
            }
        }
        if self.all.is_empty() {
            self.notes.push(format!(
                "driver {}: installed and right; nvidia-smi would verify it with {} nodes",
                desired.driver,
                plan::nodes(choice).len()
            ));
        }
        Ok(())
    }

    fn desired<'a>(&mut self, software: &'a Software) -> Option<&'a Desired> {
        match software {
            Software::Desired(desired) => return Some(desired),
            Software::Off => {
                self.notes.push("INSTALL is off: the driver in the container is left as it is".to_owned())
            }
            Software::NoDriver => self.notes.push(
                "no kernel driver is loaded: the container would keep the driver that it has".to_owned(),
            ),
        }
        None
    }

    /// What is only seen once the container runs.
    fn later(&mut self, hand: &ByHand, software: &Software, document: &Document) {
        let Some(desired) = self.desired(software) else { return };
        let wanted = &desired.driver;
        let last = Record::of(hand.ctid).load_of(&net::identity(document)).container_driver;
        self.notes.push(match last {
            Some(last) if last == wanted.as_str() => {
                format!("the container does not run; when last seen, it had the driver that it is to have, {wanted}")
            }
            Some(last) => format!("the container does not run; its driver would be changed: {last} → {wanted}"),
            None => format!("the container does not run; whether it has driver {wanted} is seen once it does"),
        });
    }

    fn restart(&mut self, hand: &ByHand, mut why: Vec<String>) -> bool {
        let restarts = startable::restarts_after_install(&hand.settings);
        if restarts && self.driver {
            why.push("the driver is new".to_owned());
        } else if hand.restart_due() {
            why.push("its services still run with the driver from before".to_owned());
        }
        if !why.is_empty() {
            self.add(format!("restart container {}: {}", hand.ctid, why.join("; ")), Vec::new());
        }
        !why.is_empty()
    }

    /// The same look that the run takes before it stops or starts anything;
    /// nodes that it makes first are not missing then.
    fn refused_by(
        &mut self,
        with: fn(Ctid, &[Obstacle]) -> anyhow::Error,
        hand: &ByHand,
        choice: &Choice,
        document: &Document,
        counts: fn(&Obstacle) -> bool,
    ) {
        let made = |o: &Obstacle| matches!(o, Obstacle::Device { path, .. } if choice.to_make.iter().any(|n| n.node.to_string() == *path));
        let mut found = startable::obstacles_of(document, &hand.settings, Some(choice));
        found.retain(|obstacle| counts(obstacle) && !made(obstacle));
        if !found.is_empty() && self.refused.is_none() {
            self.refused = Some(with(hand.ctid, &found));
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
        if self.all.is_empty() {
            out.line("     Nothing to do.");
            return Ok(Code::Success);
        }
        self.refused.map_or(Ok(Code::Pending), Err)
    }
}
