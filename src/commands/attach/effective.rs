//! The settings that the container's next start will find: whole, right, and
//! the very ones that `attach` was called with.

use super::changes::Changes;
use crate::driver::template::Template;
use crate::exit::{self, Code, Fault};
use crate::host::diagnose;
use crate::host::gpus::Inventory;
use crate::job::chain;
use crate::job::desired;
use crate::plan::{self, Intent};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::settings::load;
use crate::settings::{self, NODE_FILE, Settings, keys};
use crate::sys::look::View;
use crate::types::Ctid;

/// What a hook reads: conf, cluster and node. The environment of this call is
/// no part of the next start.
fn of_a_hook(ctid: Ctid, conf: &Conf, document: &Document) -> Settings {
    load::of_next_start(ctid, conf, document)
}

/// Adds to the changes what the environment of this call says and the next
/// start would not find. An option of the call goes before it.
///
/// # Errors
/// [`Code::Input`] for a value that is none, or that must not stand in a conf.
pub fn from_environment(
    ctid: Ctid,
    conf: &Conf,
    before: &Document,
    changes: &mut Changes,
) -> anyhow::Result<()> {
    let found = of_a_hook(ctid, conf, before);
    for (name, value) in load::environment() {
        let Some(key) = keys::by_name(&name).filter(|_| !value.trim().is_empty() && !changes.has(&name))
        else {
            continue;
        };
        if found.text(key).is_some_and(|(text, _)| text == value.trim()) {
            continue;
        }
        if value.trim().parse::<Template>().is_ok_and(|url| url.has_secret()) {
            let message = format!(
                "{name} in the environment holds a password or a token, and what stands in the container's conf can be read \
                 in the container"
            );
            let remedy = format!("set {name} in {NODE_FILE} instead, then: unset {name}");
            return Err(Fault::new(Code::Input, message).remedy(remedy).into());
        }
        changes.set(key, Some(value.trim()))?;
    }
    Ok(())
}

/// The settings that the container will have: as strict as a call by hand.
///
/// # Errors
/// [`Code::Input`] with all that cannot be read or is missing;
/// [`Code::Software`] and [`Code::Passthrough`] for what cannot be had here.
pub fn check(ctid: Ctid, conf: &Conf, after: &Document, inventory: &Inventory) -> anyhow::Result<Settings> {
    let settings = of_a_hook(ctid, conf, after);
    let mut problems = settings.all_problems();
    for problem in problems.iter_mut().filter(|p| p.key == keys::GPU_ASSIGNMENT.name && p.is_missing()) {
        problem.message = "no GPUs are named: --gpus none, all or a list like 0,1".to_owned();
    }
    if !problems.is_empty() {
        return Err(settings::fault(&problems, ctid));
    }
    if let Some(lacks) = chain::lacks(&chain::look(&settings), &settings) {
        return Err(lacks.fault().into());
    }
    let kernel = inventory.driver.as_ref().map(|driver| driver.version.clone());
    match desired::read(&settings, kernel, None) {
        Ok(desired::Software::Desired(desired)) => desired.matches_kernel()?,
        Ok(_) => {}
        Err(problems) => return Err(settings::fault(&problems, ctid)),
    }
    let (intent, _) = Intent::of(&settings);
    match plan::fault(&intent.on(inventory, after)) {
        // Without the driver nobody knows which GPUs there are.
        Some(fault) if inventory.driver.is_some() => return Err(fault.into()),
        Some(fault) => log::warn!("{fault}"),
        None if inventory.driver.is_none() => {
            let why = diagnose::no_driver(View::host());
            log::warn!("{}: {why}", diagnose::NOT_LOADED);
            log::warn!("{}", exit::fix(&why.cause.remedy()));
        }
        None => {}
    }
    Ok(settings)
}

/// Reads again what is on disk now: a start must find what was checked, or the
/// hookscript is not set.
///
/// # Errors
/// [`Code::Passthrough`] when somebody changed a setting meanwhile.
pub fn check_again(ctid: Ctid, conf: &Conf, checked: &Settings) -> anyhow::Result<()> {
    let now = of_a_hook(ctid, conf, &conf.read()?);
    let value = |settings: &Settings, key| settings.text(key).map(|(text, _)| text.to_owned());
    let changed = keys::ALL.iter().find(|key| value(&now, key) != value(checked, key));
    match changed {
        None => Ok(()),
        Some(key) => {
            let message = format!("{} of container {ctid} was changed by somebody else meanwhile", key.name);
            Err(Fault::new(Code::Passthrough, message).remedy(format!("phoenix-nvidia attach {ctid}")).into())
        }
    }
}
