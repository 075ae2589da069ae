//! What DRIVER_MODE means for a container, before anybody has looked into it.

use crate::driver::injection::{Injection, Machine, Refusal, Seen, is_driver};
use crate::driver::tree::{Shown, Trees};
use crate::host::kernel_driver;
use crate::pve::conf::document::Document;
use crate::pve::conf::mounts;
use crate::settings::values::DriverMode;
use crate::settings::{Settings, keys};
use crate::sys::look::View;

/// Whether a container is to have the host's driver. One whose DRIVER_MODE cannot
/// be read keeps what its conf has.
pub fn is_asked(settings: &Settings, conf: &Document) -> bool {
    let asked = match settings.get(keys::DRIVER_MODE) {
        Ok(mode) => mode == DriverMode::Inject,
        Err(_) => mounts::mounts(conf).iter().any(is_driver),
    };
    asked && settings.value(keys::INSTALL)
}

/// What it means without the record: a call by hand looks again.
pub fn look_anew(settings: &Settings, conf: &Document) -> Injection {
    match is_asked(settings, conf) {
        true => Injection::of(conf, Machine::here(), Seen::default()),
        false => Injection::Off,
    }
}

/// Why a container may not have a tree that is shown like this.
pub fn refused_as(conf: &Document, shown: Shown) -> Option<Refusal> {
    let privileged = conf.get("unprivileged").as_deref() != Some("1");
    (shown == Shown::Bind && privileged).then_some(Refusal::NoOverlay)
}

/// What keeps a container from it, and stops a start under START_POLICY=fail.
pub fn stops_a_start(settings: &Settings, conf: &Document) -> Option<Refusal> {
    match look_anew(settings, conf) {
        Injection::Refused(refusal) => Some(refusal),
        Injection::On(_) => {
            let kernel = kernel_driver::version(View::host())?;
            refused_as(conf, Trees::host().shown(&kernel).ok()?)
        }
        Injection::Off => None,
    }
}
