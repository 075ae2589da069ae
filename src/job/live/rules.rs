//! Which device rules are in force: what a change of a running container leaves noted.

use super::{Live, Step};
use crate::exit;
use crate::pve::cgroup::Rule;
use crate::pve::conf::document::{Document, Form};
use crate::pve::conf::mounts::mounts;
use crate::pve::conf::reconcile::{reconcile, without_passed};
use crate::pve::conf::store::Conf;
use crate::pve::in_force::InForce;
use crate::state::Record;

impl Live {
    /// Whether it is known which rules of ours are in force.
    pub(super) fn knows_rules(&self) -> bool {
        self.noted.as_ref().is_some_and(|noted| noted.all)
    }

    /// Notes those that come, before they do: whoever kills us leaves too many noted,
    /// never too few.
    pub(super) fn note_coming(&self) {
        let Some(noted) = self.noted.as_ref().filter(|noted| noted.all) else { return };
        let mut devices = noted.devices.clone();
        devices.extend(self.difference.live.iter().filter_map(|step| match step {
            Step::Add { device, .. } | Step::Allow(device) => Some(*device),
            _ => None,
        }));
        Record::of(self.place.ctid).note_rules(&InForce { devices, ..noted.clone() });
    }

    /// Notes again what was noted before all steps: they are rolled back.
    pub fn note_as_before(&self) {
        if let Some(noted) = &self.noted {
            Record::of(self.place.ctid).note_rules(noted);
        }
    }

    /// Shuts all other cards of the host where nobody knows which are open. One that is
    /// shut already stays so.
    pub(super) fn shut_others(&self) -> anyhow::Result<()> {
        if self.knows_rules() {
            return Ok(());
        }
        for device in self.difference.others(&self.document, &self.wanted) {
            let number = device.number();
            if self.before().line(number).is_none() {
                self.place.change(Rule::Deny, number)?;
            }
        }
        Ok(())
    }

    /// Notes the rules that are in force now, and brings the config that the container
    /// runs with up to date for who reads that. The next start writes both anew.
    pub fn note_done(&self, conf: &Conf) {
        let devices = self.difference.rules_after(&self.has);
        let noted = InForce { init: self.place.init.clone(), devices, all: true };
        if self.noted.as_ref() != Some(&noted) && self.place.init.lives() {
            Record::of(self.place.ctid).note_rules(&noted);
        }
        let devices = without_passed(&self.document, &noted.devices);
        let keeps_tree = self.tree_waits.is_some();
        let edit = |config: &Document| {
            let wanted = if keeps_tree { mounts(config) } else { self.wanted.mounts.clone() };
            reconcile(config, &devices, &wanted, Form::Lxc)
        };
        if let Err(error) = conf.edit_generated(edit) {
            exit::tell(log::Level::Warn, &error);
        }
    }
}
