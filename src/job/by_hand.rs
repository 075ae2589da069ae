//! A call by hand: what it checks before it changes anything, and what it
//! finds due. `plan` asks the same.

use crate::host::choose::Choice;
use crate::host::kernel_driver;
use crate::job::desired::{self, Software};
use crate::job::devices::{self, Compared};
use crate::job::{chain, injection, startable};
use crate::plan::{self, Intent};
use crate::pve::cluster;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::{Caller, Conf};
use crate::pve::startable::{Obstacle, Startable};
use crate::settings::idle::{self, Idle};
use crate::settings::{self, Call, Settings, keys, load};
use crate::state::Record;
use crate::sys::look::{Look, View};
use crate::sys::text;
use crate::types::Ctid;
use std::fmt;

/// What is said of a template: a run ends there.
pub const TEMPLATE: &str = "is a template: clones inherit this and get the driver at their first start";

/// A container that somebody names on the command line.
pub struct ByHand {
    /// Its number.
    pub ctid: Ctid,
    /// Its conf.
    pub conf: Conf,
    /// What stood there at first.
    pub document: Document,
    /// Its settings.
    pub settings: Settings,
    /// Those that have no effect; what `auto` does not use today it may use at
    /// the next start.
    pub idle: Vec<Idle>,
}

/// A restart, with its reasons.
pub struct Restart {
    ctid: Ctid,
    why: Vec<String>,
}

impl Restart {
    /// For these reasons.
    pub fn of(ctid: Ctid, why: Vec<String>) -> Restart {
        Restart { ctid, why }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "restart container {}: {}",
            self.ctid,
            text::few(self.why.clone(), plan::MOST_LINES).join("; ")
        )
    }
}

impl ByHand {
    /// Reads conf and settings. First whether it exists, and here: what is said
    /// of its settings would be said of a conf that is not.
    ///
    /// # Errors
    /// [`exit::Code::NoContainer`](crate::exit::Code::NoContainer).
    pub fn read(ctid: Ctid, conf: Conf) -> anyhow::Result<ByHand> {
        let document = conf.read()?;
        let settings = load::of(ctid, Call::ByHand, &conf, &document);
        let idle = idle::all(&settings, &document, conf.path());
        let (settings, _) = injection::settled(ctid, &document, settings);
        Ok(ByHand { ctid, conf, document, settings, idle })
    }

    /// The requirements' `validate_inputs`: everything is read before
    /// anything is changed.
    ///
    /// # Errors
    /// [`exit::Code::Input`](crate::exit::Code::Input) with all that cannot be
    /// read; [`exit::Code::Software`](crate::exit::Code::Software) for a driver
    /// version that cannot work.
    pub fn validate(&self) -> anyhow::Result<(Intent, Software)> {
        let problems = self.settings.all_problems();
        if !problems.is_empty() {
            return Err(settings::fault(&problems, self.ctid));
        }
        chain::validate(&self.settings)?;
        let (intent, _) = Intent::of(&self.settings, &self.document);
        let software = desired::read(&self.settings, kernel_driver::version(View::host()), None)
            .map_err(|problems| settings::fault(&problems, self.ctid))?;
        if let Software::Desired(desired) = &software {
            desired.matches_kernel()?;
        }
        for (now, later) in &self.settings.overridden {
            let (key, value, next) = (&now.key, now.shown(), later.shown());
            log::warn!(
                "using {key}={value} from {}; the next start uses {next} ({})",
                now.origin,
                later.origin
            );
        }
        Ok((intent, software))
    }

    /// Fails where the conf could not be edited, so that nothing else is begun
    /// and `plan` can tell.
    ///
    /// # Errors
    /// [`exit::Code::Passthrough`](crate::exit::Code::Passthrough).
    pub fn must_be_editable(&self, document: &Document) -> anyhow::Result<()> {
        self.conf.may_edit(Caller::ByHand, document)?;
        cluster::must_have_quorum(&Look::host())
    }

    /// The running container compared with what it is to have.
    ///
    /// # Errors
    /// The conf could not be read, or whether it runs not be asked.
    pub fn compare(&self, wanted: &Choice) -> anyhow::Result<Compared> {
        let document = self.conf.read()?;
        devices::compare(self.ctid, &document, wanted, self.settings.value(keys::CHECK_TIMEOUT))
    }

    /// Why the running container is restarted, if it is: its devices differ, its
    /// driver will change, or has changed in this very start, by this run or by
    /// one that was cut off before its restart. That is due without an install
    /// too, INSTALL=off say.
    pub fn restart(&self, differences: Vec<String>, driver_will_change: bool) -> Option<Restart> {
        let mut why = differences;
        if driver_will_change && startable::restarts_after_install(&self.settings) {
            why.push("its driver changes".to_owned());
        } else if startable::restart_is_due(&Record::of(self.ctid).load(), &self.settings) {
            why.push("its services run with the previous driver".to_owned());
        }
        (!why.is_empty()).then_some(Restart { ctid: self.ctid, why })
    }

    /// What keeps it from starting as it is now.
    ///
    /// # Errors
    /// The conf could not be read.
    pub fn startable(&self, choice: &Choice) -> anyhow::Result<Result<Startable, Vec<Obstacle>>> {
        startable::look(&self.conf, self.ctid, &self.settings, Some(choice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_reasons_for_a_restart_few_are_named() {
        let why = (0..200).map(|n| format!("the running container still has /dev/nvidia{n}")).collect();
        let said = Restart::of("101".parse().unwrap(), why).to_string();
        assert!(said.ends_with("/dev/nvidia19; and 180 more"), "{said}");
    }
}
