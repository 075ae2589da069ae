//! How something ended, as it is recorded.

use super::{Outcome, State};
use crate::exit;
use crate::sys::text;
use std::time::Instant;

impl State {
    /// Notes how something ended.
    pub fn ended(&mut self, phase: &str, result: &anyhow::Result<()>, begun: Instant) {
        phase.clone_into(&mut self.phase);
        self.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(()) => {
                // The driver may be right and a device missing.
                self.outcome = if self.start_warning.is_some() { Outcome::Warning } else { Outcome::Ok };
                self.code = 0;
                self.message = self.start_warning.clone().unwrap_or_default();
                self.fix = None;
            }
            Err(error) => {
                self.outcome = Outcome::Failed;
                self.code = exit::code_of(error) as u8;
                self.tell(error);
            }
        }
    }

    /// Notes what is missing although nothing failed.
    pub fn lacks(&mut self, why: &anyhow::Error) {
        self.outcome = Outcome::Warning;
        self.tell(why);
    }

    /// The error in one line, and its remedy.
    fn tell(&mut self, error: &anyhow::Error) {
        // First without, then cut: a half URL is not recognised any more.
        self.message = text::line(text::without_secrets(&exit::one_line(error)).as_bytes());
        // A command is pasted whole or not at all.
        self.fix = exit::remedy_of(error).map(|fix| text::message(&text::without_secrets(fix)));
    }
}
