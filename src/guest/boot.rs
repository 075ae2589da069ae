//! Waiting until a container is ready for an install.

use super::exec::{self, ExecError, Guest};
use crate::exit::{Code, Fault};
use crate::sys::signal;
use crate::sys::time::{Deadline, human};
use std::time::{Duration, Instant};

/// Succeeds once systemd has booted; any other init counts as booted.
const BOOTED: &str = r#"
case $(readlink -f /sbin/init) in */systemd) ;; *) exit 0 ;; esac
state=$(systemctl is-system-running 2>/dev/null)
case $state in running | degraded | maintenance | stopping) exit 0 ;; esac
echo "${state:-not yet up}"
exit 1
"#;

const SHUTTING_DOWN: &str = r#"
[ -d /run/systemd/system ] && [ "$(systemctl is-system-running 2>/dev/null)" = stopping ] && exit 3
exit 0
"#;

/// The limit of the first attempt.
const FIRST: Duration = Duration::from_secs(15);

/// Waits until the container runs commands.
///
/// # Errors
/// [`Code::Software`]: not before the deadline, or the container is gone.
pub fn wait_for_shell(guest: &Guest, limit: Duration) -> anyhow::Result<()> {
    let deadline = Deadline::after(limit);
    let fault = || Fault::new(Code::Software, format!("cannot run commands in container {}", guest.ctid()));
    let mut span = FIRST;
    loop {
        let last = match guest.attach_sh("exit 0", []).run(&deadline.at_most(span)) {
            Ok(output) if output.success() => return Ok(()),
            Ok(output) if matches!(output.code(), Some(126 | 127)) => return Ok(()), // the probe says what is wrong
            Ok(output) => output.last_lines(2).join(" | "),
            Err(error) => {
                let error = anyhow::Error::from(error);
                if exec::ended(&error) || deadline.passed() {
                    return Err(error.context(fault()));
                }
                format!("{error:#}")
            }
        };
        if deadline.passed() {
            return Err(anyhow::anyhow!("not within {}: {last}", human(limit)).context(fault()));
        }
        // On a busy node it may just need longer.
        span *= 2;
        signal::sleep(Duration::from_millis(200).min(deadline.remaining()))?;
    }
}

/// Whether its shutdown has begun, if its init tells: other processes end some
/// time before LXC says that it stops.
pub fn shutting_down(guest: &Guest) -> bool {
    match guest.attach_sh(SHUTTING_DOWN, []).run(&Deadline::secs(5)) {
        Ok(output) => output.code() == Some(3),
        Err(error) => matches!(error, ExecError::Gone(_)),
    }
}

/// Waits until the container has booted, since it may hold dpkg's lock until
/// then. If it has not in time, that is a warning: apt waits too.
///
/// # Errors
/// A signal to us, or the container is gone.
pub fn wait_until_booted(guest: &Guest, limit: Duration) -> anyhow::Result<()> {
    let (deadline, begun) = (Deadline::after(limit), Instant::now());
    loop {
        let state = match guest.attach_sh(BOOTED, []).run(&deadline.at_most(Duration::from_secs(15))) {
            Ok(output) if output.success() => break,
            Ok(output) => output.last_lines(1).join(""),
            Err(error @ (ExecError::Gone(_) | ExecError::Changed(_))) => return Err(error.into()),
            Err(error) => {
                signal::check()?;
                format!("{error}")
            }
        };
        if deadline.passed() {
            log::warn!("container still booting after {} ({state}); continuing", human(limit));
            return Ok(());
        }
        signal::sleep(Duration::from_millis(300).min(deadline.remaining()))?;
    }
    if begun.elapsed() > Duration::from_secs(2) {
        log::info!("waited {} for the container to boot", human(begun.elapsed()));
    }
    Ok(())
}
