//! What the command line looks like; nothing else.

use crate::device::assignment::Assignment;
use crate::types::{Ctid, Line, Phase, Version};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

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
    subcommand_negates_reqs = true,
    subcommand_precedence_over_arg = true,
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

impl Cli {
    /// Refuses a CTID together with a command. clap's own way of saying that
    /// they exclude each other takes the command of `-v prepare` for a CTID.
    ///
    /// # Errors
    /// A usage error.
    pub fn sound(self) -> Result<Cli, clap::Error> {
        if self.hook.is_some() && self.command.is_some() {
            let message = "a CTID comes after a command, not before it";
            return Err(Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        Ok(self)
    }
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
    /// Give containers their GPUs: settings and hookscript, in one step
    Attach(Attach),
    /// Take from containers all that attach and the starts gave them
    Detach(Detach),
    /// Say what a run for a container would do, and do nothing
    Plan {
        /// The container's number
        #[arg(value_name = "CTID")]
        ctid: Ctid,
    },
    /// Show the containers that have GPUs, and how they fare
    Status {
        /// The containers' numbers; all that have settings if there is none
        #[arg(value_name = "CTID")]
        ctids: Vec<Ctid>,
        /// Print JSON, as phoenix-nvidia(8) describes it
        #[arg(long)]
        json: bool,
    },
    /// Look for what is wrong, say why, and what mends it
    Doctor {
        /// The container's number; all that have settings if there is none
        #[arg(value_name = "CTID")]
        ctid: Option<Ctid>,
        /// Print JSON, as phoenix-nvidia(8) describes it
        #[arg(long)]
        json: bool,
    },
    /// Make the device nodes of all cards, as at boot
    ///
    /// Loads the kernel modules and makes the nodes that are missing, through
    /// nvidia-modprobe where it is installed. Changes nothing that is right.
    Prepare,
    /// Fetch drivers ahead, so that the next starts need no network
    ///
    /// Without a version: what NVIDIA_DRIVER_VERSION says, and for `host` the
    /// driver that is loaded and the one that the next boot will load.
    Prefetch {
        /// The drivers' versions
        #[arg(value_name = "VERSION")]
        versions: Vec<Version>,
    },
    /// Read files that may never answer, for another process of ours
    #[command(hide = true)]
    Look,
    /// Install the driver in a container; what post-start starts
    #[command(hide = true)]
    Install {
        /// The container's number
        ctid: Ctid,
    },
}

/// `attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// The containers' numbers
    #[arg(value_name = "CTID", required = true)]
    pub ctids: Vec<Ctid>,

    /// The GPUs: none, all, or indices, UUIDs, PCI addresses, MIG instances
    #[arg(long, value_name = "LIST")]
    pub gpus: Option<Assignment>,

    /// Write the GPUs' UUIDs instead of indices, which can change
    #[arg(long, requires = "gpus")]
    pub by_uuid: bool,

    /// CUDA from apt: none, toolkit, or names of packages
    #[arg(long, value_name = "PACKAGES")]
    pub cuda: Option<Line>,

    /// The driver in the container: a version, or host
    #[arg(long, value_name = "VERSION")]
    pub driver: Option<Line>,

    /// The storage that the hookscript goes to
    #[arg(long, value_name = "ID")]
    pub storage: Option<Line>,

    /// Keep the container's own hookscript and run it too
    #[arg(long)]
    pub chain: bool,

    /// Start or restart the containers now, and follow that to its end
    #[arg(long)]
    pub now: bool,
}

/// `detach`.
#[derive(Args, Debug)]
pub struct Detach {
    /// The containers' numbers
    #[arg(value_name = "CTID", required = true)]
    pub ctids: Vec<Ctid>,

    /// The driver in the container stays: don't say how to remove it
    #[arg(long)]
    pub keep_driver: bool,
}

const AFTER: &str = "\
Exit codes:
  0 success            4 host passthrough configuration failed
  1 general error      5 NVIDIA software in the container failed
  2 invalid input      6 the container did not stop or start
  3 no such container  10 plan only: there is something to do

Examples:
  phoenix-nvidia 101
  GPU_ASSIGNMENT=0,1 phoenix-nvidia 101
  phoenix-nvidia attach 101 --gpus 0,1 --now
  phoenix-nvidia doctor 101

See phoenix-nvidia(8) and phoenix-nvidia.env(5).";

#[cfg(test)]
mod tests {
    use super::*;

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
    fn verbose_may_stand_before_and_after_a_command() {
        for words in [&["-v", "prepare"][..], &["prepare", "-v"]] {
            let cli = parse(words).unwrap();
            assert!(cli.verbose && matches!(cli.command, Some(Command::Prepare)), "{words:?}");
        }
    }

    #[test]
    fn a_container_and_a_command_are_not_both() {
        let cli = Cli::try_parse_from(["phoenix-nvidia", "101", "prepare"]).and_then(Cli::sound);
        assert_eq!(cli.unwrap_err().exit_code(), 2);
    }

    #[test]
    fn none_more_or_a_bad_ctid_are_usage_errors() {
        for words in [&[][..], &["abc"], &["0"], &["-5"], &["101", "pre-start", "x"], &["101", "--nope"]] {
            let error = Cli::try_parse_from([&["phoenix-nvidia"], words].concat()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
