//! Why apt failed, from its output.

use crate::sys::process::Output;
use crate::sys::text;

/// The cause of a failed `apt-get update`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateFailure {
    /// Another process uses apt.
    Locked,
    /// The servers cannot be reached.
    Network,
    /// Something that does not change by waiting.
    Other,
}

impl UpdateFailure {
    /// From the output; `None` for a success.
    pub fn of(output: &Output) -> Option<UpdateFailure> {
        if output.success() {
            return None;
        }
        let said = said(output);
        let any = |words: &[&str]| words.iter().any(|w| said.contains(w));
        Some(if any(&["Could not get lock", "Unable to lock"]) {
            UpdateFailure::Locked
        } else if any(&[
            "Could not resolve",
            "Temporary failure",
            "Could not connect",
            "Connection failed",
            "Unable to connect",
            "Connection timed out",
            "Network is unreachable",
        ]) {
            UpdateFailure::Network
        } else {
            UpdateFailure::Other
        })
    }
}

/// A failed `apt-get update`.
#[derive(Debug)]
pub struct UpdateError {
    why: anyhow::Error,
    /// The repository exists, but has no such suite.
    pub no_release: bool,
}

impl UpdateError {
    /// From the output.
    pub fn of(output: &Output) -> UpdateError {
        let why = anyhow::anyhow!("apt-get update: {}", reasons(output));
        UpdateError { why, no_release: said(output).contains("does not have a Release file") }
    }
}

impl From<anyhow::Error> for UpdateError {
    fn from(why: anyhow::Error) -> UpdateError {
        UpdateError { why, no_release: false }
    }
}

impl From<UpdateError> for anyhow::Error {
    fn from(error: UpdateError) -> anyhow::Error {
        error.why
    }
}

impl std::fmt::Display for UpdateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::exit::one_line(&self.why))
    }
}

/// All that apt printed.
fn said(output: &Output) -> String {
    format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr))
}

/// apt's error lines, else its last lines of output.
pub fn reasons(output: &Output) -> String {
    let all = [output.stdout.as_slice(), b"\n", output.stderr.as_slice()].concat();
    let is_reason =
        |l: &&[u8]| l.starts_with(b"E: ") || l.starts_with(b"W: ") || l.starts_with(b"dpkg: error");
    let mut lines: Vec<String> =
        all.split(|b| *b == b'\n').filter(is_reason).map(text::line).take(4).collect();
    if lines.is_empty() {
        lines = output.last_lines(4);
    }
    if lines.is_empty() {
        lines.push(format!("{}, no output", output.ended));
    }
    lines.join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::Ended;
    use std::time::Duration;

    fn said(text: &str, code: i32) -> Output {
        Output { ended: Ended::Code(code), stdout: text.into(), stderr: Vec::new(), took: Duration::ZERO }
    }

    #[test]
    fn a_lock_and_a_missing_network_are_waited_for_a_bad_signature_is_not() {
        assert_eq!(UpdateFailure::of(&said("", 0)), None);
        let lock = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)";
        assert_eq!(UpdateFailure::of(&said(lock, 100)), Some(UpdateFailure::Locked));
        let network = "W: Failed to fetch http://h/  Temporary failure resolving 'h'";
        assert_eq!(UpdateFailure::of(&said(network, 100)), Some(UpdateFailure::Network));
        let key = "Err:1 http://h  InRelease\nW: GPG error: NO_PUBKEY A4B469963BF863CC\nE: The repository is not signed.";
        assert_eq!(UpdateFailure::of(&said(key, 100)), Some(UpdateFailure::Other));
        assert_eq!(
            reasons(&said(key, 100)),
            "W: GPG error: NO_PUBKEY A4B469963BF863CC | E: The repository is not signed."
        );
    }
}
