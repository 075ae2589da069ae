//! One file a verb. Each returns the exit code; only [`main`] ends with it.

pub mod apply;
pub mod attach;
pub mod detach;
pub mod doctor;
pub mod hook;
pub mod keep;
pub mod live;
pub mod look;
pub mod plan;
pub mod prefetch;
pub mod prepare;
pub mod run;
pub mod status;

use crate::cli::{Cli, Command};
use crate::exit::{self, Code, Fault};
use crate::job::worker;
use crate::sys::{log, signal, spawn};
use clap::Parser as _;
use std::process::ExitCode;

/// Parses the command line, runs what it says, and tells how that ended.
pub fn main() -> ExitCode {
    if look::is_asked_for() {
        look::run();
        return ExitCode::SUCCESS;
    }
    if let Some(word) = live::asked_for() {
        live::run(&word);
        return ExitCode::SUCCESS;
    }
    signal::catch();
    log::tame_panics();
    spawn::keep_others_out();
    let cli = match Cli::try_parse().and_then(Cli::sound) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; clap knows the code.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let ctid = cli.hook.as_ref().map(|t| t.ctid);
    log::init(match &cli.command {
        Some(Command::Install { ctid }) => worker::log_options(*ctid, cli.verbose),
        _ => log::Options {
            subject: ctid.map(|c| c.to_string()),
            verbose: cli.verbose,
            stderr: shows_result(&cli).then_some(::log::LevelFilter::Warn),
            ..Default::default()
        },
    });
    let result = exit::caught(|| run(cli));
    finish(result)
}

/// Whether the result is on stdout, so that only warnings belong beside it.
fn shows_result(cli: &Cli) -> bool {
    matches!(cli.command, Some(Command::Plan { .. } | Command::Status { .. } | Command::Doctor { .. }))
}

fn run(cli: Cli) -> anyhow::Result<Code> {
    let is_hook = cli.hook.as_ref().is_some_and(|target| target.phase.is_some());
    if !is_hook {
        must_be_root()?;
    }
    match (cli.hook, cli.command) {
        (Some(target), None) => match target.phase {
            Some(phase) => hook::run(target.ctid, &phase),
            None => run::run(target.ctid),
        },
        (_, Some(Command::Install { ctid })) => worker::run(ctid),
        // Only with other words beside it; there is nothing to be said then.
        (_, Some(Command::Look | Command::Live)) => Ok(Code::Input),
        (_, Some(Command::Prepare)) => prepare::run(),
        (_, Some(Command::Keep)) => keep::run(),
        (_, Some(Command::Prefetch { versions })) => prefetch::run(&versions),
        (_, Some(Command::Attach(options))) => {
            let now = attach::run(&options)?;
            now.into_iter().try_fold(Code::Success, |_, ctid| match options.live {
                true => apply::run(ctid, false),
                false => run::run(ctid),
            })
        }
        (_, Some(Command::Detach(options))) => detach::run(&options),
        (_, Some(Command::Apply { ctid, force })) => apply::run(ctid, force),
        (_, Some(Command::Plan { ctid })) => plan::run(ctid),
        (_, Some(Command::Status { ctids, json })) => status::run(&ctids, json),
        (_, Some(Command::Doctor { ctid, json })) => doctor::run(ctid, json),
        // clap demands one of them.
        (None, None) => Ok(Code::Input),
    }
}

/// Fails unless we are root. Proxmox calls the hook as root.
///
/// # Errors
/// [`Code::General`].
fn must_be_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Fault::new(Code::General, "root required").remedy("run it with sudo, or as root").into())
}

/// The requirements' `exit_script`: the one place that tells the outcome and
/// flushes the log.
fn finish(result: anyhow::Result<Code>) -> ExitCode {
    let code = match result {
        Ok(code) => code,
        Err(error) => {
            exit::tell(::log::Level::Error, &error);
            let code = exit::code_of(&error);
            ::log::debug!("exit code {}: {}", code as u8, code.meaning());
            code
        }
    };
    ::log::logger().flush();
    code.into()
}
