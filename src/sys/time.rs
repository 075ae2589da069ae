//! Deadlines of waits and children.

use std::fmt;
use std::time::{Duration, Instant};

/// The time was over before something was done: that says nothing of what it was done
/// with.
#[derive(Debug)]
pub struct Late {
    done: &'static str,
    within: Duration,
}

impl fmt::Display for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not {} within {}", self.done, human(self.within))
    }
}

impl std::error::Error for Late {}

/// Whether an error says so, also through a reader.
pub fn is_late(error: &anyhow::Error) -> bool {
    let through = |cause: &(dyn std::error::Error + 'static)| {
        let reader = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        reader.is_some_and(|inner| inner.is::<Late>())
    };
    error.chain().any(|cause| cause.is::<Late>() || through(cause))
}

/// A point in time, and the timeout that led to it.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    span: Duration,
}

impl Deadline {
    /// `span` from now.
    pub fn after(span: Duration) -> Self {
        Deadline { at: Instant::now() + span, span }
    }

    /// `seconds` from now.
    pub fn secs(seconds: u64) -> Self {
        Deadline::after(Duration::from_secs(seconds))
    }

    /// The time left; zero if passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn passed(&self) -> bool {
        self.remaining().is_zero()
    }

    /// Fails once it has passed; `done` says what was to be done until then: `read`.
    ///
    /// # Errors
    /// [`Late`].
    pub fn allows(&self, done: &'static str) -> Result<(), Late> {
        if self.passed() { Err(Late { done, within: self.span }) } else { Ok(()) }
    }

    /// The nearer of this one and `span` from now.
    #[must_use]
    pub fn at_most(&self, span: Duration) -> Deadline {
        let other = Deadline::after(span);
        if other.at < self.at { other } else { *self }
    }

    /// The timeout, for messages.
    pub fn span(&self) -> Duration {
        self.span
    }
}

/// A duration for messages: `85 ms`, `4.2 s`, `12 min`.
pub fn human(d: Duration) -> String {
    match d.as_millis() {
        ms @ 0..=999 => format!("{ms} ms"),
        ms @ 1000..=99_999 if ms / 100 % 10 == 0 => format!("{} s", ms / 1000),
        ms @ 1000..=99_999 => format!("{}.{} s", ms / 1000, ms / 100 % 10),
        ms => format!("{} min", (ms + 30_000) / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_takes_the_nearer_one() {
        let far = Deadline::secs(100);
        assert!(far.at_most(Duration::from_secs(1)).remaining() <= Duration::from_secs(1));
        assert!(Deadline::secs(0).at_most(Duration::from_secs(9)).passed());
    }

    #[test]
    fn what_was_late_is_known_through_readers() {
        let late = || Deadline::secs(0).allows("read").unwrap_err();
        assert!(Deadline::secs(60).allows("read").is_ok());
        let read = std::io::Error::other(late());
        let around = anyhow::Error::new(std::io::Error::other(late())).context("x");
        assert!([late().into(), read.into(), around].iter().all(is_late));
        let other = anyhow::Error::new(std::io::Error::other("damaged"));
        assert!(!is_late(&other) && other.to_string() != late().to_string());
        assert_eq!(late().to_string(), "not read within 0 ms");
    }

    #[test]
    fn durations_are_read_by_people() {
        let shown = [85, 4_200, 60_000, 720_000].map(|ms| human(Duration::from_millis(ms)));
        assert_eq!(shown, ["85 ms", "4.2 s", "60 s", "12 min"]);
    }
}
