//! The masks of `/proc/driver/nvidia` follow the cards of a running container.
//! They are hygiene: a failure is a warning, and the next start has them.

use super::Live;
use super::enter::{Act, Done};
use crate::exit;
use crate::host::masks::{self, Masks};
use crate::pve::conf::mounts::Mount;
use crate::sys::detached::Holds;
use crate::sys::look::View;
use crate::sys::mountinfo::{self, at};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

impl Live {
    /// Writes the container's masks and mounts them in it; true if anything
    /// changed.
    pub fn follow_masks(&self, new: &Masks) -> bool {
        let ctid = self.place.ctid;
        let written = new.write(View::host(), ctid).map_err(anyhow::Error::from);
        let done = written.and_then(|_| self.mount_masks(&masks::mounts(ctid)));
        masks::forget_unused(View::host(), ctid);
        done.unwrap_or_else(|error| {
            log::warn!(
                "/proc/driver/nvidia in container {ctid} shows the GPUs of before until its next start (the \
                 device rules are right): {error:#}"
            );
            false
        })
    }

    fn mount_masks(&self, all: &[Mount]) -> anyhow::Result<bool> {
        let table = self.table_now()?;
        let mut changed = false;
        for mount in all {
            let there = at(&table, &mount.target);
            let ours = there.is_some_and(|there| there.lower().any(masks::is_source));
            // Without a driver on the host, or at the start, there is nothing to be covered.
            let Ok(meta) = Path::new(&mount.source).parent().unwrap_or(Path::new("/")).metadata() else {
                continue;
            };
            if ours && there.is_some_and(|there| there.device == mountinfo::device(meta.dev())) {
                continue;
            }
            let act = Act::Put {
                source: (&mount.source).into(),
                target: (&mount.target).into(),
                holds: Holds::Data,
                number: None,
                over: ours,
            };
            changed |= self.done(act)?;
        }
        Ok(changed)
    }

    /// Takes the masks away: of a container that is detached.
    pub fn take_masks(&self) {
        let taken = self.table_now().map_err(anyhow::Error::from).and_then(|table| {
            for mount in masks::mounts(self.place.ctid) {
                if at(&table, &mount.target).is_some_and(|there| there.lower().any(masks::is_source)) {
                    self.done(Act::Take { target: mount.target.into(), number: None })?;
                }
            }
            Ok(())
        });
        if let Err(error) = taken {
            let ctid = self.place.ctid;
            log::warn!(
                "masks over /proc/driver/nvidia stay in container {ctid} until its next start: {error:#}"
            );
            log::warn!("{}", exit::fix(&format!("pct reboot {ctid}")));
        }
    }

    fn done(&self, act: Act) -> anyhow::Result<bool> {
        match act.run(&self.place.init)? {
            Done::Is(done) => Ok(done),
            Done::Gone => Ok(false),
            Done::Refused(why) => anyhow::bail!(why),
        }
    }
}
