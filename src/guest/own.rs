//! Our files in a container, besides the driver's: the apt source with its login
//! and key, the preferences, and the marks of an install.

use super::exec::{ExecError, Guest, fields};
use crate::driver::repo::{AUTH, KEY, PREFERENCES, SOURCE};
use crate::sys::process::Output;
use crate::sys::time::Deadline;

/// Removes the source, where it is of no use.
pub(super) const REMOVE_SOURCE: &str = concat!(include_str!("scripts/apt-own.sh"), "remove_source\n");
/// The same where another file has its repository.
const GIVE_WAY: &str = concat!(include_str!("scripts/apt-own.sh"), "remove_source for\n");
const REMOVE: &str = concat!(include_str!("scripts/apt-own.sh"), include_str!("scripts/remove.sh"));
/// The key, up to version 0.2.0.
const OLD_KEY: &str = "/usr/share/keyrings/phoenix-nvidia.asc";
/// The marks of an install, and the list of the links to the host's driver.
pub const MARKS: &str = "/var/lib/phoenix-nvidia";
/// Below that: the links to the host's driver.
pub const LINKS: &str = "links";
/// Below that: what was put aside for engines ([`super::cdi::remove`]), and is to be put
/// back.
pub const ASIDE: &str = "cdi";

/// Those that a container may have, for messages.
pub const FILES: [&str; 6] = [PREFERENCES, SOURCE, AUTH, KEY, OLD_KEY, MARKS];

/// Removes our apt source, since `theirs` has the same repository: twice, it makes
/// apt complain, and with different keys it makes all of apt unreadable.
pub fn give_way(guest: &Guest, theirs: &str, deadline: &Deadline) {
    match guest.attach_sh(GIVE_WAY, []).run(deadline) {
        Ok(output) if output.success() => {
            log::info!("repository: already in {theirs}: removed {SOURCE}");
        }
        Ok(output) => {
            log::warn!("repository: cannot remove {SOURCE}, which {theirs} has too: {}", said(&output))
        }
        Err(error) => log::warn!("repository: cannot remove {SOURCE}, which {theirs} has too: {error}"),
    }
}

/// Removes all of them, or all but the preferences, which keep apt from replacing
/// the driver; without these lists below [`MARKS`], since what they name is still
/// there. Returns what was there.
///
/// # Errors
/// Why some may still be there.
pub fn remove(
    guest: &Guest,
    keep_driver: bool,
    lists: impl IntoIterator<Item = &'static str>,
    deadline: &Deadline,
) -> Result<Vec<String>, String> {
    let keep = if keep_driver { "keep" } else { "" };
    let output = guest.attach_sh(REMOVE, std::iter::once(keep).chain(lists)).run(deadline);
    match output {
        Ok(output) if output.success() => {
            let removed =
                fields(&output.stdout).filter(|(key, path)| key == "removed" && path.starts_with('/'));
            Ok(removed.map(|(_, path)| path).take(20).collect())
        }
        // Without a shell inside there was never a file of ours.
        Ok(output) if matches!(output.code(), Some(126 | 127)) => Ok(Vec::new()),
        Ok(output) => Err(said(&output)),
        Err(ExecError::Gone(_)) => Err("it has just stopped".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn said(output: &Output) -> String {
    output.last_lines(1).pop().unwrap_or_else(|| output.ended.to_string())
}
