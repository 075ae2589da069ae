//! What a running container has at the places of the host's driver while nothing is
//! mounted there: a restart would hide it.

use crate::driver::desired::Desired;
use crate::driver::injection::{Place, Refusal};
use crate::guest::exec::Guest;
use crate::guest::mounted;
use crate::guest::probe::{self, Ask, Check};
use crate::job::seen::contents_now;
use crate::state::Record;
use crate::sys::time::Deadline;
use crate::types::Ctid;

/// Looks, where nothing is mounted; `None` also where nobody could look.
pub fn look(ctid: Ctid, place: &Place, desired: &Desired) -> Option<Refusal> {
    if !matches!(mounted::version(ctid), Ok(None)) {
        return None;
    }
    let deadline = Deadline::after(desired.limits.check);
    let check = probe::check(&Guest::new(ctid), desired, Ask::Files, &deadline).ok()?;
    of(&check, place)
}

/// The same in what a look found.
pub fn of(check: &Check, place: &Place) -> Option<Refusal> {
    let taken = |path: &&String| place.targets.iter().any(|target| path.strip_prefix('/') == Some(target));
    check.occupied.iter().find(taken).cloned().map(Refusal::Hides)
}

/// Fails where a mount would hide something, and notes it for the next start.
///
/// # Errors
/// [`Code::Software`](crate::exit::Code::Software).
pub fn must_not_be(ctid: Ctid, place: &Place, desired: &Desired) -> anyhow::Result<()> {
    let Some(refusal) = look(ctid, place, desired) else { return Ok(()) };
    if let Refusal::Hides(path) = &refusal {
        let of = contents_now(ctid);
        Record::of(ctid).update(|state| {
            state.injected.found_in(of);
            state.injected.hides = Some(path.clone());
        });
    }
    Err(refusal.fault(ctid).into())
}
