//! What apt's output says about a failure.

use crate::sys::process::Output;
use crate::sys::text;

/// What kept `apt-get update` from succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody else is at work with apt.
    Locked,
    /// The servers are not reached.
    Network,
    /// What waiting does not mend.
    Final,
}

impl Trouble {
    /// What the run says; `None` when it succeeded.
    pub fn of(output: &Output) -> Option<Trouble> {
        let said = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
        if output.success() {
            return None;
        }
        let any = |words: &[&str]| words.iter().any(|w| said.contains(w));
        Some(if any(&["Could not get lock", "Unable to lock"]) {
            Trouble::Locked
        } else if any(&[
            "Could not resolve",
            "Temporary failure",
            "Could not connect",
            "Connection failed",
            "Unable to connect",
            "Connection timed out",
            "Network is unreachable",
        ]) {
            Trouble::Network
        } else {
            Trouble::Final
        })
    }
}

/// Why `apt-get update` did not succeed.
#[derive(Debug)]
pub struct NoUpdate {
    why: anyhow::Error,
    /// A repository is there and has no such suite.
    pub no_release: bool,
}

impl NoUpdate {
    /// What the run says.
    pub fn of(output: &Output) -> NoUpdate {
        let why = anyhow::anyhow!("apt-get update: {}", reasons(output));
        NoUpdate { why, no_release: has_no_release(output) }
    }
}

impl From<anyhow::Error> for NoUpdate {
    fn from(why: anyhow::Error) -> NoUpdate {
        NoUpdate { why, no_release: false }
    }
}

impl From<NoUpdate> for anyhow::Error {
    fn from(no: NoUpdate) -> anyhow::Error {
        no.why
    }
}

impl std::fmt::Display for NoUpdate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::exit::one_line(&self.why))
    }
}

/// Whether a repository was reached that has no index for the suite.
fn has_no_release(output: &Output) -> bool {
    let said = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
    said.contains("does not have a Release file")
}

/// apt's own reasons: its error lines, else what it printed last.
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
        lines.push(format!("{}, nothing printed", output.ended));
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
        assert_eq!(Trouble::of(&said("", 0)), None);
        let lock = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)";
        assert_eq!(Trouble::of(&said(lock, 100)), Some(Trouble::Locked));
        let network = "W: Failed to fetch http://h/  Temporary failure resolving 'h'";
        assert_eq!(Trouble::of(&said(network, 100)), Some(Trouble::Network));
        let key = "Err:1 http://h  InRelease\nW: GPG error: NO_PUBKEY A4B469963BF863CC\nE: The repository is not signed.";
        assert_eq!(Trouble::of(&said(key, 100)), Some(Trouble::Final));
        assert_eq!(
            reasons(&said(key, 100)),
            "W: GPG error: NO_PUBKEY A4B469963BF863CC | E: The repository is not signed."
        );
    }
}
