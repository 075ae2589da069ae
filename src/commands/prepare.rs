//! `prepare`: the device nodes of all cards, and those that the containers of
//! this node name, at boot and by hand.
//!
//! A container with a `devN:` line does not start while that node is missing,
//! and no hookscript runs before; so this runs ahead of the first guest, for all
//! cards.

use crate::device::assignment::Assignment;
use crate::device::{self, DevicePath};
use crate::driver::tree::Trees;
use crate::exit::{self, Code};
use crate::host::choose::{Capabilities, choose};
use crate::host::diagnose::{self, Diagnosis};
use crate::host::gpus::Inventory;
use crate::host::kernel_driver;
use crate::host::masks;
use crate::host::modules::Modules;
use crate::host::nodes;
use crate::host::provide::{Provided, Request, provide, provide_nodes};
use crate::job::{desired, handover, injection};
use crate::plan;
use crate::pve::cluster;
use crate::pve::conf::devices::named_nodes;
use crate::pve::conf::document::Document;
use crate::settings::load::Files;
use crate::settings::{CLUSTER_FILE, Content};
use crate::sys::look::{Look, View, Walk};
use crate::sys::time::Deadline;
use crate::types::Ctid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Loading the modules on a host with eight cards takes half a minute; the
/// guests wait for this.
pub const LIMIT: u64 = 100;
/// What a download leaves of that limit, to unpack the file.
const UNPACKING: Duration = Duration::from_secs(40);
/// The limit of asking which driver the next boot loads.
const MODINFO: Duration = Duration::from_secs(5);

/// Makes the missing nodes.
///
/// # Errors
/// [`Code::Passthrough`] when a card's node cannot be made or the driver
/// cannot be loaded. A host without cards, or that gives all of them to VMs,
/// has nothing to prepare, and that is no failure.
pub fn run() -> anyhow::Result<Code> {
    let deadline = Deadline::secs(LIMIT);
    let host = View::host_until(&deadline);
    masks::sweep(host);
    handover::sweep();
    if let Some(why) = nothing_to_prepare(host, &deadline) {
        log::info!("nothing to prepare: {why}");
        return Ok(Code::Success);
    }
    let request =
        Request { assignment: Assignment::All, capabilities: Capabilities::default(), exclusive: None };
    let mut provided = provide(host, &request, &deadline);
    prepare_modeset(host, &mut provided, &deadline);
    let read = read_confs(host);
    provided.warnings.extend(read.problems);
    prepare_named(host, &read.confs, &mut provided, &deadline);
    // The modules are loaded by now.
    let driver = prepare_driver(host, &read.confs, &read.files, &deadline);
    provided.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    match provided.made.as_slice() {
        [] if !provided.choice.missing.is_empty() => {}
        [] => log::info!("{}: all device nodes present", plan::describe(&provided.choice)),
        made => log::info!("{}: made {}", plan::describe(&provided.choice), device::nodes_on_host(made)),
    }
    match (plan::fault(&provided.choice), driver) {
        (None, driver) => driver.map(|()| Code::Success),
        (Some(fault), Ok(())) => Err(fault.into()),
        (Some(fault), Err(error)) => {
            exit::tell(log::Level::Error, &error);
            Err(fault.into())
        }
    }
}

/// The driver's user space for the containers that have the host's, before the
/// first of them starts, where there is any; and none that nobody uses any more.
fn prepare_driver(
    host: View<'_>,
    confs: &[(Ctid, Document)],
    files: &Files,
    deadline: &Deadline,
) -> anyhow::Result<()> {
    let trees = Trees::host();
    let kernel = kernel_driver::version(host);
    let made = match kernel.as_ref().filter(|_| injection::is_asked_for(confs, files)) {
        Some(kernel) => {
            let within = deadline.remaining().saturating_sub(UNPACKING);
            let supply = desired::supply(&files.of_node(), Some(within));
            trees.clone().with(supply).make(kernel, deadline).map(|_| ())
        }
        None => Ok(()),
    };
    // Without a driver nobody knows which one the containers will want.
    if let Some(kernel) = kernel.as_ref().filter(|_| trees.exist()) {
        let modules = Modules::read(&mut Look::host());
        let next = kernel_driver::installed(host, &modules, &deadline.at_most(MODINFO));
        let next = next.unwrap_or_else(|error| {
            log::debug!("modinfo: {error:#}");
            None
        });
        // Where the next driver is not known, any tree may be made for it.
        let keep = next.as_ref().map(|next| [kernel, &next.version]);
        trees.sweep(keep.as_ref().map(|keep| keep.as_slice()), deadline);
    }
    made
}

/// Why there is nothing to prepare: no card that this host keeps for itself,
/// and no driver loaded.
fn nothing_to_prepare(host: View<'_>, deadline: &Deadline) -> Option<Diagnosis> {
    let mut inventory = Inventory::read_for(host, false);
    if inventory.driver.is_some() {
        return None;
    }
    inventory.add_other_cards(host);
    let given = |driver: &str| driver != "nvidia" && diagnose::nouveau(driver).is_none();
    let all_given = inventory.gpus.iter().all(|gpu| gpu.bound_to.as_deref().is_some_and(given));
    (all_given && inventory.problems.is_empty()).then(|| diagnose::no_driver(host, deadline))
}

/// The nodes that a conf of this node names: those of capabilities and of
/// mode setting, and our DRM nodes.
fn prepare_named(host: View<'_>, confs: &[(Ctid, Document)], provided: &mut Provided, deadline: &Deadline) {
    let mut named: BTreeMap<DevicePath, Ctid> = BTreeMap::new();
    for (ctid, conf) in confs {
        for path in named_nodes(conf) {
            named.entry(path).or_insert(*ctid);
        }
    }
    named.retain(|path, _| !provided.choice.devices.iter().any(|device| device.path == *path));
    let paths: Vec<DevicePath> = named.keys().copied().collect();
    if paths.is_empty() {
        return;
    }
    let more = provide_nodes(host, &paths, deadline);
    provided.made.extend(more.made.iter().filter(|path| !provided.made.contains(path)).collect::<Vec<_>>());
    provided.warnings.extend(more.warnings);
    for missing in &more.choice.missing {
        let of = |(path, ctid): (&DevicePath, &Ctid)| {
            (path.on_host() == missing.what).then(|| format!("; the conf of container {ctid} names it"))
        };
        let whose = named.iter().find_map(of).unwrap_or_default();
        provided.warnings.push(format!("{missing}{whose}"));
    }
}

/// What /etc/pve has: the confs of this node, and the settings of all.
pub(super) struct Read {
    pub confs: Vec<(Ctid, Document)>,
    pub files: Files,
    /// What could not be read.
    pub problems: Vec<String>,
}

/// Reads both in one go.
#[derive(Serialize, Deserialize)]
pub(super) struct Confs;

impl Walk for Confs {
    const NAME: &'static str = "confs";

    fn walk(&self, look: &mut Look<'_>) {
        let _ = read_over(look);
    }
}

/// Reads it. /etc/pve may not answer: whoever reads it is left behind at the deadline.
pub(super) fn read_confs(host: View<'_>) -> Read {
    let mut look = Look::of(host, &[Confs.asked()]);
    let (confs, cluster) = read_over(&mut look);
    Read { confs, files: Files::with(cluster), problems: look.problems }
}

fn read_over(look: &mut Look<'_>) -> (Vec<(Ctid, Document)>, Content) {
    let cluster = look.content(CLUSTER_FILE).map(Option::unwrap_or_default);
    let ctids = cluster::containers(look).unwrap_or_default();
    let mut conf =
        |ctid: Ctid| Some((ctid, Document::from(look.bytes(&format!("/etc/pve/lxc/{ctid}.conf"))?)));
    (ctids.into_iter().filter_map(&mut conf).collect(), cluster)
}

/// /dev/nvidia-modeset too, if its module is loaded: nobody else makes it on
/// a host without a screen, and graphics in a container needs it.
fn prepare_modeset(host: View<'_>, provided: &mut Provided, deadline: &Deadline) {
    if !host.root().join("sys/module/nvidia_modeset").exists() {
        return;
    }
    let inventory = Inventory::read_for(host, true);
    let graphics = Capabilities { graphics: true, ..Capabilities::default() };
    let mut choice = choose(&inventory, &Assignment::None, &graphics);
    choice.to_make.retain(|node| node.path == DevicePath::Modeset);
    if !choice.to_make.is_empty() {
        let prepared = nodes::prepare(host, &inventory, &choice.to_make, deadline);
        provided.made.extend(prepared.made);
        provided.warnings.extend(prepared.problems);
    }
}
