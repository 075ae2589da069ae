//! `HOOK_CHAIN`: the user's own hookscript beside ours. Proxmox allows one
//! hookscript per container, and people have theirs.

use crate::exit::{Code, Fault};
use crate::pve::startable::Obstacle;
use crate::settings::{Settings, keys};
use crate::sys::look::{Look, Op, Question, Seen, View};
use crate::sys::process::Ended;
use crate::sys::{spawn, text};
use crate::types::{Ctid, Phase};

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

/// What [`obstacle`] asks, for a look at many: the script may lie on a storage.
pub fn questions(settings: &Settings) -> Vec<Question> {
    let path = settings.value(keys::HOOK_CHAIN);
    path.iter().map(|path| Question::new(Op::Stat, path.to_string_lossy())).collect()
}

/// What keeps the chained hookscript from being run, and with it every start;
/// or what keeps us from knowing that.
pub fn obstacle(look: &Look<'_>, settings: &Settings) -> Option<Obstacle> {
    let path = settings.value(keys::HOOK_CHAIN)?;
    let (_, origin) = settings.text(keys::HOOK_CHAIN)?;
    let path = path.to_string_lossy().into_owned();
    let correct = || format!("correct the path or remove HOOK_CHAIN from {origin}");
    let (what, fix) = match look.stat(&path) {
        Seen::Is(stat) if !stat.is_file() => ("is not a file", correct()),
        Seen::Is(stat) if stat.mode & 0o111 == 0 => {
            ("is not executable", format!("chmod 755 {}", text::word(&path)))
        }
        Seen::Is(_) => return None,
        Seen::Absent => ("does not exist", correct()),
        Seen::Unseen(why) => {
            return Some(Obstacle::Silent { key: keys::HOOK_CHAIN.name.to_owned(), source: path, why });
        }
    };
    Some(Obstacle::Chain { why: format!("HOOK_CHAIN={path} ({origin}) {what}: every start fails"), fix })
}

/// Fails if the chained hookscript cannot be run.
///
/// # Errors
/// [`Code::Input`].
pub fn validate(settings: &Settings) -> anyhow::Result<()> {
    let look = Look::at_files(View::host(), questions(settings));
    match obstacle(&look, settings) {
        Some(Obstacle::Chain { why, fix }) => Err(Fault::new(Code::Input, why).remedy(fix).into()),
        _ => Ok(()),
    }
}
