//! What the checks go by, read before anything is judged: this host once, and
//! each container. Only [`Container::look_inside`] and [`Host::look_closer`]
//! run programs, and nvidia-smi where a setting has a name that nothing else
//! knows; the rest are files, so that a hundred containers take no time.

use super::answers::Answers;
use super::ours::{self, Confs};
use super::seen::Inside;
use super::services::Services;
use crate::device::DevicePath;
use crate::device::assignment::GpuName;
use crate::driver::desired::Desired;
use crate::driver::injection::{Injection, is_driver};
use crate::driver::tree::{Looked, Trees};
use crate::exit::one_line;
use crate::guest::attached::{self, Attached};
use crate::guest::exec::Guest;
use crate::guest::probe::{self, Ask, Check};
use crate::guest::verify::{self, open_nodes};
use crate::host::caps_dir::Strange;
use crate::host::choose::Choice;
use crate::host::diagnose::{self, Diagnosis};
use crate::host::facts::Majors;
use crate::host::gpus::{Gpu, Inventory, Scope};
use crate::host::kernel_driver::{self, KernelDriver};
use crate::host::kernel_log::KernelLog;
use crate::host::masks;
use crate::host::modules::Modules;
use crate::host::nvidia_smi;
use crate::job::chain;
use crate::job::desired::{self, Software};
use crate::job::injection::{self, Facts};
use crate::job::locks;
use crate::job::nested;
use crate::job::startable;
use crate::plan::{self, Intent};
use crate::pve::cluster::{self, Cluster};
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts::{Mount, mounts};
use crate::pve::conf::store::Conf;
use crate::pve::hookscript::Hookscript;
use crate::pve::in_force::{self, InForce};
use crate::pve::net;
use crate::pve::pct;
use crate::pve::readiness::{self, Lack};
use crate::pve::sharing;
use crate::pve::startable::Obstacle;
use crate::pve::storage::{self, Storage};
use crate::settings::idle::{self, Idle};
use crate::settings::secrets::{self, Exposed};
use crate::settings::{Problem, Settings, keys, load};
use crate::state::{Record, State};
use crate::sys::look::{Look, Questions, View, Walk as _};
use crate::sys::mount;
use crate::sys::time::Deadline;
use crate::types::{Ctid, Version};

/// The link that enables the unit which makes the nodes at boot.
const BOOT_UNIT: &str = "/etc/systemd/system/multi-user.target.wants/phoenix-nvidia-nodes.service";

/// This host and its cluster.
#[derive(Default)]
pub struct Host {
    /// The storages for snippets.
    pub storages: Vec<Storage>,
    /// The cluster.
    pub cluster: Cluster,
    /// Whether it has quorum here.
    pub quorum: bool,
    /// Cards, nodes and driver.
    pub inventory: Inventory,
    /// Why no kernel driver is loaded, if none is.
    pub no_driver: Option<Diagnosis>,
    /// The driver that the next boot loads, or why nobody knows; none where
    /// that was not asked.
    pub next_driver: Option<Result<KernelDriver, String>>,
    /// What the kernel said, where a card is not as it should be.
    pub log: KernelLog,
    /// Our command for cards that the kernel's own driver has.
    pub without_nouveau: Option<String>,
    /// The tree of the loaded driver's user space, or what it lacks; none where
    /// no driver is loaded.
    pub tree: Option<Looked>,
    /// The driver files that this host has and its tree has not.
    pub gained: Vec<String>,
    /// What lies in the capabilities' directory and is none of the driver's nodes; read
    /// for `doctor`.
    pub strange_caps: Strange,
    /// Whether the nodes are made at boot; none where systemd does not run.
    pub boot_unit: Option<bool>,
    /// Whether nothing can be made in /dev.
    pub dev_is_read_only: bool,
    /// Other nodes with another version of this program, and that.
    pub other_versions: Vec<(String, String)>,
    /// What could not be looked at.
    pub problems: Vec<String>,
}

impl Host {
    /// Reads it, with the cards as they were seen.
    pub fn of(look: &mut Look<'_>, inventory: Inventory) -> Host {
        let driver = inventory.driver.as_ref().map(|driver| &driver.version);
        Host {
            tree: driver.map(|version| Trees::host().look(version)),
            storages: storage::read(look),
            cluster: Cluster::read(look),
            quorum: cluster::has_quorum(look),
            no_driver: inventory
                .driver
                .is_none()
                .then(|| diagnose::no_driver(View::host(), &Deadline::secs(10))),
            boot_unit: look.at("/run/systemd/system").is_dir().then(|| look.at(BOOT_UNIT).is_symlink()),
            dev_is_read_only: mount::is_read_only(&look.at("/dev")),
            inventory,
            ..Host::default()
        }
    }

    /// The version of the kernel driver that is loaded.
    pub fn driver(&self) -> Option<&Version> {
        self.inventory.driver.as_ref().map(|driver| &driver.version)
    }

    /// Reads what only `doctor` has the time for: who has the cards, what
    /// modinfo says, and the kernel's log if a card is not as it should be.
    pub fn look_closer(&mut self) {
        self.inventory.add_vms(View::host());
        self.strange_caps = Strange::read(View::host().root(), &self.inventory);
        self.gained = self.driver().map(|version| Trees::host().gained(version)).unwrap_or_default();
        let deadline = Deadline::secs(10);
        let modules = Modules::read(&mut Look::host());
        let installed = kernel_driver::installed(View::host(), &modules, &deadline);
        self.next_driver = match (installed, &self.inventory.driver) {
            (Ok(Some(driver)), _) => Some(Ok(driver)),
            // It came from somewhere: what is not found is not known.
            (Ok(None), Some(_)) => Some(Err(modules.missing())),
            (Ok(None), None) => None,
            (Err(error), _) => Some(Err(one_line(&error))),
        };
        let odd = |gpu: &&Gpu| gpu.minor.is_none() || gpu.unfit.is_some();
        if self.inventory.gpus.iter().any(|gpu| odd(&gpu)) {
            self.log = KernelLog::read(View::host(), &deadline);
        }
        let mut drivers = self.inventory.gpus.iter().filter_map(|gpu| gpu.bound_to.as_deref());
        self.without_nouveau = drivers.find_map(|driver| diagnose::remedy_of_nouveau(View::host(), driver));
    }
}

/// One container.
pub struct Container {
    /// Its number.
    pub ctid: Ctid,
    /// Its conf.
    pub conf: Document,
    /// The settings that its next start reads.
    pub settings: Settings,
    /// What is missing in them or cannot be read.
    pub problems: Vec<Problem>,
    /// Those that have no effect.
    pub idle: Vec<Idle>,
    /// Passwords in them that others can read.
    pub secrets: Vec<Exposed>,
    /// The version of the kernel driver.
    pub kernel: Option<Version>,
    /// The host's majors.
    pub majors: Majors,
    /// What the host has for it.
    pub choice: Choice,
    /// The chosen nodes whose mode keeps it out.
    pub closed: Vec<DevicePath>,
    /// The next start changes the device pairs of the conf.
    pub pending: bool,
    /// The mounts over /proc/driver/nvidia that it should have.
    pub mounts: Vec<Mount>,
    /// The next start adds some of them.
    pub new_mounts: bool,
    /// What they show is there.
    pub masked: bool,
    /// The host's driver, where it has that.
    pub host_driver: Facts,
    /// The tree of the loaded driver, as [`Host::tree`].
    pub tree: Option<Looked>,
    /// As [`Host::gained`].
    pub gained: Vec<String>,
    /// The software that its settings ask for.
    pub software: Result<Software, Vec<Problem>>,
    /// Its hookscript.
    pub hook: Hookscript,
    /// What its next start would be refused for.
    pub obstacles: Vec<Obstacle>,
    /// What is wrong with the chained hookscript, also where nobody calls it.
    pub chained: Option<Obstacle>,
    /// It runs.
    pub running: bool,
    /// What is noted of its device rules.
    pub noted: Option<InForce>,
    /// HA manages it.
    pub ha: bool,
    /// What is recorded of it.
    pub state: State,
    /// What other nodes lack for it, and whether it may come there by itself.
    pub elsewhere: Vec<(Lack, bool)>,
    /// What it shows while it runs; none where nobody looked.
    pub inside: Option<Inside>,
}

/// What is read of each container once more: the host's files.
pub struct Reader {
    look: Look<'static>,
    /// The storages' files, read by a process that can be left behind.
    files: Look<'static>,
    answers: Answers,
}

impl Reader {
    /// Reads the host, and the confs of the containers that are named; without
    /// any, of all of this node's that have anything of ours. `called` says the
    /// words of this call for one container.
    ///
    /// # Errors
    /// [`crate::exit::Code::NoContainer`] for one that is named and not here.
    pub fn open(ctids: &[Ctid], called: impl Fn(Ctid) -> String) -> anyhow::Result<(Reader, Host, Confs)> {
        let mut look = Look::host();
        let storages = storage::read(&mut look);
        let read = |ctid: &Ctid| Ok((*ctid, Conf::of(*ctid).called(called(*ctid)).read()?));
        let mut confs = match ctids {
            [] => ours::all(&mut look),
            named => named.iter().map(read).collect::<anyhow::Result<_>>()?,
        };
        let mut names: Vec<GpuName> = Vec::new();
        let mut asked = Vec::new();
        for (ctid, conf) in &confs {
            let settings = load::of_next_start(*ctid, &Conf::of(*ctid), conf);
            names.extend(Intent::of(&settings, conf).0.names());
            asked.extend(startable::questions(&storages, conf, &settings));
        }
        let scope = Scope { display: true };
        let mut files = Look::of(View::host(), &[scope.asked(), Questions::asked_once(asked)]);
        let mut inventory = Inventory::seen(&mut files, &scope);
        inventory.add_other_cards(View::host());
        inventory.look_up(View::host(), &names, &Deadline::after(nvidia_smi::LIMIT));
        confs.retain(|(_, conf)| !ctids.is_empty() || ours::is_ours(&files, &storages, conf));
        let host = Host::of(&mut look, inventory);
        Ok((Reader { look, files, answers: Answers::default() }, host, confs))
    }

    /// Reads what is known of a container without looking into it.
    pub fn container(&mut self, host: &Host, ctid: Ctid, conf: Document) -> Container {
        let settings = load::of_next_start(ctid, &Conf::of(ctid), &conf);
        // What `auto` does not use today it may use at the next start.
        let idle = idle::all(&settings, &conf, Conf::of(ctid).path());
        let (settings, _) = injection::settled(ctid, &conf, settings);
        let (intent, _) = Intent::of(&settings, &conf);
        let choice = intent.on(&host.inventory, &conf);
        let assigned = matches!(intent, Intent::Assigned(..));
        let shown = host.inventory.shown.params.is_some();
        // Those of the host's driver are told apart.
        let mounts = if shown { plan::mounts(ctid, &intent, &conf, &Injection::Off) } else { Vec::new() };
        let kernel = host.driver().cloned();
        let running = sharing::is_running(&mut self.look, ctid);
        let state = locks::settled(Record::of(ctid).load_of(&net::identity(&conf)), ctid);
        Container {
            ctid,
            problems: settings.all_problems(),
            idle,
            secrets: secrets::exposed(&settings, ctid),
            closed: plan::closed(&conf, &host.inventory, &choice),
            pending: assigned
                && !plan::pairs_will_do(&conf, &plan::wanted_once_made(&choice), choice.monitor),
            new_mounts: assigned && shown && of_masks(&conf) != mounts,
            host_driver: Facts::read(ctid, &settings, &conf, &state, running),
            tree: host.tree.clone(),
            gained: host.gained.clone(),
            masked: masks::exist(View::host(), ctid),
            mounts,
            software: desired::read(&settings, kernel.clone(), Some(choice.gpus.len())),
            kernel,
            majors: host.inventory.majors.clone(),
            hook: Hookscript::of(&self.files, &host.storages, &conf),
            obstacles: startable::obstacles(&mut self.look, &self.files, &conf, &settings, Some(&choice)),
            chained: chain::obstacle(&self.files, &settings),
            running,
            noted: in_force::seen(&mut self.look, ctid).filter(|_| running),
            ha: host.cluster.ha.contains(&ctid),
            state,
            elsewhere: Vec::new(),
            inside: None,
            choice,
            settings,
            conf,
        }
    }

    /// Asks the nodes that a container may come to by itself for what it needs
    /// there, each once; the others for their version, as long as there is time.
    pub fn ask_nodes(&mut self, host: &Host, container: &mut Container) {
        let Hookscript::Ours(place) = &container.hook else { return };
        let targets = host.cluster.targets(container.ctid);
        for node in &host.cluster.others {
            let by_itself = targets.contains(&node);
            let mut lack = readiness::without_storage(node, place, &host.storages);
            let ask = |deadline: &Deadline| readiness::ask(node, &place.path, deadline);
            if let Some(answer) = self.answers.of(node, &place.path, by_itself, ask) {
                let found = readiness::lacking(node, place, &host.storages, answer);
                lack = lack.or(found.filter(|_| by_itself));
            }
            container.elsewhere.extend(lack.map(|lack| (lack, by_itself)));
        }
    }

    /// The nodes that answered with another version than ours, and that.
    pub fn other_versions(&self) -> Vec<(String, String)> {
        self.answers.other_versions()
    }

    /// What could not be looked at so far.
    pub fn problems(self) -> Vec<String> {
        self.look.problems
    }
}

/// The mounts of a conf over /proc/driver/nvidia.
pub fn of_masks(conf: &Document) -> Vec<Mount> {
    mounts(conf).into_iter().filter(|mount| !is_driver(mount)).collect()
}

impl Container {
    /// Looks into it, if it runs.
    pub fn look_inside(&mut self) {
        if self.running {
            self.inside = Some(self.inside());
        }
    }

    fn inside(&self) -> Inside {
        // One limit for all looks, so that none has more than what the others leave.
        let limit = self.settings.value(keys::CHECK_TIMEOUT);
        let deadline = Deadline::after(limit);
        let guest = Guest::new(self.ctid);
        let has = pct::init(self.ctid).map_err(|e| one_line(&e)).and_then(|init| match init {
            Some(init) => {
                attached::read(self.ctid, &init, &deadline.at_most(limit / 3)).map_err(|e| e.to_string())
            }
            None => Err("it has just stopped".to_owned()),
        });
        let nodes = plan::nodes(&self.choice.devices, self.choice.monitor);
        // Before and after: what it makes and removes is seen in between.
        let installing = locks::work_runs(self.ctid);
        let mut inside = Inside {
            installing,
            unseen: has.as_ref().map(Attached::unseen).unwrap_or_default(),
            host_directory: has.as_ref().is_ok_and(|has| has.host_directory),
            differences: has.map(|has| {
                let wanted = plan::wanted_once_made(&self.choice);
                plan::differences(&self.conf, &has, &wanted, self.choice.monitor)
            }),
            opened: open_nodes(&guest, &nodes, &deadline.at_most(limit / 3)),
            services: Services::look(self.ctid),
            software: self.desired().map(|desired| {
                // Here there is time for nvidia-smi.
                probe::check(&guest, desired, Ask::NvidiaSmi, &deadline).map_err(|error| one_line(&error))
            }),
            smi: None,
            engines: nested::look(self.ctid, &self.settings, &self.conf, self.kernel.as_ref(), &deadline),
        };
        if !self.choice.gpus.is_empty() && !installing && inside.should_work() {
            inside.smi = verify::failure(&guest, &deadline);
        }
        inside.or_installing(self.ctid)
    }

    /// What is installed in it while it runs: for `attach`, which looks no further.
    pub fn installed(&self) -> Option<Check> {
        let desired = self.desired().filter(|_| self.running)?;
        let deadline = Deadline::after(self.settings.value(keys::CHECK_TIMEOUT));
        probe::check(&Guest::new(self.ctid), desired, Ask::Files, &deadline).ok()
    }

    /// The software that it should have, if any.
    pub fn desired(&self) -> Option<&Desired> {
        match &self.software {
            Ok(Software::Desired(desired)) => Some(desired),
            _ => None,
        }
    }
}
