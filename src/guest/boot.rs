//! What an install needs of a container before it can work. None of it is
//! waited for when there is nothing to install.

use super::exec::{ExecError, Guest};
use crate::exit::{Code, Fault};
use crate::sys::signal;
use crate::sys::time::{Deadline, human};
use std::time::{Duration, Instant};

/// systemd's own word for whether its boot is over; another init has no such
/// word, and is believed.
const BOOT: &str = r#"
case $(readlink -f /sbin/init) in */systemd) ;; *) exit 0 ;; esac
state=$(systemctl is-system-running 2>/dev/null)
case $state in running | degraded | maintenance | stopping) exit 0 ;; esac
echo "${state:-not yet up}"
exit 1
"#;

const GOING_DOWN: &str = r#"
[ -d /run/systemd/system ] && [ "$(systemctl is-system-running 2>/dev/null)" = stopping ] && exit 3
exit 0
"#;

/// How long the first look may take.
const ONE_LOOK: Duration = Duration::from_secs(15);

/// Waits until commands can be run in the container.
///
/// # Errors
/// [`Code::Software`] when they can't until the deadline, or the container
/// has gone.
pub fn commands(guest: &Guest, limit: Duration) -> anyhow::Result<()> {
    let deadline = Deadline::after(limit);
    let fault = || Fault::new(Code::Software, format!("no command can be run in container {}", guest.ctid()));
    let mut span = ONE_LOOK;
    loop {
        let last = match guest.attach_sh("exit 0", []).run(&deadline.at_most(span)) {
            Ok(output) if output.success() => return Ok(()),
            Ok(output) if matches!(output.code(), Some(126 | 127)) => return Ok(()), // the check says what is wrong
            Ok(output) => output.last_lines(2).join(" | "),
            Err(error) => {
                let error = anyhow::Error::from(error);
                if super::exec::is_gone(&error) || super::exec::is_interrupted(&error) || deadline.passed() {
                    return Err(error.context(fault()));
                }
                format!("{error:#}")
            }
        };
        if deadline.passed() {
            return Err(anyhow::anyhow!("within {}: {last}", human(limit)).context(fault()));
        }
        // What took too long may just need longer.
        span *= 2;
        signal::sleep(Duration::from_millis(200).min(deadline.remaining()))?;
    }
}

/// Whether its shutdown has begun, as far as its init tells: that ends the
/// other processes some time before LXC says that it stops.
pub fn going_down(guest: &Guest) -> bool {
    match guest.attach_sh(GOING_DOWN, []).run(&Deadline::secs(5)) {
        Ok(output) => output.code() == Some(3),
        Err(error) => matches!(error, ExecError::Gone(_)),
    }
}

/// Waits until the container's boot is over, since a booting container holds
/// dpkg's lock. What is not over in time is a warning: apt waits too.
///
/// # Errors
/// A signal of ours; the container has gone.
pub fn boot(guest: &Guest, limit: Duration) -> anyhow::Result<()> {
    let (deadline, begun) = (Deadline::after(limit), Instant::now());
    loop {
        let state = match guest.attach_sh(BOOT, []).run(&deadline.at_most(Duration::from_secs(15))) {
            Ok(output) if output.success() => break,
            Ok(output) => output.last_lines(1).join(""),
            Err(error @ (ExecError::Gone(_) | ExecError::Changed(_))) => return Err(error.into()),
            Err(error) => {
                signal::check()?;
                format!("{error}")
            }
        };
        if deadline.passed() {
            log::warn!("the container's boot is not over after {} ({state}); going on", human(limit));
            return Ok(());
        }
        signal::sleep(Duration::from_millis(300).min(deadline.remaining()))?;
    }
    if begun.elapsed() > Duration::from_secs(2) {
        log::info!("waited {} for the container's boot", human(begun.elapsed()));
    }
    Ok(())
}
