//! Start, stop, shutdown and reboot: the order of their steps, all of it under the lock of the container.

use std::path::Path;

use anyhow::Result;

use super::args::Args;
use super::conf::{Conf, Section};
use super::worker::{self, Task};
use super::{die, disk, generate, hook, hooks, lock, lxc, say};

/// Seconds that a shutdown waits for the container to end by itself.
const PATIENCE: u64 = 60;

/// The caller's side: what is refused without a task, then the task.
pub(super) fn call(verb: &str, args: &Args) -> Result<u8> {
    Conf::load(args.id)?;
    let id = args.id;
    match (verb, lxc::running(id)) {
        ("start", true) => return Err(die(format!("CT {id} already running"))),
        ("start", false) | (_, true) => {}
        (_, false) => return Err(die(format!("CT {id} not running"))),
    }
    let kind = match verb {
        "start" => "vzstart",
        "stop" => "vzstop",
        "shutdown" => "vzshutdown",
        _ => "vzreboot",
    };
    worker::fork(kind, args)
}

/// The worker's side.
pub(super) fn perform(verb: &str, args: &Args, task: &mut Task) -> Result<()> {
    let id = args.id;
    let _held = lock::take(id)?;
    let mut conf = Conf::load(id)?;
    if let Some(word) = conf.current.get("lock").filter(|_| !args.flag("skiplock")) {
        return Err(die(format!("CT is locked ({word})")));
    }
    let patience = args.get("timeout").and_then(|text| text.parse().ok()).unwrap_or(PATIENCE);
    match verb {
        "start" => start(id, &mut conf, task),
        "stop" => stop(id, &conf.current, None),
        "shutdown" => match stop(id, &conf.current, Some(patience)) {
            Err(_) if args.flag("forceStop") && lxc::running(id) => lxc::stop(id, None),
            done => done,
        },
        _ => {
            stop(id, &conf.current, Some(patience))?;
            start(id, &mut conf, task)
        }
    }
}

fn start(id: u32, conf: &mut Conf, task: &mut Task) -> Result<()> {
    if lxc::running(id) {
        return Err(die(format!("CT {id} already running")));
    }
    if conf.current.flag("template") {
        return Err(die("you can't start a CT if it's a template"));
    }
    if conf.apply_pending() {
        conf.store(id)?;
    }
    let conf = &conf.current;
    generate::write(id, conf)?;
    hook::run(conf, id, "pre-start")?;
    lxc::start(id)?;
    if let Some(version) =
        systemd_version(conf).filter(|_| !conf.get("features").unwrap_or("").contains("nesting=1"))
    {
        task.warn(&format!("Systemd {version} detected. You may need to enable nesting."));
    }
    warn_only(hook::run(conf, id, "post-start"))?;
    // Last of all, and so later than any hook: addresses that the host asks for in the container's place.
    if !conf.numbered("net").iter().any(|(_, net)| net.contains("host-managed=1")) {
        return Ok(());
    }
    lxc::init(id).map_or(Ok(()), |pid| hooks::addresses(id, conf, &pid, true))
}

fn stop(id: u32, conf: &Section, patience: Option<u64>) -> Result<()> {
    if !lxc::running(id) {
        return Err(die(format!("CT {id} not running")));
    }
    warn_only(hook::run(conf, id, "pre-stop"))?;
    lxc::stop(id, patience)
}

/// A hookscript's failure that is shown and no more.
fn warn_only(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if error.is::<hook::Failed>() => {
            say(&format!("{error}\n"));
            Ok(())
        }
        done => done,
    }
}

/// The container's systemd, by the name of its shared library.
fn systemd_version(conf: &Section) -> Option<u32> {
    if conf.get("ostype") == Some("unmanaged") {
        return None;
    }
    let root = disk::root(conf)?;
    let dirs = ["usr/lib/systemd", "usr/lib/x86_64-linux-gnu/systemd"];
    let names = dirs
        .iter()
        .flat_map(|dir| std::fs::read_dir(Path::new(&root).join(dir)).into_iter().flatten().flatten());
    names
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix("libsystemd-shared-")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        })
        .next()
}
