//! What kept a container from having a driver, looked at once more: by hand, and by a
//! start that was without it.

use crate::driver::desired::Desired;
use crate::driver::injection::{Injection, Machine, Refusal, Seen};
use crate::driver::tree::Trees;
use crate::exit::{self, Code, Fault};
use crate::guest::exec::Guest;
use crate::guest::{link, mounted};
use crate::job::injection;
use crate::job::seen::{contents_now, found};
use crate::pve::conf::document::Document;
use crate::pve::net;
use crate::state::Record;
use crate::state::injected::Injected;
use crate::sys::time::Deadline;
use crate::types::Ctid;

/// Forgets why a container could not have the host's driver: it may have changed.
/// Why none can be installed stays, or the next start of one with DRIVER_MODE=auto
/// would be without the host's, which it has instead.
pub fn look_again(ctid: Ctid) {
    let state = Record::of(ctid).load();
    let Injected { unfit, hides, .. } = &state.injected;
    if unfit.is_some() || hides.is_some() || state.uninstall_failed > 0 {
        Record::of(ctid).update(|state| {
            state.injected.forget_refusals();
            state.uninstall_failed = 0;
        });
    }
}

/// The same of all reasons, with settings that may be others.
pub fn begin_again(ctid: Ctid) {
    look_again(ctid);
    if Record::of(ctid).load().injected.impossible.is_some() {
        Record::of(ctid).update(|state| state.injected.forget_reasons());
    }
}

/// What an earlier look into a container found that keeps it from the host's driver.
pub fn found_before(ctid: Ctid, conf: &Document) -> Option<Refusal> {
    let seen = Record::of(ctid).load_of(&net::identity(conf)).injected;
    match Injection::of(conf, Machine::here(), found(&seen, conf)) {
        Injection::Refused(refusal) if refusal.is_found_inside() => Some(refusal),
        _ => None,
    }
}

/// Looks into a container that was started without the host's driver whether that
/// is so still: a rollback or a repair leaves no trace outside. What has gone is
/// forgotten, and what nobody could look at stays.
pub fn still(
    ctid: Ctid,
    refusal: Refusal,
    desired: &Desired,
    conf: &Document,
    deadline: &Deadline,
) -> Option<Refusal> {
    let Injection::On(place) = Injection::of(conf, Machine::here(), Seen::default()) else {
        return Some(refusal);
    };
    // A mount covers what is to be seen.
    if !matches!(mounted::version(ctid), Ok(None)) {
        return Some(refusal);
    }
    let of = contents_now(ctid);
    let seen = match link::look(&Guest::new(ctid), &place, deadline) {
        Ok(seen) => seen,
        Err(error) => {
            log::info!("not looked for again: {}", exit::one_line(&error));
            return Some(refusal);
        }
    };
    let trees = Trees::host();
    let needs = trees.glibc(&desired.driver);
    let (mut unfit, mut hides) = (seen.unfit(needs, place.drop_in), seen.hidden);
    match refusal {
        // What the driver needs is known with its tree alone.
        Refusal::Seen(why) if needs.is_none() && trees.shown(&desired.driver).is_err() => {
            unfit = unfit.or(Some(why));
        }
        Refusal::Hides(path) if !seen.shell => hides = Some(path),
        _ => {}
    }
    Record::of(ctid).update(|state| {
        state.injected.found_in(of);
        state.injected.unfit.clone_from(&unfit);
        state.injected.hides.clone_from(&hides);
    });
    unfit.map(Refusal::Seen).or(hides.map(Refusal::Hides))
}

/// What a start without the host's driver ends with, after another look inside.
pub fn refused(
    ctid: Ctid,
    refusal: Refusal,
    desired: &Desired,
    conf: &Document,
    deadline: &Deadline,
) -> Fault {
    if !refusal.is_found_inside() {
        return injection::refused(ctid, &refusal);
    }
    let before = refusal.to_string();
    match still(ctid, refusal, desired, conf, deadline) {
        Some(refusal) => injection::refused(ctid, &refusal),
        None => {
            let message = format!(
                "what kept the host's driver from the container has gone: its next start has it ({before})"
            );
            Fault::new(Code::Software, message).remedy(format!("pct reboot {ctid}"))
        }
    }
}
