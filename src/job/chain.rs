//! `HOOK_CHAIN`: the user's own hookscript beside ours. Proxmox allows one
//! hookscript per container, and people have theirs.

use crate::exit::{Code, Fault};
use crate::settings::{Origin, Settings, keys};
use crate::sys::look::View;
use crate::sys::look::{Look, Op, Question, Seen};
use crate::sys::process::Ended;
use crate::sys::spawn;
use crate::sys::text;
use crate::types::{Ctid, Phase};
use std::fmt;
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
    // A value that is no path counts as none, as any that cannot be read.
    let (Some(program), Some((_, origin))) =
        (settings.value(keys::HOOK_CHAIN), settings.text(keys::HOOK_CHAIN))
    else {
        return Ok(());
    };
    let path = program.display();
    let here = format!("{ctid} {phase}");
    if std::env::var_os(INSIDE).is_some_and(|v| v == here.as_str()) {
        log::warn!("HOOK_CHAIN={path} ({origin}) calls phoenix-nvidia again: not run a second time");
        return Ok(());
    }
    let ended =
        spawn::hand_over(&program, &[ctid.to_string(), phase.to_string()], (INSIDE, &here)).map_err(|e| {
            Fault::new(Code::General, format!("cannot run chained hookscript {path}: {e}"))
                .remedy(format!("correct the path or remove HOOK_CHAIN from {origin}"))
        })?;
    if ended == Ended::Code(0) {
        return Ok(());
    }
    Err(Fault::new(Code::General, format!("chained hookscript {path} failed in {phase}: {ended}"))
        .remedy(format!("correct the script or remove HOOK_CHAIN from {origin}"))
        .into())
}

/// Why the chained hookscript cannot run, and with it no start succeeds.
#[derive(Debug)]
pub struct Lacks {
    path: PathBuf,
    what: &'static str,
    origin: Origin,
}

/// The questions of [`lacks`], for a look at many: the script may lie on a storage.
pub fn questions(settings: &Settings) -> Vec<Question> {
    let path = settings.value(keys::HOOK_CHAIN);
    path.iter().map(|path| Question::new(Op::Stat, path.to_string_lossy())).collect()
}

/// A look at the chained hookscript alone.
pub fn look(settings: &Settings) -> Look<'static> {
    Look::at_files(View::host(), questions(settings))
}

/// The chained hookscript and why it could not be looked at, if it could not.
pub fn unseen(look: &Look, settings: &Settings) -> Option<(String, String)> {
    let path = settings.value(keys::HOOK_CHAIN)?.to_string_lossy().into_owned();
    match look.stat(&path) {
        Seen::Unseen(why) => Some((path, why)),
        _ => None,
    }
}

/// What keeps the chained hookscript from being run, if anything does.
pub fn lacks(look: &Look, settings: &Settings) -> Option<Lacks> {
    let path = settings.value(keys::HOOK_CHAIN)?;
    let (_, origin) = settings.text(keys::HOOK_CHAIN)?;
    let what = match look.stat(&path.to_string_lossy()) {
        Seen::Is(stat) if !stat.is_file() => "is not a file",
        Seen::Is(stat) if stat.mode & 0o111 == 0 => "is not executable",
        Seen::Absent => "does not exist",
        Seen::Is(_) | Seen::Unseen(_) => return None,
    };
    Some(Lacks { path, what, origin })
}

impl Lacks {
    /// What fixes it.
    pub fn remedy(&self) -> String {
        match self.what {
            "is not executable" => format!("chmod 755 {}", text::word(&self.path.to_string_lossy())),
            _ => format!("correct the path or remove HOOK_CHAIN from {}", self.origin),
        }
    }

    /// The same as a fault of the settings.
    pub fn fault(&self) -> Fault {
        Fault::new(Code::Input, self.to_string()).remedy(self.remedy())
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, what, origin) = (self.path.display(), self.what, &self.origin);
        write!(f, "HOOK_CHAIN={path} ({origin}) {what}: every start fails")
    }
}
