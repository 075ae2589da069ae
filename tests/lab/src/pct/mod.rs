//! The lab's `pct`: the command line of Proxmox' container tool over real LXC.
//!
//! It keeps what phoenix-nvidia depends on: the order of the steps of a start, the lock and who holds it, the generated
//! config, the rewriting of the conf, the hookscript's environment, the messages and the exit codes. What it says and
//! does was written from recordings of the genuine program; `tests/lab_recorded` compares.

mod args;
mod cluster;
mod conf;
mod create;
mod device;
mod disk;
mod exec;
mod generate;
mod hook;
mod hooks;
mod lifecycle;
mod lock;
mod lxc;
mod query;
mod schema;
mod set;
mod storage;
mod supervise;
mod text;
mod worker;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use args::Args;
pub(crate) use lxc::listens;

/// What the genuine program sets in its own environment, for every program that it runs.
const ENVIRONMENT: [(&str, &str); 3] =
    [("LC_ALL", "C"), ("LVM_SUPPRESS_FD_WARNINGS", "1"), ("PATH", "/sbin:/bin:/usr/sbin:/usr/bin")];

/// An end with a message and an exit code, as Perl's `die` gives it.
#[derive(Debug)]
struct Die {
    message: String,
    code: u8,
}

impl fmt::Display for Die {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Die {}

/// The error of most failures: exit code 255.
fn die(message: impl Into<String>) -> anyhow::Error {
    die_with(255, message)
}

/// The error whose exit code is an errno that happened to be set.
fn die_with(code: u8, message: impl Into<String>) -> anyhow::Error {
    Die { message: message.into(), code }.into()
}

/// A line to stdout. Whoever closed it does not want it.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A line to stderr.
fn warn(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs as whatever name this program was called by.
pub fn main() -> ExitCode {
    let mut argv = std::env::args();
    let name = argv.next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let rest: Vec<String> = argv.collect();
    let done = match name.as_str() {
        "lxc-pve-prestart-hook" => hooks::prestart(&rest),
        "lxc-pve-autodev-hook" => hooks::autodev(&rest),
        "lxc-pve-poststop-hook" => hooks::poststop(&rest),
        "lab-start-host" => hooks::start_host(&rest),
        "lxcnetaddbr" => hooks::bridge(&rest),
        "pvesm" => storage::pvesm(&rest),
        _ => run(&rest),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            warn(&format!("{error:#}"));
            ExitCode::from(error.downcast_ref::<Die>().map_or(255, |die| die.code))
        }
    }
}

fn run(argv: &[String]) -> Result<u8> {
    let Some((verb, rest)) = argv.split_first() else {
        warn("ERROR: no command specified\nUSAGE: pct <COMMAND> [ARGS] [OPTIONS]");
        return Ok(255);
    };
    match verb.as_str() {
        "__worker" => return worker::work(rest),
        "__supervise" => return supervise::supervise(rest),
        _ => {}
    }
    count(argv);
    perl();
    let args = Args::parse(verb, rest)?;
    match verb.as_str() {
        "status" => query::status(&args),
        "config" => query::config(&args),
        "pending" => query::pending(&args),
        "list" => query::list(),
        "listsnapshot" => query::snapshots(&args),
        "set" => set::set(&args),
        "unlock" => set::unlock(&args),
        "exec" => exec::exec(&args),
        "push" => exec::push(&args),
        "pull" => exec::pull(&args),
        "start" | "stop" | "shutdown" | "reboot" => lifecycle::call(verb, &args),
        "create" => create::create(&args),
        "destroy" => create::destroy(&args),
        "clone" => create::clone(&args),
        "template" => create::template(&args),
        "snapshot" => create::snapshot(&args),
        "rollback" => create::rollback(&args),
        "delsnapshot" => create::delete_snapshot(&args),
        other => {
            warn(&format!("ERROR: unknown command 'pct {other}'\nUSAGE: pct <COMMAND> [ARGS] [OPTIONS]"));
            Ok(255)
        }
    }
}

/// Notes the call, for tests that count them.
fn count(argv: &[String]) {
    let line = format!("{}\n", argv.join(" ").replace('\n', "\\n"));
    if let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open("/run/lab/calls") {
        let _ = log.write_all(line.as_bytes());
    }
}

/// The time that Perl takes to start, if the file /run/lab/perl (milliseconds) asks for it.
fn perl() {
    let asked = std::fs::read_to_string("/run/lab/perl").ok().and_then(|text| text.trim().parse().ok());
    if let Some(milliseconds) = asked {
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
    }
}
