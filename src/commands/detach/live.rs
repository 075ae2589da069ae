//! `detach --live`: the running container loses what goes with it at once.

use super::bare::bare;
use crate::exit;
use crate::host::facts::Majors;
use crate::host::gpus::Inventory;
use crate::host::masks;
use crate::job::live::difference::{Step, Wanted};
use crate::job::live::steps::Gone;
use crate::job::live::{self, Held, Live};
use crate::job::undo::Undo;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::sys::look::View;
use crate::types::Ctid;
use std::time::Instant;

/// A running container that loses its devices, and the locks for that.
pub(super) struct Taken {
    live: Live,
    begun: Instant,
    _held: Held,
}

/// Looks at a running container, and who uses what goes; `None` if it does not
/// run.
///
/// # Errors
/// Another one holds a lock; a card is in use, unless `force`.
pub(super) fn look(
    ctid: Ctid,
    conf: &Conf,
    before: &Document,
    majors: &Majors,
    force: bool,
) -> anyhow::Result<Option<Taken>> {
    let begun = Instant::now();
    let held = live::hold(ctid)?;
    let inventory = Inventory::read(View::host());
    let after = bare(before, majors).unwrap_or_else(|| before.clone());
    let (devices, mounts) = live::of_conf(&after);
    let wanted = Wanted::of(&inventory, devices, mounts);
    let Some(mut live) = Live::of(ctid, conf, after, wanted)? else { return Ok(None) };
    // Entries from before attach that come back come with the next start.
    live.difference.live.retain(|step| matches!(step, Step::Take(..) | Step::Tree(_)));
    live.must_be_plain()?;
    let remedy =
        format!("end what uses them, or go on all the same: phoenix-nvidia detach {ctid} --live --force");
    live.must_be_unused(&inventory, (!force).then_some(&remedy))?;
    Ok(Some(Taken { live, begun, _held: held }))
}

impl Taken {
    /// Takes rules, nodes and driver away, before the conf is edited.
    ///
    /// # Errors
    /// [`exit::Code::Passthrough`].
    pub(super) fn take(&mut self, undo: &mut Undo) -> anyhow::Result<()> {
        let taken = self.live.carry_out(true, undo).and_then(|()| self.live.carry_out(false, undo));
        match taken {
            // Its conf is all that there is to do then.
            Err(error) if error.is::<Gone>() => {
                log::warn!("{}", exit::one_line(&error));
                Ok(())
            }
            taken => taken,
        }
    }

    /// What comes after the conf, and can only be told.
    pub(super) fn conclude(&self, conf: &Conf) {
        let ctid = self.live.place.ctid;
        self.live.note_done(conf);
        self.live.take_masks();
        if let Err(error) = masks::remove(View::host(), ctid) {
            log::debug!("container {ctid}: its masks stay until the next boot: {error}");
        }
        masks::forget_unused(View::host(), ctid);
        // One that has stopped was told.
        if self.live.place.init.lives() {
            self.live.tell(self.begun);
        }
    }
}
