//! A running container changes without a restart: cards and driver come and go.
//!
//! Only a call by hand does this. It holds the lock of calls by hand and that of
//! the work in the container, and is bound to one start of it: if that ends
//! meanwhile nothing else is touched. The conf comes first for what is added,
//! so that a reboot keeps it, and last for what is taken away.

pub mod difference;
pub mod enter;
pub mod masks;
mod rules;
pub mod steps;
pub mod users;

use crate::device::{Device, DevicePath, Number};
use crate::driver::tree::{self, Trees};
use crate::exit::{self, Code, Fault};
use crate::guest::attached;
use crate::guest::exec::Guest;
use crate::guest::leftovers;
use crate::guest::verify::{Opened, open_nodes};
use crate::host::gpus::Inventory;
use crate::host::nvidia_smi;
use crate::job::desired::Software;
use crate::job::in_force::devices_of;
use crate::job::locks;
use crate::job::undo::Undo;
use crate::plan;
use crate::pve::conf::document::{Document, Form};
use crate::pve::conf::mounts::{Mount, mounts};
use crate::pve::conf::store::Conf;
use crate::pve::in_force::InForce;
use crate::pve::pct;
use crate::sys::lock::Lock;
use crate::sys::look::View;
use crate::sys::mountinfo::{self, file_system};
use crate::sys::text;
use crate::sys::time::{Deadline, human};
use crate::types::{Ctid, Version};
use difference::{Difference, Exchange, Running, Step, Wanted};
use std::time::{Duration, Instant};
use steps::{Before, Gone, Place};
use users::{Found, Tree, User, named};

/// How long another call by hand, or an install, is waited for.
const LOCKS: Duration = Duration::from_secs(30);
/// How long a look at the container may take.
const LOOK: Duration = Duration::from_secs(10);
/// How long nvidia-smi of the host may take to list its processes.
const SMI: Duration = Duration::from_secs(5);

/// What is held while a running container is changed: no call by hand, and no
/// install in it.
pub struct Held {
    _by_hand: Lock,
    _work: Lock,
}

/// Takes both locks.
///
/// # Errors
/// [`Code::General`], [`Code::Software`]: another one holds one for too long.
pub fn hold(ctid: Ctid) -> anyhow::Result<Held> {
    Ok(Held { _by_hand: locks::by_hand(ctid, LOCKS)?, _work: locks::work(ctid, LOCKS)? })
}

/// A running container, and how it differs.
pub struct Live {
    /// The container, and its start.
    pub place: Place,
    /// Its conf, as it was read.
    document: Document,
    /// What it has.
    has: Running,
    /// What it is to have.
    pub wanted: Wanted,
    /// How it differs.
    pub difference: Difference,
    /// Why the driver tree stays until the next start.
    pub tree_waits: Option<String>,
    /// The remedy for a card in use; none where that is no reason to stop.
    refuse: Option<String>,
    /// What was noted of its rules.
    noted: Option<InForce>,
}

impl Live {
    /// Looks at the container; `None` if it does not run.
    ///
    /// # Errors
    /// [`Code::Passthrough`]: it cannot be looked at.
    pub fn of(ctid: Ctid, conf: &Conf, document: Document, wanted: Wanted) -> anyhow::Result<Option<Live>> {
        let Some(init) = pct::init(ctid)? else { return Ok(None) };
        let fault = |error: std::io::Error| {
            let fault = Fault::new(Code::Passthrough, format!("cannot read what container {ctid} has"));
            fault.remedy(format!("phoenix-nvidia doctor {ctid}")).caused_by(error)
        };
        let read = || {
            let has = attached::read(ctid, &init, &Deadline::after(LOOK))?;
            Ok((has, mountinfo::of(init.pid)?))
        };
        let (has, table) = match read() {
            // It has just ended.
            Err(_) if !init.lives() => return Ok(None),
            read => read.map_err(fault)?,
        };
        has.unseen().iter().for_each(|unseen| log::warn!("{unseen}"));
        let rules = match &has.noted {
            Some(noted) => noted.devices.clone(),
            None => conf.read_generated()?.map(|it| devices_of(&it, Form::Lxc)).unwrap_or_default(),
        };
        let (unseen, noted) = (has.unseen.keys().copied().collect(), has.noted);
        let has = Running { nodes: has.nodes, unseen, rules, shut: Default::default(), table };
        let difference = Difference::of(&document, &has, &wanted);
        let place = Place { ctid, init };
        let (tree_waits, refuse) = (None, None);
        Ok(Some(Live { place, document, has, wanted, difference, tree_waits, refuse, noted }))
    }

    /// Where nothing seems to differ, or nobody knows its rules: tries whether its
    /// nodes open, since somebody may have changed them.
    pub fn try_nodes(&mut self, limit: Duration) {
        if !self.difference.is_none() && self.knows_rules() {
            return;
        }
        let nodes = plan::nodes(&self.wanted.devices, self.wanted.monitor);
        let opened = open_nodes(&Guest::new(self.place.ctid), &nodes, &Deadline::after(limit));
        let shut = opened.into_iter().filter(|(_, opened)| *opened == Opened::NoRule);
        self.has.shut = shut.map(|(node, _)| node).collect();
        self.difference = Difference::of(&self.document, &self.has, &self.wanted);
    }

    /// Where the step of the driver tree stands.
    fn tree_step(&self) -> Option<usize> {
        self.difference.live.iter().position(|step| matches!(step, Step::Tree(_)))
    }

    /// Looks who uses what goes. A driver tree that is used waits for the next
    /// start; a card that is used is a fault.
    ///
    /// # Errors
    /// [`Code::Passthrough`] with the processes, unless `refuse`, their remedy, is none.
    pub fn must_be_unused(&mut self, inventory: &Inventory, refuse: Option<&str>) -> anyhow::Result<()> {
        self.refuse = refuse.map(str::to_owned);
        let cards = self.cards();
        let tree = self.tree_step().and_then(|at| match &self.difference.live[at] {
            Step::Tree(exchange) => tree_of(exchange),
            _ => None,
        });
        let has_tree = tree.is_some();
        let mut found = self.search(&cards, tree);
        if has_tree {
            self.keep_used_tree(&found);
        }
        self.add_listed(&mut found, &cards, inventory);
        self.refuse_users(&found, &cards)
    }

    fn refuse_users(&self, found: &Found, cards: &[(u32, Number)]) -> anyhow::Result<()> {
        for (minor, number) in cards {
            let using = found.of_card(*number);
            if !using.is_empty() {
                let what =
                    format!("GPU {minor} is in use in container {}: {}", self.place.ctid, named(&using));
                self.unless_forced(what)?;
            }
        }
        if let (false, Some(unseen)) = (cards.is_empty(), found.unseen.first()) {
            let what = format!("cannot see who uses the GPUs of container {}: {unseen}", self.place.ctid);
            self.unless_forced(what)?;
        }
        Ok(())
    }

    /// Looks again once nobody can open the cards any more: a process may have done
    /// so since the first look.
    fn must_still_be_unused(&self) -> anyhow::Result<()> {
        if self.refuse.is_none() {
            return Ok(());
        }
        let cards = self.cards();
        self.refuse_users(&self.search(&cards, None), &cards)
    }

    /// Who uses these cards, and the tree.
    fn search(&self, cards: &[(u32, Number)], tree: Option<Tree>) -> Found {
        let numbers: Vec<Number> = cards.iter().map(|(_, number)| *number).collect();
        let searched = users::find(self.place.ctid, &numbers, tree, &Deadline::after(LOOK));
        searched.unwrap_or_else(|error| Found { users: Vec::new(), unseen: vec![format!("{error:#}")] })
    }

    fn unless_forced(&self, what: String) -> anyhow::Result<()> {
        match &self.refuse {
            None => {
                log::warn!("{what}; taken away all the same (--force)");
                Ok(())
            }
            Some(remedy) => Err(Fault::new(Code::Passthrough, what).remedy(remedy.as_str()).into()),
        }
    }

    /// The cards that go, with their numbers.
    fn cards(&self) -> Vec<(u32, Number)> {
        let card = |step: &Step| match step {
            Step::Take(DevicePath::Gpu(minor), Some(number)) => Some((*minor, *number)),
            _ => None,
        };
        self.difference.live.iter().filter_map(card).collect()
    }

    /// Has a mounted tree stay that goes, until an installed driver takes its place at
    /// the next start: without both, nothing in it would find a driver.
    pub fn keep_tree_for(&mut self, software: &Software) {
        let Some(desired) = software.desired().ok().filter(|desired| !desired.injected) else { return };
        let Some(at) = self.tree_step() else { return };
        if let Step::Tree(Exchange { old: Some(old), new: None, .. }) = &self.difference.live[at] {
            let driver = &desired.driver;
            self.tree_waits =
                Some(format!("the mounted driver {old} goes, and driver {driver} is installed"));
            self.difference.live.remove(at);
        }
    }

    /// A tree that is mapped, or of which nobody knows, is left.
    fn keep_used_tree(&mut self, found: &Found) {
        let using = found.of_tree();
        let why = match found.unseen.first() {
            _ if !using.is_empty() => format!("used by {}", named(&using)),
            Some(unseen) => format!("cannot see who uses it: {unseen}"),
            None => return,
        };
        if let Some(at) = self.tree_step() {
            let step = self.difference.live.remove(at);
            self.tree_waits = Some(format!("{step}: {why}"));
        }
    }

    /// The version of the driver tree that it had before.
    pub fn mounted(&self) -> Option<Version> {
        tree::mounted(&self.has.table)
    }

    /// Adds those that nvidia-smi of the host lists.
    fn add_listed(&self, found: &mut Found, cards: &[(u32, Number)], inventory: &Inventory) {
        if cards.is_empty() {
            return;
        }
        let apps = nvidia_smi::compute_apps(View::host(), &Deadline::after(SMI)).unwrap_or_else(|error| {
            log::debug!("nvidia-smi lists no processes: {error:#}");
            Vec::new()
        });
        for (pid, uuid) in apps {
            let its = |(minor, _): &&(u32, Number)| {
                inventory.by_minor(*minor).is_some_and(|gpu| gpu.uuid.as_ref() == Some(&uuid))
            };
            let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let Some((_, number)) = cards.iter().find(its) else { continue };
            let known = found.of_card(*number).iter().any(|user| user.pid == pid);
            if leftovers::is_of(&group, self.place.ctid) && !known {
                let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
                let name = crate::sys::text::line(name.trim_ascii_end());
                let cards = [(number.major, number.minor)].into();
                found.users.push(User { pid, name, cards, tree: false });
            }
        }
    }

    /// Refuses what would touch a FUSE file system inside: it need not answer.
    ///
    /// # Errors
    /// [`Code::Passthrough`].
    pub fn must_be_plain(&self) -> anyhow::Result<()> {
        let table = &self.has.table;
        let targets = self.difference.live.iter().flat_map(|step| match step {
            Step::Add { device, .. } => vec![device.path.to_string()],
            Step::Take(path, _) => vec![path.to_string()],
            Step::Allow(_) => Vec::new(),
            Step::Tree(exchange) => {
                let places = exchange.places.iter().map(|(mount, _)| &mount.target);
                places.chain(&exchange.leaves).map(|target| format!("/{target}")).collect()
            }
        });
        for target in targets {
            if let Some(kind) = file_system(table, &target).filter(|kind| kind.starts_with("fuse")) {
                let what = format!(
                    "container {} has a file system of its own ({kind}) at {target}: nothing is mounted there",
                    self.place.ctid
                );
                let remedy = format!("phoenix-nvidia {}", self.place.ctid);
                return Err(Fault::new(Code::Passthrough, what).remedy(remedy).into());
            }
        }
        Ok(())
    }

    /// Does the steps that add, or those that take away: all rules first then.
    ///
    /// # Errors
    /// [`steps::Gone`]; [`Code::Passthrough`].
    pub fn carry_out(&mut self, adds: bool, undo: &mut Undo) -> anyhow::Result<()> {
        let before = Before { conf: &self.document, has: &self.has };
        let steps = self.difference.live.clone();
        if adds {
            self.note_coming();
        } else {
            for step in &steps {
                self.place.shut(step, before, undo)?;
            }
            self.shut_others()?;
            self.must_still_be_unused()?;
        }
        for step in steps.iter().filter(|step| step.adds() == adds) {
            match self.place.step(step, before, undo) {
                Err(error) if step.can_wait() && !error.is::<Gone>() => {
                    log::info!("{}", exit::one_line(&error));
                    self.difference.put_off(step);
                }
                done => done?,
            }
        }
        Ok(())
    }

    fn before(&self) -> Before<'_> {
        Before { conf: &self.document, has: &self.has }
    }

    /// The devices and mounts of the conf while both are there: what comes and
    /// what goes.
    pub fn both(&self) -> (Vec<Device>, Vec<Mount>) {
        let (there, mounted) = of_conf(&self.document);
        let (mut devices, mut all) = (self.wanted.devices.clone(), self.wanted.mounts.clone());
        let comes = |path| self.wanted.devices.iter().any(|device| device.path == path);
        // The capabilities' directory would cover the node that comes in its place.
        let stays = |path| !comes(path) && path != DevicePath::Caps;
        devices.extend(there.into_iter().filter(|device| stays(device.path)));
        let placed = |target: &str| self.wanted.mounts.iter().any(|mount| mount.target == target);
        all.extend(mounted.into_iter().filter(|mount| !placed(&mount.target)));
        (devices, all)
    }

    /// Tells what was done, and what waits for the next start.
    pub fn tell(&self, begun: Instant) {
        let (ctid, told) = (self.place.ctid, self.difference.told());
        if !told.is_empty() {
            let took = human(begun.elapsed());
            let told = text::few(told, plan::MOST_LINES).join(", ");
            log::info!("container {ctid}: {told}, without a restart ({took})");
        }
        for waits in self.waiting() {
            log::warn!("container {ctid}: at its next start: {waits}");
        }
        if !self.waiting().is_empty() {
            log::warn!("{}", exit::fix(&format!("pct reboot {ctid}")));
        }
    }

    /// What waits for the next start.
    pub fn waiting(&self) -> Vec<String> {
        self.difference.waiting().into_iter().chain(self.tree_waits.clone()).collect()
    }

    /// The mount table as it is now.
    pub(super) fn table_now(&self) -> std::io::Result<String> {
        mountinfo::of(self.place.init.pid)
    }
}

/// The devices and mounts of ours that a conf has.
pub fn of_conf(conf: &Document) -> (Vec<Device>, Vec<Mount>) {
    (devices_of(conf, Form::Pve), mounts(conf))
}

/// How the mappings of the tree that goes are known.
fn tree_of(exchange: &difference::Exchange) -> Option<Tree> {
    let old = exchange.old.as_ref()?;
    let gone = exchange.places.iter().filter(|(_, over)| *over).map(|(mount, _)| &mount.target);
    Some(Tree {
        device: exchange.device.clone(),
        files: Trees::host().inodes(old),
        places: gone.chain(&exchange.leaves).map(|target| format!("/{target}")).collect(),
    })
}
