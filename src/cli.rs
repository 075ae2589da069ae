//! What the command line looks like; nothing else.

use crate::types::{Ctid, Phase};
use clap::{Args, Parser, Subcommand};

/// NVIDIA GPUs and the matching driver for Proxmox VE containers
///
/// Attached as a container's hookscript it works by itself at every start.
/// Called with a CTID it does the same at once: configure, install, restart
/// if needed, verify.
#[derive(Debug, Parser)]
#[command(
    name = "phoenix-nvidia",
    version,
    max_term_width = 80,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "phoenix-nvidia [-v] CTID\n       phoenix-nvidia CTID PHASE\n       phoenix-nvidia COMMAND ...",
    after_help = AFTER
)]
pub struct Cli {
    /// Show what is done in detail
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// The container and, when Proxmox calls, the phase
    #[command(flatten)]
    pub hook: Option<Target>,

    /// Instead of a CTID: a command
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A container and, in a hook, the phase.
#[derive(Args, Debug)]
pub struct Target {
    /// The container's number
    #[arg(value_name = "CTID", required = true)]
    pub ctid: Ctid,

    /// Given by Proxmox: pre-start, post-start, pre-stop or post-stop
    #[arg(value_name = "PHASE")]
    pub phase: Option<Phase>,
}

/// What else there is to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the device nodes of all cards, as at boot
    ///
    /// Loads the kernel modules and makes the nodes that are missing, through
    /// nvidia-modprobe where it is installed. Changes nothing that is right.
    Prepare,

    /// Install the driver in a container; what post-start starts
    #[command(hide = true)]
    Install {
        /// The container's number
        ctid: Ctid,
    },
}

const AFTER: &str = "\
Exit codes:
  0 success            4 host passthrough configuration failed
  1 general error      5 NVIDIA software in the container failed
  2 invalid input      6 the container did not stop or start
  3 no such container

Examples:
  phoenix-nvidia 101
  GPU_ASSIGNMENT=0,1 phoenix-nvidia 101
  pct set 101 --hookscript local:snippets/phoenix-nvidia

See phoenix-nvidia(8) and phoenix-nvidia.env(5).";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(words: &[&str]) -> Result<Cli, clap::error::ErrorKind> {
        Cli::try_parse_from([&["phoenix-nvidia"], words].concat()).map_err(|e| e.kind())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_or_two_words_are_a_container_and_a_phase() {
        let target = parse(&["101", "pre-start"]).unwrap().hook.unwrap();
        assert_eq!((target.ctid.get(), target.phase), (101, Some(Phase::PreStart)));
        assert_eq!(parse(&["101"]).unwrap().hook.unwrap().phase, None);
        let newer = parse(&["101", "pre-migrate"]).unwrap().hook.unwrap();
        assert_eq!(newer.phase, Some(Phase::Unknown("pre-migrate".into())));
    }

    #[test]
    fn none_more_or_a_bad_ctid_are_usage_errors() {
        for words in [&[][..], &["abc"], &["0"], &["-5"], &["101", "pre-start", "x"], &["101", "--nope"]] {
            let error = Cli::try_parse_from([&["phoenix-nvidia"], words].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
