//! Commands and files into a running container and out of it.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::args::Args;
use super::conf::Conf;
use super::{die, lock, lxc};

/// `pct exec N -- COMMAND…`: becomes lxc-attach after two checks.
pub(super) fn exec(args: &Args) -> Result<u8> {
    Conf::load(args.id)?;
    args.word(0)?;
    if !lxc::running(args.id) {
        return Err(die(format!("container '{}' not running!", args.id)));
    }
    let mut command = attach(args.id);
    let error = command.args(&args.words).exec();
    Err(error).context("lxc-attach")
}

fn attach(id: u32) -> Command {
    let mut command = Command::new("lxc-attach");
    command.args(["-n", &id.to_string(), "--keep-env", "--"]);
    // The environment of Proxmox' own processes, which the command inherits.
    command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    for (key, value) in super::ENVIRONMENT {
        command.env(key, value);
    }
    command
}

/// `pct push N FILE DESTINATION`
pub(super) fn push(args: &Args) -> Result<u8> {
    let (from, to) = (args.word(0)?, args.word(1)?);
    let _held = lock::take(args.id)?;
    running(args)?;
    let file = File::open(from).with_context(|| format!("failed to open {from}"))?;
    let mode = args.get("perms").unwrap_or("644");
    let status = attach(args.id)
        .args(["sh", "-c", "cat >\"$0\" && chmod \"$1\" \"$0\"", to, mode])
        .stdin(file)
        .status()?;
    if status.success() { Ok(0) } else { Err(die(format!("failed to create {to} in the container"))) }
}

/// `pct pull N PATH DESTINATION`
pub(super) fn pull(args: &Args) -> Result<u8> {
    let (from, to) = (args.word(0)?, args.word(1)?);
    let _held = lock::take(args.id)?;
    running(args)?;
    let file = File::create(to).with_context(|| format!("failed to create {to}"))?;
    let status = attach(args.id).args(["cat", from]).stdin(Stdio::null()).stdout(file).status()?;
    if status.success() { Ok(0) } else { Err(die(format!("failed to open {from} in the container"))) }
}

fn running(args: &Args) -> Result<()> {
    Conf::load(args.id)?;
    if lxc::running(args.id) {
        Ok(())
    } else {
        Err(die("can only push files to a running CT".replace("push", &args.verb)))
    }
}
