//! The settings that the container's next start will find: whole, right, and
//! the very ones that `attach` was called with.

use super::changes::Changes;
use crate::driver::injection::Injection;
use crate::driver::template::Template;
use crate::exit::{Code, Fault};
use crate::findings::finding::Finding;
use crate::findings::host as of_host;
use crate::findings::read::Host;
use crate::host::nvidia_smi;
use crate::job::chain;
use crate::job::desired;
use crate::job::mode;
use crate::plan::{self, Intent};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::settings::load;
use crate::settings::{self, NODE_FILE, Settings, keys};
use crate::sys::look::View;
use crate::sys::time::Deadline;
use crate::types::Ctid;

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
    let found = load::of_next_start(ctid, conf, before);
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
                "{name} in the environment holds a password or a token, and the container can read its conf"
            );
            let move_it = format!("echo \"{name}=${{{name}:?}}\" >>{NODE_FILE} && chmod 600 {NODE_FILE}");
            let remedy = format!("{move_it} && unset {name}");
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
/// [`Code::Software`] and [`Code::Passthrough`] for what this host cannot give.
pub fn check(ctid: Ctid, conf: &Conf, after: &Document, host: &Host) -> anyhow::Result<Settings> {
    let settings = load::of_next_start(ctid, conf, after);
    let mut problems = settings.all_problems();
    for problem in problems.iter_mut().filter(|p| p.key == keys::GPU_ASSIGNMENT.name && p.is_missing()) {
        problem.message = "no GPUs given: --gpus none, all or a list like 0,1".to_owned();
    }
    if !problems.is_empty() {
        return Err(settings::fault(&problems, ctid));
    }
    chain::validate(&settings)?;
    match desired::read(&settings, host.driver().cloned(), None) {
        Ok(desired::Software::Desired(desired)) => desired.matches_kernel()?,
        Ok(_) => {}
        Err(problems) => return Err(settings::fault(&problems, ctid)),
    }
    if let Injection::Refused(refusal) = mode::look_anew(&settings, after) {
        return Err(refusal.fault(ctid).into());
    }
    let (intent, _) = Intent::of(&settings, after);
    // Without the driver nobody knows which GPUs there are.
    let mut inventory = host.inventory.clone();
    inventory.look_up(View::host(), &intent.names(), &Deadline::after(nvidia_smi::LIMIT));
    match plan::fault(&intent.on(&inventory, after)) {
        Some(fault) if host.driver().is_some() => return Err(fault.into()),
        Some(fault) => log::warn!("{fault}"),
        None => of_host::driver(host).iter().for_each(Finding::warn),
    }
    Ok(settings)
}

/// Reads again what is on disk now: a start must find what was checked, or the
/// hookscript is not set.
///
/// # Errors
/// [`Code::Passthrough`] when somebody changed a setting meanwhile.
pub fn check_again(ctid: Ctid, conf: &Conf, checked: &Settings) -> anyhow::Result<()> {
    let now = load::of_next_start(ctid, conf, &conf.read()?);
    let value = |settings: &Settings, key| settings.text(key).map(|(text, _)| text.to_owned());
    let changed = keys::ALL.iter().find(|key| value(&now, key) != value(checked, key));
    match changed {
        None => Ok(()),
        Some(key) => {
            let message = format!("somebody else changed {} of container {ctid} meanwhile", key.name);
            Err(Fault::new(Code::Passthrough, message).remedy(conf.again()).into())
        }
    }
}
