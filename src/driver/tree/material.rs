//! What a tree is made of: the host's own files, or a runfile.

use super::copy::Source;
use super::manifest::{Manifest, Origin};
use super::{Trees, find};
use crate::exit::{self, Code, Fault};
use crate::sys::time::Deadline;
use crate::types::Version;

impl Trees {
    /// What a tree that is not whole is made of; none where nothing is lacking. A
    /// runfile that has to be downloaded is here afterwards: nobody who waits for the
    /// lock waits for that.
    ///
    /// # Errors
    /// What is missing, and what helps.
    pub(super) fn source(&self, version: &Version, deadline: &Deadline) -> anyhow::Result<Option<Source>> {
        let kept = self.kept(version);
        let manifest = Manifest::read(&kept).filter(|manifest| manifest.version == *version);
        let origin = manifest.as_ref().map(|manifest| manifest.origin);
        if manifest.is_some_and(|manifest| manifest.lacking(&kept).is_empty()) {
            return Ok(None);
        }
        let (missing, others) = match find::find(&self.root, version) {
            Ok(_) if origin != Some(Origin::Runfile) => return Ok(Some(Source::Host(self.root.clone()))),
            Ok(_) => ("its copy for containers was made of the runfile".to_owned(), Vec::new()),
            Err(missing) => (missing.to_string(), missing.others),
        };
        match self.supply.runfile(version, deadline) {
            Ok(file) => Ok(Some(Source::Runfile(file))),
            Err(error) if exit::interrupted(&error) || self.supply.download.is_err() => {
                Err(error.context(missing))
            }
            // The other driver works once it is loaded, if a boot loads it.
            Err(error)
                if !others.is_empty() && (self.supply.next)().is_some_and(|next| others.contains(&next)) =>
            {
                Err(Fault::new(Code::Software, missing).remedy("reboot").caused_by(error))
            }
            Err(error) => Err(error.context(missing)),
        }
    }
}
