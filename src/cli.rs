//! What the command line looks like; nothing else.

use crate::device::assignment::Assignment;
use crate::host::choose::Capabilities;
use crate::types::{Ctid, Line, Phase, Version};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

/// NVIDIA GPUs and the matching driver for Proxmox VE containers
///
/// As a container's hookscript it runs at every start of the container.
/// Called with a CTID it does the same now: configure, install, restart if
/// needed, verify.
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
    /// Show each step in detail
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// The container and, in a hook, the phase
    #[command(flatten)]
    pub hook: Option<Target>,

    /// The command
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
            let message = "give the CTID after the command";
            return Err(Cli::command().error(clap::error::ErrorKind::ArgumentConflict, message));
        }
        Ok(self)
    }
}

/// A container and, in a hook, the phase.
#[derive(Args, Debug)]
pub struct Target {
    /// Container ID
    #[arg(value_name = "CTID", required = true)]
    pub ctid: Ctid,

    /// From Proxmox: pre-start, post-start, pre-stop or post-stop
    #[arg(value_name = "PHASE")]
    pub phase: Option<Phase>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give containers GPUs: write their settings and set the hookscript
    Attach(Attach),
    /// Remove settings, device entries and hookscript from containers
    ///
    /// Device entries that the conf had before attach come back; until then they stand in it as
    /// PHOENIX_NVIDIA_BEFORE. A container that is not attached keeps its device entries.
    ///
    /// In a running container the files of phoenix-nvidia are removed too: the apt source with its key and login,
    /// the apt preferences, and /var/lib/phoenix-nvidia. For a stopped one they are named, and the same command
    /// removes them once it runs. The driver and what apt installed stay, with the commands that remove them.
    Detach(Detach),
    /// Bring a running container to its settings without a restart
    ///
    /// Cards are added and taken away, and the host's driver files are exchanged.
    /// MIG instances and DRM nodes wait for the next start, and so do driver files
    /// that a process in the container uses. A card that is in use stays, unless
    /// with --force. Nothing is installed.
    Apply {
        /// Container ID
        #[arg(value_name = "CTID")]
        ctid: Ctid,
        /// Take cards away that are in use: what has them open keeps them
        #[arg(long)]
        force: bool,
    },
    /// Show what `phoenix-nvidia CTID` would change, and change nothing
    Plan {
        /// Container ID
        #[arg(value_name = "CTID")]
        ctid: Ctid,
    },
    /// List containers with their GPUs, driver and state
    Status {
        /// Container IDs; default: all with settings, entries or hookscript
        #[arg(value_name = "CTID")]
        ctids: Vec<Ctid>,
        /// Print JSON, described in phoenix-nvidia(8)
        #[arg(long)]
        json: bool,
    },
    /// Find what is wrong, with the cause and the command that repairs it
    Doctor {
        /// Container ID; default: all with settings, entries or hookscript
        #[arg(value_name = "CTID")]
        ctid: Option<Ctid>,
        /// Print JSON, described in phoenix-nvidia(8)
        #[arg(long)]
        json: bool,
    },
    /// Make missing device nodes and driver copies, as at boot
    ///
    /// Loads the kernel modules and makes missing or wrong nodes, with
    /// nvidia-modprobe if it is installed. Where a container has
    /// DRIVER_MODE=inject, also copies and mounts the driver files for it; if the
    /// host has none, they are unpacked from NVIDIA's runfile, which is downloaded.
    /// Adds files of the same driver that this host got later: containers have
    /// those after their next start.
    Prepare,
    /// Fetch drivers ahead, so that starts need no network
    ///
    /// Without a version: NVIDIA_DRIVER_VERSION, and for `host` the loaded
    /// driver and the one that the next boot loads. Of both the driver files for
    /// containers are made ready too, where one has DRIVER_MODE=inject.
    Prefetch {
        /// The driver versions
        #[arg(value_name = "VERSION")]
        versions: Vec<Version>,
    },
    /// Keep the loaded driver's files for containers, called by apt before it
    /// replaces them
    #[command(hide = true)]
    Keep,
    /// Read files that may never answer, for the calling process
    #[command(hide = true)]
    Look,
    /// Look at a running container's processes or mount something in it, for the
    /// calling process
    #[command(hide = true)]
    Live,
    /// Install the driver in a container, started by post-start
    #[command(hide = true)]
    Install {
        /// Container ID
        ctid: Ctid,
    },
}

/// `attach`.
#[derive(Args, Debug)]
pub struct Attach {
    /// Container IDs
    #[arg(value_name = "CTID", required = true)]
    pub ctids: Vec<Ctid>,

    /// GPUs: none, all, or indices, UUIDs, PCI addresses, MIG instances
    #[arg(long, value_name = "LIST")]
    pub gpus: Option<Assignment>,

    /// Write UUIDs instead of indices, which can change
    #[arg(long, requires = "gpus")]
    pub by_uuid: bool,

    /// Use of the GPUs: compute, utility, graphics, display, or all
    #[arg(long, value_name = "LIST")]
    pub capabilities: Option<Capabilities>,

    /// CUDA from apt: none, toolkit, or package names
    #[arg(long, value_name = "PACKAGES")]
    pub cuda: Option<Line>,

    /// Driver in the container: a version, or host
    #[arg(long, value_name = "VERSION")]
    pub driver: Option<Line>,

    /// Mount the host's driver files instead of an install: DRIVER_MODE=inject
    #[arg(long, conflicts_with = "install")]
    pub inject: bool,

    /// Install the driver in the container: DRIVER_MODE=install
    #[arg(long)]
    pub install: bool,

    /// Give Docker and Podman in the container the GPUs: NESTED=cdi
    #[arg(long)]
    pub nested: bool,

    /// The same, and put a description of NVIDIA's toolkit aside: NESTED=replace
    #[arg(long, conflicts_with = "nested")]
    pub nested_replace: bool,

    /// Leave Docker and Podman alone: NESTED=none
    #[arg(long, conflicts_with_all = ["nested", "nested_replace"])]
    pub no_nested: bool,

    /// Storage for the hookscript
    #[arg(long, value_name = "ID")]
    pub storage: Option<Line>,

    /// Keep the container's own hookscript: both run
    #[arg(long)]
    pub chain: bool,

    /// Start or restart the containers now, and wait for the install
    #[arg(long)]
    pub now: bool,

    /// Change those that run without a restart, as `apply` does
    #[arg(long, conflicts_with = "now")]
    pub live: bool,
}

/// `detach`.
#[derive(Args, Debug)]
pub struct Detach {
    /// Container IDs
    #[arg(value_name = "CTID", required = true)]
    pub ctids: Vec<Ctid>,

    /// Keep the driver in the container, and apt from replacing it
    #[arg(long)]
    pub keep_driver: bool,

    /// Take the GPUs away from those that run, without a restart
    #[arg(long)]
    pub live: bool,

    /// With --live: also cards that are in use
    #[arg(long, requires = "live")]
    pub force: bool,
}

const AFTER: &str = "\
Exit codes:
  0 success            4 host passthrough configuration failed
  1 general error      5 NVIDIA software in the container failed
  2 invalid input      6 the container did not stop or start
  3 no such container  10 plan only: changes pending

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
