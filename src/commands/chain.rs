//! `HOOK_CHAIN`: the user's own hookscript beside ours. Proxmox allows one
//! hookscript per container, and people have theirs.

use crate::exit::{Code, Fault};
use crate::settings::{Settings, keys};
use crate::sys::process::Ended;
use crate::sys::spawn;
use crate::types::{Ctid, Phase};
use std::path::PathBuf;

/// Tells a chained script's own call of ours, or a HOOK_CHAIN that leads back
/// to us, from Proxmox's: neither may go round for ever.
const INSIDE: &str = "PHOENIX_NVIDIA_CHAIN";

/// Runs the chained hookscript, if the settings name one, with our arguments,
/// environment and output, and without a deadline: it is the user's.
///
/// # Errors
/// [`Code::General`] when it cannot be run or fails.
pub fn run(settings: &Settings, ctid: Ctid, phase: &Phase) -> anyhow::Result<()> {
    let Some((path, origin)) = settings.text(keys::HOOK_CHAIN).filter(|(text, _)| !text.is_empty()) else {
        return Ok(());
    };
    let here = format!("{ctid} {phase}");
    if std::env::var_os(INSIDE).is_some_and(|v| v == here.as_str()) {
        log::warn!("HOOK_CHAIN={path} ({origin}) leads back to phoenix-nvidia; it is not called again");
        return Ok(());
    }
    let fault = |why: String| {
        Fault::new(Code::General, format!("the chained hookscript {path} {why}"))
            .remedy(format!("mend it, or take HOOK_CHAIN out of {origin}"))
    };
    let program = PathBuf::from(path);
    if !program.is_absolute() {
        return Err(fault("is not an absolute path".into()).into());
    }
    let ended = spawn::hand_over(&program, &[ctid.to_string(), phase.to_string()], (INSIDE, &here))
        .map_err(|e| fault(format!("cannot be run: {e}")))?;
    if ended == Ended::Code(0) {
        return Ok(());
    }
    Err(fault(format!("failed in {phase}: {ended}")).into())
}
