//! What several verbs need.

use crate::exit::{self, Code, Fault};
use crate::pve::cluster;
use crate::pve::conf::document::Document;
use crate::pve::conf::store::Caller;
use crate::pve::conf::store::Conf;
use crate::pve::pct::Patience;
use crate::settings::{Call, Given, Origin, Settings, keys};
use crate::state::{Outcome, State};
use crate::sys::look::Look;
use crate::sys::look::View;
use crate::sys::text;
use crate::sys::time::Deadline;
use crate::types::Ctid;
use std::path::Path;

/// The root directory of this host. Tests that need another host get a mount
/// namespace; the readers take it as an argument for the sake of unit tests.
pub fn root() -> &'static Path {
    Path::new("/")
}

/// The host as calls by hand look at it: what does not answer is not waited
/// for beyond this.
pub fn host() -> View<'static> {
    host_until(&Deadline::secs(10))
}

/// The same with the deadline of a whole phase.
pub fn host_until(deadline: &Deadline) -> View<'static> {
    View::apart(root(), deadline)
}

/// All settings of a container, from its conf, the files and the environment.
pub fn settings(ctid: Ctid, call: Call, conf: &Conf, document: &Document) -> Settings {
    settings_with(ctid, call, conf, document, environment())
}

/// The same with another environment.
pub fn settings_with(
    ctid: Ctid,
    call: Call,
    conf: &Conf,
    document: &Document,
    environment: Vec<(String, String)>,
) -> Settings {
    let lines = document.environment().into_iter().map(|line| Given {
        key: line.key,
        value: line.value,
        origin: Origin::File(conf.path().to_owned(), line.line),
    });
    // A later line wins, as it does in LXC.
    let lines: Vec<Given> = lines.rev().collect();
    Settings::load(root(), call, lines, environment, Some(ctid))
}

/// The process environment; what is no UTF-8 is none of ours.
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// Fails unless we are root.
///
/// # Errors
/// [`Code::General`].
pub fn must_be_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Fault::new(Code::General, "this needs root").remedy("run it with sudo, or as root").into())
}

/// Fails without quorum: then nothing in /etc/pve can be changed, and `pct`
/// says no more than that permission is denied.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn must_have_quorum(look: &Look<'_>) -> anyhow::Result<()> {
    if cluster::has_quorum(look) {
        return Ok(());
    }
    let message = "this node has no quorum, so /etc/pve is read-only; nothing was changed";
    Err(Fault::new(Code::Passthrough, message).remedy("pvecm status").into())
}

/// Fails where a call by hand could not edit the conf, so that nothing else is
/// begun and `plan` can tell.
///
/// # Errors
/// [`Code::Passthrough`].
pub fn must_be_editable(conf: &Conf, document: &Document) -> anyhow::Result<()> {
    conf.may_edit(Caller::ByHand, document)?;
    must_have_quorum(&Look::new(root()))
}

/// The time limits of a restart, from the settings.
pub fn patience(settings: &Settings) -> Patience {
    Patience {
        timeout: settings.value(keys::RESTART_TIMEOUT),
        interval: settings.value(keys::RESTART_INTERVAL),
        start: settings.value(keys::PRE_START_TIMEOUT) + settings.value(keys::INSTALL_WAIT),
    }
}

/// What tells a container from another one that had its number before: its
/// name and its hardware addresses, which Proxmox gives anew to each.
pub fn whom(conf: &Document) -> String {
    let address = |n: u32| {
        let net = conf.get(&format!("net{n}"))?;
        net.split(',').find_map(|part| part.trim().strip_prefix("hwaddr=").map(str::to_owned))
    };
    let words = conf.get("hostname").into_iter().chain((0..32).filter_map(address));
    words.collect::<Vec<_>>().join(" ")
}

/// A time span in whole words for messages about how long something took.
pub fn since(begun: std::time::Instant) -> String {
    crate::sys::time::human(begun.elapsed())
}

/// Runs a part of a start; a bug of ours in it is an error like another, since
/// a start must not fail for it.
///
/// # Errors
/// Those of `part`; [`Code::General`] when it panicked.
pub fn caught<T>(part: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(part)).unwrap_or_else(|_| {
        Err(Fault::new(Code::General, "a fault inside phoenix-nvidia; the lines above say where")
            .remedy("report it, with those lines")
            .into())
    })
}

/// Notes in the state how something ended.
pub fn outcome(state: &mut State, phase: &str, result: &anyhow::Result<()>, begun: std::time::Instant) {
    phase.clone_into(&mut state.phase);
    state.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(()) => {
            // The driver may be right and a device missing all the same.
            state.outcome = if state.start_warning.is_some() { Outcome::Warning } else { Outcome::Ok };
            state.code = 0;
            state.message = state.start_warning.clone().unwrap_or_default();
        }
        Err(error) => {
            state.outcome = Outcome::Failed;
            state.code = exit::code_of(error) as u8;
            // First without, then cut: a half URL is not recognised any more.
            state.message = text::line(text::without_secrets(&exit::one_line(error)).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_like_another() {
        let error = caught::<()>(|| panic!("no such thing")).unwrap_err();
        assert_eq!(exit::code_of(&error), Code::General);
        assert_eq!(caught(|| Ok(3)).unwrap(), 3);
    }

    #[test]
    fn a_driver_that_is_right_does_not_hide_a_missing_device() {
        let mut state = State { start_warning: Some("GPU 7 is missing".into()), ..State::default() };
        outcome(&mut state, "check", &Ok(()), std::time::Instant::now());
        assert_eq!((state.outcome, state.message.as_str()), (Outcome::Warning, "GPU 7 is missing"));
    }
}
