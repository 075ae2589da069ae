//! What `apply` would do without a restart, and what needs a start.

use super::Steps;
use crate::exit;
use crate::host::gpus::Inventory;
use crate::job::desired::Software;
use crate::job::live::Live;
use crate::job::live::difference::Wanted;
use crate::plan::{self, Intent};
use crate::sys::text;

impl Steps {
    /// Notes it for a running container, where that differs.
    pub(super) fn live(&mut self, intent: &Intent, software: &Software, inventory: &Inventory) {
        let (ctid, conf) = (self.hand.ctid, &self.hand.document);
        let mounts = plan::mounts(ctid, intent, conf, &self.injection);
        let wanted = Wanted::of(inventory, plan::wanted_once_made(&self.choice), mounts);
        let found = Live::of(ctid, &self.hand.conf, conf.clone(), wanted);
        let mut live = match found {
            Ok(Some(live)) => live,
            Ok(None) => return,
            Err(error) => return self.notes.push(exit::one_line(&error)),
        };
        live.keep_tree_for(software);
        let refused =
            live.must_be_plain().and_then(|()| live.must_be_unused(inventory, Some("apply --force")));
        let told = live.difference.told();
        if !told.is_empty() {
            self.notes.push(format!(
                "without a restart, by phoenix-nvidia apply {ctid}: {}",
                text::few(told, plan::MOST_LINES).join(", ")
            ));
        }
        if let Err(error) = refused {
            self.notes.push(format!("apply would refuse: {}", exit::one_line(&error)));
        }
        for waits in live.difference.waiting().iter().chain(&live.tree_waits) {
            self.notes.push(format!("only with a start: {waits}"));
        }
    }
}
