//! Notes which device rules are in force in a running container, see
//! [`crate::pve::in_force`]. A failure costs nobody a start: without a note the mount
//! table counts.

use crate::device::{Device, Number};
use crate::exit;
use crate::pve::conf::devices::{Present, present_in};
use crate::pve::conf::document::{Document, Form};
use crate::pve::conf::store::Conf;
use crate::pve::in_force::{self, InForce};
use crate::pve::pct::{self, Init};
use crate::state::Record;

/// Those of a container that has just started: of the config that LXC read, while
/// Proxmox's lock keeps it from being written anew. A start that is noted stays so: a
/// phase that is called by hand finds a config of later.
pub fn note_start(conf: &Conf) {
    note(conf, |init| {
        let config = conf.read_generated()?;
        let devices = config.map(|it| devices_of(&it, Form::Lxc)).unwrap_or_default();
        Ok(InForce { init, devices, all: true })
    });
}

/// Those of a running container whose start was not seen, before we edit its conf: a
/// reboot from inside took what conf and config have now.
pub fn note_before_edit(conf: &Conf) {
    note(conf, |init| {
        let mut devices = devices_of(&conf.read()?, Form::Pve);
        let config = conf.read_generated()?.map(|config| devices_of(&config, Form::Lxc));
        for device in config.unwrap_or_default() {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        Ok(InForce { init, devices, all: false })
    });
}

/// Notes what `of` finds, where this start is not noted yet.
fn note(conf: &Conf, of: impl FnOnce(Init) -> anyhow::Result<InForce>) {
    let ctid = conf.ctid();
    let init = Init::of(ctid).map_or_else(|| pct::init(ctid), |init| Ok(Some(init)));
    let is_new = |init: &Init| in_force::of(ctid, init).is_none();
    match init.and_then(|init| init.filter(is_new).map(of).transpose()) {
        Ok(Some(rules)) => Record::of(ctid).note_rules(&rules),
        Ok(None) => {}
        Err(error) => log::debug!("cannot note the device rules: {}", exit::one_line(&error)),
    }
}

/// The devices of our pairs, with the numbers of their rules.
pub fn devices_of(document: &Document, form: Form) -> Vec<Device> {
    let device = |pair: &Present| {
        let Number { major, minor } = pair.rule?;
        Some(Device { path: pair.path, major, minor })
    };
    present_in(document, form).iter().filter_map(device).collect()
}
