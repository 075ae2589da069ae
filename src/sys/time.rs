//! Deadlines of waits and children.

use std::time::{Duration, Instant};

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
    fn durations_are_read_by_people() {
        let shown = [85, 4_200, 60_000, 720_000].map(|ms| human(Duration::from_millis(ms)));
        assert_eq!(shown, ["85 ms", "4.2 s", "60 s", "12 min"]);
    }
}
