//! `prepare`: the device nodes of all cards, at boot and by hand.
//!
//! A container with a `devN:` line does not start while that node is missing,
//! and no hookscript runs before; so this runs ahead of the first guest, for all
//! cards.

use crate::device::assignment::Assignment;
use crate::device::{self, DevicePath};
use crate::exit::Code;
use crate::host::choose::{Capabilities, choose};
use crate::host::diagnose::{self, Diagnosis};
use crate::host::gpus::Inventory;
use crate::host::masks;
use crate::host::nodes;
use crate::host::provide::{Provided, Request, provide};
use crate::plan;
use crate::sys::look::View;
use crate::sys::time::Deadline;

/// Loading the modules on a host with eight cards takes half a minute; the
/// guests wait for this.
pub const LIMIT: u64 = 100;

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
    if let Some(why) = nothing_to_prepare(host, &deadline) {
        log::info!("nothing to prepare: {why}");
        return Ok(Code::Success);
    }
    let request =
        Request { assignment: Assignment::All, capabilities: Capabilities::default(), exclusive: None };
    let mut provided = provide(host, &request, &deadline);
    prepare_modeset(host, &mut provided, &deadline);
    provided.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    match provided.made.as_slice() {
        [] if !provided.choice.missing.is_empty() => {}
        [] => log::info!("{}: all device nodes present", plan::describe(&provided.choice)),
        made => log::info!("{}: made {}", plan::describe(&provided.choice), device::nodes_on_host(made)),
    }
    plan::fault(&provided.choice).map_or(Ok(Code::Success), |fault| Err(fault.into()))
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
