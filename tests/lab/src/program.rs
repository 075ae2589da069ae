//! Running the programs that make packages, signatures and certificates.

use anyhow::{Context, Result, bail};
use std::process::{Child, Command, Stdio};

use crate::starting;

/// Runs a program to its end and returns its stdout; a failure shows the command, the status and what it said.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = starting::start(command)
        .and_then(Child::wait_with_output)
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed with {}: {said}", output.status);
    }
    Ok(output.stdout)
}
