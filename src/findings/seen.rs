//! What a look into a running container came to.

use super::services::Services;
use crate::device::DevicePath;
use crate::guest::cdi;
use crate::guest::probe;
use crate::guest::verify::Opened;
use crate::job::locks;
use crate::types::Ctid;

/// What only a running container shows. It is not trusted: what it says may
/// mislead its own report, and no more.
pub struct Inside {
    /// How its devices differ from what it should have, in sentences; or why
    /// nobody knows.
    pub differences: Result<Vec<String>, String>,
    /// Which of its devices could not be looked at.
    pub unseen: Vec<String>,
    /// It has the host's own directory of the capabilities mounted, as up to version
    /// 0.2.0.
    pub host_directory: bool,
    /// What opening its nodes came to.
    pub opened: Vec<(DevicePath, Opened)>,
    /// An install runs in it.
    pub installing: bool,
    /// The driver and packages; `None` where the settings ask for none.
    pub software: Option<Result<probe::Check, String>>,
    /// Why nvidia-smi does not work although all of the above is right.
    pub smi: Option<String>,
    /// The engines in it and what they read; `None` where nothing is done for them.
    pub engines: Option<Result<cdi::Look, String>>,
    /// What else runs in it.
    pub services: Result<Services, String>,
}

impl Inside {
    /// The same, with what began meanwhile.
    pub(super) fn or_installing(mut self, ctid: Ctid) -> Inside {
        self.installing |= locks::work_runs(ctid);
        self
    }

    /// Whether devices, rules and driver are right.
    pub(super) fn should_work(&self) -> bool {
        let driver = matches!(&self.software, Some(Ok(check)) if check.driver_matches());
        let devices = matches!(&self.differences, Ok(differences) if differences.is_empty());
        driver && devices && self.opened.iter().all(|(_, opened)| *opened == Opened::Allowed)
    }
}
