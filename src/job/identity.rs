//! Whether a container is still the one that a work was begun in, and its
//! settings still ask for that work.
//!
//! An install takes minutes. Meanwhile the container may be stopped and
//! destroyed and its number given to another one, be detached, rolled back, or
//! set to something else. So this is asked in one place, before each attempt,
//! before each command of the work in the container (the [`Guest`] that the
//! steps are given asks by itself), and before the reboot.
//!
//! [`Guest`]: crate::guest::exec::Guest

use crate::exit::{self, Code};
use crate::guest::changed::Changed;
use crate::guest::exec::{ExecError, Guard};
use crate::host::kernel_driver;
use crate::job::desired::{self, Software};
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Conf;
use crate::pve::hookscript::Hookscript;
use crate::pve::pct::{self, Init};
use crate::pve::{net, storage};
use crate::settings::{Call, keys, load};
use crate::state::{Record, State};
use crate::sys::look::{Look, View};
use crate::sys::time::Deadline;
use crate::types::{Ctid, Version};
use std::rc::Rc;
use std::time::Duration;

/// How long a hookscript's storage has for its answer.
const STORAGE_TIME: Duration = Duration::from_secs(3);

/// A container as it was when a work was begun in it.
pub struct Identity {
    ctid: Ctid,
    conf: Conf,
    /// Its name and its hardware addresses.
    name: String,
    /// Its first process then: while that lives it is the same, whatever it is
    /// called.
    born: Option<Init>,
    hookscript: Option<String>,
    call: Call,
    environment: Vec<(String, String)>,
    driver: Version,
    kernel: Option<Version>,
}

impl Identity {
    /// That of `document`, which the driver is being installed in; settings are
    /// read as for `call`, with this environment.
    pub fn of(
        ctid: Ctid,
        document: &Document,
        call: Call,
        environment: Vec<(String, String)>,
        driver: &Version,
    ) -> Rc<Identity> {
        Rc::new(Identity {
            ctid,
            conf: Conf::of(ctid),
            name: net::identity(document),
            born: pct::init(ctid).ok().flatten(),
            // By hand it needs none.
            hookscript: document.get("hookscript").filter(|_| call == Call::Hook),
            call,
            environment,
            driver: driver.clone(),
            kernel: kernel_driver::version(View::host()),
        })
    }

    /// Whether it is, and does.
    ///
    /// # Errors
    /// [`ExecError::Changed`].
    pub fn still(&self) -> Result<(), ExecError> {
        self.look(self.born.as_ref().is_some_and(Init::lives))
    }

    /// The same question for each command of one attempt, which ends with the
    /// present start of the container: [`ExecError::Gone`].
    pub fn guard(self: &Rc<Self>) -> Guard {
        let (identity, start) = (Rc::clone(self), pct::init(self.ctid).ok().flatten());
        Rc::new(move || match &start {
            Some(init) if !init.lives() => Err(ExecError::Gone(identity.ctid)),
            // Nobody took its number while it ran.
            start => identity.look(start.is_some()),
        })
    }

    /// Changes what is recorded, if it is this container's; what `detach` has
    /// forgotten does not come back.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        if !matches!(self.still(), Err(ExecError::Changed(Changed::Detached(_)))) {
            self.end(change);
        }
    }

    /// The same as the last word on what is recorded still.
    pub fn end(&self, change: impl FnOnce(&mut State)) {
        if matches!(self.still(), Err(ExecError::Changed(Changed::Replaced { .. }))) {
            log::debug!("nothing is recorded: container {} is another one", self.ctid);
            return;
        }
        Record::of(self.ctid).update_of(&self.name, change);
    }

    fn look(&self, same_start: bool) -> Result<(), ExecError> {
        let changed = |changed| Err(ExecError::Changed(changed));
        let document = match self.conf.read() {
            Ok(document) => document,
            Err(error) if exit::code_of(&error) == Code::NoContainer => {
                return changed(Changed::NotHere(self.ctid));
            }
            // Could not look: the settings are taken to be what they were.
            Err(_) if same_start => return Ok(()),
            Err(error) => return changed(Changed::Unseen(self.ctid, exit::one_line(&error))),
        };
        let is = net::identity(&document);
        if !same_start && is != self.name {
            return changed(Changed::Replaced { ctid: self.ctid, was: self.name.clone(), is });
        }
        self.asks(&document).map_or(Ok(()), changed)
    }

    /// What its conf and settings do not ask for any more.
    fn asks(&self, document: &Document) -> Option<Changed> {
        let ctid = self.ctid;
        let now = document.get("hookscript");
        if self.hookscript.is_some() && now != self.hookscript {
            match hookscript(document) {
                // Could not look: it is not said to be another's.
                Hookscript::Unseen(..) => {}
                hook if !hook.is_meant() => return Some(Changed::Detached(ctid)),
                _ => {}
            }
        }
        let environment = self.environment.clone();
        let settings = load::with(ctid, self.call, &self.conf, document, environment);
        if settings.text(keys::GPU_ASSIGNMENT).is_none() {
            return Some(Changed::Unassigned(ctid));
        }
        match desired::read(&settings, self.kernel.clone(), None) {
            Ok(Software::Desired(desired)) if desired.driver == self.driver => None,
            Ok(Software::Desired(desired)) => Some(Changed::OtherDriver(ctid, desired.driver)),
            Ok(Software::Off) => Some(Changed::Off(ctid)),
            Ok(Software::NoDriver) => Some(Changed::NoDriver),
            // A file that is just being written, say: no word of another driver.
            Err(_) => None,
        }
    }
}

/// The hookscript of a conf. An install that looks has its locks and its
/// place, so a storage that does not answer may not hold it for long.
fn hookscript(document: &Document) -> Hookscript {
    let storages = storage::read(&mut Look::host());
    let view = View::host_until(&Deadline::after(STORAGE_TIME));
    let look = Look::at_files(view, Hookscript::questions(&storages, document));
    Hookscript::of(&look, &storages, document)
}

/// Whether the container that has this number now runs and asks by itself for
/// what an install does: one that was begun in its predecessor had its place.
pub fn successor_asks(ctid: Ctid) -> bool {
    let conf = Conf::of(ctid);
    let Ok(document) = conf.read() else { return false };
    let settings = load::of_next_start(ctid, &conf, &document);
    pct::status(ctid).is_ok_and(|status| status == pct::Status::Running)
        && hookscript(&document).is_meant()
        && settings.text(keys::GPU_ASSIGNMENT).is_some()
        && matches!(
            desired::read(&settings, kernel_driver::version(View::host()), None),
            Ok(Software::Desired(_))
        )
}
